"""One tunnel connection, either side: what may be said when, what is heard, and what is due.

A connector opens a stream to a gateway, and both speak :class:`ConnectionMessage` on it. Each end
holds a connection; both go through the same phases, and one of them knows of each step later:

    OPENED        the stream is there; nothing was said
       | register   the connector's first message, with its API key and its services
    REGISTERING   the gateway looks at the key
       | accept     the gateway's CONNECTED, with the id that it gives
    READY         requests and their responses, heartbeats, cancels, events
       | disconnect the connector's DISCONNECTED, or the end of its half of the stream
    LEAVING       nothing new is asked of the connector; all that was is answered, heartbeats go on
       | close      the gateway ends the stream when all is settled
    ENDED         nothing is said or heard

    and to ENDED sooner
         dismiss    from REGISTERING on: the gateway's DISCONNECTED, or ERROR in place of CONNECTED
         violate    whenever this end hears: the other end broke a rule of the protocol
         expire     the first message (a gateway), or the answer to it (a connector), came too late
         close      whenever: the stream broke, or is given up at this end

Before that, in the initial gRPC metadata of the stream, each side announces what it can do beyond
the published protocol, and the gateway its limits. What holds of it are the connection's
:class:`Terms`: the features that both sides named, and the stricter of either side's limits. With
a peer that announces nothing, nothing is in force.

Messages that arrived and local wishes go in; what they mean and the bytes to send come out. Time is
passed in (seconds on one clock, that of :mod:`revconn.core.liveness`), nothing blocks, nothing is
shared: whoever owns a connection guards it. The sides are :mod:`revconn.core.connector_side` and
:mod:`revconn.core.gateway_side`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import ClassVar, Final, TypeVar

from google.protobuf.message import Message

from revconn.core.rope import Data
from revconn.core.status import ProtocolError
from revconn.logger import SafeLogger, get_logger, level_check

__all__ = [
    "CANCEL",
    "CHUNKS",
    "DRAIN",
    "EITHER_SIDE",
    "FEATURES_HEADER",
    "HEARTBEAT_TIMEOUT_HEADER",
    "LEAST_BYTES",
    "LONGEST_ID",
    "MAX_MESSAGE_BYTES_HEADER",
    "METADATA",
    "OFFER",
    "STREAMS",
    "SUPPORTED",
    "VIA_HEADER",
    "Announcement",
    "Connection",
    "Phase",
    "Step",
    "Terms",
    "Transitions",
    "decode",
    "is_possible_id",
    "no_message",
]

logger = get_logger(__name__)
_would_log = level_check(__name__)

_Message = TypeVar("_Message", bound=Message)

# Characters. Ids are kept: of requests in flight, of calls that were cancelled. A UUID has 36.
LONGEST_ID = 256


class Phase(Enum):
    """Where a connection stands. It only ever moves down this list."""

    OPENED = "opened"
    REGISTERING = "registering"
    READY = "ready"
    LEAVING = "leaving"
    ENDED = "ended"


class Step(Enum):
    """What moves a connection on; its value is what an error calls it."""

    REGISTER = "register"
    ACCEPT = "accept"
    DISCONNECT = "disconnect"
    DISMISS = "dismiss"
    VIOLATE = "violate"
    EXPIRE = "expire"
    CLOSE = "close"


Transitions = Mapping[tuple[Phase, Step], Phase]

# What a gateway sends, a connector hears, and the other way round: most steps are both sides'. Each
# side adds what only it can find out. A test lists what is declared and never taken.
EITHER_SIDE: Final[Transitions] = {
    # The connector speaks first, and its first message is the registration (a gateway fails the
    # stream for anything else).
    (Phase.OPENED, Step.REGISTER): Phase.REGISTERING,
    (Phase.OPENED, Step.VIOLATE): Phase.ENDED,
    (Phase.OPENED, Step.CLOSE): Phase.ENDED,
    # No way from here to LEAVING: a connector that is stopped before CONNECTED ends the stream, for
    # it has no id yet to say goodbye with.
    (Phase.REGISTERING, Step.ACCEPT): Phase.READY,
    (Phase.REGISTERING, Step.CLOSE): Phase.ENDED,
    # The goodbye is heard once. A second one, or the end of the half that said it, changes nothing.
    (Phase.READY, Step.DISCONNECT): Phase.LEAVING,
    (Phase.READY, Step.DISMISS): Phase.ENDED,
    (Phase.READY, Step.VIOLATE): Phase.ENDED,
    (Phase.READY, Step.CLOSE): Phase.ENDED,
    (Phase.LEAVING, Step.DISMISS): Phase.ENDED,
    (Phase.LEAVING, Step.VIOLATE): Phase.ENDED,
    (Phase.LEAVING, Step.CLOSE): Phase.ENDED,
}


# Compared by identity; looked up once, because an enum's attribute costs a call before 3.12.
_READY, _LEAVING = Phase.READY, Phase.LEAVING


class Connection:
    """What both sides have in common: the phase, the id, the features in force.

    :ivar shown_id: ``connection_id`` as a log may have it; a gateway may have echoed the key in it.
    """

    transitions: ClassVar[Transitions]

    def __init__(self, features: frozenset[str]) -> None:
        self.phase = Phase.OPENED
        self.connection_id = ""
        self.shown_id = ""
        self.features = features

    @property
    def established(self) -> bool:
        """Whether responses and heartbeats may be sent."""
        phase = self.phase
        return phase is _READY or phase is _LEAVING

    def end(self) -> None:
        """The stream is gone, or given up: nothing is sent, heard, or due from here on. Idempotent.

        Both ends come here whichever of them ended it, and often twice: a broken rule has ended
        the connection already when the stream that carried it is torn down.
        """
        if self.phase is not Phase.ENDED:
            self._take(Step.CLOSE)

    def _require(self, allowed: bool, wish: str) -> None:
        if not allowed:
            raise ProtocolError(f"{wish} cannot be sent while {self.phase.value}")

    def _take(self, step: Step) -> None:
        """The one way from phase to phase. Raises :class:`ProtocolError` where there is none."""
        before, after = self.phase, self.transitions.get((self.phase, step))
        if after is None:
            raise ProtocolError(f"{step.value} cannot be sent while {before.value}")
        self.phase = after
        if _would_log(logging.DEBUG):
            line = "conversation %s: %s -> %s"
            self._log(logger, logging.DEBUG, line, self.shown_id, before, after)

    def _log(self, log: SafeLogger, level: int, line: str, *arguments: object) -> None:
        """Log a line at once.

        The connector's side keeps it until its owner, a session, has let go of the lock.
        """
        log.log(level, line, *arguments)


def is_possible_id(given: str) -> bool:
    """Whether a peer may call a request, or a connection, so."""
    return 0 < len(given) <= LONGEST_ID


def no_message(data: bytes) -> ProtocolError:
    """The error of a peer that sent ``data``, which could not be decoded."""
    return ProtocolError("bytes that are no ConnectionMessage", f"{len(data):,} bytes")


def decode(kind: type[_Message], received: Data) -> _Message:
    """The message of that ``kind``. Raises :class:`ProtocolError` for garbage, and nothing else."""
    try:
        return kind.FromString(bytes(received))
    # What garbage raises depends on protobuf's release and implementation, and on the
    # application's filter for warnings: DecodeError, UnicodeDecodeError, SystemError and others.
    except Exception:  # noqa: BLE001
        name = kind.DESCRIPTOR.name
        raise ProtocolError(f"bytes that are no {name}", f"{len(received):,} bytes") from None


# What both sides announce as the stream opens

FEATURES_HEADER = "revconn-features"
HEARTBEAT_TIMEOUT_HEADER = "revconn-heartbeat-timeout"
MAX_MESSAGE_BYTES_HEADER = "revconn-max-message-bytes"
VIA_HEADER = "revconn-via"  # which gateways a call came by, as it reaches a backend

CHUNKS = "chunks"  # a large response travels in several messages
CANCEL = "cancel"  # whoever asked may say that it gave up
DRAIN = "drain"  # answers are still read on a stream that said DISCONNECTED
METADATA = "metadata"  # what headers cannot say of a call: names that repeat, what goes first, who
STREAMS = "streams"  # streaming methods: revconn.core.streams
SUPPORTED = frozenset({CHUNKS, CANCEL, DRAIN, METADATA, STREAMS})

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
