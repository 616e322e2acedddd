"""One connection's conversation with a gateway, as a state machine.

Messages that arrived and local wishes go in; what they mean and what to send come out. Time is
passed in, nothing blocks, nothing is shared: whoever owns a :class:`Conversation` guards it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Callable

from revconn._proto.registry_pb2 import (
    CancelRequest,
    ConnectionMessage,
    ConnectionRegister,
    ConnectionStatus,
    ForwardRequest,
    ForwardResponse,
    Heartbeat,
)
from revconn.core.decoding import decode
from revconn.core.errors import ProtocolError
from revconn.core.features import CANCEL
from revconn.core.reminders import Reminders
from revconn.core.terms import Terms
from revconn.core.text import Mask, presentable
from revconn.logger import get_logger

__all__ = ["Arrival", "Conversation", "Inbound", "Phase"]

logger = get_logger(__name__)

_LONGEST_ID = 256
_LONGEST_QUOTE = 200
_MOST_ASKED = 10_000


Arrival = tuple[ForwardRequest, int]
"""A request, and how many bytes it came in. A bare tuple, because there is one for each."""


class Phase(Enum):
    """Where a conversation stands. It only ever moves down this list."""

    OPENED = "opened"
    REGISTERING = "registering"
    READY = "ready"
    LEAVING = "leaving"
    ENDED = "ended"


@dataclass
class Inbound:
    """What one batch of messages meant.

    ``connection_id`` is set by the batch that brought CONNECTED, ``end`` by the one that ended
    the conversation: a :class:`ProtocolError` when the gateway broke the protocol, else the
    gateway's own reason. ``requests`` and ``cancelled`` hold even then: they came first.

    ``cancelled`` are ids of earlier requests, or of none that ever was; each with how many
    requests of this batch came before it. Those of the batch that it meant are not in ``requests``.

    ``responses`` answer requests of our own.
    """

    requests: list[Arrival] = field(default_factory=list)
    cancelled: dict[str, int] = field(default_factory=dict)
    responses: list[ForwardResponse] = field(default_factory=list)
    connection_id: str | None = None
    end: ProtocolError | str | None = None


class Conversation:
    """What may be said when, and what each thing heard means (protocol.md, section 2).

    Wishes (:meth:`register`, :meth:`heartbeat`, :meth:`request`, :meth:`disconnect`) return the
    message to send and raise :class:`ProtocolError` when this is not the moment for them.
    """

    def __init__(self, *, liveness_timeout: float | None) -> None:
        self.phase = Phase.OPENED
        self.connection_id = ""
        self._liveness_timeout = liveness_timeout
        self._features: frozenset[str] = frozenset()
        self._asked: dict[str, None] = {}  # the oldest first
        self._last_heartbeat_left: float | None = None
        self._longest_gap = 0.0
        self._mask = Mask("")
        self._ignored = Reminders()
        self._now = 0.0

    @property
    def established(self) -> bool:
        """Whether answers and heartbeats may be sent."""
        return self.phase in (Phase.READY, Phase.LEAVING)

    def agree(self, terms: Terms) -> None:
        """What the gateway announced as it opened the stream; without this, nothing was.

        Comes before the first message that is heard.
        """
        self._liveness_timeout = terms.liveness_timeout
        self._features = terms.features

    # Wishes

    def register(self, api_key: str, services: Iterable[str]) -> bytes:
        """The first message. ``connection_id`` stays empty: the gateway gives one."""
        self._require(self.phase is Phase.OPENED, "register")
        self._mask = Mask(api_key)
        message = ConnectionMessage(register=ConnectionRegister(api_key=api_key, services=services))
        self._enter(Phase.REGISTERING)
        return message.SerializeToString()

    def heartbeat(self, unix_time: float) -> bytes:
        """A heartbeat with the id that the gateway gave."""
        self._require(self.established, "heartbeat")
        message = ConnectionMessage(
            heartbeat=Heartbeat(timestamp=int(unix_time), connection_id=self.connection_id)
        )
        return message.SerializeToString()

    def request(self, request: ForwardRequest) -> bytes:
        """A call of our own, with an id that is unique everywhere; its answer comes once."""
        self._require(self.phase is Phase.READY, "request")
        self._asked[request.request_id] = None
        if len(self._asked) > _MOST_ASKED:  # a gateway that answers none of so many answers none
            del self._asked[next(iter(self._asked))]
        return ConnectionMessage(request=request).SerializeToString()

    def disconnect(self) -> bytes:
        """Say goodbye. Requests already on their way are still to be answered."""
        self._require(self.phase is Phase.READY, "disconnect")
        self._enter(Phase.LEAVING)
        status = ConnectionStatus(
            connection_id=self.connection_id, status=ConnectionStatus.DISCONNECTED
        )
        return ConnectionMessage(status=status).SerializeToString()

    def end(self) -> None:
        """The stream is gone: nothing is sent or heard from here on."""
        if self.phase is not Phase.ENDED:
            self._enter(Phase.ENDED)

    # Time

    def heartbeat_left(self, now: float) -> None:
        """A heartbeat (or the registration, which counts as one) was handed to the network."""
        self._longest_gap = self.longest_silence(now)
        self._last_heartbeat_left = now

    def longest_silence(self, now: float) -> float:
        """The longest gap between two heartbeats, in seconds, and the one that lasts counts too.

        A heartbeat that waited while the machine slept leaves as soon as it wakes: the gap that
        it ends has to be remembered.
        """
        if self._last_heartbeat_left is None:
            return 0.0
        return max(self._longest_gap, now - self._last_heartbeat_left)

    def may_be_forgotten(self, now: float) -> bool:
        """Whether the gateway may have dropped this connection's routes (section 7).

        True after *any* gap between heartbeats that may have outlasted the gateway's patience:
        later heartbeats go through and are accepted, and the routes still never return.
        """
        if self._liveness_timeout is None or not self.established:
            return False
        return self.longest_silence(now) > self._liveness_timeout

    # What the gateway says

    def receive(self, batch: Sequence[bytes], now: float = 0.0) -> Inbound:
        """Take in what arrived, in order. Never raises: a broken rule is in ``Inbound.end``."""
        self._now = now
        inbound = Inbound()
        requests = inbound.requests
        if batch and self.phase is Phase.OPENED:
            inbound.end = ProtocolError("the gateway spoke before it was spoken to")
            self._enter(Phase.ENDED)
        try:
            for data in batch:
                if self.phase is Phase.ENDED:
                    break
                message = decode(ConnectionMessage, data)
                kind = message.WhichOneof("message_type")
                # Also before CONNECTED: a route exists from the moment the gateway registers it,
                # and a caller's request may overtake the status.
                if (
                    kind == "request"
                    and 0 < len((request := message.request).request_id) <= _LONGEST_ID
                ):
                    requests.append((request, len(data)))
                else:
                    self._receive_other(kind, message, inbound)
        except ProtocolError as error:
            inbound.end = error
            self._enter(Phase.ENDED)
        if inbound.cancelled:
            inbound.requests = [
                arrival
                for number, arrival in enumerate(inbound.requests)
                if number >= inbound.cancelled.get(arrival[0].request_id, 0)
            ]
        return inbound

    def _receive_other(
        self, kind: str | None, message: ConnectionMessage, inbound: Inbound
    ) -> None:
        """What is no request that can be answered."""
        if kind == "request":
            problem = "ignored a request with no id or an endless one: unanswerable"
            self._log(logging.WARNING, problem)
        elif kind == "response" and message.response.request_id in self._asked:
            del self._asked[message.response.request_id]
            inbound.responses.append(message.response)
        elif kind == "status":
            self._receive_status(message.status, inbound)
        elif kind == "cancel" and CANCEL in self._features:
            self._receive_cancel(message.cancel, inbound)
        elif kind is None:
            self._log(logging.INFO, "ignored a message of a type newer than this schema")
        else:
            self._log(logging.INFO, f"ignored a {kind}: a gateway has no use for one here")

    def _receive_cancel(self, cancel: CancelRequest, inbound: Inbound) -> None:
        if 0 < len(cancel.request_id) <= _LONGEST_ID:
            inbound.cancelled[cancel.request_id] = len(inbound.requests)
            logger.debug(
                "the gateway cancels %r: %s",
                cancel.request_id,
                presentable(self._mask(cancel.reason)),
            )

    def _receive_status(self, status: ConnectionStatus, inbound: Inbound) -> None:
        receive = _STATUS_RECEIVERS.get(status.status)
        if receive is None:
            problem = "ignored a connection status newer than this schema"
            self._log(logging.INFO, problem, f": {status.status}")
        else:
            receive(self, status, inbound)

    def _receive_connected(self, status: ConnectionStatus, inbound: Inbound) -> None:
        given = status.connection_id
        if not given:
            raise ProtocolError("CONNECTED without a connection_id")
        if len(given) > _LONGEST_ID or not given.isprintable():
            raise ProtocolError("CONNECTED with an unusable connection_id", self._quote(given))
        if self.phase is Phase.REGISTERING:
            self.connection_id = inbound.connection_id = given
            self._enter(Phase.READY)
        elif given != self.connection_id:
            # Heartbeats must carry the one right id, and there is no telling which it is now.
            raise ProtocolError("a second CONNECTED with another connection_id", self._quote(given))

    def _receive_disconnected(self, status: ConnectionStatus, inbound: Inbound) -> None:
        inbound.end = f"the gateway said DISCONNECTED: {self._quote(status.message)}"
        self._enter(Phase.ENDED)

    def _receive_error(self, status: ConnectionStatus, inbound: Inbound) -> None:
        if self.phase is Phase.REGISTERING:
            inbound.end = f"the gateway said ERROR: {self._quote(status.message)}"
            self._enter(Phase.ENDED)
        else:
            said = f": {self._quote(status.message)}"
            self._log(logging.WARNING, "the gateway reported an error", said)

    def _quote(self, text: str) -> str:
        """The gateway's words for a log: shortened, and with no control characters."""
        return repr(self._mask(text)[:_LONGEST_QUOTE]) if text else "(no reason given)"

    def _log(self, level: int, problem: str, detail: str = "") -> None:
        """A line, unless the gateway does this again and again."""
        count = self._ignored.count(problem, self._now)
        if count:
            times = f" ({count:,} times since the last such line)" if count > 1 else ""
            logger.log(level, "%s%s%s", problem, detail, times)

    # Guards

    def _require(self, allowed: bool, wish: str) -> None:
        if not allowed:
            raise ProtocolError(f"{wish} cannot be sent while {self.phase.value}")

    def _enter(self, phase: Phase) -> None:
        shown = self._mask(self.connection_id)
        logger.debug("conversation %s: %s -> %s", shown, self.phase, phase)
        self.phase = phase


_STATUS_RECEIVERS: dict[int, Callable[[Conversation, ConnectionStatus, Inbound], None]] = {
    ConnectionStatus.CONNECTED: Conversation._receive_connected,
    ConnectionStatus.DISCONNECTED: Conversation._receive_disconnected,
    ConnectionStatus.ERROR: Conversation._receive_error,
}
