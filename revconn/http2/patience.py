"""How much is too much: what a peer may cost before it has brought anything."""

from __future__ import annotations

from revconn.core.status import ProtocolError

__all__ = ["Patience"]

_BURST = 10_000
_PER_SECOND = 1_000.0
_MOST = 100_000  # with what was earned: it may take a peer many reads to use that


class Patience:
    """What a peer may ask of us without giving anything: it refills with time.

    Frames without data cost more than they bring (see :class:`FrameSplitter`); a peer that sends
    them faster than messages go in and out floods the connection (section 10.5).
    """

    def __init__(
        self,
        peer: str = "the gateway",
        burst: int = _BURST,
        per_second: float = _PER_SECOND,
        most: int = _MOST,
    ) -> None:
        # A peer that gives back the windows of many messages in many reads sends thousands of
        # frames for one burst: what was earned by traffic is therefore kept, up to a limit, and a
        # peer that was useful for years cannot pay for a flood with it.
        self._peer = peer
        self._burst = burst
        self._per_second = per_second
        self._most = most
        self._left = float(burst)
        self._refilled_at: float | None = None
        self._worth_seen = 0.0

    def settle(self, cost: int, worth_sent: float, now: float) -> None:
        """What came cost so much (if negative, it was worth that); what was sent is the whole sum.

        Raises :class:`ProtocolError` when the peer has cost more than it brought for too long.
        """
        sent, self._worth_seen = worth_sent - self._worth_seen, worth_sent
        self.earn(sent + max(0, -cost))
        self.spend(max(0, cost), now)

    def earn(self, worth: float) -> None:
        """Something useful happened: messages came, or went (which calls for window updates)."""
        self._left = min(self._left + worth, self._most)

    def spend(self, weight: int, now: float) -> None:
        """Frames without data came. Raises :class:`ProtocolError` when there are too many."""
        if self._refilled_at is not None and self._left < self._burst:
            refill = (now - self._refilled_at) * self._per_second
            self._left = min(self._left + refill, self._burst)
        self._refilled_at = now
        self._left -= weight
        if self._left < 0:
            what = "what costs more than it brings"
            raise ProtocolError(f"{self._peer} floods the connection with {what}")
