"""The link's thread, asleep until all that came is answered: nothing that ends that goes untold."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from revconn._proto.registry_pb2 import ConnectionMessage, Heartbeat
from revconn.link.link import Link
from revconn.link.records import Decision, End, Traffic, Wait
from revconn.link.session import Session
from revconn.serving.calls import Calls
from revconn.serving.handlers import Handlers
from revconn.settings.target import parse_targets
from tests.support.calls import open_calls
from tests.support.options import make_options
from tests.support.quiet_stream import QuietStream
from tests.support.threads import TIMEOUT, in_thread

A_BATCH = [ConnectionMessage(heartbeat=Heartbeat()).SerializeToString()]  # with no call in it


@pytest.fixture
def calls() -> Iterator[Calls]:
    with open_calls(Handlers()) as calls:
        yield calls


class Listening(QuietStream):
    """A stream that tells when it is asked for more than it has."""

    def __init__(self) -> None:
        super().__init__()
        self._unheard.insert(0, A_BATCH)  # which comes after CONNECTED
        self.taken_in = threading.Event()

    def receive(self) -> list[bytes]:
        if not self._unheard:
            self.taken_in.set()
        return super().receive()


class Paused(logging.Handler):
    """Holds the receiving thread up in the middle of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.go_on = threading.Event(), threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("ignored"):
            self.reached.set()
            self.go_on.wait(TIMEOUT)


class LeavingPlan:
    """Waits until all is quiet; the batch is taken in just after it has looked whether it is."""

    def __init__(self, stream: Listening, paused: Paused) -> None:
        self._stream = stream
        self._paused = paused

    def decide(self, now: float, traffic: Traffic) -> Decision:
        if traffic.is_quiet():
            return End(None)
        self._paused.go_on.set()
        # Not for ever: a receiving thread that knows of us waits for the lock, which is held here.
        self._stream.taken_in.wait(0.2)
        return Wait(for_traffic=True)

    def take_news(self) -> list[object]:
        return []


def test_a_batch_that_ends_as_the_plan_has_looked_wakes_the_thread_all_the_same(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options = make_options()
    link = Link(
        parse_targets("gw:1")[0],
        None,
        options,
        ("echo.Echo",),
        calls,
        on_change=lambda: None,
        on_end=lambda link, error: None,
    )
    stream, paused = Listening(), Paused()
    session = Session(
        "gw:1",
        lambda _: stream,
        calls,
        link._replies,
        options,
        connect_timeout=TIMEOUT,
        on_ready=lambda session: None,
        on_going_away=lambda session: None,
        on_probed=lambda probed: None,
        on_end=lambda session: None,
    )
    monkeypatch.setattr(link, "_plan", LeavingPlan(stream, paused))
    logger = logging.getLogger("revconn.core.connector_side")
    caplog.set_level(logging.INFO, logger.name)
    logger.addHandler(paused)
    try:
        session.start("key", ("echo.Echo",))
        assert paused.reached.wait(TIMEOUT)
        decision = in_thread(link._decide).result(TIMEOUT / 6)
        assert decision == End(None)
        assert link._replies.awaited == 0
    finally:
        logger.removeHandler(paused)
        session.retire("the test is over")
        session.join(TIMEOUT)
