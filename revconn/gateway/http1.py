"""One connection of HTTP/1.1, in the place of an endpoint of HTTP/2; h11 takes it apart.

Its requests are streams, one at a time, so that whoever serves them need not know the difference.
Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from http.client import responses
from typing import Any

import h11

from revconn.core.rope import Piece
from revconn.core.status import ProtocolError
from revconn.core.web import travelling
from revconn.http2.headers import Field, field
from revconn.http2.patience import Patience
from revconn.http2.streams import GONE, ErrorCode, Receiver
from revconn.http2.writing import Output, Settings

__all__ = ["Http1Endpoint", "Http1Stream"]

_BURST, _PER_SECOND, _MOST = 2_000, 500.0, 50_000  # what a peer costs; see Patience
_COSTLY = 100  # how often that is worth a look at the clock, where no read brings one
_MOST_AHEAD = 64 << 10  # bytes that wait here; more waits in the network
_MOST_UNWANTED = 256 << 10  # bytes of a body that are read although its request was answered
_SLICE = 64 << 10  # bytes that are taken apart at once
_MOST_OUT = 512 << 10  # bytes that wait for the network; beyond them who answers has to wait
_PIECE = 1024  # bytes of a body: each is as much as a frame of HTTP/2 costs
_VERSIONS = ("1.1", "1.0")
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)(/?.*)", re.IGNORECASE)  # as a proxy is asked

_WORDS = {
    400: b"this is no request of HTTP/1.1\n",
    431: b"the headers of the request are too large\n",
    505: b"this version of HTTP is not spoken here\n",
    501: b"the request asks for what is not implemented here\n",
}


class Http1Stream:
    """One request and its answer; what :class:`~revconn.http2.bytestreams.ByteStream` is there.

    :ivar version: of HTTP, as the peer speaks it.
    """

    __slots__ = (
        "_endpoint",
        "_ends_with_connection",
        "content_left",
        "id",
        "is_held",
        "is_local_closed",
        "is_open",
        "is_remote_closed",
        "limit",
        "receiver",
        "unsent_bytes",
        "version",
    )  # fmt: skip

    is_deaf = False
    granted = 0
    inflate: Any = None
    was_queued = True  # its owner hears of its end

    def __init__(self, endpoint: Http1Endpoint, stream_id: int, version: str) -> None:
        self._endpoint = endpoint
        self.id = stream_id
        self.version = version
        self.limit = endpoint.settings.message_limit
        self.receiver: Receiver = GONE
        self.content_left = -1
        self.unsent_bytes = 0
        self._ends_with_connection = False  # which is all that tells the peer of its end
        self.is_held = self.is_open = self.is_local_closed = self.is_remote_closed = False

    @property
    def owner(self) -> Any:
        """Whose connection it is on."""
        return self._endpoint.acceptor

    def hold(self) -> None:
        """Read no more of the request's body, until :meth:`release`."""
        if not self.is_remote_closed:
            self.is_held = True
            self._endpoint.hold_reading()

    def release(self) -> None:
        """What came was dealt with."""
        self.is_held = False
        self._endpoint.go_on_reading()

    def await_room(self) -> None:
        """Have the receiver told when there is room again."""
        self._endpoint.thirsty = self

    def go_ahead(self) -> None:
        """Tell the peer to send its body, if it waits for that."""
        self._endpoint.go_ahead()

    def answer(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Send the head of the response. Raises :class:`ProtocolError` for one that cannot be."""
        if not self.is_local_closed:
            reason = responses.get(status, "").encode()
            try:
                head = h11.Response(status_code=status, headers=list(headers), reason=reason)
            except h11.LocalProtocolError as error:
                raise ProtocolError(str(error)) from None
            self._endpoint.say(head)
            self.is_open = True
            is_sized = any(name == b"content-length" for name, _ in head.headers)
            self._ends_with_connection = self.version == "1.0" and not is_sized

    def write(self, data: Piece) -> None:
        """Send some of the response's body."""
        if not self.is_local_closed:
            self._endpoint.say(h11.Data(data=bytes(data)))

    def end(self) -> None:
        """Nothing follows what was sent."""
        if not self.is_local_closed:
            self._endpoint.say(h11.EndOfMessage())
            self._endpoint.answered(self)

    def finish(self, trailers: bytes) -> None:
        """Break it off: there are no trailers that could tell why."""
        self.reset(ErrorCode.CANCEL)

    def reset(self, code: int) -> None:
        """Break it off: that is to end the connection, so that the peer knows that it is."""
        if code == ErrorCode.PROTOCOL_ERROR and not self.is_open:
            self._endpoint.refuse(400)
        elif not self.is_local_closed:
            self._endpoint.break_off(self)
            if self._ends_with_connection:
                self.owner.abort()

    def drop_unsent(self) -> None:
        """Nothing: in HTTP/1.1 what was said cannot be left out."""


class Http1Endpoint:
    """A server's side of a connection; see :class:`~revconn.http2.endpoint.Endpoint`.

    :param acceptor: the :class:`~revconn.gateway.peers.Peer` that it speaks for.
    :ivar thirsty: the stream whose receiver waits for room.
    """

    peer_header_list = None
    worth_sent = 0.0

    def __init__(self, settings: Settings, acceptor: Any, scheme: bytes) -> None:
        self.settings = settings
        self.acceptor = acceptor
        self.streams: dict[int, Http1Stream] = {}
        self.thirsty: Http1Stream | None = None
        self.cost = 0
        self.is_ended = self.is_leaving = self.is_flooded = False
        self.end_reason = ""
        self._scheme = scheme
        self._http1 = h11.Connection(
            h11.SERVER, max_incomplete_event_size=max(settings.header_list, 1 << 10)
        )
        self._patience = Patience("the peer", _BURST, _PER_SECOND, _MOST)
        self._last_id = 0
        self._kept = bytearray()  # what came, and is not to be taken apart yet
        self._unwanted = 0  # bytes of a body that came after the answer
        self._left = settings.turn  # how much may be taken in before others have their turn
        self._is_reading = False  # what has come is being taken apart
        self._is_behind = False  # the rest of it is for a turn to come
        self._is_full = False  # the rest of it waits until answers were written
        self._out: list[Output] = []
        self._out_bytes = 0

    # What comes

    def receive(self, data: bytes, turn: int | None = None) -> bytes:
        """Take in what arrived; what cannot be taken apart yet is kept here."""
        if self.is_ended:
            return b""
        self._left = self.settings.turn if turn is None else turn
        self._kept += data
        self._read()
        if len(self._kept) > _MOST_AHEAD:
            self.hold_reading()
        return b""

    def _read(self) -> None:
        if self._is_reading:  # whoever was told of a request has answered it at once
            return
        self._is_reading = True
        try:
            while self._goes_on():
                self._left -= 1
        except h11.RemoteProtocolError as error:
            self.refuse(error.error_status_hint)
        except ProtocolError:
            self.refuse(400)
        finally:
            self._is_reading = False

    def _catch_up(self, now: float) -> None:
        self._is_behind = False
        if self.is_ended:
            return
        if self.cost > _COSTLY:
            self.settle(now)
        self.go_on_reading()

    def _goes_on(self) -> bool:
        if self.is_ended or self.acceptor.is_closed:
            return False
        stream = self.streams.get(self._last_id)
        if self._is_behind or (stream is not None and (stream.is_held or stream.is_remote_closed)):
            return False
        if stream is None and (self._out_bytes >= _MOST_OUT or self.acceptor.is_behind):
            self._is_full = True
            self.hold_reading()
            return False
        if self._left <= 0:
            self._is_behind = True
            self.hold_reading()
            self.acceptor.put_off(self._catch_up)
            return False
        event = self._http1.next_event()
        if isinstance(event, h11.Request):
            self._open(event)
        elif isinstance(event, h11.Data):
            if len(event.data) < _PIECE:
                self.cost += 1
            if stream is not None:
                stream.receiver.take([bytes(event.data)], ended=False)
            else:
                self._drop(len(event.data))
        elif isinstance(event, h11.EndOfMessage):
            if stream is not None:
                stream.is_remote_closed = True
                stream.receiver.take([], ended=True)
            else:
                self._http1.start_next_cycle()
        elif event is h11.NEED_DATA and self._kept:
            self._http1.receive_data(bytes(self._kept[:_SLICE]))
            del self._kept[:_SLICE]
        else:
            return False
        return True

    def _open(self, request: h11.Request) -> None:
        self.cost += 1
        target, headers = request.target, list(request.headers)
        host = next((value for name, value in headers if name == b"host"), b"")
        if absolute := _ABSOLUTE.fullmatch(target):
            host, target = absolute.groups()
            target = target if target.startswith(b"/") else b"/" + target
        version = request.http_version.decode("ascii")
        if request.method == b"CONNECT" or version not in _VERSIONS:
            self.refuse(505 if version not in _VERSIONS else 501)
            return
        pseudo = (
            (b":method", request.method),
            (b":scheme", self._scheme),
            (b":path", target),
            (b":authority", host),
        )
        fields: list[Field] = [field(name, value) for name, value in pseudo]
        dropped = {b"host"}
        is_chunked = any(name == b"transfer-encoding" for name, _ in headers)
        if is_chunked and any(name == b"content-length" for name, _ in headers):
            # A proxy in between may go by the other one (RFC 9112, section 6.1).
            self.refuse(400)
            return
        for name, value in travelling(headers):
            if name not in dropped:
                fields.append(field(name, value))
        self._last_id += 1
        stream = self.streams[self._last_id] = Http1Stream(self, self._last_id, version)
        length = next((value for name, value in headers if name == b"content-length"), b"0")
        if not (is_chunked or int(length)):  # its end has come with it
            self._http1.next_event()
            stream.is_remote_closed = True
        size = sum(each.size for each in fields)
        self.acceptor.accept(stream, fields, size, ended=stream.is_remote_closed)

    def go_ahead(self) -> None:
        """The peer may wait to be told to send its body, where it has said so."""
        if self._http1.they_are_waiting_for_100_continue:
            self.say(h11.InformationalResponse(status_code=100, headers=[]))

    def refuse(self, status: int) -> None:
        """What has come is no request: say so, if that can be said, and end."""
        words = _WORDS.get(status) or _WORDS[400]
        self.cost += 10
        self.end_reason = "it does not speak HTTP"
        self.lose(self.end_reason)
        if self._http1.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [
                ("content-type", "text/plain"),
                ("content-length", str(len(words))),
                ("connection", "close"),
            ]
            with contextlib.suppress(ProtocolError):  # the response to HEAD ends with its head
                self.say(h11.Response(status_code=status, headers=headers))
                self.say(h11.Data(data=words))
                self.say(h11.EndOfMessage())
        self.acceptor.end_soon()

    def hold_reading(self) -> None:
        """Nothing more is to come for now."""
        self.acceptor.hold_reading()

    def go_on_reading(self) -> None:
        """What came, and what comes from now on, is taken in, unless something is in the way."""
        if not self._is_reading:
            self._left = self.settings.turn
        self._read()
        stream = self.streams.get(self._last_id)
        is_held = len(self._kept) > _MOST_AHEAD or (stream is not None and stream.is_held)
        if not (is_held or self._is_behind or self._is_full):
            self.acceptor.go_on_reading()

    # What is sent

    def say(self, event: h11.Event) -> None:
        """Send it. Raises :class:`ProtocolError` for what may not be said now."""
        if isinstance(event, h11.Response) and self._is_last:
            headers = [*event.headers.raw_items(), (b"connection", b"close")]
            status, reason = event.status_code, event.reason
            event = h11.Response(status_code=status, headers=headers, reason=reason)
        try:
            data = self._http1.send(event)
        except h11.LocalProtocolError as error:
            raise ProtocolError(str(error)) from None
        if not data:
            return
        if not self._out:
            self.acceptor.wake()
        self._out.append(data)
        self._out_bytes += len(data)
        self.worth_sent += (2 if isinstance(event, h11.Data) else 1) + len(data) / 1024
        for stream in self.streams.values():
            stream.unsent_bytes += len(data)

    @property
    def _is_last(self) -> bool:
        """Whether nothing can follow the response that begins."""
        stream = self.streams.get(self._last_id)
        return (
            self.is_leaving
            # Nobody could tell whether the body or another request is what comes next.
            or self._http1.they_are_waiting_for_100_continue
            or (stream is not None and stream.content_left > _MOST_UNWANTED and stream.is_held)
        )

    def answered(self, stream: Http1Stream) -> None:
        """A request was answered: the next one may come, if the connection can go on."""
        stream.is_local_closed = True
        self._discard(stream)
        if h11.MUST_CLOSE in (self._http1.our_state, self._http1.their_state) or self.is_leaving:
            self.end()
            return
        if stream.is_remote_closed:
            self._http1.start_next_cycle()
        self._unwanted = 0
        self.go_on_reading()

    def _drop(self, size: int) -> None:
        """Some of a body that nobody wants: to read a little is better than to end a connection."""
        self._unwanted += size
        if self._unwanted > _MOST_UNWANTED:
            self.end()

    def take(self) -> list[Output]:
        """What is to be written now, in order."""
        out, self._out = self._out, []
        self._out_bytes = 0
        for stream in self.streams.values():
            stream.unsent_bytes = 0
        return out

    @property
    def is_waiting(self) -> bool:
        """Whether anything could be sent, were there room."""
        return self.thirsty is not None or self._is_full

    def pump(self) -> None:
        """There may be room: whoever waits for it goes on."""
        if self._out_bytes >= _MOST_OUT:
            return
        if self.thirsty is not None:
            stream, self.thirsty = self.thirsty, None
            stream.receiver.resume()
        if self._is_full:
            self._is_full = False
            self.go_on_reading()

    # What it costs, and the end

    def charge(self, cost: int) -> None:
        """What the peer asked for came to nothing."""
        self.cost += cost

    def settle(self, now: float) -> None:
        """See whether the peer costs more than it brings. To be called now and then."""
        cost, self.cost = self.cost, 0
        try:
            self._patience.settle(cost, self.worth_sent, now)
        except ProtocolError as error:
            self._flood(str(error))

    def break_off(self, stream: Http1Stream) -> None:
        """An answer ends before its end: the peer learns that by the end of the connection."""
        stream.is_local_closed = True
        self._discard(stream)
        self.end()

    def _flood(self, reason: str) -> None:
        self.is_flooded = True
        self.end(reason=reason)

    def ping(self) -> None:
        """Nothing: HTTP/1.1 has no sign of life."""

    def go_away(self) -> None:
        """No request is taken any more after those that there are."""
        self.is_leaving = True

    def end(self, code: int = ErrorCode.NO_ERROR, reason: str = "") -> None:
        """End the connection, once what was said is written."""
        if not self.is_ended:
            self.is_leaving = True
            self.end_reason = reason
            self.lose(reason)
            self.acceptor.end_soon()

    def lose(self, reason: str) -> None:
        """The connection is gone, or will be: so are its streams."""
        self.is_ended = True
        for stream in tuple(self.streams.values()):
            receiver = stream.receiver
            stream.is_local_closed = True
            self._discard(stream)
            receiver.break_off(reason)

    def _discard(self, stream: Http1Stream) -> None:
        if self.streams.pop(stream.id, None) is None:
            return
        if self.thirsty is stream:
            self.thirsty = None
        stream.unsent_bytes = 0  # from now on they are the connection's
        self.acceptor.close_stream(stream)
        stream.receiver = GONE
