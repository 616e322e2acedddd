"""What the gateway says of itself: grpc.health.v1, and server reflection.

Apart from all else, because the libraries with their schemas are an extra: without them neither is
served. Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from revconn.core.connection import decode
from revconn.core.metadata import Metadata
from revconn.core.rope import Data
from revconn.core.routing import Wanted
from revconn.core.status import ProtocolError, StatusCode
from revconn.gateway.budgets import Budget
from revconn.gateway.deadlines import Timeouts
from revconn.gateway.reflection import (
    REFLECTION_SERVICES,
    Reflection,
    Reflections,
    bound_unread,
)
from revconn.gateway.refusals import STOPPING, Refused, over_limit
from revconn.gateway.rpcs import Method, UnaryRpc
from revconn.gateway.shared import Shared
from revconn.gateway.streaming import StreamingCall, StreamingCalls
from revconn.http2.requests import RequestHead
from revconn.http2.streams import Sendable, Stream

__all__ = ["HEALTH_SERVICE", "Introspection"]

HEALTH_SERVICE = "grpc.health.v1.Health"

_MOST_LISTED = 1000  # services, in an answer to List


class Introspection:
    """Whether the gateway, and each service that connectors or backends registered, is served.

    Answers from the registry itself. A call of ``a.B.C`` goes to whoever registered ``a.B``, which
    is healthy then, too.
    """

    def __init__(self, shared: Shared, streaming: StreamingCalls) -> None:
        self.shared = shared
        self._streaming = streaming
        self.is_leaving = False
        # All are looked at after any change: to know which names a change touches is not worth a
        # table, since watchers are few.
        self.watchers: dict[_Watch, None] = {}
        self._reflections = Reflections(shared)
        # Of questions that have not come. Who has one, has it at hand.
        self._waiting: Budget[_Asking] = Budget(
            shared.limits.max_connections, self._turn_away_silent, newest_first=True
        )
        self._watching = Budget(shared.limits.max_pending, self._turn_away)
        loop, timeout = asyncio.get_running_loop(), shared.limits.handshake_timeout
        self.timeouts = Timeouts(loop, timeout, _Asking.expire)
        shared.registry.on_change.append(self._tell_watchers)
        shared.backends.on_change.append(self._tell_watchers)

    def methods(self) -> tuple[Method, ...]:
        """What is asked for."""
        health = {"Check": _Check, "Watch": _Watch, "List": _List}
        if not hasattr(health_pb2, "HealthListResponse"):  # older schemas have none
            del health["List"]
        return (
            *(
                Method(f"/{HEALTH_SERVICE}/{name}".encode(), partial(kind, asked=self))
                for name, kind in health.items()
            ),
            *(
                Method(
                    f"/{service}/ServerReflectionInfo".encode(),
                    partial(Reflection, asked=self._reflections),
                )
                for service in REFLECTION_SERVICES
            ),
        )

    def leave(self) -> None:
        """Say NOT_SERVING of everything from now on."""
        # While the gateway finishes what it has: whoever balances calls looks for another one.
        self.is_leaving = True
        self._tell_watchers()

    def end(self) -> None:
        """End the calls that last."""
        for rpc in tuple(self.watchers):
            rpc.abandon()
            rpc.finish(StatusCode.UNAVAILABLE, STOPPING)
        self._reflections.end()

    def status(self, service: str) -> int:
        """How a service is."""
        # By the very names that a call from outside would be routed by.
        wanted = Wanted.by_outsider(service)
        shared = self.shared
        known = shared.registry.serves(wanted) or shared.backends.serves(wanted)
        if service and not known:
            return int(HealthCheckResponse.SERVICE_UNKNOWN)
        return int(
            HealthCheckResponse.NOT_SERVING if self.is_leaving else HealthCheckResponse.SERVING
        )

    def forward(self, rpc: _Asking, service: str, question: Data) -> bool:
        """Have the connector answer that has a health service of its own; whether one has."""
        connection = self.shared.registry.introspector(Wanted.by_outsider(service), HEALTH_SERVICE)
        if connection is None:
            return False
        rpc.hand_over()
        call = StreamingCall(rpc.stream, rpc.head, rpc.peer, self._streaming)
        call.forward(connection, question)
        return True

    def await_question(self, rpc: _Asking) -> None:
        """A call whose question is to come. Raises :class:`Refused`."""
        owners = rpc.stream.owner.owners
        if not self._waiting.make_room(owners):
            raise self._too_many_silent()
        self._waiting.take(owners, rpc)
        self.timeouts.add(rpc)

    def forget_question(self, rpc: _Asking) -> None:
        """It has come, or does not any more."""
        self._waiting.give_back(rpc)
        self.timeouts.discard(rpc)

    def add(self, rpc: _Watch) -> None:
        """One more that watches. Raises :class:`Refused`."""
        owners = rpc.stream.owner.owners
        if not self._watching.make_room(owners):
            raise self._no_room()
        self._watching.take(owners, rpc)
        self.watchers[rpc] = None

    def discard(self, rpc: _Watch) -> None:
        """It is over, if it was there."""
        if self.watchers.pop(rpc, 0) is None:
            self._watching.give_back(rpc)

    def _turn_away_silent(self, rpc: _Asking) -> None:
        rpc.turn_away(self._too_many_silent())

    def _too_many_silent(self) -> Refused:
        problem = f"the questions of {self._waiting.used:,} calls are still on their way"
        return over_limit(self.shared.counters, "max_connections", problem)

    def _turn_away(self, rpc: _Watch) -> None:
        rpc.stream.drop_unsent()  # which nobody would bound any more
        rpc.turn_away(self._no_room())

    def _no_room(self) -> Refused:
        problem = f"{self._watching.used:,} calls watch a service"
        return over_limit(self.shared.counters, "max_pending", problem)

    def _tell_watchers(self) -> None:
        for watcher in tuple(self.watchers):
            watcher.tell()


class _Asking(UnaryRpc):
    """A call of the health service."""

    __slots__ = ("_asked",)

    def __init__(self, stream: Stream, head: RequestHead, peer: str, asked: Introspection) -> None:
        super().__init__(stream, head, peer)
        self._asked = asked

    def start(self) -> None:
        """Wait for the question, and not for ever. Raises :class:`Refused`."""
        super().start()
        self._asked.await_question(self)

    def take(self, messages: list[Data], *, ended: bool) -> None:
        """The question has come, or the end, or both."""
        if ended:
            self._asked.forget_question(self)
        super().take(messages, ended=ended)

    def hand_over(self) -> None:
        """Somebody else answers."""
        self.abandon()
        self.is_over = True

    def expire(self) -> None:
        """No question has come in time."""
        shared = self._asked.shared
        shared.counters.refused["handshake_timeout"] += 1
        self.abandon()
        problem = f"no request came within {shared.limits.handshake_timeout:g} seconds"
        self.finish(StatusCode.DEADLINE_EXCEEDED, problem)

    def reply(self, message: Sendable, trailing: Metadata = (), initial: Metadata = ()) -> None:
        """Answer, as long as that can be read."""
        super().reply(message, trailing, initial)
        bound_unread(self.stream, self._asked.shared)

    def abandon(self) -> None:
        """Nobody asks any more."""
        self._asked.forget_question(self)


class _Check(_Asking):
    __slots__ = ()

    def receive(self, message: Data) -> None:
        """Say how the service is."""
        service = _service(message)
        if self._asked.forward(self, service, message):
            return
        status = self._asked.status(service)
        # The health protocol asks for NOT_FOUND from Check, and for SERVICE_UNKNOWN from Watch,
        # which goes on: the service may come.
        if status == HealthCheckResponse.SERVICE_UNKNOWN:
            raise Refused(StatusCode.NOT_FOUND, f"no connector serves {service[:200]}")
        self.reply(HealthCheckResponse(status=status).SerializeToString())


class _List(_Asking):
    __slots__ = ()

    def receive(self, message: Data) -> None:
        """Say how all services are."""
        shared = self._asked.shared
        names = {*shared.registry.services(), *shared.backends.services()}
        if len(names) > _MOST_LISTED:
            problem = f"{len(names):,} services are more than a list may hold"
            raise Refused(StatusCode.RESOURCE_EXHAUSTED, problem)
        answer: Any = health_pb2.HealthListResponse()  # type: ignore[attr-defined]
        for name in ("", *sorted(names)):
            answer.statuses[name].status = self._asked.status(name)
        self.reply(answer.SerializeToString())


class _Watch(_Asking):
    """Says how the service is, and whenever that changes, until the gateway stops."""

    __slots__ = ("_said", "_service")

    def __init__(self, stream: Stream, head: RequestHead, peer: str, asked: Introspection) -> None:
        super().__init__(stream, head, peer, asked)
        self._service: str | None = None
        self._said: int | None = None

    def start(self) -> None:
        """See whether there is room. Raises :class:`Refused`."""
        super().start()
        self._asked.add(self)

    def receive(self, message: Data) -> None:
        """The service has a name now."""
        service = _service(message)
        if not self._asked.forward(self, service, message):
            self._service = service
            self.tell()

    def tell(self) -> None:
        """Say how the service is, if that is news, and what was said before was read."""
        if self._service is None:
            return
        status = self._asked.status(self._service)
        if status == self._said:
            return
        if self.stream.unsent_bytes:
            self.stream.await_room()
        else:
            self._said = status
            self.send((HealthCheckResponse(status=status).SerializeToString(),))

    def resume(self) -> None:
        """What was said before was read: say how it is now."""
        self.tell()

    def abandon(self) -> None:
        """Nobody watches any more."""
        super().abandon()
        self._asked.discard(self)


def _service(message: Data) -> str:
    """Which service a request asks about. Raises :class:`Refused`."""
    try:
        return decode(HealthCheckRequest, message).service
    except ProtocolError as error:
        raise Refused(StatusCode.INVALID_ARGUMENT, str(error)) from None
