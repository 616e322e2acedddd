"""What one side of an HTTP/2 connection sends: frames in order, streams in turns, in windows."""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass

from revconn.core.rope import Piece
from revconn.http2.frames import (
    DEFAULT_WINDOW,
    ENABLE_PUSH,
    GOAWAY,
    INITIAL_WINDOW,
    MAX_HEADER_LIST,
    MAX_STREAMS,
    NUMBER,
    PREFACE,
    RST_STREAM,
    USUAL_FRAME,
    frame,
    header_frames,
    ping,
    settings_frame,
    window_update,
)
from revconn.http2.headers import Field
from revconn.http2.streams import GONE, ErrorCode, Stream

__all__ = ["Acceptor", "Output", "Settings", "Writer"]

LONGEST_FRAME_OUT = 256 << 10  # bytes: what others' frames may have to wait for
CONNECTION_WINDOW = 16 << 20  # more than any stream's: no stream waits for what others were sent
LAST_ID = (1 << 31) - 1

GOAWAY_HEAD = struct.Struct(">II")

# Bytes that wait for the network at once: a large message, with its prefix. More stays with its
# stream.
_MOST_OUT = (1 << 20) + (4 << 10)
_MOST_RESET = 1000  # streams that were reset here, for which more may be on its way

Output = Piece


@dataclass(frozen=True)
class Settings:
    """What one side allows the other.

    :ivar max_streams: that the peer may have open at once.
    :ivar stream_window: bytes of DATA that it may send on a stream before it is given more.
    :ivar message_limit: bytes of the largest message that is taken.
    :ivar header_list: bytes of a header list; a block of twice that many ends the connection.
    :ivar turn: how much is done for one peer before others have their turn, in messages or new
        streams.
    """

    max_streams: int = 256
    stream_window: int = 128 << 10
    message_limit: int = 4 << 20
    header_list: int = 16 << 10
    turn: int = 64


class Acceptor:
    """Who is told of what happens on a connection. None of this may raise."""

    __slots__ = ()

    def accept(self, stream: Stream, fields: list[Field], size: int, *, ended: bool) -> None:
        """The peer has opened a stream; its receiver is to be set. ``size``: of the header list."""
        raise NotImplementedError

    def wake(self) -> None:
        """There is something to write, for the first time since all was taken."""
        raise NotImplementedError

    def refuse_stream(self) -> None:
        """A stream was refused: the peer has as many as it may."""

    def close_stream(self, stream: Stream) -> None:
        """A stream is over, in whatever way."""

    def want_credit(self, stream: Stream) -> None:
        """A message has come in part: ``stream.missing`` bytes of it are to come.

        Of those ``stream.wanted`` need a larger window than it has: see ``grant``.
        """

    def return_credit(self, stream: Stream) -> None:
        """``stream.granted`` bytes more are not needed any longer, or not wanted."""

    def go(self, last_id: int, code: int, debug: bytes) -> None:
        """The peer wants the connection to end: streams of ours above that id were not taken.

        Each of them is told so next, as of a reset with REFUSED_STREAM.
        """


class Writer:
    """The half of an :class:`~revconn.http2.endpoint.Endpoint` that sends; not thread-safe.

    :ivar streams: those that are open, by their ids.
    :ivar last_id: the highest that the peer has opened.
    :ivar out_bytes: what is to be written; :meth:`take` takes it.
    :ivar unsent_bytes: of all streams' messages that wait for a window, or for the network.
    :ivar peer_header_list: bytes of a header list that the peer says it takes; ``None`` if it does
        not say.
    :ivar is_ended: whether nothing is read or sent any more, but what is to be written yet.
    :ivar is_leaving: whether a GOAWAY was sent: no new streams are taken.
    :ivar worth_sent: of what the peer was sent, as much as it may have cost us.
    """

    __slots__ = (
        "_control", "_goaway_id", "_is_server", "_next_id", "_out", "_reset", "_thirsty",
        "_waiting", "acceptor", "initial_send_window", "is_ended", "is_leaving", "last_id",
        "longest_frame", "out_bytes", "peer_header_list", "peer_max_streams", "receive_window",
        "send_window", "settings", "streams", "unsent_bytes", "worth_sent",
    )  # fmt: skip

    def __init__(self, settings: Settings, acceptor: Acceptor, *, is_server: bool) -> None:
        self.settings = settings
        self.acceptor = acceptor
        self._is_server = is_server
        self.streams: dict[int, Stream] = {}
        self.last_id = 0
        self._next_id = 1
        self._reset: dict[int, None] | None = None  # ids, the oldest first
        self.longest_frame = USUAL_FRAME
        self.initial_send_window = DEFAULT_WINDOW
        self.send_window = DEFAULT_WINDOW
        self.receive_window = CONNECTION_WINDOW
        self.peer_max_streams = LAST_ID
        self.peer_header_list: int | None = None
        self._out: list[Output] = []
        self.out_bytes = 0
        self._control = 0  # bytes in it that the peer made us say
        self.unsent_bytes = 0
        self._waiting: deque[Stream] | None = None  # that have something to send and may
        self._thirsty: dict[Stream, None] | None = None  # whose receivers wait for room
        self.worth_sent = 0.0
        self.is_ended = self.is_leaving = False
        self._goaway_id = LAST_ID
        self._begin()

    def _begin(self) -> None:
        settings = self.settings
        values = [
            (INITIAL_WINDOW, settings.stream_window),
            (MAX_HEADER_LIST, settings.header_list),
            (MAX_STREAMS, settings.max_streams) if self._is_server else (ENABLE_PUSH, 0),
        ]
        if not self._is_server:
            self._put(PREFACE)
        self._put(settings_frame(values))
        self._put(window_update(0, CONNECTION_WINDOW - DEFAULT_WINDOW))

    # What is to be written

    def _put(self, data: Output) -> None:
        if not self._out:
            self.acceptor.wake()
        self._out.append(data)
        self.out_bytes += len(data)

    def take(self) -> list[Output]:
        """What is to be written now, in order."""
        out, self._out = self._out, []
        self.out_bytes = self._control = 0
        return out

    def put_headers(self, stream_id: int, block: bytes, flags: int) -> None:
        """For a stream: a header block, in as many frames as it takes."""
        self.worth_sent += 1
        for each in header_frames(stream_id, block, flags, self.longest_frame):
            self._put(each)

    def put_data(self, stream: Stream, size: int, *parts: Output) -> None:
        """For a stream: frames that carry ``size`` bytes of DATA, for which there is room."""
        stream.send_window -= size
        self.send_window -= size
        self.worth_sent += 2 + size / 1024  # the peer opens two windows again
        for part in parts:
            self._put(part)

    def put_frames(self, stream: Stream, size: int, parts: list[Output]) -> None:
        """The same, of large pieces: how many bytes the frames around them take does not count."""
        if not self._out:
            self.acceptor.wake()
        stream.send_window -= size
        self.send_window -= size
        self.worth_sent += 2 + size / 1024
        self._out += parts
        self.out_bytes += size

    @property
    def room(self) -> int:
        """How many bytes of DATA may be written for any stream."""
        return min(self.send_window, _MOST_OUT - self.out_bytes)

    def push(self, stream: Stream) -> None:
        """A stream has something to send: as much of it as may leave now does, in turns."""
        if self._waiting is None:
            self._waiting = deque()
        if stream not in self._waiting:
            self._waiting.append(stream)
        self.pump()

    def pump(self) -> None:
        """Send what waits, as far as the windows and the network allow; streams take turns."""
        waiting = self._waiting
        while waiting and (self.room > 0 or not waiting[0].unsent_bytes):
            stream = waiting.popleft()
            if stream.send_some(alone=not waiting):
                waiting.append(stream)
            # Else it has sent all, or waits for a window of its own: see _open_send_window().
        if self._thirsty:
            for stream in tuple(self._thirsty):
                if stream.room > 0 and self._thirsty.pop(stream, 0) is None:
                    stream.receiver.resume()

    def await_room(self, stream: Stream) -> None:
        """Tell a stream's receiver when there is room for more."""
        if self._thirsty is None:
            self._thirsty = {}
        self._thirsty[stream] = None

    @property
    def is_waiting(self) -> bool:
        """Whether anything could be sent, were there room."""
        return bool(self._waiting or self._thirsty) and self.send_window > 0

    # Wishes

    @property
    def has_ids(self) -> bool:
        """Whether there is an id left for one more stream of our own."""
        return self._next_id <= LAST_ID

    def open_stream(self) -> Stream:
        """A stream of our own (a client's)."""
        stream = self.streams[self._next_id] = Stream(self, self._next_id)
        self._next_id += 2
        return stream

    def reset(self, stream: Stream, code: int) -> None:
        """End a stream at once."""
        if not (stream.is_local_closed and stream.is_remote_closed):
            self._reset_stream(stream, code)

    def _reset_stream(self, stream: Stream, code: int) -> None:
        self._put_reset(stream.id, code)
        self._discard(stream)

    def _put_reset(self, stream_id: int, code: int) -> None:
        """For a stream: its end. What is on its way there is let pass."""
        self._put(frame(RST_STREAM, 0, stream_id, NUMBER.pack(code)))
        if self._reset is None:
            self._reset = {}
        self._reset[stream_id] = None
        if len(self._reset) > _MOST_RESET:
            del self._reset[next(iter(self._reset))]

    def half_closed(self, stream: Stream) -> None:
        """All was sent on a stream; if all has come, too, it is over.

        A server that has answered wants to hear no more of the call (section 8.1).
        """
        if stream.is_remote_closed:
            self._discard(stream)
        elif self._is_server:
            self._reset_stream(stream, ErrorCode.NO_ERROR)

    def open_window(self, stream: Stream, increment: int) -> None:
        """Let the peer send so many bytes more on a stream."""
        stream.receive_window += increment
        self._put(window_update(stream.id, increment))

    def grant(self, stream: Stream) -> None:
        """Let the peer send all of the message on its way."""
        # The window may have been opened since it was wanted, by Stream.release().
        increment, stream.wanted = stream.missing - stream.receive_window, 0
        if increment > 0 and not stream.is_remote_closed:
            self.open_window(stream, increment)

    def ping(self) -> None:
        """Ask the peer for a sign of life."""
        self._put(ping(b"revconn\0"))

    def go_away(
        self, code: int = ErrorCode.NO_ERROR, reason: str = "", *, last: bool = False
    ) -> None:
        """Tell the peer to open no more streams here.

        At first those that are on their way are still taken; ``last``: none from here on.
        """
        self.is_leaving = True
        self._goaway_id = self.last_id if last else LAST_ID
        payload = GOAWAY_HEAD.pack(self._goaway_id, code) + reason.encode()[:200]
        self._put(frame(GOAWAY, 0, 0, payload))

    def end(self, code: int = ErrorCode.NO_ERROR, reason: str = "") -> None:
        """End the connection: GOAWAY is the last that is written."""
        if not self.is_ended:
            self.go_away(code, reason, last=True)
            self.lose(reason)

    def lose(self, reason: str) -> None:
        """The connection is gone, or will be once what is to be written is: so are its streams."""
        self.is_ended = True
        for stream in tuple(self.streams.values()):
            receiver = stream.receiver
            self._discard(stream)
            receiver.break_off(reason)

    def _discard(self, stream: Stream) -> None:
        """A stream is over: nobody hears of it any more."""
        if self.streams.pop(stream.id, None) is None:
            return
        stream.is_remote_closed = stream.is_local_closed = True
        stream.ignore()
        stream.drop_unsent()
        if self._waiting and stream in self._waiting:
            self._waiting.remove(stream)
        if self._thirsty:
            self._thirsty.pop(stream, None)
        self.acceptor.close_stream(stream)
        # They hold each other: without this only the collector of cycles would free them.
        stream.receiver = GONE
