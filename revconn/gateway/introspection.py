"""What the gateway says of itself: grpc.health.v1, and server reflection.

Apart from all else, because the libraries with their schemas are an extra: without them neither is
served. Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha import reflection_pb2

from revconn._proto import registry_pb2
from revconn.core.connection import decode
from revconn.core.metadata import Metadata
from revconn.core.rope import Data
from revconn.core.routing import Wanted
from revconn.core.status import ProtocolError, StatusCode
from revconn.gateway.budgets import Budget
from revconn.gateway.deadlines import Timeouts
from revconn.gateway.refusals import STOPPING, Refused, over_limit
from revconn.gateway.rpcs import Method, Rpc, UnaryRpc
from revconn.gateway.shared import Shared
from revconn.http2.requests import RequestHead
from revconn.http2.streams import Sendable, Stream

__all__ = ["HEALTH_SERVICE", "Introspection"]

HEALTH_SERVICE = "grpc.health.v1.Health"

_REFLECTION_SERVICES = (
    # Tools ask for v1 first, older ones only know v1alpha.
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)
_MOST_LISTED = 1000  # services, in an answer to List


class Introspection:
    """Whether the gateway, and each service that connectors or backends registered, is served.

    Answers from the registry itself. A call of ``a.B.C`` goes to whoever registered ``a.B``, which
    is healthy then, too.
    """

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.is_leaving = False
        # All are looked at after any change: to know which names a change touches is not worth a
        # table, since watchers are few.
        self.watchers: dict[_Watch, None] = {}
        self._reflections: dict[_Reflection, None] = {}
        # Of questions that have not come. Who has one, has it at hand.
        self._waiting: Budget[_Asking] = Budget(
            shared.limits.max_connections, self._turn_away_silent, newest_first=True
        )
        self._watching = Budget(shared.limits.max_pending, self._turn_away)
        self._asking = Budget(shared.limits.max_pending, self._turn_away)
        self.files = _Files()
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
                    f"/{service}/ServerReflectionInfo".encode(), partial(_Reflection, asked=self)
                )
                for service in _REFLECTION_SERVICES
            ),
        )

    def leave(self) -> None:
        """Say NOT_SERVING of everything from now on."""
        # While the gateway finishes what it has: whoever balances calls looks for another one.
        self.is_leaving = True
        self._tell_watchers()

    def end(self) -> None:
        """End the calls that last."""
        for rpc in (*self.watchers, *self._reflections):
            rpc.abandon()
            rpc.finish(StatusCode.UNAVAILABLE, STOPPING)

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

    def add(self, rpc: _Watch | _Reflection) -> None:
        """One more call that lasts. Raises :class:`Refused`."""
        budget = self._budget(rpc)
        owners = rpc.stream.owner.owners
        if not budget.make_room(owners):
            raise self._no_room(rpc)
        budget.take(owners, rpc)
        if isinstance(rpc, _Watch):
            self.watchers[rpc] = None
        else:
            self._reflections[rpc] = None

    def discard(self, rpc: _Watch | _Reflection) -> None:
        """It is over, if it was there."""
        known: dict[Any, None] = self.watchers if isinstance(rpc, _Watch) else self._reflections
        if known.pop(rpc, 0) is None:
            self._budget(rpc).give_back(rpc)

    def _budget(self, rpc: _Watch | _Reflection) -> Budget[_Watch | _Reflection]:
        return self._watching if isinstance(rpc, _Watch) else self._asking

    def _turn_away_silent(self, rpc: _Asking) -> None:
        rpc.turn_away(self._too_many_silent())

    def _too_many_silent(self) -> Refused:
        problem = f"the questions of {self._waiting.used:,} calls are still on their way"
        return over_limit(self.shared.counters, "max_connections", problem)

    def _turn_away(self, rpc: _Watch | _Reflection) -> None:
        rpc.stream.drop_unsent()  # which nobody would bound any more
        rpc.turn_away(self._no_room(rpc))

    def _no_room(self, rpc: _Watch | _Reflection) -> Refused:
        what = "watch a service" if isinstance(rpc, _Watch) else "ask about services"
        problem = f"{self._budget(rpc).used:,} calls {what}"
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
        _bound(self.stream, self._asked.shared)

    def abandon(self) -> None:
        """Nobody asks any more."""
        self._asked.forget_question(self)


class _Check(_Asking):
    __slots__ = ()

    def receive(self, message: Data) -> None:
        """Say how the service is."""
        service = _service(message)
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
        self._service = _service(message)
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


class _Reflection(Rpc):
    """What the gateway itself serves, told to tools such as grpcurl."""

    __slots__ = ("_asked",)

    def __init__(self, stream: Stream, head: RequestHead, peer: str, asked: Introspection) -> None:
        super().__init__(stream, head, peer)
        self._asked = asked

    def start(self) -> None:
        """See whether there is room. Raises :class:`Refused`."""
        super().start()
        self._asked.add(self)

    def take(self, messages: list[Data], *, ended: bool) -> None:
        """Answer each question."""
        if self.is_over:
            return
        try:
            for message in messages:
                # Who asks and does not read is not answered without end, nor all at once.
                if self.stream.unsent_bytes > _MOST_UNREAD:
                    self.stream.drop_unsent()
                    self._end(StatusCode.RESOURCE_EXHAUSTED, "the answers are not being read")
                    return
                request = decode(reflection_pb2.ServerReflectionRequest, message)
                self.send((self._asked.files.answer(request).SerializeToString(),))
        except ProtocolError as error:
            self._end(StatusCode.INVALID_ARGUMENT, str(error))
        else:
            if ended:
                self._end(StatusCode.OK, "")

    def _end(self, code: StatusCode, problem: str) -> None:
        self.abandon()
        self.finish(code, problem)
        _bound(self.stream, self._asked.shared)

    def abandon(self) -> None:
        """Nobody asks any more."""
        self._asked.discard(self)


_MOST_UNREAD = 128 << 10  # bytes


def _bound(stream: Stream, shared: Shared) -> None:
    """An answer that finds no window does not wait for ever, nor does anything wait behind it."""
    if stream.unsent_bytes:
        now = asyncio.get_running_loop().time()
        shared.answers.add(stream, now + shared.request_timeout)


class _Files:
    """The schemas of what the gateway serves, found by whatever tools ask for."""

    def __init__(self) -> None:
        modules = (registry_pb2, health_pb2, reflection_pb2)
        files = [module.DESCRIPTOR for module in modules]
        self._services = sorted(
            name.full_name for file in files for name in file.services_by_name.values()
        )
        # Ours are not in the pool that all modules of a process share.
        self._pool = descriptor_pool.DescriptorPool()
        for file in files:
            self._pool.AddSerializedFile(file.serialized_pb)

    def answer(self, request: Any) -> Any:
        """The response to one question."""
        response = reflection_pb2.ServerReflectionResponse(
            valid_host=request.host, original_request=request
        )
        kind = request.WhichOneof("message_request")
        try:
            if kind == "list_services":
                for name in self._services:
                    response.list_services_response.service.add(name=name)
            elif kind == "file_by_filename":
                self._put(response, self._pool.FindFileByName(request.file_by_filename))
            elif kind == "file_containing_symbol":
                self._put(response, self._file_with(request.file_containing_symbol))
            elif kind == "file_containing_extension":
                self._put(response, self._file_of(request.file_containing_extension))
            elif kind == "all_extension_numbers_of_type":
                self._put_numbers(response, request.all_extension_numbers_of_type)
            else:
                _fail(response, StatusCode.INVALID_ARGUMENT, "an empty request")
        except KeyError:
            _fail(response, StatusCode.NOT_FOUND, "there is none here")
        return response

    def _file_with(self, symbol: str) -> FileDescriptor:
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:  # a method is none to protobuf, and one to reflection
            service, _, method = symbol.rpartition(".")
            described = self._pool.FindServiceByName(service)
            if method not in described.methods_by_name:
                raise
            return described.file

    def _file_of(self, wanted: Any) -> FileDescriptor:
        containing: Any = self._pool.FindMessageTypeByName(wanted.containing_type)
        number = wanted.extension_number
        extension: Any = self._pool.FindExtensionByNumber(containing, number)
        file: FileDescriptor = extension.file
        return file

    def _put_numbers(self, response: Any, name: str) -> None:
        message = self._pool.FindMessageTypeByName(name)
        numbers = [each.number for each in self._pool.FindAllExtensions(message)]
        response.all_extension_numbers_response.base_type_name = name
        response.all_extension_numbers_response.extension_number.extend(sorted(numbers))

    def _put(self, response: Any, file: FileDescriptor) -> None:
        """The file, and all that it stands on, each once."""
        found: dict[str, FileDescriptor] = {}
        _collect(file, found)
        response.file_descriptor_response.file_descriptor_proto.extend(
            each.serialized_pb for each in found.values()
        )


def _collect(file: FileDescriptor, found: dict[str, FileDescriptor]) -> None:
    if file.name not in found:
        found[file.name] = file
        dependencies: Iterable[FileDescriptor] = file.dependencies
        for each in dependencies:
            _collect(each, found)


def _fail(response: Any, code: StatusCode, message: str) -> None:
    response.error_response.error_code = int(code)
    response.error_response.error_message = message
