"""Connections of peers: those that call, and connectors, on sockets that were accepted.

Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING, Any, Protocol, Union

from revconn.core.rope import Data
from revconn.core.status import ProtocolError
from revconn.gateway.addresses import networks_of
from revconn.gateway.budgets import Owners
from revconn.gateway.tls import TLSFilter
from revconn.gateway.wires import Turn, Wire
from revconn.http2.bytestreams import ByteStream
from revconn.http2.endpoint import Endpoint
from revconn.http2.frames import PREFACE
from revconn.http2.grpc import is_grpc_content
from revconn.http2.headers import Field
from revconn.http2.requests import RequestHead, RequestHeads, not_grpc
from revconn.http2.streams import ErrorCode, Receiver, Stream
from revconn.http2.writing import Settings

if TYPE_CHECKING:
    from revconn.gateway.http1 import Http1Stream

__all__ = ["Exchange", "Peer", "PeerOwner", "address_of"]

_TELLING = PREFACE[:3]  # with which no request of HTTP/1.1 begins
_PLAIN_TIMEOUT = 10.0  # seconds that a request may take which is no call


Exchange = Union[ByteStream, "Http1Stream"]
"""A request of HTTP's, and its response."""


class PeerOwner(Protocol):
    """Who has a peer: it serves its calls, and is told of its end."""

    turn: Turn
    takes_http: bool
    """Whether what is no call is a request of HTTP's, in HTTP/1.1, too."""

    def serve_http(self, stream: Exchange, head: RequestHead, peer: Peer) -> None:
        """A request of HTTP's has come."""

    def serve(self, stream: Stream, head: RequestHead, peer: Peer) -> None:
        """A call has come."""

    def refused_headers(self, stream: Stream, size: int) -> None:
        """A call has come whose headers are far larger than is taken."""

    def refused_stream(self, peer: Peer) -> None:
        """The peer wants more streams at once than it may have."""

    def want_credit(self, stream: Stream, peer: Peer) -> None:
        """A message is on its way that needs more than the usual window."""

    def return_credit(self, stream: Stream, peer: Peer) -> None:
        """The message is whole."""

    def closed(self, stream: Stream, peer: Peer) -> None:
        """A stream is over that had credit, or something that waited to be sent."""

    def lost(self, peer: Peer, reason: str) -> None:
        """The connection is over; ``reason``: what the peer did wrong, if it did."""


class _Ignored(Receiver):
    """Takes what comes on a stream that was answered already."""

    __slots__ = ()

    def take(self, messages: list[Data], *, ended: bool) -> None:
        """Nothing is done with it."""

    def refuse(self, error: ProtocolError) -> None:
        """Nothing is done with it."""

    def break_off(self, reason: str) -> None:
        """Nothing was begun."""


_IGNORED = _Ignored()


class _PlainRequest(_Ignored):
    """A request that is no call: it is answered once all of it has come."""

    __slots__ = ("_head", "_peer", "_stream")

    def __init__(self, peer: Peer, stream: Stream, head: RequestHead) -> None:
        self._peer = peer
        self._stream = stream
        self._head = head
        stream.receiver = self
        stream.ignore()  # it has no messages in it

    def take(self, messages: list[Data], *, ended: bool) -> None:
        """All of it has come."""
        self._peer.endpoint.charge(5)
        headers, body = not_grpc(self._head)
        self._stream.open(headers)
        self._stream.end_data(body)

    def expire(self) -> None:
        """It takes too long."""
        self._stream.reset(ErrorCode.CANCEL)


class Peer(Wire):
    """A connection that was accepted: its streams are calls of ours.

    :ivar address: as gRPC writes it.
    :ivar network: where it comes from: the host, or what is given to one customer of IPv6.
    :ivar owners: on whose account it has what all share: see :class:`Budget`.
    :ivar served: how many streams it has opened.
    :ivar idle_since: since when it has no stream, as long as it has none.
    """

    __slots__ = ("_first", "_heads", "_owner", "idle_since", "network", "owners", "served")

    def __init__(
        self,
        sock: socket.socket,
        address: str,
        settings: Settings,
        owner: PeerOwner,
        loop: asyncio.AbstractEventLoop,
        tls: TLSFilter | None,
    ) -> None:
        self._owner = owner
        # What tells HTTP/2 from HTTP/1.1, where either may come; ``None`` once that is known.
        self._first = b"" if owner.takes_http else None
        self._heads = RequestHeads()
        self.served = 0
        networks = networks_of(address)
        self.network = networks[-1]
        self.owners: Owners = (*networks, self)
        super().__init__(sock, address, settings, owner.turn, loop, tls)
        self.idle_since = self.opened_at

    @property
    def carries_calls(self) -> bool:
        """Whether anybody's call would be lost with it."""
        return any(stream.receiver.carries_calls for stream in self.endpoint.streams.values())

    @property
    def scheme(self) -> bytes:
        """How it was reached, whatever its requests say."""
        return b"http" if self._tls is None else b"https"

    def over(self, reason: str) -> None:
        """The connection is over."""
        self._owner.lost(self, reason)

    # HTTP/1.1, or HTTP/2

    def _take(self, data: bytes, now: float) -> bytes:
        if self._first is not None:
            data = self._first + data
            if len(data) < len(_TELLING) and _TELLING.startswith(data):
                self._first = data
                return b""
            self._first = None
            if not data.startswith(_TELLING):
                from revconn.gateway.http1 import Http1Endpoint

                http1: Any = Http1Endpoint(self.endpoint.settings, self, self.scheme)
                self.endpoint = http1
                # It has no PING that would tell that the peer is there.
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self.wake()
        return super()._take(data, now)

    def _flush(self) -> None:
        if self._first is None:
            super()._flush()
            return
        self._is_woken = False  # what there is to say waits until it is known how to say it
        if self.endpoint.is_ended:
            self.close(self.endpoint.end_reason)

    def ping(self, now: float) -> None:
        """Ask for a sign of life, where there is a way to."""
        if isinstance(self.endpoint, Endpoint):
            super().ping(now)
        else:
            self.heard_at = now

    # What the endpoint asks for

    def accept(self, stream: Stream, fields: list[Field], size: int, *, ended: bool) -> None:
        """A stream was opened: a call, as a rule."""
        self.served += 1
        stream.receiver = _IGNORED
        is_cut = size > self.endpoint.settings.header_list  # not all of them are there
        if is_cut and not (self._owner.takes_http and _is_plain(fields)):
            self._owner.refused_headers(stream, size)
            return
        head = self._heads.parse(fields, size)
        if is_cut:
            self.endpoint.charge(size >> 10)
            self._accept_http(stream, head, ended=ended)
            return
        if head.problem:
            self.endpoint.charge(10)
            stream.reset(ErrorCode.PROTOCOL_ERROR)
            return
        stream.content_left = head.content_length
        if ended and head.content_length > 0:
            stream.reset(ErrorCode.PROTOCOL_ERROR)
        elif head.is_grpc and type(stream) is Stream:
            self._owner.serve(stream, head, self)
            if ended and stream.receiver is not _IGNORED:
                stream.receiver.take([], ended=True)
        elif self._owner.takes_http:
            self._accept_http(stream, head, ended=ended)
        else:
            plain = _PlainRequest(self, stream, head)
            if ended:
                plain.take([], ended=True)
            if not stream.is_local_closed:  # it may have no window for the answer, too
                self._loop.call_later(_PLAIN_TIMEOUT, plain.expire)

    def _accept_http(self, stream: Any, head: RequestHead, *, ended: bool) -> None:
        if type(stream) is Stream:
            stream = ByteStream.in_place_of(stream, self.endpoint)
            stream.receiver = _IGNORED
        self._owner.serve_http(stream, head, self)
        if ended and stream.receiver is not _IGNORED:
            stream.receiver.take([], ended=True)

    def refuse_stream(self) -> None:
        """The peer has as many streams as it may."""
        self._owner.refused_stream(self)

    def want_credit(self, stream: Stream) -> None:
        """A message needs more than the usual window."""
        self._owner.want_credit(stream, self)

    def return_credit(self, stream: Stream) -> None:
        """That message is whole."""
        self._owner.return_credit(stream, self)

    def close_stream(self, stream: Stream) -> None:
        """A stream is over."""
        if stream.was_queued:
            self._owner.closed(stream, self)
        if stream.was_queued:
            stream.receiver.close()
        if not self.endpoint.streams:
            self.idle_since = time.monotonic()
            if self.endpoint.is_leaving:
                self._turn.at_end(self.end)


def _is_plain(fields: list[Field]) -> bool:
    """Whether nothing in these headers says that it is a call."""
    types = [each.value.decode("latin-1") for each in fields if each.name == b"content-type"]
    return not any(map(is_grpc_content, types))


def address_of(sock: socket.socket) -> str:
    """Who is at the other end, as gRPC writes it."""
    if sock.family == getattr(socket, "AF_UNIX", None):
        return "unix:"
    try:
        name = sock.getpeername()
    except OSError:
        return "unknown"
    if sock.family == socket.AF_INET6:
        return f"ipv6:[{name[0]}]:{name[1]}"
    return f"ipv4:{name[0]}:{name[1]}"
