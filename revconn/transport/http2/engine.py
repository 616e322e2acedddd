"""HTTP/2 without I/O: h2, gRPC's framing, and flow control."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import hpack.hpack
import hpack.table

from revconn.core.errors import ProtocolError
from revconn.core.flow import Patience, ReceiveWindow, SendWindow
from revconn.core.frames import (
    DATA,
    END_STREAM,
    GOAWAY,
    HEADER_BYTES,
    PADDED,
    WINDOW_UPDATE,
    FrameSplitter,
    Goaway,
    data_header,
    parse_goaway,
    parse_window_update,
    unpad,
    window_update,
)
from revconn.core.framing import GzipInflater, MessageReader, frame_all
from revconn.core.http import (
    StreamEnd,
    decode_metadata,
    encode_metadata,
    end_by_reset,
    end_by_trailers,
    refusal,
    who_ended,
)
from revconn.core.refusals import Speaker
from revconn.core.status import StatusCode
from revconn.logger import get_logger

__all__ = ["Engine"]

_STREAM_WINDOW = 8 << 20
_CONNECTION_WINDOW = 16 << 20
_DEFAULT_WINDOW = 65_535
_FRAME_BYTES = 1 << 18
_MAX_HEADER_BYTES = 64 << 10
_MOST_GOAWAYS = 4
_MOST_INFORMATIONAL = 10
_MOST_UNSENT_CONTROL = 1 << 20
_MOST_DATA_PER_WRITE = 1 << 18

_NO_TRAILERS = StreamEnd(StatusCode.INTERNAL, "the gateway ended the stream without trailers")

_Codes = h2.settings.SettingCodes

# It logs in the middle of decoding, at DEBUG: what a filter raises there would end the connection.
for _module in (hpack.hpack, hpack.table):
    setattr(_module, "log", get_logger(_module.__name__))  # noqa: B010 - it is a logger by type


class Engine:
    """One gRPC stream on one HTTP/2 connection, as bytes in and bytes out.

    h2 speaks the protocol: settings, headers, pings, resets. DATA and its flow control are ours,
    because h2 needs many times longer for each frame than everything else that happens to a small
    message; so is GOAWAY, after which h2 would refuse everything, while in gRPC's graceful
    shutdown an open stream goes on.

    Thread-safe: ``_lock`` guards h2 and everything else here; there is no I/O under it. Bytes to
    write come only out of :meth:`take_output`, so that one thread writes them in their order.
    ``end``, ``speaker``, ``goaways`` and ``initial_metadata`` may be read without it.
    """

    def __init__(self, message_limit: int) -> None:
        self._lock = threading.Lock()
        self._inflater = GzipInflater(message_limit)
        self._splitter = FrameSplitter(_FRAME_BYTES)
        self._reader = MessageReader(message_limit)
        self._patience = Patience()
        self._inbound = ReceiveWindow(_STREAM_WINDOW)
        self._outbound = SendWindow()
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
        self._informational = 0
        self._reading_id = -1  # the stream's, once its headers have come
        self._unsent: deque[memoryview] = deque()
        self._control = bytearray()
        self.initial_metadata: Mapping[str, str | bytes] | None = None
        self.end: StreamEnd | None = None
        self.speaker = Speaker.STRANGER  # whose word the end is
        self.goaways: list[Goaway] = []

    # What we say

    def open_stream(
        self, scheme: str, authority: str, path: str, metadata: Mapping[str, str | bytes]
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
            self._control += self._h2.data_to_send()
            self._control += window_update(0, _CONNECTION_WINDOW - _DEFAULT_WINDOW)
            self._stream_id = self._h2.get_next_available_stream_id()
            self._h2.send_headers(self._stream_id, headers)
            self._control += self._h2.data_to_send()

    def put(self, messages: Sequence[bytes]) -> None:
        """Queue messages behind those that still wait for the peer's window."""
        with self._lock:
            for run in frame_all(messages):
                self._unsent.append(run)
                self._patience.earn(len(run) / 1024)
            self._patience.earn(2 * len(messages))  # a window update each, of either kind

    def ping(self) -> None:
        """Queue a PING."""
        with self._lock:
            if self.end is None:
                self._h2.ping(b"revconn\0")
                self._control += self._h2.data_to_send()

    def grant(self) -> None:
        """There is room: let the peer send as much again as was received since the last time."""
        with self._lock:
            self._inflater.renew()
            increment = self._inbound.give_back()
            if increment:
                for stream_id in (0, self._stream_id):
                    self._control += window_update(stream_id, increment)

    @property
    def has_output(self) -> bool:
        """Whether :meth:`take_output` has something to give."""
        with self._lock:
            return bool(self._control or (self._unsent and self._outbound.room > 0))

    @property
    def has_unsent(self) -> bool:
        """Whether messages were queued and not all of them taken."""
        with self._lock:
            return bool(self._unsent)

    def take_output(self) -> tuple[bytes, int]:
        """The next bytes to write, and how many of them carry messages; none after the end."""
        with self._lock:
            if self.end is not None:
                return b"", 0
            parts: list[bytes | memoryview] = [bytes(self._control)]
            self._control.clear()
            carried = self._take_data(parts)
            return b"".join(parts), carried

    def _take_data(self, parts: list[bytes | memoryview]) -> int:
        """DATA frames, as far as the windows allow. Requires holding ``_lock``."""
        assert self._lock.locked()
        budget = min(self._outbound.room, _MOST_DATA_PER_WRITE)
        longest = self._h2.max_outbound_frame_size
        carried = 0
        while self._unsent and carried < budget:
            run = self._unsent[0]
            size = min(len(run), budget - carried, longest)
            parts.append(data_header(size, self._stream_id))
            parts.append(run[:size])
            carried += size
            if size < len(run):
                self._unsent[0] = run[size:]
            else:
                self._unsent.popleft()
        self._outbound.spend(carried)
        return carried

    # What the peer says

    def receive(self, data: bytes) -> list[bytes]:
        """The messages that are complete now.

        ``end`` is set when the stream is over: because the peer says so, or because it does not
        speak HTTP/2, or abuses it.
        """
        messages: list[bytes] = []
        with self._lock:
            if self.end is not None:
                return messages
            try:
                self._take_in(data, messages)
            except ProtocolError as error:
                self._finish(StreamEnd(StatusCode.INTERNAL, str(error)))
        return messages

    def describe_end(self) -> str:
        """What to add to words for a connection that broke here; often nothing."""
        with self._lock:
            where = self._splitter.describe_end()
            if self._reader.mid_message:
                where = " in the middle of a message"
        return f"{where} after {self.goaways[-1]}" if self.goaways else where

    # Each of these requires holding ``_lock``

    def _take_in(self, data: bytes, messages: list[bytes]) -> None:
        assert self._lock.locked()
        plain_bytes = 0
        for kind, flags, stream_id, buffer, start, end in self._splitter.feed(data):
            if kind == DATA and not flags and stream_id == self._reading_id:
                plain_bytes += end - start
                self._reader.feed(buffer, start, end, messages)
            elif kind == DATA:
                self._inbound.use(end - start)
                self._receive_odd_data(flags, stream_id, buffer, start, end, messages)
            elif kind == WINDOW_UPDATE and stream_id in (0, self._stream_id):
                increment = parse_window_update(buffer[start:end])
                self._outbound.open(stream_id, increment)
            elif kind == GOAWAY:
                self._receive_goaway(parse_goaway(buffer[start:end]))
            else:
                self._receive_other(buffer[start - HEADER_BYTES : end])
            if self.end is not None:
                return
        self._inbound.use(plain_bytes)
        self._patience.earn(len(messages))
        weight = self._splitter.take_weight() + self._inflater.take_weight()
        self._patience.spend(weight, time.monotonic())

    def _receive_odd_data(
        self,
        flags: int,
        stream_id: int,
        buffer: bytes,
        start: int,
        end: int,
        messages: list[bytes],
    ) -> None:
        if stream_id != self._reading_id:
            raise ProtocolError("DATA where no stream is open", f"stream {stream_id}")
        if flags & PADDED:
            start, end = unpad(buffer, start, end)
        self._reader.feed(buffer, start, end, messages)
        if flags & END_STREAM:
            self._finish(_NO_TRAILERS)

    def _receive_other(self, frame: bytes) -> None:
        try:
            events = self._h2.receive_data(frame)
        except h2.exceptions.ProtocolError as error:
            raise ProtocolError(f"HTTP/2: {error}") from None
        for event in events:
            if isinstance(event, h2.events.ResponseReceived):
                self._receive_headers(decode_metadata(event.headers))
            elif isinstance(event, h2.events.TrailersReceived):
                trailers = decode_metadata(event.headers)
                speaker = who_ended(self.initial_metadata or {}, trailers)
                self._finish(end_by_trailers(trailers), speaker)
            elif isinstance(event, h2.events.InformationalResponseReceived):
                self._informational += 1
                if self._informational > _MOST_INFORMATIONAL:
                    raise ProtocolError(f"more than {_MOST_INFORMATIONAL} responses of status 1xx")
            elif isinstance(event, h2.events.StreamReset):
                self._finish(end_by_reset(int(event.error_code)))
            elif isinstance(event, h2.events.StreamEnded):
                self._finish(_NO_TRAILERS)
            elif isinstance(event, h2.events.RemoteSettingsChanged):
                self._receive_settings(event)
        self._control += self._h2.data_to_send()
        if len(self._control) > _MOST_UNSENT_CONTROL:
            raise ProtocolError("the gateway asks for answers and does not read them")

    def _receive_settings(self, event: h2.events.RemoteSettingsChanged) -> None:
        change = event.changed_settings.get(_Codes.INITIAL_WINDOW_SIZE)
        if change is not None:
            self._outbound.resize(change.new_value - (change.original_value or 0))

    def _receive_headers(self, metadata: Mapping[str, str | bytes]) -> None:
        self.initial_metadata = metadata
        self._reading_id = self._stream_id
        refused = refusal(metadata)
        if refused is not None:
            self._finish(refused, who_ended(metadata, None))
        encoding = metadata.get("grpc-encoding", "identity")
        if encoding == "gzip":
            self._reader.inflate = self._inflater
        elif encoding != "identity":
            self._finish(
                StreamEnd(StatusCode.UNIMPLEMENTED, f"unknown grpc-encoding {encoding!r:.60}")
            )

    def _receive_goaway(self, goaway: Goaway) -> None:
        if len(self.goaways) < _MOST_GOAWAYS:
            self.goaways.append(goaway)
        if goaway.last_stream_id < self._stream_id:
            reason = f"the gateway refused the stream ({goaway})"
            self._finish(StreamEnd(StatusCode.UNAVAILABLE, reason))

    def _finish(self, end: StreamEnd, speaker: Speaker = Speaker.STRANGER) -> None:
        """The first end counts: what follows (an END_STREAM, a reset) only confirms it."""
        if self.end is None:
            self.speaker = speaker
            self.end = end
