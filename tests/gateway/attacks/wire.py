"""HTTP/2 by hand, for peers that keep no rules: frames, request headers, and a connection.

No library would say most of what an attacker says, and none is quick enough to say it often.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
from collections import Counter
from typing import Any, Callable

__all__ = [
    "ACK", "CONTINUATION", "DATA", "END_HEADERS", "END_STREAM", "GOAWAY", "HEADERS",
    "INITIAL_WINDOW", "LARGEST_WINDOW", "PING", "PREFACE", "PRIORITY", "RST_STREAM", "SETTINGS",
    "WINDOW_UPDATE", "Caller", "Client", "field", "first_field", "frame", "integer", "message",
    "prefix", "protobuf", "request", "request_block", "reset", "settings",
]  # fmt: skip

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = range(5)
PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(6, 10)
END_STREAM = ACK = 1
END_HEADERS = 4
INITIAL_WINDOW = 4  # the setting
LARGEST_WINDOW = (1 << 31) - 1
_CANCEL = 8
_READ_BYTES = 1 << 18
_USUAL_WINDOW = 65_535
_USUAL_FRAME = 16_384
_GLANCE = 0.05  # seconds, after which whoever waits sees whether it is still to go on
_NUMBER = struct.Struct(">I")
_HEAD = struct.Struct(">HBBBI")


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    size = len(payload)
    return _HEAD.pack(size >> 8, size & 255, kind, flags, stream) + payload


def settings(**values: int) -> bytes:
    """``settings(s4=0)``: by their numbers."""
    pairs = (struct.pack(">HI", int(name[1:]), value) for name, value in values.items())
    return frame(SETTINGS, 0, 0, b"".join(pairs))


def reset(stream: int) -> bytes:
    return frame(RST_STREAM, 0, stream, _NUMBER.pack(_CANCEL))


def integer(value: int, bits: int, pattern: int = 0) -> bytes:
    """As HPACK writes one (RFC 7541, 5.1), under the bits of a representation's pattern."""
    most = (1 << bits) - 1
    if value < most:
        return bytes((pattern | value,))
    out = bytearray((pattern | most,))
    value -= most
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(name: bytes, value: bytes, *, pattern: int = 0) -> bytes:
    """A header field in plain letters, by default one that no table keeps."""
    return bytes((pattern,)) + integer(len(name), 7) + name + integer(len(value), 7) + value


def request_block(path: str, *more: bytes) -> bytes:
    """The headers of a gRPC call; none of them goes into the peer's table."""
    return b"".join(
        (
            b"\x83\x86",  # POST, http
            b"\x04" + integer(len(path), 7) + path.encode(),
            b"\x01\x01a",  # :authority
            b"\x0f\x10\x10application/grpc",
            field(b"te", b"trailers"),
            *more,
        )
    )


def request(stream: int, block: bytes, data: bytes | None = None) -> bytes:
    """HEADERS, and the whole DATA if there is to be any."""
    opened = frame(HEADERS, END_HEADERS, stream, block)
    return opened if data is None else opened + frame(DATA, END_STREAM, stream, data)


def prefix(size: int) -> bytes:
    """What announces a gRPC message of so many bytes."""
    return b"\0" + _NUMBER.pack(size)


def message(payload: bytes) -> bytes:
    return prefix(len(payload)) + payload


def protobuf(*fields: tuple[int, bytes | str | int]) -> bytes:
    """An encoded message of these fields, which may be of text, bytes, messages and numbers.

    By hand, because attackers make tens of thousands, and importing protobuf takes as long as half
    an attack.
    """
    out = []
    for number, value in fields:
        if isinstance(value, int):
            out += [_varint(number << 3), _varint(value)]
        else:
            content = value if isinstance(value, bytes) else value.encode()
            out += [_varint(number << 3 | 2), _varint(len(content)), content]
    return b"".join(out)


def first_field(data: bytes) -> tuple[int, bytes]:
    """The number and the content of a message's first field, which is text, bytes or a message."""
    number, offset = data[0] >> 3, 1
    size = shift = 0
    while True:
        byte, offset = data[offset], offset + 1
        size |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number, data[offset : offset + size]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


class Client:
    """One connection. It sends what it is told to, and takes in and counts what comes back.

    ``greets=False``: it says nothing of its own accord. ``reads=False``: nothing that comes back
    is taken in.

    :ivar frames: how many of each kind came; ``resets`` how many RST_STREAM with each code.
    :ivar goaway: the code of the last GOAWAY, if one came; ``last_taken`` its last stream.
    :ivar is_over: whether the connection is.
    """

    def __init__(
        self,
        address: str,
        going: Callable[[], bool],
        *,
        window: int = LARGEST_WINDOW,
        source: str = "",
        tls: ssl.SSLContext | None = None,
        greets: bool = True,
        reads: bool = True,
    ) -> None:
        host, _, port = address.rpartition(":")
        given: dict[str, Any] = {"source_address": (source, 0)} if source else {}
        self._going = going
        self.reads = reads
        self._greets = greets
        self.socket = socket.create_connection((host, int(port)), timeout=10.0, **given)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname=host)
        self.socket.setblocking(False)
        self.frames: Counter[int] = Counter()
        self.resets: Counter[int] = Counter()
        self.goaway: int | None = None
        self.last_taken = LARGEST_WINDOW
        self.is_over = False
        self.next_stream = 1
        self._held = b""
        self._to_answer: list[bytes] = []
        # What the peer lets us send
        self._initial_window = self._window = _USUAL_WINDOW
        self._windows: Counter[int] = Counter()  # beyond the initial one
        if greets:
            opening = frame(WINDOW_UPDATE, 0, 0, _NUMBER.pack(LARGEST_WINDOW - _USUAL_WINDOW))
            self.send(
                PREFACE + settings(s4=window) + (opening if window == LARGEST_WINDOW else b"")
            )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.is_over = True
        with contextlib.suppress(OSError):
            self.socket.close()

    def new_stream(self) -> int:
        stream, self.next_stream = self.next_stream, self.next_stream + 2
        return stream

    def send(self, data: bytes) -> bool:
        """Send all of it, reading meanwhile; whether the peer may have got it."""
        view = memoryview(data)
        while view and not self.is_over and self._going():
            try:
                view = view[self.socket.send(view) :]
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                awaited = [self.socket] if self.reads else []
                select.select(awaited, [self.socket], [], _GLANCE)
                self.read()
            except OSError:
                self.is_over = True
        return not view and not self.is_over

    def send_data(self, stream: int, data: bytes, *, end: bool = False) -> bool:
        """DATA as far as the peer's windows allow, waiting for them; whether all of it went."""
        view = memoryview(data)
        while view and not self.is_over and self._going():
            room = min(self._window, self._initial_window + self._windows[stream], _USUAL_FRAME)
            if room <= 0:
                self.wait()
                continue
            piece, view = bytes(view[:room]), view[room:]
            self._window -= len(piece)
            self._windows[stream] -= len(piece)
            self.send(frame(DATA, END_STREAM if end and not view else 0, stream, piece))
        return not view and not self.is_over

    def room(self, stream: int) -> int:
        """How many bytes of DATA the peer takes there now."""
        return min(self._window, self._initial_window + self._windows[stream])

    def wait(self, seconds: float = _GLANCE) -> None:
        """Until something comes, at most so long; take it in."""
        if not self.is_over:
            if not (isinstance(self.socket, ssl.SSLSocket) and self.socket.pending()):
                select.select([self.socket], [], [], seconds)
            self.read()

    def read(self) -> None:
        """Take in what has come, if anything has."""
        if self.is_over or not self.reads:
            return
        try:
            data = self.socket.recv(_READ_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError:
            data = b""
        if not data:
            self.is_over = True
            return
        self._take_frames(self._held + data)
        if self._to_answer and self._greets:
            answers, self._to_answer = b"".join(self._to_answer), []
            self.send(answers)

    def _take_frames(self, data: bytes) -> None:
        offset, size = 0, len(data)
        while size - offset >= 9:
            high, low, kind, flags, stream = _HEAD.unpack_from(data, offset)
            end = offset + 9 + (high << 8 | low)
            if end > size:
                break
            self.frames[kind] += 1
            self.heard(kind, flags, stream & LARGEST_WINDOW, data[offset + 9 : end])
            offset = end
        self._held = data[offset:]

    def heard(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """A frame came."""
        if kind == RST_STREAM:
            self.resets[_NUMBER.unpack(payload)[0]] += 1
        elif kind == WINDOW_UPDATE:
            increment = _NUMBER.unpack(payload)[0]
            if stream:
                self._windows[stream] += increment
            else:
                self._window += increment
        elif kind == SETTINGS and not flags & ACK:
            for name, value in struct.iter_unpack(">HI", payload):
                if name == INITIAL_WINDOW:
                    self._initial_window = value
            self._to_answer.append(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self._to_answer.append(frame(PING, ACK, 0, payload))
        elif kind == GOAWAY:
            self.last_taken, self.goaway = struct.unpack_from(">II", payload)


class Caller(Client):
    """A caller's connection that keeps as many calls open as it is told to."""

    def __init__(self, *arguments: Any, path: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._block = request_block(path)
        self.open: set[int] = set()

    def fill(self, most: int, payload: bytes | None = b"") -> int:
        """Call until so many calls are open; how many were opened. ``None``: without a message."""
        streams = [self.new_stream() for _ in range(most - len(self.open))]
        self.open.update(streams)
        said = message(b"") if payload == b"" else None
        self.send(b"".join(request(stream, self._block, said) for stream in streams))
        for stream in streams if payload else ():
            self.send_data(stream, message(payload or b""), end=True)
        return len(streams)

    def reset_all(self) -> int:
        """Reset all that are open; how many there were."""
        open_, self.open = self.open, set()
        self.send(b"".join(map(reset, open_)))
        return len(open_)

    def heard(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        super().heard(kind, flags, stream, payload)
        if kind == RST_STREAM or (kind in (HEADERS, DATA) and flags & END_STREAM):
            self.open.discard(stream)
