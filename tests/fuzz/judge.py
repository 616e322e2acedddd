"""Judges what a server says: frames, each legal, in an order that a client of HTTP/2 accepts.

The peers of a fuzzer break every rule, so that no client could hold the other end of such a
conversation: hyperframe reads the frames, hpack the headers, and the order is looked at here.
"""

from __future__ import annotations

import re

import hpack
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

__all__ = ["Broken", "Judge", "http1_answers", "require"]

_HEADER = 9
_LARGEST = (1 << 31) - 1
_RESPONSE = re.compile(rb"(\d{3}) [ -~]*\r\n((?:[!-9;-~]+: [^\0\r\n]*\r\n)*)\r\n")
_LENGTH = re.compile(rb"(?im)^content-length: (\d+)\r$")
_CHUNK = re.compile(rb"([0-9a-f]{1,6})\r\n")


class Broken(AssertionError):
    """An invariant does not hold."""


def require(holds: bool, otherwise: str) -> None:
    """Raises :class:`Broken`."""
    if not holds:
        raise Broken(otherwise)


class Judge:
    """Hears one server, from its first byte on."""

    def __init__(self) -> None:
        self._held = b""
        self._heard = 0  # frames
        self._block: tuple[int, int, bytes] | None = None  # stream, flags, what has come
        self._headers = hpack.Decoder()
        self._open: dict[int, int] = {}  # how many header blocks have come, by the stream
        self._closed: set[int] = set()
        self._goaway = _LARGEST

    def hear(self, data: bytes, last_id: int, longest: int) -> None:
        """``last_id``: the highest stream that was opened to it; ``longest``: frame it may send."""
        self._held += data
        while len(self._held) >= _HEADER:
            frame, size = Frame.parse_frame_header(memoryview(self._held[:_HEADER]), strict=True)
            require(size <= longest, f"a frame of {size} bytes")
            if len(self._held) < _HEADER + size:
                return
            frame.parse_body(memoryview(self._held[_HEADER : _HEADER + size]))
            self._held = self._held[_HEADER + size :]
            self._look(frame, last_id)

    @property
    def is_between_frames(self) -> bool:
        """Whether all that it has said were whole frames."""
        return not self._held and self._block is None

    def _look(self, frame: Frame, last_id: int) -> None:
        self._heard += 1
        stream_id = frame.stream_id
        if self._heard == 1:
            require(isinstance(frame, SettingsFrame) and "ACK" not in frame.flags, "no SETTINGS")
        if self._block is not None:
            require(isinstance(frame, ContinuationFrame), "something in the middle of headers")
        if stream_id:
            require(stream_id <= last_id and stream_id & 1 == 1, f"{frame!r} on an idle stream")
        if isinstance(frame, (HeadersFrame, ContinuationFrame)):
            self._hear_headers(frame)
        elif isinstance(frame, DataFrame):
            require(self._open.get(stream_id, 0) > 0, f"{frame!r} where no headers were sent")
            self._end(frame)
        elif isinstance(frame, RstStreamFrame):
            self._open.pop(stream_id, None)
            self._closed.add(stream_id)
        elif isinstance(frame, WindowUpdateFrame):
            require(0 < frame.window_increment <= _LARGEST, f"{frame!r}")
            require(stream_id not in self._closed, f"{frame!r} on a stream that is closed")
        elif isinstance(frame, GoAwayFrame):
            require(frame.last_stream_id <= self._goaway, "a GOAWAY that takes more than before")
            self._goaway = frame.last_stream_id
        else:
            require(isinstance(frame, (SettingsFrame, PingFrame)), f"{frame!r} of a server")

    def _hear_headers(self, frame: Frame) -> None:
        if isinstance(frame, HeadersFrame):
            self._block = frame.stream_id, "END_STREAM" in frame.flags, b""
        require(self._block is not None, "CONTINUATION of nothing")
        assert self._block is not None
        stream_id, ended, block = self._block
        require(frame.stream_id == stream_id, "CONTINUATION of another stream")
        self._block = stream_id, ended, block + frame.data
        if "END_HEADERS" in frame.flags:
            self._take_block(*self._block)
            self._block = None

    def _take_block(self, stream_id: int, ended: int, block: bytes) -> None:
        require(stream_id not in self._closed, f"headers on stream {stream_id}, which is closed")
        count = self._open[stream_id] = self._open.get(stream_id, 0) + 1
        names = [str(name) for name, _ in self._headers.decode(block)]
        require((":status" in names) == (count == 1), f"headers {count} with {names}")
        require(count == 1 or bool(ended), "headers in the middle of an answer")
        if ended:
            self._close(stream_id)

    def _end(self, frame: Frame) -> None:
        if "END_STREAM" in frame.flags:
            self._close(frame.stream_id)

    def _close(self, stream_id: int) -> None:
        del self._open[stream_id]
        self._closed.add(stream_id)


def http1_answers(heard: bytes) -> int:
    """How many responses of HTTP/1.1 these are, the last of which may be cut short.

    Interim ones do not count. No body has the beginning of a response in it.
    """
    before, *responses = heard.split(b"HTTP/1.1 ")
    require(not before, "something that is no response")
    count = 0
    for number, rest in enumerate(responses, 1):
        response = _RESPONSE.match(rest)
        require(response is not None or number == len(responses), f"a head: {rest[:200]!r}")
        if response is None:
            require(b"\r\n\r\n" not in rest, f"a head: {rest[:200]!r}")
            continue
        status, headers = response.groups()
        body = rest[response.end() :]
        if status == b"100":
            require(not body, "a body of what has none")
            continue
        count += 1
        _look_at_body(status, headers.lower(), body, is_last=number == len(responses))
    return count


def _look_at_body(status: bytes, headers: bytes, body: bytes, *, is_last: bool) -> None:
    lengths = _LENGTH.findall(headers)
    is_chunked = b"transfer-encoding: chunked\r\n" in headers
    require(len(lengths) + is_chunked <= 1, f"a response of two lengths: {headers!r}")
    if not body:  # as that to HEAD is
        return
    require(status not in (b"204", b"304"), "a body of what has none")
    if lengths:
        size = int(lengths[0])
        require(len(body) == size or (is_last and len(body) < size), "a body of another length")
    elif is_chunked:
        require(_ends_its_chunks(body) or is_last, "chunks without end")
    else:
        require(is_last, "a response without length in the midst of others")


def _ends_its_chunks(body: bytes) -> bool:
    at = 0
    while chunk := _CHUNK.match(body, at):
        size = int(chunk[1], 16)
        at = chunk.end() + size + 2
        require(at > len(body) or body[at - 2 : at] == b"\r\n", "a chunk that goes on")
        if not size:
            require(at >= len(body), "something behind the last chunk")
            return at == len(body)
    return False
