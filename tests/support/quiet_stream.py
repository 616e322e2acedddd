"""A stream without a network, for what a session does by itself."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from revconn._proto.registry_pb2 import ConnectionMessage, ConnectionStatus
from revconn.core.status import StatusCode
from revconn.link.session import Session
from revconn.logger import Mask
from revconn.serving.calls import Calls
from revconn.transport.base import Stream, StreamEnded
from tests.support.options import make_options
from tests.support.threads import TIMEOUT

__all__ = ["QuietStream", "new_session"]


class QuietStream(Stream):
    """A stream on which the gateway says CONNECTED, or not even that, and a few things at once."""

    def __init__(self, *then: ConnectionMessage, connected: bool = True) -> None:
        status = ConnectionStatus(connection_id="id-1", status=ConnectionStatus.CONNECTED)
        said = [ConnectionMessage(status=status), *then]
        self._unheard = [[message.SerializeToString() for message in said]] * connected
        self._closed = threading.Event()
        self._end = StreamEnded(StatusCode.CANCELLED, "closed")

    def open(self, mask: Mask) -> None:
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


def new_session(stream: Stream, calls: Calls, **options: Any) -> tuple[Session, threading.Event]:
    """A session on that stream, and what is set once it is ready; it lets its answers through."""
    ready = threading.Event()

    def on_ready(session: Session) -> None:
        with session._replies.lock:
            session.let_answers_through()
        ready.set()

    made = make_options(**options)
    session = Session(
        "gateway:1",
        lambda _: stream,
        calls,
        calls.replies(replay_bytes=1000, doubt=50.0),
        made,
        connect_timeout=made.connect_timeout,
        on_ready=on_ready,
        on_going_away=lambda session: None,
        on_probed=lambda probed: None,
        on_end=lambda session: None,
    )
    return session, ready
