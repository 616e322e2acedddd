"""What holds on one connection: the features in force, and the stricter of either side's limits.

When a stream opens, both sides announce in its initial gRPC metadata what they can do beyond the
published protocol, and the gateway its limits. A feature is in force when both named it: with a
peer that announces nothing, nothing is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

__all__ = [
    "CANCEL",
    "CHUNKS",
    "DRAIN",
    "FEATURES_HEADER",
    "HEARTBEAT_TIMEOUT_HEADER",
    "LEAST_BYTES",
    "MAX_MESSAGE_BYTES_HEADER",
    "OFFER",
    "SUPPORTED",
    "VIA_HEADER",
    "Announcement",
    "Terms",
]

FEATURES_HEADER = "revconn-features"
HEARTBEAT_TIMEOUT_HEADER = "revconn-heartbeat-timeout"
MAX_MESSAGE_BYTES_HEADER = "revconn-max-message-bytes"
VIA_HEADER = "revconn-via"  # which gateways a call came by, as it reaches a backend

CHUNKS = "chunks"  # a large response travels in several messages
CANCEL = "cancel"  # whoever asked may say that it gave up
DRAIN = "drain"  # answers are still read on a stream that said DISCONNECTED
SUPPORTED = frozenset({CHUNKS, CANCEL, DRAIN})

OFFER = ((FEATURES_HEADER, ",".join(sorted(SUPPORTED))),)
"""What a connector says of itself in the metadata that opens a stream."""

_BEATS_PER_TIMEOUT = 3  # two heartbeats may be lost or late
_LIVENESS_SHARE = 0.75  # of the gateway's timeout: as the defaults are, 90 s of 120
_LEAST_TIMEOUT = 0.1  # seconds; to meet less we would send little but heartbeats
LEAST_BYTES = 1024  # less has no room for an id and a few headers

# Of a peer's header no more is looked at, however long it is.
_LONGEST_HEADER = 1024
_LONGEST_NUMBER = 20


@dataclass(frozen=True)
class Announcement:
    """What one side says of itself in its initial metadata.

    :ivar features: what it supports; names this library does not know are kept.
    :ivar heartbeat_timeout: seconds of silence after which it gives a connection up; ``None`` when
        not stated. Gateways state it.
    :ivar max_message_bytes: the largest message it takes; ``None`` when not stated.
    """

    features: frozenset[str] = frozenset()
    heartbeat_timeout: float | None = None
    max_message_bytes: int | None = None

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The headers to send; none for what there is nothing to say about."""
        headers = []
        if self.features:
            headers.append((FEATURES_HEADER, ",".join(sorted(self.features))))
        if self.heartbeat_timeout is not None:
            headers.append((HEARTBEAT_TIMEOUT_HEADER, f"{self.heartbeat_timeout:g}"))
        if self.max_message_bytes is not None:
            headers.append((MAX_MESSAGE_BYTES_HEADER, str(self.max_message_bytes)))
        return tuple(headers)

    @classmethod
    def from_metadata(cls, metadata: Iterable[tuple[str, str | bytes]]) -> Announcement:
        """What a peer's metadata announces. Never raises: what cannot be read was not said."""
        # Values that are bytes are those of keys in -bin: none of ours is.
        headers = {key: value for key, value in metadata if isinstance(value, str)}
        return cls(
            features=_parse_features(headers.get(FEATURES_HEADER, "")),
            heartbeat_timeout=_parse_seconds(headers.get(HEARTBEAT_TIMEOUT_HEADER, "")),
            max_message_bytes=_parse_bytes(headers.get(MAX_MESSAGE_BYTES_HEADER, "")),
        )


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
        # The stricter side's limit holds: a looser one of the gateway's changes nothing.
        terms = replace(self, features=announced.features & SUPPORTED)
        # Said and not understood is a note for the operator; not said is how older gateways are.
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


def _parse_features(value: str) -> frozenset[str]:
    names = (name.strip().lower() for name in value[:_LONGEST_HEADER].split(","))
    return frozenset(name for name in names if name)


def _parse_seconds(value: str) -> float | None:
    try:
        seconds = float(value[:_LONGEST_NUMBER])
    except ValueError:
        return None
    return seconds if 0 < seconds < math.inf else None


def _parse_bytes(value: str) -> int | None:
    text = value.strip()
    if not (text.isascii() and text.isdigit() and len(text) <= _LONGEST_NUMBER):
        return None
    return int(text) or None
