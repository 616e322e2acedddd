"""HTTP/2 flow control of one stream on one connection, and the limit of a peer's patience."""

from __future__ import annotations

from revconn.core.errors import ProtocolError

__all__ = ["Patience", "ReceiveWindow", "SendWindow"]

_INITIAL_WINDOW = 65_535
_LARGEST_WINDOW = (1 << 31) - 1

_BURST = 10_000
_PER_SECOND = 1_000.0
_MOST = 100_000  # with what was earned: it may take a peer many reads to use that


class SendWindow:
    """How many bytes of DATA the peer takes: on the connection, and on the stream."""

    def __init__(self) -> None:
        self._connection = _INITIAL_WINDOW
        self._stream = _INITIAL_WINDOW

    @property
    def room(self) -> int:
        """Bytes that may be sent now; none when that is not positive."""
        return min(self._connection, self._stream)

    def spend(self, size: int) -> None:
        """So many bytes are sent."""
        self._connection -= size
        self._stream -= size

    def open(self, stream_id: int, increment: int) -> None:
        """The peer's WINDOW_UPDATE, for the connection (0) or the stream."""
        if increment == 0:
            raise ProtocolError("a WINDOW_UPDATE of 0 bytes")
        if stream_id:
            self.resize(increment)
        else:
            self._connection += increment
            _check(self._connection)

    def resize(self, change: int) -> None:
        """The peer's SETTINGS changed the stream's initial window by so many bytes."""
        self._stream += change
        _check(self._stream)


class ReceiveWindow:
    """How many bytes of DATA we take at once. What is used up is given back in large portions."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0

    def use(self, size: int) -> None:
        """So many bytes arrived."""
        self._used += size
        if self._used > self._size:
            raise ProtocolError("the gateway sends more than the window allows")

    def give_back(self) -> int:
        """By how much to open the peer's window again: by 0 until half of it is used."""
        if self._used < self._size // 2:
            return 0
        used, self._used = self._used, 0
        return used


class Patience:
    """What a peer may ask of us without giving anything: it refills with time.

    Frames without data cost more than they bring (see :class:`FrameSplitter`); a peer that sends
    them faster than messages go in and out floods the connection.
    """

    def __init__(self) -> None:
        self._left = float(_BURST)
        self._refilled_at: float | None = None

    def earn(self, worth: float) -> None:
        """Something useful happened: messages came, or went (which calls for window updates)."""
        self._left = min(self._left + worth, _MOST)

    def spend(self, weight: int, now: float) -> None:
        """Frames without data came. Raises :class:`ProtocolError` when there are too many."""
        if self._refilled_at is not None and self._left < _BURST:
            refill = (now - self._refilled_at) * _PER_SECOND
            self._left = min(self._left + refill, _BURST)
        self._refilled_at = now
        self._left -= weight
        if self._left < 0:
            what = "what costs more than it brings"
            raise ProtocolError(f"the gateway floods the connection with {what}")


def _check(window: int) -> None:
    if window > _LARGEST_WINDOW:
        raise ProtocolError("the gateway opens its window too far", f"{window:,} bytes")
