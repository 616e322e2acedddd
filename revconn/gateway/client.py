"""A connection to a backend, and each call on a stream of its own.

Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Callable

from revconn.gateway.addresses import Address
from revconn.gateway.client_calls import ClientCall
from revconn.gateway.tls import TLSFilter
from revconn.gateway.wires import Turn, Wire
from revconn.http2.headers import Field
from revconn.http2.streams import Stream
from revconn.http2.writing import Settings

__all__ = ["Client"]

# Seconds of silence, while calls wait, before a sign of life is asked for; and for how long that is
# waited for. Servers end connections on which there are more pings than one in five minutes.
_SILENCE = 20.0
_PING_TIMEOUT = 20.0
_PING_INTERVAL = 300.0


class Client(Wire):
    """A connection to a backend.

    :param forget: told when it is over.
    :param most_metadata: bytes of an answer's headers, and of its trailers.
    :ivar ready: is done once calls may be made: its result is nothing; or why none will be.
    """

    __slots__ = (
        "_authority",
        "_forget",
        "_is_admitting",
        "_is_going",
        "_pinged_last",
        "_scheme",
        "_waiting",
        "most_metadata",
        "ready",
    )

    def __init__(
        self,
        sock: socket.socket,
        address: Address,
        settings: Settings,
        turn: Turn,
        tls: TLSFilter | None,
        forget: Callable[[Client], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[str] = loop.create_future()
        self.most_metadata = settings.header_list
        self._authority = address.host_port
        self._scheme = "https" if address.is_tls else "http"
        self._forget = forget
        self._waiting: dict[ClientCall, None] = {}  # for a stream, the first first
        self._is_going = self._is_admitting = False
        self._pinged_last = float("-inf")
        super().__init__(sock, str(address), settings, turn, loop, tls, is_server=False)
        if tls is not None:
            self._send(tls.begin())

    @property
    def is_usable(self) -> bool:
        """Whether calls can still be made."""
        endpoint = self.endpoint
        return not (self.is_closed or endpoint.is_ended or self._is_going) and endpoint.has_ids

    def make(self, call: ClientCall) -> None:
        """Make a call as soon as the backend takes one more."""
        self._waiting[call] = None
        self._admit()

    def discard(self, call: ClientCall) -> None:
        """A call does not wait for a stream any more."""
        self._waiting.pop(call, None)

    def _admit(self) -> None:
        self._is_admitting = False
        endpoint = self.endpoint
        while self._waiting:
            if not self.is_usable:
                for call in tuple(self._waiting):
                    call.lose("the backend takes no more calls on this connection")
            elif len(endpoint.streams) < endpoint.peer_max_streams:
                call = next(iter(self._waiting))
                del self._waiting[call]
                call.open(endpoint.open_stream(), self._scheme, self._authority)
            else:
                break
        if self._is_going and not endpoint.streams:
            self.end()

    def _admit_soon(self) -> None:
        if not self._is_admitting:
            self._is_admitting = True
            self._turn.at_end(self._admit)

    # What the backend says of the connection

    def _receive(self, data: bytes) -> None:
        super()._receive(data)
        endpoint = self.endpoint
        if not self.ready.done():
            if endpoint.is_ended:
                self.ready.set_result(f"it does not speak HTTP/2 ({endpoint.end_reason})")
            elif endpoint.is_settled:
                self.ready.set_result("")
        if self._waiting:  # there may be room for more streams, or none for any
            self._admit_soon()

    def accept(self, stream: Stream, fields: list[Field], size: int, *, ended: bool) -> None:
        """Servers open no streams."""
        raise AssertionError

    def close_stream(self, stream: Stream) -> None:
        """A stream is over: there is room for another one."""
        if self._waiting or self._is_going:
            self._admit_soon()

    def want_credit(self, stream: Stream) -> None:
        """An answer needs more than the usual window, and is no larger than is allowed."""
        if not stream.is_held:  # else once what came before it was read: ClientCall.consume()
            self.endpoint.grant(stream)

    def go(self, last_id: int, code: int, debug: bytes) -> None:
        """The backend takes no more calls here; those that it took are answered."""
        self._is_going = True
        self._admit_soon()

    # Time, and the end

    def look(self) -> None:
        """See whether the backend is still there, while calls wait for it."""
        now = time.monotonic()
        if self.pinged_at is not None:
            if now - self.pinged_at > _PING_TIMEOUT:
                self.close("the backend does not answer a ping")
            return
        is_silent = self.endpoint.streams and now - self.heard_at > _SILENCE
        if is_silent and now - self._pinged_last > _PING_INTERVAL:
            self._pinged_last = self.pinged_at = now
            self.endpoint.ping()

    def ask_to_go(self) -> None:
        """Have it end once what was asked on it is answered."""
        self._is_going = True
        self._admit_soon()

    def over(self, reason: str) -> None:
        """The connection is over."""
        if not self.ready.done():
            self.ready.set_result(reason or "the connection ended")
        for call in tuple(self._waiting):
            call.lose(reason or "the connection ended")
        self._forget(self)
