"""A stream of the http2 transport, with what a session would put around it."""

from __future__ import annotations

import queue
from concurrent.futures import Future

from revconn import TLS
from revconn.core.sending import answer
from revconn.logger import Mask
from revconn.serving.replies import Replies
from revconn.settings.proxy import Proxy
from revconn.settings.target import Target
from revconn.transport.base import StreamEnded
from revconn.transport.http2 import Http2Transport
from tests.support.lines import let_answers_through
from tests.support.threads import TIMEOUT, in_thread

__all__ = ["Client"]


class Client:
    """Sends what it is told to, and waits a bounded time for what is to come."""

    def __init__(
        self,
        address: str,
        *,
        tls: TLS | None = None,
        proxy: Proxy | None = None,
        keepalive_interval: float | None = None,
        keepalive_timeout: float = 20.0,
    ) -> None:
        self.replies = Replies()
        self.line = self.replies.open_line()
        let_answers_through(self.line)
        self.transport = Http2Transport(
            Target.parse(address),
            tls,
            proxy,
            keepalive_interval=keepalive_interval,
            keepalive_timeout=keepalive_timeout,
        )
        self.stream = self.transport.stream(self.line, "test")
        self._received: queue.Queue[list[bytes] | StreamEnded] = queue.Queue()
        self._reader: Future | None = None

    def opening(self) -> Future:
        """Open the stream in a thread; what comes of it comes out of the future."""
        return in_thread(self.stream.open, Mask(""))

    def open(self) -> None:
        """Open the stream, and read it from now on as a session does."""
        self.opening().result(TIMEOUT)
        self._reader = in_thread(self._read)

    def _read(self) -> None:
        while True:
            try:
                self._received.put(self.stream.receive())
            except StreamEnded as ended:
                self._received.put(ended)
                return

    def send(self, *messages: bytes) -> None:
        self.replies.answer([answer(message, None) for message in messages])

    def saturate(self, saturated: bool) -> None:
        """So much is in flight, or no longer, that the peer should send no more."""
        with self.replies.lock:
            self.replies.set_saturated(saturated)

    def receive(self, count: int = 1) -> list[bytes]:
        """The next messages, at least so many. Raises :class:`StreamEnded`."""
        messages: list[bytes] = []
        while len(messages) < count:
            received = self._received.get(timeout=TIMEOUT)
            if isinstance(received, StreamEnded):
                raise received
            messages += received
        return messages

    def end(self) -> StreamEnded:
        """How the stream ends; messages before that are passed over."""
        try:
            while True:
                self.receive()
        except StreamEnded as ended:
            return ended

    def unsent(self) -> list[bytes]:
        """After the stream's end: what would go out on the next one."""
        self.close()
        line = self.replies.open_line()
        let_answers_through(line)
        line.nudge()
        return line.take() or []

    def close(self) -> None:
        self.line.close()
        self.stream.close()
        if self._reader is not None:
            self._reader.result(TIMEOUT)
        self.stream.join(TIMEOUT)
