"""What a peer of a server says in HTTP/2: frames as tokens, most of them legal, in any order."""

from __future__ import annotations

import gzip
import struct
from typing import Callable

from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

from revconn.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PRIORITY_FLAG,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)
from tests.fuzz.tape import Tape

_BOMB = gzip.compress(bytes(2_000_000), 1)
_HUFFMAN = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)

__all__ = ["Said", "headers_block", "prefixed"]

_NAMES = (
    b":path", b":method", b":scheme", b":authority", b"te", b"content-type", b"grpc-timeout",
    b"grpc-encoding", b"content-length", b"x-trace", b"x-blob-bin", b"cookie", b"Upper", b"",
    b"connection", b":status", b"na me", b"user-agent", b"revconn-features",
    b"revconn-max-message-bytes", b"grpc-accept-encoding", b"host",
)  # fmt: skip
_VALUES = (
    b"POST", b"http", b"trailers", b"application/grpc", b"gzip", b"deflate", b"identity", b"10S",
    b"99999999H", b"0n", b"0", b"5", b"12", b"GET", b"HEAD", b"chunks,cancel", b"\xff\xfe",
    b"a\r\nb", b" x", b"4194304", b"snappy", b"aGVsbG8", b"=", b"18446744073709551616",
)  # fmt: skip
PATHS = (
    b"/echo.Echo/Say", b"/registry.RegistryService/EstablishConnection",
    b"/registry.RegistryService/Register", b"/grpc.health.v1.Health/Check",
    b"/grpc.health.v1.Health/Watch", b"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    b"/echo.Echo/", b"/", b"*", b"/nobody.Serves/It", b"\xff",
)  # fmt: skip
_SIZES = (0, 1, 4, 5, 6, 63, 64, 255, 256, 257, 1_000, 8_187, 16_384)
_CHANGES = (0, 1, 100, 16_383, 65_535, 1 << 20, (1 << 31) - 1, 1 << 31, 0xFFFFFFFF)
_TERMS = (0, 1, 2, 3, 4, 5, 6, 99)


def prefixed(tape: Tape, payload: bytes) -> bytes:
    """A message of gRPC's, with a prefix that is right most of the time."""
    flag, size = 0, len(payload)
    choice = tape.number(15)
    if choice == 1:
        flag, payload = 1, gzip.compress(payload, 1)
        size = len(payload)
    elif choice == 2:
        flag = tape.number(255)
    elif choice == 3:
        size = tape.of((0, 1, size + 1, size + 5_000, 200_000, 0xFFFFFFFF))
    elif choice == 4:
        payload = _BOMB
        flag, size = 1, len(payload)
    return struct.pack(">BI", flag, size) + payload


def headers_block(tape: Tape, dares: bool, paths: tuple[bytes, ...] = PATHS) -> bytes:
    """A header block: a call's as a rule."""
    block = b""
    choice = tape.number(15)
    if choice < 14:
        block += b"\x83\x86" + _literal(tape, b":path", tape.of(paths))
        block += _literal(tape, b"te", b"trailers")
        block += _literal(tape, b"content-type", b"application/grpc")
    else:
        block += tape.of((b"\x82\x84\x86", b"\x83\x84\x86", b"\x02\x04HEAD\x84\x86"))
    for _ in range(tape.number(5) if tape.one_in(2) else 0):
        block += _wrong_field(tape) if dares else _field(tape)
    return block


def _field(tape: Tape) -> bytes:
    choice = tape.number(7)
    if choice < 5:
        return _literal(tape, tape.of(_NAMES[4:12]), tape.of(_VALUES))
    if choice == 5:
        # What was put into the table last, many times.
        return b"\x40\x01x" + _string(tape, tape.of(_VALUES)) + b"\xbe" * tape.number(5_000)
    if choice == 6:
        return bytes([0x40 | (15 + tape.number(40))]) + _string(tape, tape.of(_VALUES))
    return _literal(tape, tape.of(_NAMES), b"v" * tape.number(9_000))


def _wrong_field(tape: Tape) -> bytes:
    choice = tape.number(5)
    if choice == 0:
        return _literal(tape, tape.of(_NAMES), tape.of(_VALUES))
    if choice == 1:
        return bytes([0x80 | tape.number(0x7E)])  # indexed, in either table
    if choice == 2:
        return bytes([0x20 | tape.number(0x1F)]) * (1 + tape.number(3))
    if choice == 3:
        return b"\x3f\xe1\x1f"  # 4096 again
    if choice == 4:
        return bytes([0x80 | 20]) + tape.bytes(20)  # of the Huffman code, perhaps
    return tape.bytes(20)


def _literal(tape: Tape, name: bytes, value: bytes) -> bytes:
    return tape.of((b"\x00", b"\x40", b"\x10")) + _string(tape, name) + _string(tape, value)


def _string(tape: Tape, text: bytes) -> bytes:
    size = len(text)
    if size < 0x7F:
        if tape.one_in(4):
            text = _HUFFMAN.encode(text)
            return bytes([0x80 | len(text)]) + text
        return bytes([size]) + text
    rest, length = size - 0x7F, b""
    while rest > 0x7F:
        length += bytes([rest & 0x7F | 0x80])
        rest >>= 7
    return b"\x7f" + length + bytes([rest]) + text


class Said:
    """The frames of one peer.

    :param make_message: one message more, without its prefix.
    :ivar opened: the highest stream that it has opened.
    """

    def __init__(self, tape: Tape, make_message: Callable[[], bytes]) -> None:
        self._tape = tape
        self._make_message = make_message
        self.opened = -1
        # How often it breaks a rule: a connection that ends at once shows little.
        self._daring = tape.of((0, 0, 200, 50, 10))
        self._kinds = (
            [self._open] * 6 + [self._data] * 8 + [self._window] * 4 + [self._reset] * 2
            + [self._settings] * 2
            + [self._ping, self._goaway, self._priority, self._odd, self._trailers, self._noise]
        )  # fmt: skip

    def begin(self) -> bytes:
        """The preface and SETTINGS, as a rule."""
        if self._dares():
            wrong = (self._tape.bytes(40), PREFACE, PREFACE + self._tape.of(self._kinds)())
            return self._tape.of(wrong)
        return PREFACE + frame(SETTINGS, 0, 0, self._terms())

    def _dares(self) -> bool:
        return self._daring > 0 and self._tape.one_in(min(self._daring, 256))

    def next(self) -> bytes:
        """One frame more, or several of a kind."""
        make = self._tape.of(self._kinds)
        if self.opened < 1 and not self._dares():
            make = self._open
        if self._tape.one_in(24):
            return b"".join(make() for _ in range(self._tape.number(100)))
        return make()

    def _stream(self) -> int:
        """One that is there, as a rule."""
        tape = self._tape
        if self._dares():
            return tape.of((0, 2, self.opened + 2, self.opened + 100, 0x7FFFFFFF))
        if tape.one_in(16):
            return 1 + 2 * tape.number(max(0, self.opened // 2))
        return max(1, self.opened - 2 * tape.number(min(4, max(0, self.opened // 2))))

    def _open(self) -> bytes:
        tape = self._tape
        self.opened += 2 if not self._dares() else 2 * tape.number(50)
        ended = END_STREAM if tape.one_in(3) else 0
        return self._headers(max(1, self.opened), ended, headers_block(tape, self._dares()))

    def _trailers(self) -> bytes:
        if self._dares():
            return self._headers(self._stream(), 0, headers_block(self._tape, True))
        if not self._tape.one_in(4):
            return self._data()
        # To the newest: trailers of one that is over end the connection.
        block = _literal(self._tape, b"x-trailer", b"1")
        return self._headers(max(1, self.opened), END_STREAM, block)

    def _headers(self, stream_id: int, flags: int, block: bytes) -> bytes:
        tape = self._tape
        if tape.one_in(16):
            flags |= PRIORITY_FLAG
            block = (b"\x80\0\0\1\0" if self._dares() else b"\0\0\0\0\x10") + block
        if tape.one_in(16):
            return self._cut_block(stream_id, flags, block)
        return self._padded(HEADERS, flags | END_HEADERS, stream_id, block[:16_384])

    def _cut_block(self, stream_id: int, flags: int, block: bytes) -> bytes:
        size = 1 + self._tape.of(_SIZES)
        said = frame(HEADERS, flags, stream_id, block[:size])
        for start in range(size, len(block), size):
            said += frame(CONTINUATION, 0, stream_id, block[start : start + size])
        if self._dares():
            return said  # and never goes on
        return said + frame(CONTINUATION, END_HEADERS, stream_id)

    def _padded(self, kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
        if not self._tape.one_in(12):
            return frame(kind, flags, stream_id, payload)
        padding = self._tape.number(255)
        body = bytes([padding]) + payload + bytes(padding)
        if self._dares():
            body = body[: self._tape.number(10)]
        return frame(kind, flags | PADDED, stream_id, body)

    def _data(self) -> bytes:
        tape = self._tape
        stream_id = self._stream()
        choice = tape.number(7)
        if choice < 3:
            payload = prefixed(tape, self._make_message())
        elif choice == 3:
            payload = bytes(tape.of(_SIZES))  # empty messages, many of them
        elif choice == 4:
            payload = prefixed(tape, b"\x0a" * tape.of(_SIZES)) * (1 + tape.number(20))
        elif choice == 5:  # a message of many frames
            payload = struct.pack(">BI", 0, 60_000) + bytes(60_000)
        else:
            payload = tape.bytes(300)
        size = 17_000 if self._dares() else tape.of((16_384, 16_384, 16_384, 1, 4_000))
        if len(payload) > 100 * size:
            size = 16_384
        pieces = [payload[at : at + size] for at in range(0, len(payload), size)] or [b""]
        end = END_STREAM if tape.one_in(3) else 0
        said = b"".join(frame(DATA, 0, stream_id, piece) for piece in pieces[:-1])
        return said + self._padded(DATA, end, stream_id, pieces[-1])

    def _window(self) -> bytes:
        change = self._tape.of(_CHANGES if self._dares() else (1, 100, 16_383, 65_535, 1 << 20))
        stream_id = 0 if self._tape.one_in(2) else self._stream()
        return frame(WINDOW_UPDATE, 0, stream_id, struct.pack(">I", change))

    def _reset(self) -> bytes:
        payload = struct.pack(">I", self._tape.number(14))
        return frame(RST_STREAM, 0, self._stream(), payload)

    def _settings(self) -> bytes:
        if self._tape.one_in(8):
            return frame(SETTINGS, ACK, 0)
        return frame(SETTINGS, 0, 0, self._terms() * (200 if self._tape.one_in(64) else 1))

    def _terms(self) -> bytes:
        tape = self._tape
        said = [(tape.of(_TERMS), tape.of(_CHANGES)) for _ in range(tape.number(4))]
        if not self._dares():
            said = [(what, _legal(what, value)) for what, value in said]
        return b"".join(struct.pack(">HI", *each) for each in said)

    def _ping(self) -> bytes:
        return frame(PING, ACK if self._tape.one_in(4) else 0, 0, bytes(8))

    def _goaway(self) -> bytes:
        return frame(GOAWAY, 0, 0, struct.pack(">II", self._stream(), 0) + self._tape.bytes(20))

    def _priority(self) -> bytes:
        depends_on = self._stream() if self._dares() else 0
        return frame(PRIORITY, 0, self._stream(), struct.pack(">IB", depends_on, 1))

    def _odd(self) -> bytes:
        """A frame of no known kind, or one that is wrong in some way."""
        tape = self._tape
        if not self._dares():
            return frame(0xEE, tape.number(255), tape.number(9), tape.bytes(30))
        kind = tape.of((PUSH_PROMISE, 0xA, 0xEE, PING, SETTINGS, RST_STREAM, WINDOW_UPDATE, 2, 9))
        stream_id = 0 if tape.one_in(2) else self._stream()
        return frame(kind, tape.number(255), stream_id, tape.bytes(30))

    def _noise(self) -> bytes:
        return self._tape.bytes(30) if self._dares() else b""


def _legal(what: int, value: int) -> int:
    if what == 2:
        return value & 1
    if what == 5:
        return min(max(value, 16_384), (1 << 24) - 1)
    # Of windows none near the largest: together with what is given later that is an error.
    return min(value, 1 << 20)
