"""A session's timer: what of it is a thread. What is due when is core/liveness's to say."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any, Callable

import pytest

from revconn._proto.registry_pb2 import ConnectionMessage
from revconn.exceptions import HandshakeError
from revconn.link.session import Session
from revconn.serving.handlers import Handlers
from tests.support.calls import open_calls
from tests.support.quiet_stream import QuietStream, new_session
from tests.support.threads import TIMEOUT


@pytest.fixture
def begin() -> Iterator[Callable[..., Session]]:
    """``begin(stream, **options)``: a session that has started; one that was accepted is ready."""
    begun: list[Session] = []
    with open_calls(Handlers()) as calls:

        def begin(stream: QuietStream, *, is_accepted: bool = True, **options: Any) -> Session:
            session, ready = new_session(stream, calls, **options)
            begun.append(session)
            session.start("key", ("echo.Echo",))
            if is_accepted:
                assert ready.wait(TIMEOUT)
            return session

        yield begin
        for session in begun:
            session.retire("the test is over")
            session.join(TIMEOUT)


def test_a_handshake_that_does_not_end_in_time_ends_the_session_and_nothing_beats(begin) -> None:
    stream = QuietStream(connected=False)
    session = begin(stream, is_accepted=False, connect_timeout=0.05, heartbeat_interval=0.01)
    line = session._line
    (registration,) = line.take()
    assert ConnectionMessage.FromString(registration).HasField("register")
    assert line.take() is None, "the session ended, and nothing else was said"
    session.join(TIMEOUT)
    assert isinstance(session.error, HandshakeError)
    assert "0.05 s" in str(session.error)
    assert not session._timer.is_alive(), "though it was the timer that ended it"


@pytest.mark.parametrize("is_accepted", [True, False], ids=["established", "in the handshake"])
def test_the_end_of_a_session_wakes_and_ends_its_timer(begin, is_accepted: bool) -> None:
    session = begin(
        QuietStream(connected=is_accepted),
        is_accepted=is_accepted,
        connect_timeout=600.0,
        heartbeat_interval=600.0,
        liveness_timeout=None,
    )
    session.retire("enough")
    session.retire("enough")
    session.join(TIMEOUT)
    assert not session._timer.is_alive()
    assert "enough" in str(session.error)


def test_it_looks_at_the_stream_as_soon_as_that_asks_but_not_without_a_pause(
    begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[float] = []

    class Demanding(QuietStream):
        def check(self, now: float) -> float | None:
            checked.append(now)
            return {1: now + 3.0, 2: now - 1.0}.get(len(checked))

    class Alarms:
        def __init__(self) -> None:
            self.pauses: list[float] = []

        def get(self, timeout: float) -> bool:
            self.pauses.append(timeout)
            if len(self.pauses) == 4:
                return True
            raise queue.Empty

    session = begin(Demanding(), heartbeat_interval=600.0, liveness_timeout=None)
    session._alarms.put(True)
    session._timer.join(TIMEOUT)
    checked.clear()
    alarms = Alarms()
    with monkeypatch.context() as patch:
        patch.setattr(session, "_alarms", alarms)
        session._keep_time()
    assert len(checked) == 3
    _, soon, at_once, later = alarms.pauses
    assert 2.0 < soon <= 3.0
    assert at_once == pytest.approx(0.01)
    assert 3.0 < later <= 5.0, "a silence is looked for every five seconds"


def test_what_the_handshake_made_due_wakes_it(begin) -> None:
    looked = threading.Event()

    class Looked(QuietStream):
        def check(self, now: float) -> float | None:
            looked.set()
            return None

    begin(Looked(), connect_timeout=600.0, heartbeat_interval=600.0, liveness_timeout=None)
    assert looked.wait(TIMEOUT)
