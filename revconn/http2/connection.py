"""A connector's HTTP/2 without I/O: one gRPC stream, its messages, and flow control."""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Union

from revconn.core.framing import PREFIX_BYTES, GzipInflater
from revconn.core.rope import ROPE_BYTES, Data
from revconn.core.status import ProtocolError, Speaker, StatusCode
from revconn.http2.control_frames import (
    STREAM_ID,
    ControlFrames,
    Informational,
    Reset,
    Response,
    SettingsChanged,
    Trailers,
)
from revconn.http2.frames import (
    ACK,
    DATA,
    DATA_START,
    DEFAULT_WINDOW,
    END_STREAM,
    GOAWAY,
    HEADER_BYTES,
    PADDED,
    PING,
    PING_ACK,
    SETTINGS_ACK,
    WINDOW_UPDATE,
    WORTHWHILE_BYTES,
    FrameSplitter,
    ReceiveWindow,
    SendWindow,
    data_header,
    parse_window_update,
    ping,
    unpad,
    window_update,
)
from revconn.http2.grpc import (
    LARGE_RUN,
    Goaway,
    MessageReader,
    StreamEnd,
    end_by_reset,
    end_by_trailers,
    frame_all,
    parse_goaway,
    refusal,
    request_headers,
    who_ended,
)
from revconn.http2.patience import Patience

__all__ = ["Buffer", "Engine"]

# What a gateway may send ahead of what handlers took is the stream's window. The connection's is
# larger, so that one stream never waits for it.
_STREAM_WINDOW = 8 << 20
_CONNECTION_WINDOW = 16 << 20
_FRAME_BYTES = 1 << 18  # as much as one read of the wire takes
_MOST_GOAWAYS = 4  # that are kept, for the log: a graceful shutdown has two
_MOST_INFORMATIONAL = 10  # responses of status 1xx before the real one
_MOST_UNSENT_CONTROL = 1 << 20  # bytes that a peer has us say while it does not read them
# What is asked for while a write lasts waits for its end; and a write that lasts too long counts as
# a peer that reads nothing, so it must be short on a slow line too.
_LONGEST_OUT = 1 << 18  # bytes of a frame, however long a peer allows
_MOST_DATA_PER_WRITE = _LONGEST_OUT + (4 << 10)  # what is around large messages goes along
_COPIED_BYTES = 8 << 10  # a longer piece of a payload is a buffer of its own, not copied
_PING_BYTES = 8
_INCREMENT_BYTES = 4
_SETTLED_EVERY = 500  # of `_cost`: a fraction of what a peer is given at once

_unpack_start = DATA_START.unpack_from
_pack_start = DATA_START.pack
_unpack_increment = struct.Struct(">I").unpack_from
_INCREMENT_MASK = 0x7FFFFFFF
_unpack_prefix = struct.Struct(">BI").unpack_from

_NO_TRAILERS = StreamEnd(StatusCode.INTERNAL, "the gateway ended the stream without trailers")

Buffer = Union[bytes, memoryview]


class Engine:
    """One gRPC stream on one HTTP/2 connection, as bytes in and bytes out.

    What comes often is seen to here: DATA, its flow control, and PING, since a gateway that
    estimates its bandwidth (any grpc-go or grpc-java server as it comes) sends one with every lone
    request. Settings, headers and resets are :class:`ControlFrames`'.

    There is no lock. The receiving thread owns what comes in: :meth:`receive`, the control frames,
    ``end``, ``speaker``, ``goaways`` and ``initial_metadata``, which others may read. Whoever has
    the stream's turn to write owns what goes out: :meth:`put`, :meth:`grant`, :meth:`take_output`.
    Between the two are ``control``, a deque that any thread appends to, and numbers with one
    writer each.
    """

    #   opened --headers of gRPC--> reading --trailers, reset, GOAWAY, an error--> ended
    #      +-----headers that refuse, reset, GOAWAY, an error-----------------------^
    #
    # ``_reading_id`` tells opened from reading, ``end`` says that it has ended. While reading,
    # receive() takes whole frames apart by itself (``_is_plain``), follows one large message
    # (``_reader.missing``), or has the splitter give out frame by frame.

    def __init__(self, message_limit: int) -> None:
        # Once the gateway's headers announce gzip. What it may inflate to altogether is renewed by
        # whoever takes the messages away: here nobody knows whether they are still in memory.
        self.inflater: GzipInflater | None = None
        self._message_limit = message_limit
        self._splitter = FrameSplitter(_FRAME_BYTES)
        self._reader = MessageReader(message_limit)
        self._patience = Patience()
        self._cost = 0  # of what came, less what it was worth; settled with _patience now and then
        self.inbound = ReceiveWindow(_STREAM_WINDOW)
        self._received = 0  # bytes of DATA, in all; the receiving thread's
        self._outbound = SendWindow()
        self._sent = 0  # bytes of DATA, in all; whoever's turn it is to write
        self._control_frames = ControlFrames(_STREAM_WINDOW, _FRAME_BYTES)
        self._longest_outbound = self._control_frames.longest_outbound  # no longer than one write
        self._longest_lone = min(self._longest_outbound, ROPE_BYTES)
        self._stream_id = STREAM_ID
        self._informational = 0
        self._reading_id = -1  # the stream's, once its headers have come
        self._is_plain = False  # nothing has come in part, so receive() may take it apart itself
        # Messages for which the peer's window has no room yet, in runs. Whether there are any is
        # read by the receiving thread, too, which then wakes the sender as the window opens.
        self.unsent: deque[memoryview] = deque()
        self.control: deque[bytes] = deque()
        self._control_put = 0  # bytes that the peer made us say
        self.control_taken = 0  # of those
        self._worth_sent = 0.0  # of what went out; a peer answers it with window updates
        self.initial_metadata: Mapping[str, str | bytes] | None = None
        self.end: StreamEnd | None = None
        self.speaker = Speaker.STRANGER  # whose word the end is
        self.goaways: list[Goaway] = []

    # What we say: whoever has the turn to write

    def open_stream(
        self, scheme: str, authority: str, path: str, metadata: Mapping[str, str | bytes]
    ) -> None:
        """Begin the connection and the one stream on it. Before any other thread is there."""
        # The request does not wait for the gateway's SETTINGS: that would cost a round trip, and
        # RFC 9113 (section 3.4) allows it. The connection's window has no setting, but an update.
        self.control.append(self._control_frames.begin())
        self.control.append(window_update(0, _CONNECTION_WINDOW - DEFAULT_WINDOW))
        headers = request_headers(scheme, authority, path, metadata)
        self.control.append(self._control_frames.open_stream(headers))

    def put(self, messages: Sequence[Data]) -> None:
        """Queue messages behind those that still wait for the peer's window."""
        size = 0
        for run in frame_all(messages):
            self.unsent.append(run)
            size += len(run)
        self._worth_sent += size / 1024 + 2 * len(messages)  # each opens two windows again

    def grant(self) -> None:
        """There is room: let the peer send as much again as was received since the last time."""
        increment = self.inbound.give_back(self._received)
        if increment:
            for stream_id in (0, self._stream_id):
                update = window_update(stream_id, increment)
                self.control.append(update)
                self.control_taken -= len(update)  # the peer did not ask for it

    def take_output(self, messages: Sequence[Data] = ()) -> tuple[list[Buffer], int]:
        """What to write next, and how many bytes carry messages, these included; none at the end.

        Small pieces are one buffer. Large ones are the payloads themselves, which are not copied.
        """
        if self.end is not None:
            return [], 0
        control = self.control
        small: list[Buffer] = []
        while control:
            small.append(control.popleft())
            self.control_taken += len(small[-1])
        # A lone answer, which fits as a rule: one join and no queue, since each call more would
        # show in the time that one request takes.
        if len(messages) == 1 and not self.unsent:
            message = messages[0]
            size = PREFIX_BYTES + len(message)
            if size <= self._longest_lone and self._sent + size <= self._outbound.opened:
                self._sent += size
                self._worth_sent += 2 + size / 1024
                head = _pack_start(
                    size >> 8, size & 0xFF, DATA, 0, self._stream_id, 0, size - PREFIX_BYTES
                )
                return [b"".join((*small, head, message))], size  # type: ignore[arg-type]  # no rope
        if messages:
            self.put(messages)
        output: list[Buffer] = []
        carried = self._take_data(small, output) if self.unsent else 0
        if small:
            output.append(b"".join(small))
        return output, carried

    def _take_data(self, small: list[Buffer], output: list[Buffer]) -> int:
        """DATA frames, as far as the windows allow; how many bytes they carry.

        ``small`` is what has no place in ``output`` yet, before and after.
        """
        budget = min(self._outbound.opened - self._sent, _MOST_DATA_PER_WRITE)
        longest = self._longest_outbound
        full_header = b""  # of nearly all frames of a large message
        carried = 0
        unsent = self.unsent
        while unsent and carried < budget:
            size = self._next_frame(min(longest, budget - carried))
            if size < longest:
                small.append(data_header(size, self._stream_id))
            else:
                full_header = full_header or data_header(size, self._stream_id)
                small.append(full_header)
            carried += size
            while size:
                piece = unsent[0]
                if len(piece) > size:
                    unsent[0] = piece[size:]
                    piece = piece[:size]
                else:
                    unsent.popleft()
                size -= len(piece)
                if len(piece) < _COPIED_BYTES:
                    small.append(piece)
                else:
                    output.append(b"".join(small))
                    output.append(piece)
                    small.clear()
        self._sent += carried
        return carried

    def _next_frame(self, most: int) -> int:
        """How many bytes, if not more than that, are a frame: one with something large ends there.

        As a rule that is the end of a message, and whole messages cost less to take apart.
        """
        size = 0
        for run in self.unsent:
            size += len(run)
            if size >= most:
                return most
            if len(run) >= LARGE_RUN:
                break
        return size

    # Any thread

    def ping(self) -> None:
        """Queue a PING."""
        if self.end is None:
            self.control.append(ping(b"revconn\0"))

    @property
    def may_send(self) -> bool:
        """Whether the peer's window has room for more."""
        return self._outbound.opened > self._sent

    # What the peer says: the receiving thread

    def receive(self, data: bytes) -> list[Data]:
        """The messages that are complete now.

        ``end`` is set when the stream is over: because the peer says so, or because it does not
        speak HTTP/2, or abuses it.

        As a rule what was read is whole frames of whole messages, and now and then a PING or a
        WINDOW_UPDATE: those are taken apart here, since a call for each of them would cost more
        than all that is done about it. From the first byte that is something else the others see
        to it.
        """
        messages: list[Data] = []
        if self.end is not None:
            return messages
        offset = weight = received = 0
        size = len(data)
        reading_id = self._reading_id
        limit = self._message_limit
        try:
            if self._is_plain:
                while size - offset >= DATA_START.size:
                    high, low, kind, flags, stream_id, flag, length = _unpack_start(data, offset)
                    position = offset + HEADER_BYTES
                    end = position + (high << 8 | low)
                    # Padded, acknowledged, the stream's last, or cut by the read: the splitter's.
                    if end > size or flags or end - position > _FRAME_BYTES:
                        break
                    if kind == DATA and stream_id == reading_id:
                        offset = end
                        received += end - position
                        if end - position >= WORTHWHILE_BYTES:
                            weight -= 1
                        # By far the most: one whole message in a frame of its own.
                        if position + PREFIX_BYTES + length == end and not flag and length <= limit:
                            messages.append(data[position + PREFIX_BYTES : end])
                            continue
                        weight += 1
                        while end - position >= PREFIX_BYTES:
                            flag, length = _unpack_prefix(data, position)
                            stop = position + PREFIX_BYTES + length
                            if flag or stop > end or length > limit:
                                break
                            messages.append(data[position + PREFIX_BYTES : stop])
                            position = stop
                            weight -= 1
                        if position < end:  # one that goes on in the next frame, or is compressed
                            weight += len(messages)
                            self._reader.feed(data, position, end, messages)
                            weight -= len(messages)
                            offset = self._take_large(data, offset, messages)
                            if not self._is_plain:
                                break
                    elif (
                        kind == WINDOW_UPDATE
                        and end - position == _INCREMENT_BYTES
                        and stream_id in (0, reading_id)
                    ):
                        (increment,) = _unpack_increment(data, position)
                        self._outbound.open(stream_id, increment & _INCREMENT_MASK, self._sent)
                        weight += 1
                        offset = end
                    elif kind == PING and end - position == _PING_BYTES and stream_id == 0:
                        self._say(PING_ACK + data[position:end])
                        weight += 1
                        offset = end
                    else:
                        break
            self._received += received
            if self._received >= self.inbound.half_used_at:
                self.inbound.look(self._received)
            self._cost += weight
            if offset < size:
                self._take_rest(data[offset:] if offset else data, messages)
            if not -_SETTLED_EVERY < self._cost < _SETTLED_EVERY:
                self._settle_cost()
        except ProtocolError as error:
            self._finish(StreamEnd(StatusCode.INTERNAL, str(error)))
        return messages

    def describe_end(self) -> str:
        """What to add to words for a connection that broke here; often nothing."""
        where = self._splitter.describe_end()
        if self._reader.mid_message:
            where = " in the middle of a message"
        return f"{where} after {self.goaways[-1]}" if self.goaways else where

    @property
    def _is_between_messages(self) -> bool:
        return (
            self._reading_id > 0
            and self._splitter.is_between_frames
            and not self._reader.mid_message
            and self._control_frames.block is None
        )

    def _take_rest(self, data: bytes, messages: list[Data]) -> None:
        """What is no row of whole frames with whole messages."""
        # Looked for here: at the top of receive() it cost a small message a twentieth more.
        offset = 0
        if self._reader.missing:
            offset = self._take_large(data, 0, messages)
            if self._is_plain and offset < len(data):
                messages += self.receive(data[offset:])
                return
        if offset < len(data):
            self._take_in(data[offset:] if offset else data, messages)
            self._is_plain = self._is_between_messages

    def _take_large(self, data: bytes, offset: int, messages: list[Data]) -> int:
        """Go on with a message of many frames; how far nothing but its DATA has come."""
        if self._control_frames.block is None:
            before, missing = len(messages), self._reader.missing
            offset, pieces = self._splitter.take_data(data, offset, self._reading_id, missing)
            self._reader.add(pieces, messages)
            self._use(missing - self._reader.missing)
            self._weigh(len(messages) - before)
        self._is_plain = self._is_between_messages
        return offset

    def _take_in(self, data: bytes, messages: list[Data]) -> None:
        plain_bytes = 0
        before = len(messages)
        for kind, flags, stream_id, buffer, start, end in self._splitter.feed(data):
            # Nothing may come between HEADERS and the end of their block (RFC 9113, section 4.3).
            if self._control_frames.block is not None:
                if kind == DATA:
                    raise ProtocolError("DATA in the middle of headers")
                self._receive_other(kind, flags, stream_id, buffer[start:end])
            elif kind == DATA and not flags and stream_id == self._reading_id:
                plain_bytes += end - start
                self._reader.feed(buffer, start, end, messages)
            elif kind == DATA:
                self._use(end - start)
                if stream_id != self._reading_id:
                    raise ProtocolError("DATA where no stream is open", f"stream {stream_id}")
                self._receive_odd_data(flags, buffer, start, end, messages)
            elif kind == WINDOW_UPDATE and stream_id in (0, self._stream_id):
                self._outbound.open(stream_id, parse_window_update(buffer[start:end]), self._sent)
            elif kind == PING and end - start == _PING_BYTES and stream_id == 0:
                if not flags & ACK:
                    self._say(PING_ACK + buffer[start:end])
            elif kind == GOAWAY:
                if stream_id:
                    raise ProtocolError("a GOAWAY on a stream", f"stream {stream_id}")
                self._receive_goaway(parse_goaway(buffer[start:end]))
            else:
                self._receive_other(kind, flags, stream_id, buffer[start:end])
            if self.end is not None:
                return
        self._use(plain_bytes)
        self._weigh(len(messages) - before)

    def _use(self, size: int) -> None:
        self._received += size
        if self._received >= self.inbound.half_used_at:
            self.inbound.look(self._received)

    def _say(self, control: bytes) -> None:
        """Queue what the peer asked for, as long as it reads the answers."""
        self.control.append(control)
        self._control_put += len(control)
        if self._control_put - self.control_taken > _MOST_UNSENT_CONTROL:
            raise ProtocolError("the gateway asks for answers and does not read them")

    def _weigh(self, messages: int) -> None:
        """What the splitter and the inflater did costs; the messages that came of it are worth."""
        self._cost += self._splitter.take_weight() - messages
        if self.inflater is not None:
            self._cost += self.inflater.take_weight()

    def _settle_cost(self) -> None:
        """See whether the peer has cost more than it brought, and than we sent, for too long."""
        cost, self._cost = self._cost, 0
        self._patience.settle(cost, self._worth_sent, time.monotonic())

    def _receive_odd_data(
        self, flags: int, buffer: bytes, start: int, end: int, messages: list[Data]
    ) -> None:
        if flags & PADDED:
            start, end = unpad(buffer, start, end)
        self._reader.feed(buffer, start, end, messages)
        if flags & END_STREAM:
            self._finish(_NO_TRAILERS)

    def _receive_other(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """What comes seldom."""
        event = self._control_frames.receive(kind, flags, stream_id, payload)
        if isinstance(event, Response):
            self._receive_headers(event.metadata)
            if event.ended:
                self._finish(_NO_TRAILERS)
        elif isinstance(event, Trailers):
            speaker = who_ended(self.initial_metadata or {}, event.metadata)
            self._finish(end_by_trailers(event.metadata), speaker)
        elif isinstance(event, Informational):
            self._informational += 1
            if self._informational > _MOST_INFORMATIONAL:
                raise ProtocolError(f"more than {_MOST_INFORMATIONAL} responses of status 1xx")
        elif isinstance(event, Reset):
            self._finish(end_by_reset(event.error_code))
        elif isinstance(event, SettingsChanged):
            self._outbound.resize(event.window_change, self._sent)
            longest = self._control_frames.longest_outbound
            self._longest_outbound = min(longest, _LONGEST_OUT)
            self._longest_lone = min(longest, ROPE_BYTES)
            self._say(SETTINGS_ACK)

    def _receive_headers(self, metadata: Mapping[str, str | bytes]) -> None:
        self.initial_metadata = metadata
        self._reading_id = self._stream_id  # DATA before this is refused
        if (refused := refusal(metadata)) is not None:
            self._finish(refused, who_ended(metadata, None))
        encoding = metadata.get("grpc-encoding", "identity")
        if encoding == "gzip":
            self.inflater = GzipInflater(self._message_limit)
            self._reader.inflate_with(self.inflater)
        elif encoding != "identity":
            self._finish(
                StreamEnd(StatusCode.UNIMPLEMENTED, f"unknown grpc-encoding {encoding!r:.60}")
            )

    def _receive_goaway(self, goaway: Goaway) -> None:
        if len(self.goaways) < _MOST_GOAWAYS:
            self.goaways.append(goaway)
        # A server that shuts down gracefully says first 2**31 - 1, then the last stream that it
        # took: only below ours it has refused ours, and did nothing for it (section 6.8).
        if goaway.last_stream_id < self._stream_id:
            reason = f"the gateway refused the stream ({goaway})"
            self._finish(StreamEnd(StatusCode.UNAVAILABLE, reason))

    def _finish(self, end: StreamEnd, speaker: Speaker = Speaker.STRANGER) -> None:
        """The first end counts: what follows (an END_STREAM, a reset) only confirms it."""
        # Last what others look at: who sees an end finds whose word it is.
        if self.end is None:
            self.speaker = speaker
            self.end = end
