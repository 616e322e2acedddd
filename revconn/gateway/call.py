"""One call: who asks, who is to answer, and where it is on its way.

A call has two ends: who asks, a gRPC caller from outside or a connector, and who is to answer, a
connector or a backend. Whoever the two are, its way is this one::

    NEW --submit, a connector serves it-----------------------> QUEUED
    NEW --submit, else a backend does-------------------------> DIALLED
    NEW --submit, else its last connector has just left-------> HELD

    QUEUED --its connector's stream was given the request-----> SENT
    QUEUED --its connector ended, leaves or stalls; another is> QUEUED, there
    QUEUED --its connector ended, nobody else serves it-------> DIALLED, HELD or SETTLED
    HELD --somebody has come----------------------------------> QUEUED, DIALLED
    HELD --who came cannot take it; nobody came within grace--> SETTLED
    DIALLED --nothing was sent, a connector is expected back--> QUEUED, HELD

    SENT --answered, whole or by the final chunk--------------> SETTLED
    DIALLED --the backend replied, or failed------------------> SETTLED
    DIALLED --the backend's answer streams--> SETTLED here: it is a streaming call from then on
    every state --its time is up, its asker gave up or is gone,
                  the gateway stops---------------------------> SETTLED

SENT is where a call belongs to somebody: nobody else may be sent it, since it may have been acted
upon. It outlives the connection that it was sent on: its answer may come on any connection of a
connector with that API key, until its deadline. All of this belongs to the gateway's thread.
"""

from __future__ import annotations

import asyncio
import enum
from abc import ABC, abstractmethod
from collections.abc import Hashable

from revconn._proto.registry_pb2 import (
    ConnectionMessage,
    ForwardRequest,
    ForwardResponse,
    StreamingInfo,
)
from revconn.core.connection import METADATA
from revconn.core.requests import cut_extension
from revconn.core.rope import Data, Rope
from revconn.core.routing import Wanted
from revconn.gateway.backend_streams import BackendStream
from revconn.gateway.backends import BackendRequest, Reply
from revconn.gateway.holding import Joiners
from revconn.gateway.outbound import Outgoing
from revconn.gateway.routes import Connection

__all__ = ["UNARY", "Call", "State"]

_LONGEST_METHOD = 200  # characters, of those that are named in errors
UNARY = StreamingInfo(stream_type=StreamingInfo.UNARY, is_stream_end=True)


class State(enum.Enum):
    """Where a call is; see above."""

    NEW = enum.auto()
    QUEUED = enum.auto()
    SENT = enum.auto()
    HELD = enum.auto()
    DIALLED = enum.auto()
    SETTLED = enum.auto()


# Compared by identity; looked up once, because an enum's attribute costs a call before 3.12.
_NEW, _QUEUED, _SENT = State.NEW, State.QUEUED, State.SENT
_HELD, _DIALLED, _SETTLED = State.HELD, State.DIALLED, State.SETTLED


class Call(ABC):
    """One call. What differs by who asks, subclasses say; the rest is for :class:`Calls` to call.

    :ivar asker: the connector that asks; ``None`` for any other caller.
    :ivar deadline: on the loop's clock.
    :ivar connection: who is to answer, from QUEUED on; it may have ended.
    :ivar lost: how the connection ended that the call was sent on, or was to be; empty until then,
        and again once another is to be sent it.
    :ivar extension: bytes at the end of its message that feature "metadata" is about.
    :ivar may_dial: whether a backend may be sent it: one that was out of reach is not tried again.
    :ivar slot: of :class:`Deadlines`', in which it is.
    :ivar joiners: what has come of an answer in chunks; :class:`Joining` alone fills them.
    """

    # What most calls never come to have, or only later, is the class's until then.
    connection: Connection | None = None
    lost = ""
    held_since = 0.0
    extension = 0
    may_dial = True
    outgoing: Outgoing | None = None
    joiners: Joiners | None = None
    slot: dict[Call, None]
    _task: asyncio.Task[None] | None = None

    def __init__(
        self,
        request_id: str,
        method: str,
        wanted: Wanted,
        deadline: float,
        asker: Connection | None = None,
    ) -> None:
        self.id = request_id
        self.method = method[:_LONGEST_METHOD]
        self.wanted = wanted
        self.deadline = deadline
        self.asker = asker
        self._state = _NEW

    @property
    def origin(self) -> Hashable:
        """Where it comes from: a key, or the caller's network."""
        return None if self.asker is None else self.asker.key

    @abstractmethod
    def respond(
        self,
        response: ForwardResponse,
        data: Data | None = None,
        payload: memoryview | Rope | None = None,
    ) -> None:
        """Give the asker what a connector, or the gateway itself, answered.

        :param data: the message that it came in, if it came whole.
        :param payload: a large one, which is in ``data`` and not in the response.
        """

    @abstractmethod
    def relay(self, reply: Reply) -> None:
        """Give the asker what a backend answered."""

    def stream(self, answer: BackendStream) -> None:
        """Give the asker what a backend answers as it comes, if ``for_backend`` says it may."""
        raise NotImplementedError

    @abstractmethod
    def for_backend(self, request: ForwardRequest) -> BackendRequest:
        """What a backend is sent. Raises :class:`Refused` when there is no telling."""

    @property
    def state(self) -> State:
        """Where it is. Its connector's writer takes a request without a word to the call."""
        outgoing = self.outgoing
        is_sent = self._state is _QUEUED and outgoing is not None and outgoing.data is None
        return _SENT if is_sent else self._state

    @property
    def unsent(self) -> Data | None:
        """The message, as long as nothing of it was written; ``None`` from then on."""
        return None if self.outgoing is None else self.outgoing.data

    def queue(self, connection: Connection, data: Data) -> None:
        """Wait for ``connection`` to be sent ``data``, and for its answer."""
        self._state, self.lost = _QUEUED, ""
        self.held_since = 0.0  # what the call waited is taken from its time already
        self.connection = connection
        if self.extension and METADATA not in connection.protocol.features:
            data, self.extension = cut_extension(data, self.extension), 0
        connection.pending.add(self.id)
        connection.load.pending += 1
        self.outgoing = connection.outbound.put_request(data)

    def encode_anew(self, message: ConnectionMessage) -> bytes:
        """The message, which was decoded, as it is sent on."""
        request = message.request
        if self.extension:  # an empty value may be written, or not
            told = ForwardRequest(peer=request.peer, metadata=request.metadata)
            self.extension = told.ByteSize()
        return message.SerializeToString()

    def hold(self, data: Data, now: float) -> None:
        """Keep what is to be sent, until somebody comes who can be."""
        self._state = _HELD  # nobody's yet, so that whoever comes may be sent it
        self.held_since = now
        self.outgoing = Outgoing(data)

    def dial(self, task: asyncio.Task[None]) -> None:
        """Wait for what a backend answers to ``task``."""
        self._state = _DIALLED
        self._task = task

    def exchange_ended(self, *, is_for_connectors: bool) -> None:
        """The backend's task is done: the call ends, or is for connectors if nothing was sent."""
        self._task = None  # which says so itself, at its end: it is not to be cancelled any more
        self.may_dial = not is_for_connectors

    def connection_ended(self, reason: str) -> None:
        """The connection is over that the call was sent on, or was to be sent on."""
        self.lost = f"its connection ended: {reason}"

    def leave(self) -> None:
        """Expect nothing of its connector, which is not sent what it was not sent yet."""
        connection, outgoing = self.connection, self.outgoing
        self.connection = self.outgoing = None
        if connection is None:
            return
        if outgoing is not None and outgoing.data is not None:
            connection.outbound.withdraw(outgoing)
        connection.pending.discard(self.id)
        connection.load.pending -= 1
        if connection.departure:
            connection.end_if_drained()

    def end(self) -> None:
        """The call is settled: no task or message to a connector is left behind."""
        self._state = _SETTLED
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self.outgoing is not None:  # as withdraw() does, without one more call for each call
            self.leave()

    def withdraw(self) -> None:
        """No connector is to answer it any more."""
        if self.outgoing is not None:
            self.leave()

    def release_asker(self) -> None:
        """Tell a connector that asks, once it was answered: one that is leaving may then go."""
        if self.asker is not None:
            self.asker.settle_asked(self.id)
