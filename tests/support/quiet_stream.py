"""A stream without a network, for what a session does by itself."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from revconn._proto.registry_pb2 import ConnectionMessage, ConnectionStatus
from revconn.core.status import StatusCode
from revconn.link.session import Session
from revconn.transport.base import Stream, StreamEnded
from tests.support.threads import TIMEOUT

__all__ = ["Owner", "QuietStream"]


class QuietStream(Stream):
    """A stream on which the gateway says CONNECTED, or not even that, until it ends."""

    def __init__(self, *, connected: bool = True) -> None:
        status = ConnectionStatus(connection_id="id-1", status=ConnectionStatus.CONNECTED)
        self._unheard = [[ConnectionMessage(status=status).SerializeToString()]] * connected
        self._closed = threading.Event()
        self._end = StreamEnded(StatusCode.CANCELLED, "closed")

    def open(self) -> None:
        pass

    def receive(self) -> list[bytes]:
        if self._unheard:
            return self._unheard.pop()
        self._closed.wait(TIMEOUT)
        raise self._end

    def ends(self, end: StreamEnded) -> None:
        self._end = end
        self._closed.set()

    def metadata(self) -> Iterable[tuple[str, str | bytes]]:
        return ()

    def blame(self) -> None:
        pass

    def close(self) -> None:
        self._closed.set()

    def join(self, timeout: float) -> None:
        pass


class Owner:
    """Whom a session tells, in the place of its link."""

    def __init__(self) -> None:
        self.ready = threading.Event()

    def session_ready(self, session: Session) -> None:
        with session._replies.lock:
            session.let_answers_through()
        self.ready.set()

    def session_over(self, session: Session) -> None:
        pass
