"""An HTTP/2 server on a real socket that says, frame by frame, exactly what a test tells it to.

It keeps no rules: what a test makes it say may be wrong in every way. Nothing happens in the
background; a test that waits for what never comes fails after a while.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Iterable

import hpack
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

__all__ = ["Http2Peer", "HungUp", "ScriptedHttp2", "message"]

_TIMEOUT = 60.0
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DEFAULT_WINDOW = 65_535
_FRAME_BYTES = 16_384

GRPC_HEADERS = ((":status", "200"), ("content-type", "application/grpc"))


class HungUp(Exception):
    """The other side closed the connection."""


def message(payload: bytes, *, compressed: bool = False) -> bytes:
    """A gRPC message with its prefix."""
    return struct.pack(">BI", compressed, len(payload)) + payload


class Http2Peer:
    """One connection from a client, which opens stream 1 on it.

    ``window`` is how much DATA the client lets us send.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.settimeout(_TIMEOUT)
        self._received = bytearray()
        self._data = bytearray()
        self._decoder = hpack.Decoder()
        self._encoder = hpack.Encoder()
        self.connection_window = self.stream_window = _DEFAULT_WINDOW
        self.settings: dict[int, int] = {}
        self.headers: list[tuple[str, str]] = []

    @property
    def window(self) -> int:
        return min(self.connection_window, self.stream_window)

    # What it hears

    def hears_frame(self) -> Frame:
        """The next frame, whatever it is. Raises :class:`HungUp`."""
        head = self._read(9)
        frame, length = Frame.parse_frame_header(memoryview(head))
        frame.parse_body(memoryview(self._read(length)))
        if isinstance(frame, DataFrame):
            self._data += frame.data
        elif isinstance(frame, WindowUpdateFrame):
            if frame.stream_id:
                self.stream_window += frame.window_increment
            else:
                self.connection_window += frame.window_increment
        elif isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
            self.settings.update(frame.settings)
            self.stream_window = self.settings.get(
                SettingsFrame.INITIAL_WINDOW_SIZE, _DEFAULT_WINDOW
            )
        elif isinstance(frame, HeadersFrame):
            self.headers = [(str(n), str(v)) for n, v in self._decoder.decode(frame.data)]
        return frame

    def hears(self, kind: type[Frame], *flags: str) -> Frame:
        """The next frame of a kind, with these flags; others are passed over."""
        while True:
            frame = self.hears_frame()
            if isinstance(frame, kind) and all(flag in frame.flags for flag in flags):
                return frame

    def hears_message(self) -> bytes:
        """The next gRPC message."""
        while len(self._data) < 5 or len(self._data) < 5 + self._length():
            self.hears_frame()
        end = 5 + self._length()
        payload = bytes(self._data[5:end])
        del self._data[:end]
        return payload

    def hears_hang_up(self) -> None:
        """Wait until the client closes the connection."""
        with contextlib.suppress(HungUp):
            while True:
                self.hears_frame()

    def hears_preface(self) -> None:
        """How a client begins."""
        assert self._read(len(_PREFACE)) == _PREFACE

    def ping(self, data: bytes = b"12345678") -> None:
        """Ping, and wait for the answer: all that was said before has been taken in then."""
        self.say(PingFrame(0, opaque_data=data))
        while self.hears(PingFrame, "ACK").opaque_data != data:
            pass

    def _length(self) -> int:
        return int.from_bytes(self._data[1:5], "big")

    def _read(self, size: int) -> bytes:
        while len(self._received) < size:
            try:
                piece = self.socket.recv(1 << 16)
            except ConnectionError:
                piece = b""
            if not piece:
                raise HungUp
            self._received += piece
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    # What it says

    def say(self, *frames: Frame | bytes) -> None:
        """Send frames, or bytes that need not be any."""
        self.socket.sendall(b"".join(f if isinstance(f, bytes) else f.serialize() for f in frames))

    def say_as_long_as_it_listens(self, data: bytes, times: int) -> None:
        """Send the same again and again; stop when the client hangs up."""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            for _ in range(times):
                self.socket.sendall(data)

    def begin(self, settings: dict[int, int] | None = None) -> None:
        """Read what a client begins with, up to its request headers; say SETTINGS and an ACK."""
        self.hears_preface()
        self.say(SettingsFrame(0, settings=settings or {}), SettingsFrame(0, flags=["ACK"]))
        self.hears(HeadersFrame)

    def headers_frame(self, headers: Iterable[tuple[str, str]], *, end: bool = False) -> Frame:
        flags = ["END_HEADERS", "END_STREAM"] if end else ["END_HEADERS"]
        return HeadersFrame(1, self._encoder.encode(list(headers)), flags=flags)

    def accept_stream(self, *more: tuple[str, str]) -> None:
        """Response headers that open the stream."""
        self.say(self.headers_frame([*GRPC_HEADERS, *more]))

    def data_frames(self, payload: bytes, size: int = _FRAME_BYTES) -> bytes:
        return b"".join(
            DataFrame(1, payload[start : start + size]).serialize()
            for start in range(0, len(payload), size)
        )

    def send(self, *payloads: bytes, size: int = _FRAME_BYTES) -> None:
        """gRPC messages in DATA frames, as far as the window allows at once."""
        for payload in payloads:
            framed = memoryview(message(payload))
            while framed:
                while self.window <= 0:
                    self.hears_frame()
                piece = framed[: min(size, self.window)]
                self.connection_window -= len(piece)
                self.stream_window -= len(piece)
                self.say(DataFrame(1, bytes(piece)))
                framed = framed[len(piece) :]

    def trailers(self, *headers: tuple[str, str]) -> None:
        """End the stream."""
        self.say(self.headers_frame(headers, end=True))

    def open_window(self, increment: int, *, stream_only: bool = False) -> None:
        if not stream_only:
            self.say(WindowUpdateFrame(0, window_increment=increment))
        self.say(WindowUpdateFrame(1, window_increment=increment))

    def reset(self, code: int) -> None:
        self.say(RstStreamFrame(1, error_code=code))

    def goaway(self, code: int, last_stream_id: int, debug: bytes = b"") -> None:
        self.say(GoAwayFrame(0, last_stream_id, code, additional_data=debug))

    def hang_up(self) -> None:
        """Close the connection; what was said before still arrives."""
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()


class ScriptedHttp2:
    """Listens on loopback, or on ``path``; each connection comes out of :meth:`accept`."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, path: str | None = None) -> None:
        self._tls = tls
        self._peers: list[Http2Peer] = []
        if path is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.port = self._listener.getsockname()[1]
            self.address = f"127.0.0.1:{self.port}"
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(path)
            self._listener.listen()
            self.address = f"unix:{path}"
        self._listener.settimeout(_TIMEOUT)

    def accept(self) -> Http2Peer:
        """The next connection, as it comes."""
        sock, _ = self._listener.accept()
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            sock.settimeout(_TIMEOUT)
            sock = self._tls.wrap_socket(sock, server_side=True)
        self._peers.append(Http2Peer(sock))
        return self._peers[-1]

    def accept_stream(self, settings: dict[int, int] | None = None) -> Http2Peer:
        """The next connection, with an open stream on it."""
        peer = self.accept()
        peer.begin(settings)
        peer.accept_stream()
        return peer

    def close(self) -> None:
        self._listener.close()
        for peer in self._peers:
            peer.close()

    def __enter__(self) -> ScriptedHttp2:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
