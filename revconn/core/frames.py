"""HTTP/2 frames on their way in: the stream's data, goodbyes, and the rest; floods noticed."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from revconn.core.errors import ProtocolError

__all__ = ["FrameSplitter", "Goaway", "Split"]

_HEADER = struct.Struct(">HBBBI")  # length (high 16 bits, low 8), kind, flags, stream id
_DATA = 0x0
_GOAWAY = 0x7
_WINDOW_UPDATE = 0x8
_GOAWAY_HEAD = struct.Struct(">II")
_ENHANCE_YOUR_CALM = 0xB

_WORTHWHILE_BYTES = 256
_FLOOD_BURST = 20_000
_FLOOD_RATE = 5_000.0


class Goaway(NamedTuple):
    """A peer's wish to end the connection."""

    error_code: int
    last_stream_id: int
    debug: str

    @property
    def is_too_many_pings(self) -> bool:
        """Whether gRPC servers say so to a client that pings more often than they allow."""
        return self.error_code == _ENHANCE_YOUR_CALM and self.debug == "too_many_pings"

    def __str__(self) -> str:
        return f"GOAWAY code {self.error_code}, {self.debug[:200]!r}"


@dataclass
class Split:
    """What a piece of the connection held: the stream's ``data``, and ``rest`` for h2."""

    data: list[bytes] = field(default_factory=list)
    data_bytes: int = 0
    rest: list[bytes] = field(default_factory=list)
    goaways: list[Goaway] = field(default_factory=list)


class FrameSplitter:
    """Follows frame boundaries through whatever pieces the socket delivers. Not thread-safe.

    Plain DATA frames of the one stream are taken out, because h2 needs many times longer for
    each than everything else that happens to a small message; and so are GOAWAY frames, because
    h2 refuses everything after one, while in gRPC's graceful shutdown an open stream goes on.
    The rest, with its rules, is h2's.

    Frames that carry next to nothing are paid for from a budget that refills with time; a peer
    that overdraws it is flooding.
    """

    def __init__(self, longest_frame: int) -> None:
        self.stream_id = 0
        self._longest_frame = longest_frame
        self._needed = 0
        self._pieces: list[bytes] = []
        self._pieces_bytes = 0
        self._budget = float(_FLOOD_BURST)
        self._refilled_at: float | None = None

    def feed(self, data: bytes, now: float) -> Split:
        """Split what arrived; an incomplete frame is kept for the next time.

        Raises :class:`ProtocolError` for a flood, or a frame larger than announced.
        """
        split = Split()
        if self._pieces_bytes:
            # Joined once the frame is whole: joining at every piece would be quadratic.
            self._pieces.append(data)
            self._pieces_bytes += len(data)
            if self._pieces_bytes < self._needed:
                return split
            data = b"".join(self._pieces)
            self._pieces.clear()
            self._pieces_bytes = 0
        offset, size = 0, len(data)
        idle_frames = 0
        self._needed = _HEADER.size
        while size - offset >= _HEADER.size:
            high, low, kind, flags, stream_id = _HEADER.unpack_from(data, offset)
            length = high << 8 | low
            if length > self._longest_frame:
                raise ProtocolError("an HTTP/2 frame longer than announced", f"{length:,} bytes")
            start, end = offset + _HEADER.size, offset + _HEADER.size + length
            if end > size:
                self._needed = end - offset
                break
            if kind == _DATA and flags == 0 and stream_id == self.stream_id and length:
                split.data.append(data[start:end])
                split.data_bytes += length
            elif kind == _GOAWAY and length >= _GOAWAY_HEAD.size:
                split.goaways.append(_parse_goaway(data[start:end]))
            else:
                split.rest.append(data[offset:end])
            if length < _WORTHWHILE_BYTES and kind != _WINDOW_UPDATE:
                idle_frames += 1
            offset = end
        if offset < size:
            self._pieces.append(data[offset:] if offset else data)
            self._pieces_bytes = size - offset
        if idle_frames:
            self._pay(idle_frames, now)
        return split

    def refund(self, messages: int) -> None:
        """So many complete messages came of it: small frames were worth it."""
        self._budget += messages

    def _pay(self, frames: int, now: float) -> None:
        if self._refilled_at is not None:
            self._budget += (now - self._refilled_at) * _FLOOD_RATE
        self._refilled_at = now
        self._budget = min(self._budget, _FLOOD_BURST) - frames
        if self._budget < 0:
            raise ProtocolError("the gateway floods the connection with frames that carry nothing")


def _parse_goaway(payload: bytes) -> Goaway:
    last_stream_id, error_code = _GOAWAY_HEAD.unpack_from(payload)
    debug = payload[_GOAWAY_HEAD.size :].decode("utf-8", "replace")
    return Goaway(error_code, last_stream_id & 0x7FFFFFFF, debug)
