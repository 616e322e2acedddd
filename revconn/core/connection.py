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

    and to ENDED from wherever it is
         dismiss    the gateway's DISCONNECTED, or its ERROR in place of CONNECTED
         violate    the other end broke a rule of the protocol
         expire     the first message, or the answer to it, came too late
         close      the stream broke, or is given up at this end

Messages that arrived and local wishes go in; what they mean and the bytes to send come out. Time is
passed in (seconds on one clock, that of :mod:`revconn.core.liveness`), nothing blocks, nothing is
shared: whoever owns a connection guards it. The sides are :mod:`revconn.core.connector_side` and
:mod:`revconn.core.gateway_side`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import Enum
from typing import ClassVar, Final, TypeVar

from google.protobuf.message import Message

from revconn.core.errors import ProtocolError
from revconn.logger import SafeLogger, get_logger

__all__ = [
    "EITHER_SIDE",
    "LONGEST_ID",
    "Connection",
    "Phase",
    "Step",
    "Transitions",
    "decode",
    "is_possible_id",
    "no_message",
]

logger = get_logger(__name__)

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
        return self.phase in (Phase.READY, Phase.LEAVING)

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
        line = "conversation %s: %s -> %s"
        self._log(logger, logging.DEBUG, line, self.shown_id, before, after)

    def _log(self, log: SafeLogger, level: int, line: str, *arguments: object) -> None:
        """Log a line: here at once, on a side whose owner holds a lock meanwhile after that."""
        log.log(level, line, *arguments)


def is_possible_id(given: str) -> bool:
    """Whether a peer may call a request, or a connection, so."""
    return 0 < len(given) <= LONGEST_ID


def no_message(data: bytes) -> ProtocolError:
    """The error of a peer that sent ``data``, which could not be decoded."""
    return ProtocolError("bytes that are no ConnectionMessage", f"{len(data):,} bytes")


def decode(kind: type[_Message], received: bytes) -> _Message:
    """The message of that ``kind``. Raises :class:`ProtocolError` for garbage, and nothing else."""
    try:
        return kind.FromString(received)
    # What garbage raises depends on protobuf's release and implementation, and on the
    # application's filter for warnings: DecodeError, UnicodeDecodeError, SystemError and others.
    except Exception:  # noqa: BLE001
        name = kind.DESCRIPTOR.name
        raise ProtocolError(f"bytes that are no {name}", f"{len(received):,} bytes") from None
