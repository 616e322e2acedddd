"""What a peer says about a connection and its streams, beside headers and DATA; their windows."""

from __future__ import annotations

from revconn.core.framing import GzipInflater
from revconn.core.status import ProtocolError
from revconn.http2.frames import (
    ACK,
    ENABLE_PUSH,
    INITIAL_WINDOW,
    LARGEST_FRAME,
    LARGEST_WINDOW,
    MAX_FRAME,
    MAX_HEADER_LIST,
    MAX_STREAMS,
    NUMBER,
    PRIORITY_BYTES,
    RST_STREAM,
    SETTING,
    SETTINGS_ACK,
    USUAL_FRAME,
    frame,
    settings_frame,
    window_update,
)
from revconn.http2.streams import ErrorCode, Stream
from revconn.http2.writing import (
    CONNECTION_WINDOW,
    GOAWAY_HEAD,
    LONGEST_FRAME_OUT,
    Acceptor,
    Settings,
    Writer,
)

__all__ = ["NOT_READ", "Control", "Fault", "require"]

NOT_READ = "it asks and does not read the answers"

_MOST_CONTROL = 1 << 20  # bytes that a peer has us say while it does not read them
_ID_MASK = 0x7FFFFFFF
_unpack_number = NUMBER.unpack_from


class Fault(ProtocolError):
    """The peer broke a rule for which the connection ends, with that code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Control(Writer):
    """The part of an :class:`~revconn.http2.endpoint.Endpoint` that these frames are for.

    :ivar longest_inbound: bytes of a frame that the peer may send.
    :ivar cost: what the peer cost beyond what it brought, since it was last settled.
    """

    __slots__ = ("_left", "_received", "cost", "longest_inbound")

    def __init__(self, settings: Settings, acceptor: Acceptor, *, is_server: bool) -> None:
        super().__init__(settings, acceptor, is_server=is_server)
        self.cost = 0
        self.longest_inbound = USUAL_FRAME
        self._left = 0  # work in this turn, until it is others' turn
        self._received = 0  # bytes of DATA since the connection's window was opened again

    def _weigh(self, inflate: GzipInflater) -> None:
        """Count what inflating took beyond what the bytes that came are worth."""
        weight = inflate.take_weight()
        self.cost += weight
        self._left -= 4 * weight

    def _say(self, data: bytes) -> None:
        """Write what the peer made us say, as long as it reads the answers."""
        self._control += len(data)
        if self._control > _MOST_CONTROL:
            raise Fault(ErrorCode.ENHANCE_YOUR_CALM, NOT_READ)
        self._put(data)

    def allow_frames(self, size: int) -> None:
        """Let the peer send frames of so many bytes of DATA from now on."""
        self.longest_inbound = size
        self._put(settings_frame([(MAX_FRAME, size)]))

    # Windows of what comes

    def _refill(self, stream: Stream) -> None:
        """Open a stream's window again, once half of it is used and no message is on its way."""
        if stream.missing or (stream.is_held and not stream.is_deaf):
            return
        if stream.receive_window < stream.window // 2 and not stream.is_remote_closed:
            self.open_window(stream, stream.window - stream.receive_window)

    def _use_window(self, size: int) -> None:
        self.receive_window -= size
        if self.receive_window < 0:
            raise Fault(ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the window allows")
        self._received += size
        if self._received > CONNECTION_WINDOW // 2:
            # Given back as it comes, so that no stream waits for another one. What streams keep is
            # bounded by their own windows.
            self._put(window_update(0, self._received))
            self.receive_window += self._received
            self._received = 0

    def _count_content(self, stream: Stream, size: int, ended: bool) -> bool:
        stream.content_left -= size
        if stream.content_left < 0 or (ended and stream.content_left):
            self._reset_by_fault(stream, ErrorCode.PROTOCOL_ERROR)
            return False
        return True

    # Streams

    def _is_idle(self, stream_id: int) -> bool:
        """Whether nobody has opened a stream of that id yet."""
        if stream_id & 1 == self._is_server:
            return stream_id > self.last_id
        return self._is_server or stream_id >= self._next_id

    def _reset_by_fault(self, stream: Stream, code: int) -> None:
        """End a stream on which the peer broke a rule."""
        self.cost += 10
        receiver = stream.receiver
        self.reset(stream, code)
        receiver.break_off("it broke a rule of HTTP/2")

    # Frames

    def _receive_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        require(not stream_id, ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & ACK:
            require(not payload, ErrorCode.FRAME_SIZE_ERROR, "an acknowledgement with settings")
            return
        size_ok = len(payload) % SETTING.size == 0
        require(size_ok, ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of a wrong size")
        self._say(SETTINGS_ACK)  # ahead of the DATA that they may let go
        window = self.initial_send_window
        for number, value in SETTING.iter_unpack(payload):
            self.cost += 1
            if number == ENABLE_PUSH:
                require(value < 2, ErrorCode.PROTOCOL_ERROR, "ENABLE_PUSH neither 0 nor 1")
            elif number == INITIAL_WINDOW:
                fits = value <= LARGEST_WINDOW
                require(fits, ErrorCode.FLOW_CONTROL_ERROR, "a window that is too large")
                window = value
            elif number == MAX_FRAME:
                fits = USUAL_FRAME <= value <= LARGEST_FRAME
                require(fits, ErrorCode.PROTOCOL_ERROR, "a frame size that may not be")
                self.longest_frame = min(value, LONGEST_FRAME_OUT)
            elif number == MAX_STREAMS:
                self.peer_max_streams = value
            elif number == MAX_HEADER_LIST:
                self.peer_header_list = value
        self._resize_windows(window)  # once, however often it was said: all streams are looked at
        self.pump()

    def _resize_windows(self, size: int) -> None:
        change, self.initial_send_window = size - self.initial_send_window, size
        if not change:
            return
        # Each of them is changed: a peer may have this done again and again.
        self._left -= len(self.streams)
        self.cost += len(self.streams) >> 3
        for stream in tuple(self.streams.values()):
            if stream.id in self.streams:  # what is sent on one may end another
                self._open_send_window(stream, change)

    def _open_send_window(self, stream: Stream, increment: int) -> None:
        stream.send_window += increment
        if stream.send_window > LARGEST_WINDOW:
            self._reset_by_fault(stream, ErrorCode.FLOW_CONTROL_ERROR)
        elif stream.send_window > 0:
            if stream.unsent_bytes:
                self.push(stream)
            elif self._thirsty:
                self.pump()

    def _receive_window_update(self, stream_id: int, payload: bytes) -> None:
        self.cost += 1
        right_size = len(payload) == NUMBER.size
        require(right_size, ErrorCode.FRAME_SIZE_ERROR, "a WINDOW_UPDATE of a wrong size")
        increment = _unpack_number(payload)[0] & _ID_MASK
        if not stream_id:
            require(increment > 0, ErrorCode.PROTOCOL_ERROR, "a WINDOW_UPDATE of 0 bytes")
            self.send_window += increment
            fits = self.send_window <= LARGEST_WINDOW
            require(fits, ErrorCode.FLOW_CONTROL_ERROR, "a window that is too large")
            self.pump()
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            idle = self._is_idle(stream_id)
            require(not idle, ErrorCode.PROTOCOL_ERROR, "a WINDOW_UPDATE where no stream is open")
        elif not increment:
            self._reset_by_fault(stream, ErrorCode.PROTOCOL_ERROR)
        else:
            self._open_send_window(stream, increment)

    def _receive_reset(self, stream_id: int, payload: bytes) -> None:
        require(len(payload) == 4, ErrorCode.FRAME_SIZE_ERROR, "a RST_STREAM of a wrong size")
        if not stream_id or self._is_idle(stream_id):
            raise Fault(ErrorCode.PROTOCOL_ERROR, "a RST_STREAM where no stream is open")
        stream = self.streams.get(stream_id)
        if stream is not None:
            # It was opened, and something begun for it, for nothing ("rapid reset").
            self.cost += 4
            self._end_by_peer(stream, *_unpack_number(payload))

    def _end_by_peer(self, stream: Stream, code: int) -> None:
        receiver = stream.receiver
        self._discard(stream)
        receiver.reset(code)

    def _receive_goaway(self, stream_id: int, payload: bytes) -> None:
        require(not stream_id, ErrorCode.PROTOCOL_ERROR, "a GOAWAY on a stream")
        complete = len(payload) >= GOAWAY_HEAD.size
        require(complete, ErrorCode.FRAME_SIZE_ERROR, "a GOAWAY cut short")
        last_id, code = GOAWAY_HEAD.unpack_from(payload)
        last_id &= _ID_MASK
        self.acceptor.go(last_id, code, payload[GOAWAY_HEAD.size :])
        if not self._is_server:
            # Nothing was done for these, as for one that is refused (section 6.8).
            for stream in tuple(self.streams.values()):
                if stream.id > last_id:
                    self._end_by_peer(stream, ErrorCode.REFUSED_STREAM)

    def _receive_priority(self, stream_id: int, payload: bytes) -> None:
        require(stream_id > 0, ErrorCode.PROTOCOL_ERROR, "a PRIORITY of no stream")
        if len(payload) != PRIORITY_BYTES:
            self._refuse_frame(stream_id, ErrorCode.FRAME_SIZE_ERROR)
        elif _unpack_number(payload)[0] & _ID_MASK == stream_id:
            self._refuse_frame(stream_id, ErrorCode.PROTOCOL_ERROR)

    def _refuse_frame(self, stream_id: int, code: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._reset_by_fault(stream, code)
        elif self._is_idle(stream_id):  # which nobody may reset (section 6.4)
            raise Fault(code, "a broken PRIORITY where no stream is open")
        else:
            self._put(frame(RST_STREAM, 0, stream_id, NUMBER.pack(code)))


def require(holds: bool, code: int, reason: str) -> None:
    """Raises :class:`Fault`, unless a rule holds."""
    if not holds:
        raise Fault(code, reason)
