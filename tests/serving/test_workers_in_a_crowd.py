"""No request waits while a worker sleeps or could be hired, whatever the others are doing.

Threads race here in earnest: as many handlers and callbacks block as there may be workers, between
others that do not, and each has to be reached. One at a time is done in test_workers.py.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Callable

import pytest

from revconn import Request
from revconn.runtime.threads import DaemonExecutor
from revconn.serving import workers as workers_module
from tests.support.calls import CallsLink, arrival, handlers_of, open_calls
from tests.support.threads import TIMEOUT, in_thread
from tests.support.waiting import eventually

MOST = 4
ROUNDS = 60
LINGER = 0.002
SHIFT = 0.003


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers come and go all the time, and threads take turns as often as they can."""
    monkeypatch.setattr(workers_module, "_LINGER", LINGER)
    monkeypatch.setattr(workers_module, "_SHIFT", SHIFT)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


class Crowd:
    """Blocks, until it is let go, in the handlers or callbacks of those that say so."""

    def __init__(self) -> None:
        self._blocked = threading.Semaphore(0)
        self._let_go = threading.Event()

    def __call__(self, request: Request) -> bytes:
        kind = request.request_id.partition("-")[0]
        if kind == "handler":
            self._block()
        elif kind == "callback":
            request.add_callback(self._block)
        elif kind == "slow":
            time.sleep(0.0005)
        return b""

    def _block(self) -> None:
        let_go = self._let_go
        self._blocked.release()
        assert let_go.wait(TIMEOUT)

    def blocks(self, count: int) -> bool:
        """Whether so many come to block at the same time."""
        return all(self._blocked.acquire(timeout=TIMEOUT) for _ in range(count))

    def let_go(self) -> None:
        let_go, self._let_go = self._let_go, threading.Event()
        let_go.set()


def send(link: CallsLink, sent: list[bytes]) -> None:
    """What a stream's sender does."""
    while (batch := link.line.take()) is not None:
        sent += batch


@pytest.mark.parametrize(
    ("new_executor", "new_recruiter"),
    [
        (lambda: DaemonExecutor(MOST, "revconn-test"), lambda: None),
        (lambda: ThreadPoolExecutor(MOST), lambda: None),
        (lambda: ThreadPoolExecutor(MOST), lambda: ThreadPoolExecutor(1)),
    ],
    ids=["own", "user's", "user's that may block"],
)
def test_all_that_may_run_at_once_do_and_each_is_answered(
    new_executor: Callable[[], Executor], new_recruiter: Callable[[], Executor | None]
) -> None:
    randomly = random.Random(7)
    crowd = Crowd()
    asked = 0
    executor = new_executor()
    options = {"max_workers": MOST, "max_in_flight": 1000, "recruiter": new_recruiter()}
    with open_calls(handlers_of(crowd), executor, **options) as calls:
        calls.start()
        links = [CallsLink(calls) for _ in range(2)]
        sent: list[bytes] = []
        senders = [in_thread(send, link, sent) for link in links]

        def bring(link: CallsLink, request_ids: list[str], seed: int) -> None:
            pauses = random.Random(seed)
            while request_ids:
                link.brings(*map(arrival, request_ids[:2]))
                del request_ids[:2]
                if pauses.random() < 0.3:
                    time.sleep(pauses.random() * 2 * LINGER)
                    calls.workers.forget_settled()

        try:
            for number in range(ROUNDS):
                blocking = randomly.randint(1, MOST)
                kinds = randomly.choices(("handler", "callback"), k=blocking)
                kinds += randomly.choices(("slow", "quick"), k=randomly.randint(0, 6))
                randomly.shuffle(kinds)
                ids = [f"{kind}-{asked + index}" for index, kind in enumerate(kinds)]
                asked += len(ids)
                bringing = [
                    in_thread(bring, link, ids[part::2], number) for part, link in enumerate(links)
                ]
                for each in bringing:
                    each.result(TIMEOUT)
                assert crowd.blocks(blocking), f"round {number}: {calls.workers.backlog(0.0)}"
                # No answer waits for those that block, nor does a request while there are workers.
                eventually(lambda: not calls.workers.served)
                if blocking < MOST:
                    held = kinds.count("handler")
                    eventually(lambda held=held: calls.stats()["in_flight"] == held)
                crowd.let_go()
                assert calls.wait_idle(TIMEOUT)
        finally:
            crowd.let_go()
        past_them = (batch for link in links for batch in link.batches)
        eventually(lambda: all(link.replies.wait_flushed(0.0) for link in links))
        assert len(sent) + sum(map(len, past_them)) == asked
        for link, sender in zip(links, senders):
            link.line.close()
            sender.result(TIMEOUT)
    executor.shutdown()
