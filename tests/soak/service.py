"""The connector that is soaked: a process of its own.

usage: python -m tests.soak.service GATEWAY TRANSPORT LEDGER

A call's payload begins with its number; its answer follows from that number, and so does how long
the handler takes. When it is told to end, it prints its counters.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from revconn import Backoff, Connector, Request
from tests.soak.ledger import Ledger

__all__ = ["METHOD", "answer", "patience", "question"]

METHOD = "/soak.Soak/Ask"
_WORKERS = 16
_MOST_IN_FLIGHT = 5000
_KEEPALIVE = 0.3  # seconds between pings, and until one that is unanswered counts
_LARGEST = 5 << 20  # more than one message takes


def question(number: int) -> bytes:
    """What the caller of that number sends."""
    return b"%d?" % number + b"." * (number % 60)


def answer(number: int) -> bytes:
    """What it is to be answered: mostly a few bytes, at times more than fits into a message."""
    size = _LARGEST if number % 2500 == 1249 else 50_000 if number % 50 == 7 else number % 100
    return b"%d!" % number + b"." * size


def patience(number: int) -> float:
    """How many seconds its caller waits: mostly no longer than some faults last."""
    return 6.0 if number % 10 == 3 else 3.0


def duration(number: int) -> float:
    """How many seconds the handler takes: mostly none, at times as long as an outage."""
    if number % 500 == 3:
        return 1.0
    return 0.03 if number % 20 == 11 else 0.0


def _new_executor() -> ThreadPoolExecutor:
    """One that has all its threads from the beginning: they are counted later."""
    executor = ThreadPoolExecutor(_WORKERS)
    all_there = threading.Barrier(_WORKERS)
    list(executor.map(lambda _: all_there.wait(), range(_WORKERS)))
    return executor


def main(address: str, transport: str, ledger: Ledger) -> None:
    connector = Connector(
        address,
        api_key="key",
        transport=transport,
        keepalive_interval=_KEEPALIVE,
        keepalive_timeout=_KEEPALIVE,
        connect_timeout=2.0,
        executor=_new_executor(),
        max_workers=_WORKERS,
        max_in_flight=_MOST_IN_FLIGHT,
        backoff=Backoff(initial=0.05, maximum=0.25),
    )

    @connector.method(METHOD)
    def ask(request: Request) -> bytes:
        number = int(request.payload.partition(b"?")[0])
        assert request.payload == question(number)
        ledger.began(number)
        time.sleep(duration(number))
        ledger.finished(number)
        return answer(number)

    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    connector.start(block=False)
    connector.wait_ready(10.0)
    print("ready", flush=True)
    while not stopping.wait(0.1):  # Python runs signal handlers between two waits
        pass
    connector.stop(10.0)
    print(json.dumps(connector.stats()), flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    main(sys.argv[1], sys.argv[2], Ledger(Path(sys.argv[3])))
