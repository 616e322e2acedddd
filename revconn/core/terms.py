"""What holds on one connection: the features in force, and the stricter of either side's limits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from revconn.core.features import (
    FEATURES_HEADER,
    HEARTBEAT_TIMEOUT_HEADER,
    MAX_MESSAGE_BYTES_HEADER,
    SUPPORTED,
    Announcement,
)

__all__ = ["LEAST_BYTES", "OFFER", "Terms"]

OFFER = ((FEATURES_HEADER, ",".join(sorted(SUPPORTED))),)
"""What a connector says of itself in the metadata that opens a stream."""

_BEATS_PER_TIMEOUT = 3  # two heartbeats may be lost or late
_LIVENESS_SHARE = 0.75  # of the gateway's timeout: as the defaults are, 90 s of 120
_LEAST_TIMEOUT = 0.1  # seconds; to meet less we would send little but heartbeats
LEAST_BYTES = 1024  # less has no room for an id and a few headers


@dataclass(frozen=True)
class Terms:
    """A connector's own settings, and what becomes of them when a gateway announces its limits.

    :ivar heartbeat_interval: seconds.
    :ivar liveness_timeout: seconds; ``None``: the connector does not look, whatever is announced.
    :ivar max_message_bytes: the largest message to send.
    :ivar features: those in force. None are on one's own.
    :ivar notes: for an operator: what had to give way, and what could not be understood.
    """

    heartbeat_interval: float
    liveness_timeout: float | None
    max_message_bytes: int
    features: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def met_with(self, metadata: Iterable[tuple[str, str | bytes]]) -> Terms:
        """The terms of a stream that the gateway opened with ``metadata``. Never raises."""
        headers = dict(metadata)
        announced = Announcement.from_metadata(headers.items())
        terms = replace(self, features=announced.features & SUPPORTED)
        if HEARTBEAT_TIMEOUT_HEADER in headers:
            timeout = announced.heartbeat_timeout
            if timeout is None or timeout < _LEAST_TIMEOUT:
                terms = terms._ignoring(HEARTBEAT_TIMEOUT_HEADER, headers)
            else:
                terms = terms._beating_within(timeout)
        if MAX_MESSAGE_BYTES_HEADER in headers:
            limit = announced.max_message_bytes
            if limit is None or limit < LEAST_BYTES:
                terms = terms._ignoring(MAX_MESSAGE_BYTES_HEADER, headers)
            elif limit < terms.max_message_bytes:
                note = (
                    f"max_message_bytes {limit:,}, not {terms.max_message_bytes:,}:"
                    " the gateway takes nothing larger"
                )
                terms = replace(terms, max_message_bytes=limit, notes=(*terms.notes, note))
        return terms

    def _beating_within(self, timeout: float) -> Terms:
        interval = min(self.heartbeat_interval, timeout / _BEATS_PER_TIMEOUT)
        liveness = self.liveness_timeout
        if liveness is not None:
            liveness = min(liveness, timeout * _LIVENESS_SHARE)
        changes = []
        if interval < self.heartbeat_interval:
            changes.append(f"heartbeat_interval {interval:g} s, not {self.heartbeat_interval:g}")
        if liveness is not None and liveness != self.liveness_timeout:
            changes.append(f"liveness_timeout {liveness:g} s, not {self.liveness_timeout:g}")
        if not changes:
            return self
        note = f"{', '.join(changes)}: the gateway forgets a connection after {timeout:g} s"
        return replace(
            self,
            heartbeat_interval=interval,
            liveness_timeout=liveness,
            notes=(*self.notes, note),
        )

    def _ignoring(self, header: str, headers: dict[str, str | bytes]) -> Terms:
        note = f"ignored the gateway's {header}: {headers[header]!r:.60} cannot be"
        return replace(self, notes=(*self.notes, note))
