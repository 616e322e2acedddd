"""One HTTP/2 connection (RFC 9113) with many streams, either side, as bytes in and bytes out.

All of it is ours but for the static table and the Huffman code of HPACK: a call that passes a
gateway is seven frames, and h2 needs more time for one of them than everything else together.
``docs/topics/gateway.md`` has the measurement.

A peer is trusted in nothing. What breaks HTTP/2 ends the stream or the connection, with the code
that the RFC names; what is allowed and costs more than it brings ends the connection, too, once
there is too much of it (:class:`Patience`); and after a :attr:`Settings.turn` of work the endpoint
lets others have their turn.
"""

from __future__ import annotations

from revconn.core.framing import PREFIX_BYTES
from revconn.core.status import ProtocolError
from revconn.http2.control import NOT_READ, Fault, require
from revconn.http2.data import DIVIDED_BYTES, ID_MASK, DataReceiver
from revconn.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADER,
    HEADER_BYTES,
    HEADERS,
    NUMBER,
    PADDED,
    PING,
    PING_ACK,
    PREFACE,
    PRIORITY,
    PRIORITY_BYTES,
    PRIORITY_FLAG,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    USUAL_FRAME,
    WINDOW_UPDATE,
)
from revconn.http2.headers import Decoder, Field, FieldKind
from revconn.http2.patience import Patience
from revconn.http2.streams import ErrorCode, Stream
from revconn.http2.writing import (
    Acceptor,
    Settings,
)

__all__ = ["Endpoint"]

_LONGEST_BLOCK = 128 << 10  # bytes: a caller is told what it may send, up to here
_MOST_UNREAD = 4 << 20  # bytes, with the headers of answers, which need no window
_BURST, _PER_SECOND, _MOST = 2_000, 500.0, 50_000  # what a peer costs; see Patience
_SMALL_READ = 16 << 10  # bytes that are cheaper to copy than to take apart separately
_COST_OF_TURN = 128  # of that, before others have their turn

_unpack_header = HEADER.unpack_from
_unpack_number = NUMBER.unpack_from


class Endpoint(DataReceiver):
    """One side of one connection; not thread-safe.

    :ivar end_reason: why it has ended, if the peer broke a rule.
    :ivar is_flooded: whether that was because it cost more than it brought.
    :ivar ping_answered: how many of our pings were.
    """

    __slots__ = (
        "_block", "_block_flags", "_block_id", "_decoder", "_held", "_is_greeted", "_needed",
        "_patience", "end_reason", "is_flooded", "ping_answered",
    )  # fmt: skip

    def __init__(self, settings: Settings, acceptor: Acceptor, *, is_server: bool = True) -> None:
        super().__init__(settings, acceptor, is_server=is_server)
        self._decoder = Decoder(settings.header_list)
        self._held: bytearray | None = None  # the beginning of a frame
        self._needed = HEADER_BYTES  # bytes of it, before it is worth looking at
        self._is_greeted = not is_server  # whether the preface has come
        self._block: bytearray | None = None  # headers that go on in the next frame
        self._block_id = self._block_flags = 0
        self._patience: Patience | None = None
        self.is_flooded = False
        self.end_reason = ""
        self.ping_answered = 0

    @property
    def list_size(self) -> int:
        """What the header list that came last counts, in bytes; only so many of it are there."""
        return self._decoder.list_size

    def charge(self, cost: int) -> None:
        """What the peer asked for came to nothing, and cost as much as so many frames."""
        self.cost += cost

    def settle(self, now: float) -> None:
        """See whether the peer costs more than it brings. To be called now and then."""
        if self._patience is None:
            if self.cost < _BURST // 8:  # nobody has patience that nobody tries
                self.cost = max(self.cost, -_MOST)
                return
            self._patience = Patience("the peer", _BURST, _PER_SECOND, _MOST)
        cost, self.cost = self.cost, 0
        try:
            self._patience.settle(cost, self.worth_sent, now)
        except ProtocolError as error:
            self._fail(Fault(ErrorCode.ENHANCE_YOUR_CALM, str(error)))

    def _fail(self, fault: Fault) -> None:
        if not self.is_ended:
            self.is_flooded = fault.code == ErrorCode.ENHANCE_YOUR_CALM
            self.end_reason = str(fault)
            self.end(fault.code, self.end_reason)

    # What the peer says

    def receive(self, data: bytes, turn: int | None = None) -> bytes:
        """Take in what arrived. What comes back is to be given again once others had their turn.

        :param turn: how much is done at once, if not as much as :attr:`Settings.turn`.
        """
        self._left = self.settings.turn if turn is None else turn
        if self.is_ended:
            return b""
        if self.out_bytes > _MOST_UNREAD:
            self._fail(Fault(ErrorCode.ENHANCE_YOUR_CALM, NOT_READ))
            return b""
        try:
            if len(data) == self._usual_size and data.startswith(self._usual_head):
                stream = self.streams.get(self._usual_id)
                if stream is not None and self._is_between_frames and stream.is_between_messages:
                    self._take_usual(stream, data)
                    return b""
            offset = 0
            if self._cut_bytes:
                offset = self._take_cut(data, 0)
                if self.is_ended:
                    return b""
                if self._cut_bytes:
                    return data[offset:]
            elif self._held:
                if len(data) > _SMALL_READ and self._is_greeted:
                    return self._take_with_held(data)
                self._held += data
                if len(self._held) < self._needed:
                    return b""
                data, self._held = bytes(self._held), None
            if not self._is_greeted:
                offset = self._greet(data)
            return self._take_frames(data, offset)
        except Fault as fault:
            self._fail(fault)
        except ProtocolError as error:  # of HPACK
            self._fail(Fault(ErrorCode.COMPRESSION_ERROR, str(error)))
        return b""

    @property
    def _is_between_frames(self) -> bool:
        return self._held is None and self._block is None and not self._cut_bytes

    def _take_with_held(self, data: bytes) -> bytes:
        """Complete the frame that was cut by itself: not all that has come now is copied to it."""
        offset = 0
        while self._held:
            end = offset + self._needed - len(self._held)
            if end > len(data):
                self._held += data[offset:]
                return b""
            first, self._held = bytes(self._held) + data[offset:end], None
            offset = end
            rest = self._take_frames(first, 0)
            if rest:
                return rest + data[offset:]
            if self._cut_bytes and offset < len(data):
                offset = self._take_cut(data, offset)
            if self.is_ended:
                return b""
        return self._take_frames(data, offset)

    def _greet(self, data: bytes) -> int:
        size = len(PREFACE)
        if not data.startswith(PREFACE[: len(data)]):
            raise Fault(ErrorCode.PROTOCOL_ERROR, "it does not speak HTTP/2")
        if len(data) < size:
            return 0
        self._is_greeted = True
        return size

    def _take_frames(self, data: bytes, offset: int) -> bytes:
        size = len(data)
        self._needed = HEADER_BYTES if self._is_greeted else len(PREFACE)
        if not self._is_greeted:
            self._held = bytearray(data)
            return b""
        most = self.cost + _COST_OF_TURN
        while size - offset >= HEADER_BYTES:
            high, low, kind, flags, stream_id = _unpack_header(data, offset)
            start = offset + HEADER_BYTES
            length = high << 8 | low
            end = start + length
            if length > USUAL_FRAME and (kind != DATA or length > self.longest_inbound):
                raise Fault(ErrorCode.FRAME_SIZE_ERROR, "a frame longer than is allowed")
            if end > size:
                is_plain = kind == DATA and not flags and self._block is None
                if is_plain and (rest := self._begin_cut(data, offset)) is not None:
                    return rest
                self._needed = end - offset
                break
            if self._left <= 0 or self.cost > most:
                return data[offset:]
            offset = end
            stream_id &= ID_MASK
            if self._block is not None and (kind != CONTINUATION or stream_id != self._block_id):
                raise Fault(ErrorCode.PROTOCOL_ERROR, "a frame in the middle of headers")
            if kind == DATA:
                stream = self.streams.get(stream_id)
                if not flags and stream is not None and length >= PREFIX_BYTES:
                    if stream.missing:
                        after = self._take_bulk(data, start - HEADER_BYTES)
                    else:
                        after = self._take_row(stream, data, start - HEADER_BYTES)
                    if after >= end:
                        if self.is_ended:  # by whoever took them
                            return b""
                        offset = after
                        continue
                if length > DIVIDED_BYTES and stream is not None:
                    rest = self._divide(stream, flags, data, start, end)
                    if rest is not None:
                        return rest
                work = self._receive_data(stream_id, flags, data, start, end)
                self._left -= work  # which may have counted some already
            elif kind == HEADERS:
                self._receive_headers(stream_id, flags, data, start, end)
                self._left -= 2
            elif kind == WINDOW_UPDATE:
                self._receive_window_update(stream_id, data[start:end])
            elif kind == PING and length == 8 and not stream_id:
                if flags & ACK:
                    self.ping_answered += 1
                else:
                    self._say(PING_ACK + data[start:end])
                self.cost += 1
            else:
                self._left -= 1
                self._receive_other(kind, flags, stream_id, data[start:end])
            if self.is_ended:
                return b""
            if not self.is_settled:
                self._check_first(kind, flags)
        if offset < size:
            self._held = bytearray(data[offset:] if offset else data)
        return b""

    def _check_first(self, kind: int, flags: int) -> None:
        if kind != SETTINGS or flags & ACK:
            raise Fault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        self.is_settled = True

    # Headers

    def _receive_headers(
        self, stream_id: int, flags: int, data: bytes, start: int, end: int
    ) -> None:
        if flags & PADDED:
            if start == end or data[start] >= end - start:
                raise Fault(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
            start, end = start + 1, end - data[start]
        if flags & PRIORITY_FLAG:
            if end - start < PRIORITY_BYTES:
                raise Fault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS cut short")
            if _unpack_number(data, start)[0] & ID_MASK == stream_id:
                raise Fault(ErrorCode.PROTOCOL_ERROR, "a stream that depends on itself")
            start += PRIORITY_BYTES
        if flags & END_HEADERS:
            self._take_block(stream_id, flags, data[start:end])
        else:
            self._block = bytearray(data[start:end])
            self._block_id, self._block_flags = stream_id, flags

    def _receive_continuation(self, flags: int, payload: bytes) -> None:
        if self._block is None:
            raise Fault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION of nothing")
        self._block += payload
        self.cost += 1
        # The table would be out of step without the block, so it cannot just be left out.
        if len(self._block) > 2 * self.settings.header_list or len(payload) < 64:
            self.cost += 20
        if len(self._block) > max(_LONGEST_BLOCK, 4 * self.settings.header_list):
            raise Fault(ErrorCode.ENHANCE_YOUR_CALM, "endless headers")
        if flags & END_HEADERS:
            block, self._block = bytes(self._block), None
            self._take_block(self._block_id, self._block_flags, block)

    def _take_block(self, stream_id: int, flags: int, block: bytes) -> None:
        fields = self._decoder.decode(block)
        # Ours to decode, octet by octet: a large block is a turn.
        self._left -= len(block) >> 8
        self.cost += len(block) >> (6 if len(block) > self.settings.header_list else 10)
        # A byte may stand for any header: many that are too many take long to follow.
        self.cost += max(0, self._decoder.list_size - self.settings.header_list) >> 10
        ended = flags & END_STREAM != 0
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._receive_later_headers(stream, fields, ended)
        elif not self._is_server:
            if self._is_idle(stream_id):
                raise Fault(ErrorCode.PROTOCOL_ERROR, "headers of a stream that there is not")
        elif not stream_id & 1:
            raise Fault(ErrorCode.PROTOCOL_ERROR, "a stream with an id of the other side's")
        elif stream_id > self.last_id:
            self._open(stream_id, fields, ended)
        elif self._reset is None or stream_id not in self._reset:
            raise Fault(ErrorCode.STREAM_CLOSED, "headers of a stream that is closed")

    def _open(self, stream_id: int, fields: list[Field], ended: bool) -> None:
        self.last_id = stream_id
        self.cost += 1
        if stream_id > self._goaway_id:
            return  # it was told that nothing is done for these
        if len(self.streams) >= self.settings.max_streams:
            self.cost += 5
            self.acceptor.refuse_stream()
            self._put_reset(stream_id, ErrorCode.REFUSED_STREAM)
            return
        stream = self.streams[stream_id] = Stream(self, stream_id)
        stream.is_remote_closed = ended
        self.acceptor.accept(stream, fields, self._decoder.list_size, ended=ended)

    def _receive_later_headers(self, stream: Stream, fields: list[Field], ended: bool) -> None:
        """Trailers; or, of a response, its headers."""
        if stream.is_remote_closed:
            self._reset_by_fault(stream, ErrorCode.STREAM_CLOSED)
            return
        is_trailers = self._is_server and not (ended and _are_trailers(fields))
        if is_trailers or (stream.content_left > 0 and ended):
            self._reset_by_fault(stream, ErrorCode.PROTOCOL_ERROR)
            return
        stream.is_remote_closed = ended
        if not self._is_server:
            stream.receiver.take_head(fields, ended=ended)
        elif stream.is_deaf:
            stream.receiver.take([], ended=True)
        else:
            stream.receive(b"", 0, 0, ended)
        if ended and stream.is_local_closed:
            self._discard(stream)

    # All else

    def _receive_other(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        self.cost += 1
        if kind == SETTINGS:
            self._receive_settings(flags, stream_id, payload)
        elif kind == RST_STREAM:
            self._receive_reset(stream_id, payload)
        elif kind == CONTINUATION:
            self._receive_continuation(flags, payload)
        elif kind == GOAWAY:
            self._receive_goaway(stream_id, payload)
        elif kind == PRIORITY:
            self._receive_priority(stream_id, payload)
        elif kind == PING:
            require(len(payload) == 8, ErrorCode.FRAME_SIZE_ERROR, "a PING of a wrong size")
            require(not stream_id, ErrorCode.PROTOCOL_ERROR, "a PING on a stream")
        elif kind == PUSH_PROMISE:
            raise Fault(ErrorCode.PROTOCOL_ERROR, "a PUSH_PROMISE that was not allowed")
        # Frames of kinds that nobody knows are ignored (section 4.1).


def _are_trailers(fields: list[Field]) -> bool:
    illegal = (FieldKind.PSEUDO, FieldKind.MALFORMED)
    return not any(each.kind in illegal for each in fields)
