"""DATA as it comes: one message in a frame, many frames of a message, and frames that are cut."""

from __future__ import annotations

from revconn.core.framing import PREFIX_BYTES
from revconn.core.rope import Data
from revconn.http2.control import Control, Fault
from revconn.http2.frames import (
    DATA,
    DATA_START,
    END_STREAM,
    HEADER,
    HEADER_BYTES,
    NUMBER,
    PADDED,
    RST_STREAM,
    USUAL_FRAME,
    WORTHWHILE_BYTES,
    frame,
)
from revconn.http2.streams import ErrorCode, Stream
from revconn.http2.writing import Acceptor, Settings

__all__ = ["DIVIDED_BYTES", "ID_MASK", "DataReceiver"]

ID_MASK = 0x7FFFFFFF

DIVIDED_BYTES = 256  # of a frame: a shorter one has few messages in it
_USUAL_MESSAGE = 64  # bytes: of a small one
_BULK_FRAMES = 8  # of large messages: as much work as a small message

_unpack_header = HEADER.unpack_from
_unpack_start = DATA_START.unpack_from


class DataReceiver(Control):
    """The part of an :class:`~revconn.http2.endpoint.Endpoint` that DATA frames are for.

    :ivar is_settled: whether the peer's SETTINGS have come, which are its first frame.
    """

    __slots__ = (
        "_cut_bytes", "_cut_id", "_usual_head", "_usual_id", "_usual_size", "is_settled",
    )  # fmt: skip

    def __init__(self, settings: Settings, acceptor: Acceptor, *, is_server: bool) -> None:
        super().__init__(settings, acceptor, is_server=is_server)
        self._cut_id = 0  # of the stream whose frame was cut by the end of what was read
        self._cut_bytes = 0  # of it, that are to come
        # The last read that was one frame with one message: how long it was, and how it began.
        # The next one is like it, as a rule: heartbeats are what thousands of connectors send.
        self._usual_size = -1
        self._usual_head = b""
        self._usual_id = 0
        self.is_settled = False

    def _receive_data(self, stream_id: int, flags: int, data: bytes, start: int, end: int) -> int:
        """Take a DATA frame; how much work that was."""
        size = end - start
        self._use_window(size)
        if size < WORTHWHILE_BYTES:
            self.cost += 1
        if flags & PADDED:
            if start == end or data[start] >= size:
                raise Fault(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
            start, end = start + 1, end - data[start]
        stream = self.streams.get(stream_id)
        if stream is None or stream.is_remote_closed:
            self._receive_stray_data(stream_id, stream)
            return 1
        stream.receive_window -= size
        if stream.receive_window < 0:
            self._reset_by_fault(stream, ErrorCode.FLOW_CONTROL_ERROR)
            return 1
        ended = flags & END_STREAM != 0
        if stream.content_left >= 0 and not self._count_content(stream, end - start, ended):
            return 1
        if ended:
            stream.is_remote_closed = True
        if stream.is_deaf:
            count = 0
            if ended:
                stream.receiver.take([], ended=True)
        else:
            count = stream.receive(data, start, end, ended)
            # Messages of nothing are worth no more than their bytes.
            self.cost -= min(count, 1 + size // _USUAL_MESSAGE)
            if stream.inflate is not None:
                self._weigh(stream.inflate)
        if ended:
            if stream.is_local_closed:
                self._discard(stream)
        elif stream.missing:
            if stream.wanted or not stream.granted:
                self.acceptor.want_credit(stream)
        else:
            self._refill(stream)
        return 1 + count

    def _divide(
        self, stream: Stream, flags: int, data: bytes, start: int, end: int
    ) -> bytes | None:
        """Take the first messages of a frame with more than may be taken now.

        What is to be given again begins with a frame of the others. ``None`` for all other frames:
        nothing was done.
        """
        first, padding = start, 0
        if flags & PADDED:
            first, padding = start + 1, data[start]
        last = end - padding
        if stream.is_deaf or stream.is_remote_closed or last <= first:
            return None
        middle = stream.end_of(data, first, last, max(1, self._left))
        if middle == last:
            return None
        self._use_window(first - start + padding)
        stream.receive_window -= first - start + padding
        self._left -= self._receive_data(stream.id, 0, data, first, middle)
        if self.is_ended:
            return b""
        size, view = last - middle, memoryview(data)
        head = HEADER.pack(size >> 8, size & 0xFF, DATA, flags & END_STREAM, stream.id)
        return b"".join((head, view[middle:last], view[end:]))  # copied once

    def _receive_stray_data(self, stream_id: int, stream: Stream | None) -> None:
        self.cost += 1
        if stream is not None:  # half-closed: nothing may follow its end
            self._reset_by_fault(stream, ErrorCode.STREAM_CLOSED)
        elif not stream_id or self._is_idle(stream_id):
            raise Fault(ErrorCode.PROTOCOL_ERROR, "DATA where no stream is open")
        elif self._reset is None or stream_id not in self._reset:
            self._put(frame(RST_STREAM, 0, stream_id, NUMBER.pack(ErrorCode.STREAM_CLOSED)))

    def _take_row(self, stream: Stream, data: bytes, offset: int) -> int:
        """Take frames of one whole message each, as long as they come in a row on one stream.

        Where the next frame begins. Together, because a connector's own calls come like that, and
        what is done about each frame costs more than about the call.
        """
        if not (self.is_settled and stream.is_between_messages):
            return offset
        stream_id = stream.id
        messages: list[Data] = []
        begin, size = offset, len(data)
        longest = min(stream.limit, self.longest_inbound - PREFIX_BYTES)
        small = 0
        for _ in range(self._left):
            start = offset + DATA_START.size
            if start > size:
                break
            high, low, kind, flags, frame_stream_id, flag, length = _unpack_start(data, offset)
            end = start + length
            if kind or flags or flag or frame_stream_id != stream_id or end > size:
                break
            if (high << 8 | low) != PREFIX_BYTES + length or length > longest:
                break
            messages.append(data[start:end])
            if length < WORTHWHILE_BYTES:
                small += 1
            offset = end
        if not messages:
            return offset
        if len(messages) == 1 and not begin and offset == size < USUAL_FRAME:
            self._usual_id, self._usual_size = stream_id, size
            self._usual_head = data[: DATA_START.size]
        used = offset - begin - len(messages) * HEADER_BYTES
        self._use_window(used)
        stream.receive_window -= used
        if stream.receive_window < 0:
            self._reset_by_fault(stream, ErrorCode.FLOW_CONTROL_ERROR)
            return offset
        count = len(messages)
        # Messages of nothing are worth no more than their bytes.
        self.cost += small - min(count, 1 + used // _USUAL_MESSAGE)
        self._left -= count
        stream.receiver.take(messages, ended=False)
        if stream.receive_window < stream.window // 2:
            self._refill(stream)
        return offset

    def _take_usual(self, stream: Stream, data: bytes) -> None:
        """Take a frame of one whole message, just as the last one was: it is not taken apart."""
        used = len(data) - HEADER_BYTES
        self._use_window(used)
        stream.receive_window -= used
        if stream.receive_window < 0:
            self._reset_by_fault(stream, ErrorCode.FLOW_CONTROL_ERROR)
            return
        if used - PREFIX_BYTES >= WORTHWHILE_BYTES:  # a small one is worth no more than it costs
            self.cost -= 1
        stream.receiver.take([data[DATA_START.size :]], ended=False)
        if stream.receive_window < stream.window // 2:
            self._refill(stream)

    def _take_bulk(self, data: bytes, offset: int) -> int:
        """Go on with messages of many frames; how far nothing but their DATA has come, if any.

        A message of 1 MiB is 64 frames of most peers, and those of several messages take turns. One
        by one they would take longer than copying them does. A frame may be cut by the end of what
        was read: the rest of it follows (:meth:`_take_cut`).
        """
        view = memoryview(data)
        size = len(data)
        pieces: list[memoryview] = []
        stream: Stream | None = None
        taken = missing = frames = 0
        most = self._left * _BULK_FRAMES
        while size - offset >= HEADER_BYTES and frames < most:
            high, low, kind, flags, stream_id = _unpack_header(data, offset)
            length = high << 8 | low
            if kind or flags or not WORTHWHILE_BYTES <= length <= self.longest_inbound:
                break
            frames += 1
            if stream is None or stream_id != stream.id:
                if stream is not None:
                    self._add(stream, pieces, taken, size)
                    if self.is_ended:
                        return offset
                    pieces = []
                    taken = 0
                stream = self.streams.get(stream_id)
                missing = 0 if stream is None or stream.content_left >= 0 else stream.missing
            if length > missing - taken:
                break
            start = offset + HEADER_BYTES
            offset = start + length
            if offset > size:
                self._cut_id, self._cut_bytes = stream_id, offset - size
                length, offset = size - start, size
            taken += length
            pieces.append(view[start:offset])
        self._left -= 1 + frames // _BULK_FRAMES
        if stream is not None and pieces:
            self._add(stream, pieces, taken, size)
        return offset

    def _add(self, stream: Stream, pieces: list[memoryview], size: int, read: int) -> None:
        """Take ``size`` bytes of frames' payloads, these pieces of them, out of ``read`` bytes."""
        self._use_window(size)
        stream.receive_window -= size
        if stream.receive_window < 0:
            self._reset_by_fault(stream, ErrorCode.FLOW_CONTROL_ERROR)
            return
        if size < read // 2:  # what is kept must not keep much more of what was read
            pieces = [memoryview(bytes(piece)) for piece in pieces]
        self.cost -= stream.receive_pieces(pieces)
        if stream.inflate is not None:
            self._weigh(stream.inflate)
        if not stream.missing:
            self._refill(stream)

    def _begin_cut(self, data: bytes, offset: int) -> bytes | None:
        """Take what has come of a frame of DATA that is cut, where holding it costs more.

        What follows of it is taken as if it were a frame of its own (:meth:`_take_cut`). What comes
        back is to be given again; ``None``: the frame is to be held.
        """
        high, low, _, _, stream_id = _unpack_header(data, offset)
        length, start = high << 8 | low, offset + HEADER_BYTES
        stream = self.streams.get(stream_id)
        if stream is not None and stream.missing:
            return b"" if self._take_bulk(data, offset) > offset else None
        if stream is None or length <= USUAL_FRAME or start == len(data):
            return None
        self._cut_id, self._cut_bytes = stream_id, length
        return data[self._take_cut(data, start) :]

    def _take_cut(self, data: bytes, offset: int) -> int:
        """Go on with a frame of DATA that was cut; how far it, or as much as may be, was taken."""
        end = min(offset + self._cut_bytes, len(data))
        stream = self.streams.get(self._cut_id)
        is_part = stream is not None and end - offset <= stream.missing and stream.content_left < 0
        if stream is not None and not is_part and not stream.is_deaf:
            end = stream.end_of(data, offset, end, max(1, self._left))
        self._cut_bytes -= end - offset
        if stream is not None and is_part and end > offset:
            self._add(stream, [memoryview(data)[offset:end]], end - offset, len(data))
        else:
            self._left -= self._receive_data(self._cut_id, 0, data, offset, end)
        return end
