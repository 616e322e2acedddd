"""HTTP/2 without I/O: h2, gRPC's framing, and flow control."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
from hyperframe.frame import WindowUpdateFrame

from revconn.core.errors import ProtocolError
from revconn.core.frames import FrameSplitter, Goaway
from revconn.core.framing import MessageReader, frame_all, gzip_inflater
from revconn.core.http import (
    StreamEnd,
    decode_metadata,
    encode_metadata,
    end_by_reset,
    end_by_trailers,
    refusal,
)
from revconn.core.status import StatusCode

__all__ = ["Engine"]

_STREAM_WINDOW = 8 << 20
_CONNECTION_WINDOW = 16 << 20
_FRAME_BYTES = 1 << 18
_MAX_HEADER_BYTES = 64 << 10
_MOST_UNSENT_CONTROL = 1 << 20
_MOST_DATA_PER_WRITE = 1 << 20

_Codes = h2.settings.SettingCodes


class Engine:
    """One gRPC stream on one HTTP/2 connection, as bytes in and bytes out.

    Thread-safe: ``_lock`` guards h2 and everything else here; there is no I/O under it. Bytes to
    write come only out of :meth:`take_output`, so that one thread writes them in their order.
    """

    def __init__(self, message_limit: int) -> None:
        self._lock = threading.Lock()
        self._message_limit = message_limit
        self._splitter = FrameSplitter(_FRAME_BYTES)
        self._reader = MessageReader(message_limit)
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding=None)
        )
        self._h2.local_settings = h2.settings.Settings(
            client=True,
            initial_values={
                _Codes.ENABLE_PUSH: 0,
                _Codes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW,
                _Codes.MAX_FRAME_SIZE: _FRAME_BYTES,
                _Codes.MAX_HEADER_LIST_SIZE: _MAX_HEADER_BYTES,
            },
        )
        # Peers send larger frames the moment they may; h2 counts only from their ack on.
        self._h2.max_inbound_frame_size = _FRAME_BYTES
        self._stream_id = 0
        self._unsent: deque[memoryview] = deque()
        self._output = bytearray()
        self._ending = False
        self._ended_our_half = False
        self._received = 0
        self.initial_metadata: Mapping[str, str | bytes] | None = None
        self.end: StreamEnd | None = None
        self.goaway: Goaway | None = None

    # What we say

    def open_stream(
        self, scheme: str, authority: str, path: str, metadata: Mapping[str, str]
    ) -> None:
        """Begin the connection and the one stream on it."""
        headers = [
            (b":method", b"POST"),
            (b":scheme", scheme.encode()),
            (b":path", path.encode()),
            (b":authority", authority.encode()),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"grpc-accept-encoding", b"identity,gzip"),
            *encode_metadata(metadata),
        ]
        with self._lock:
            self._h2.initiate_connection()
            self._h2.increment_flow_control_window(_CONNECTION_WINDOW - 65_535)
            self._stream_id = self._h2.get_next_available_stream_id()
            self._splitter.stream_id = self._stream_id
            self._h2.send_headers(self._stream_id, headers)

    def put(self, messages: Iterable[bytes]) -> None:
        """Queue messages behind those that still wait for the peer's window."""
        with self._lock:
            self._unsent.append(memoryview(frame_all(messages)))

    def end_stream(self) -> None:
        """End our half once everything queued has left."""
        with self._lock:
            self._ending = True

    def ping(self) -> None:
        """Queue a PING."""
        with self._lock:
            self._h2.ping(b"revconn\0")

    def take_output(self) -> bytes:
        """The next bytes to write: whatever h2 has to say, and data as far as the windows allow."""
        with self._lock:
            self._fill_window()
            self._output += self._h2.data_to_send()
            output = bytes(self._output)
            self._output.clear()
        return output

    @property
    def waiting_for_window(self) -> bool:
        """Whether data waits that the peer's window does not let through."""
        with self._lock:
            return bool(self._unsent)

    def grant(self) -> None:
        """Let the peer send as much again as was received since the last time."""
        with self._lock:
            self._open_window()

    def _count_received(self, size: int) -> None:
        """Requires holding ``_lock``."""
        self._received += size
        if self._received > _STREAM_WINDOW:
            raise ProtocolError("the gateway sends more than the window allows")

    def _open_window(self) -> None:
        """Give the window back once half of it is used. Requires holding ``_lock``."""
        assert self._lock.locked()
        if self._received >= _STREAM_WINDOW // 2:
            for stream_id in (0, self._stream_id):
                frame = WindowUpdateFrame(stream_id, window_increment=self._received)
                self._output += frame.serialize()
            self._received = 0

    def _fill_window(self) -> None:
        """Requires holding ``_lock``."""
        assert self._lock.locked()
        budget = _MOST_DATA_PER_WRITE
        if self._ended_our_half or self.end is not None:
            self._unsent.clear()
            return
        while self._unsent and budget > 0:
            window = self._h2.local_flow_control_window(self._stream_id)
            room = min(window, self._h2.max_outbound_frame_size, budget)
            if room <= 0:
                return
            data = self._unsent[0]
            self._h2.send_data(self._stream_id, data[:room])
            budget -= room
            if len(data) > room:
                self._unsent[0] = data[room:]
            else:
                self._unsent.popleft()
        if self._ending and not self._unsent:
            self._h2.end_stream(self._stream_id)
            self._ended_our_half = True

    # What the peer says

    def receive(self, data: bytes, grant: bool) -> tuple[list[bytes], bool]:
        """The messages that are complete now, and whether there is something to write.

        ``grant`` lets the peer send as much again. After the stream's end ``end`` is set. Raises
        :class:`ProtocolError` for a peer that does not speak HTTP/2, or abuses it.
        """
        with self._lock:
            split = self._splitter.feed(data, time.monotonic())
            messages: list[bytes] = []
            if split.rest:  # first: headers say how to read the data; an end holds it up no less
                self._receive_rest(b"".join(split.rest), messages)
            for piece in split.data:
                messages += self._reader.feed(piece)
            self._count_received(split.data_bytes)
            for goaway in split.goaways:
                self._receive_goaway(goaway)
            self._splitter.refund(len(messages))
            if grant:
                self._open_window()
            self._output += self._h2.data_to_send()
            if len(self._output) > _MOST_UNSENT_CONTROL:
                raise ProtocolError("the gateway asks for answers and does not read them")
            return messages, bool(self._output or self._unsent)

    def _receive_rest(self, data: bytes, messages: list[bytes]) -> None:
        """Requires holding ``_lock``."""
        try:
            events = self._h2.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            raise ProtocolError(f"HTTP/2: {error}") from None
        for event in events:
            if isinstance(event, h2.events.DataReceived):
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                messages += self._reader.feed(event.data)
            elif isinstance(event, h2.events.ResponseReceived):
                self._receive_headers(decode_metadata(event.headers))
            elif isinstance(event, h2.events.TrailersReceived):
                self._finish(end_by_trailers(decode_metadata(event.headers)))
            elif isinstance(event, h2.events.StreamReset):
                self._finish(end_by_reset(int(event.error_code)))
            elif isinstance(event, h2.events.StreamEnded):
                self._finish(StreamEnd(StatusCode.INTERNAL, "the stream ended without trailers"))

    def _receive_headers(self, metadata: Mapping[str, str | bytes]) -> None:
        self.initial_metadata = metadata
        refused = refusal(metadata)
        if refused is not None:
            self._finish(refused)
        encoding = metadata.get("grpc-encoding", "identity")
        if encoding == "gzip":
            self._reader.inflate = gzip_inflater(self._message_limit)
        elif encoding != "identity":
            self._finish(
                StreamEnd(StatusCode.UNIMPLEMENTED, f"unknown grpc-encoding {encoding!r:.60}")
            )

    def _receive_goaway(self, goaway: Goaway) -> None:
        self.goaway = goaway
        if goaway.last_stream_id < self._stream_id:
            reason = f"the gateway refused the stream ({goaway})"
            self._finish(StreamEnd(StatusCode.UNAVAILABLE, reason))

    def _finish(self, end: StreamEnd) -> None:
        """The first end counts: what follows (an END_STREAM, a reset) only confirms it."""
        if self.end is None:
            self.end = end
