"""What a session logs, and that none of its threads waits for the application's handlers then."""

from __future__ import annotations

import logging
import threading

import pytest

from revconn._proto.registry_pb2 import CancelRequest, ConnectionMessage, Heartbeat
from revconn.core.status import StatusCode
from revconn.link.session import Session
from revconn.serving.handlers import Handlers
from revconn.transport.base import StreamEnded
from tests.support.calls import open_calls
from tests.support.quiet_stream import QuietStream, new_session
from tests.support.threads import TIMEOUT


class Prying(logging.Handler):
    """A handler that waits for a thread which needs the session's lock, as a status page may."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self.lines: list[str] = []
        self.held: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        if not self.held:  # a thread that would wait for good is waited for once
            thread = threading.Thread(target=self._look, args=(self.lines[-1],))
            thread.start()
            thread.join()

    def _look(self, line: str) -> None:
        if self._session._lock.acquire(timeout=TIMEOUT):
            self._session._lock.release()
        else:
            self.held.append(line)


def test_whatever_it_logs_is_logged_without_its_lock(caplog: pytest.LogCaptureFixture) -> None:
    stream = QuietStream(
        ConnectionMessage(heartbeat=Heartbeat()), ConnectionMessage(cancel=CancelRequest())
    )
    with open_calls(Handlers()) as calls, caplog.at_level(logging.DEBUG, "revconn.core"):
        session, ready = new_session(stream, calls)
        handler = Prying(session)
        logging.getLogger("revconn.core").addHandler(handler)
        try:
            session.start("key", ("echo.Echo",))
            assert ready.wait(TIMEOUT)
            session.say_goodbye()
            stream.ends(StreamEnded(StatusCode.OK, ""))
            session.join(TIMEOUT)
        finally:
            logging.getLogger("revconn.core").removeHandler(handler)
    assert handler.held == []
    assert handler.lines == [
        "conversation : Phase.OPENED -> Phase.REGISTERING",
        "conversation id-1: Phase.REGISTERING -> Phase.READY",
        "ignored a heartbeat: a gateway has no use for one here",
        "ignored a cancel: a gateway has no use for one here",
        "conversation id-1: Phase.READY -> Phase.LEAVING",
        "conversation id-1: Phase.LEAVING -> Phase.ENDED",
    ]


def test_lines_of_two_threads_are_logged_in_their_order(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = QuietStream()
    logger = logging.getLogger("revconn.core.connection")
    with open_calls(Handlers()) as calls, caplog.at_level(logging.DEBUG, logger.name):
        session, ready = new_session(stream, calls)

        def end_meanwhile(record: logging.LogRecord) -> bool:
            """Hold up the thread that says goodbye, until the receiving thread has ended."""
            if "-> Phase.LEAVING" in record.getMessage():
                stream.ends(StreamEnded(StatusCode.OK, ""))
                session.join(TIMEOUT)
            return True

        monkeypatch.setattr(logger, "filters", [end_meanwhile])
        session.start("key", ("echo.Echo",))
        assert ready.wait(TIMEOUT)
        session.say_goodbye()
    assert [record.getMessage() for record in caplog.records][-2:] == [
        "conversation id-1: Phase.READY -> Phase.LEAVING",
        "conversation id-1: Phase.LEAVING -> Phase.ENDED",
    ]
