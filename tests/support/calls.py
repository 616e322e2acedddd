"""The table of calls without a gateway: what came by a link, and what is answered there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any, Callable

import pytest

from revconn import Request
from revconn._proto.registry_pb2 import ConnectionMessage, ForwardRequest, ForwardResponse
from revconn.core.connector_side import Arrival
from revconn.runtime import clock
from revconn.runtime.threads import DaemonExecutor
from revconn.serving import calls as calls_module
from revconn.serving.calls import Calls
from revconn.serving.handlers import Handlers, Runs
from revconn.serving.workers import Workers
from tests.support import requests
from tests.support.lines import let_answers_through

__all__ = ["METHOD", "CallsLink", "arrival", "handlers_of", "open_calls", "send_home"]

METHOD = "/echo.Echo/Say"


def handlers_of(handler: Callable[[Request], Any], *, inline: bool = False) -> Handlers:
    """One handler, of :data:`METHOD`."""
    handlers = Handlers()
    handlers.add_method(METHOD, handler, inline=inline, replace=False)
    return handlers


@contextmanager
def open_calls(
    handlers: Handlers, executor: Executor | None = None, **limits: Any
) -> Iterator[Calls]:
    """A table, closed after the test, that has not been started."""
    limits = {
        "max_workers": 1,
        "max_streams": 1,
        "max_in_flight": 10,
        "max_in_flight_bytes": 1 << 20,
        "max_message_bytes": 4 << 20,
        "recruiter": None,
        "on_failure": pytest.fail,
        **limits,
    }
    own_executor = DaemonExecutor(4, "revconn-test")
    callbacks = DaemonExecutor(1, "revconn-callbacks")
    calls = Calls(handlers, executor or own_executor, Runs(), callbacks=callbacks, **limits)
    try:
        yield calls
    finally:
        calls.close()
        own_executor.shutdown(wait=False)
        callbacks.shutdown(wait=False)


def arrival(request_id: str, method: str = METHOD, **fields: Any) -> Arrival:
    """A request, as a connection brings it."""
    return requests.arrival(ForwardRequest(request_id=request_id, method_path=method, **fields))


class CallsLink:
    """A link of a table, connected: its requests come, its answers leave, when a test says so.

    ``batches`` are the answers that left past the sender, as they did: one list of responses for
    each time.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self.replies = calls.replies(replay_bytes=1 << 20, doubt=50.0)
        self.line = self.replies.open_line()
        self.batches: list[list[ForwardResponse]] = []
        let_answers_through(self.line, 1 << 30, send_now=self._send_now)

    def _send_now(self, messages: list[bytes]) -> bool:
        self.batches.append(_responses(messages))
        return True

    def brings(
        self, *arrivals: Arrival, arrived: float | None = None, now: float | None = None
    ) -> None:
        """A batch came then (monotonic, and with suspend), or now."""
        self._calls.arrived(
            self.replies,
            arrivals,
            calls_module._monotonic() if arrived is None else arrived,
            clock.with_suspend() if now is None else now,
        )

    def cancels(self, *request_ids: str) -> None:
        """Nobody waits for these any more."""
        self._calls.cancel(self.replies, request_ids)

    def queued(self) -> list[ForwardResponse]:
        """What the sender would send now, and has sent when it comes the next time."""
        messages: list[bytes] = []
        batch: list[bytes] | None = None
        while batch is None or batch:
            self.line.nudge()
            batch = self.line.take() or []
            messages += batch
        return _responses(messages)

    def statuses(self) -> dict[str, int]:
        """Of all that was answered since the last time."""
        answered = self.queued()
        while self.batches:  # one by one: a worker may be about to add another
            answered += self.batches.pop(0)
        return {response.request_id: response.status_code for response in answered}


def _responses(messages: list[bytes]) -> list[ForwardResponse]:
    return [ConnectionMessage.FromString(message).response for message in messages]


def send_home(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have parked workers, which a test made wait for longer than it may take, go soon."""
    monkeypatch.undo()
    while workers._parked:
        with workers._lock:
            if workers._parked and not workers._called:
                workers._call_another()
        time.sleep(0.15)  # by then it has gone, and is not the one that is woken next
