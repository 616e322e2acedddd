"""Server reflection: the schemas of what the gateway serves, and of what connectors describe.

What a connector registered is described by its own reflection service, where it has one: the
gateway asks it, and passes on what it says. Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from revconn._proto import registry_pb2
from revconn._proto.registry_pb2 import StreamOpening
from revconn.core.connection import decode
from revconn.core.metadata import Metadata
from revconn.core.rope import Data
from revconn.core.status import ProtocolError, StatusCode
from revconn.core.stream import OVERHEAD, Listener, Received, Stream
from revconn.gateway.budgets import Budget
from revconn.gateway.refusals import STOPPING, Refused, over_limit
from revconn.gateway.routes import Connection
from revconn.gateway.rpcs import Rpc
from revconn.gateway.shared import Shared
from revconn.http2 import streams as http2
from revconn.http2.requests import RequestHead

__all__ = ["REFLECTION_SERVICES", "Reflection", "Reflections", "bound_unread"]

REFLECTION_SERVICES = (
    # Tools ask for v1 first, older ones only know v1alpha. Both say the same in the same bytes.
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)
_MOST_UNREAD = 128 << 10  # bytes
_MOST_WAITING = 100  # questions that wait for a connector's answer


class Reflections:
    """Those who ask, and what they are told."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.files = _Files()
        self._open: dict[Reflection, None] = {}
        self._budget = Budget(shared.limits.max_pending, self._turn_away)

    def add(self, rpc: Reflection) -> None:
        """One more. Raises :class:`Refused`."""
        owners = rpc.stream.owner.owners
        if not self._budget.make_room(owners):
            raise self._no_room()
        self._budget.take(owners, rpc)
        self._open[rpc] = None

    def discard(self, rpc: Reflection) -> None:
        """It is over, if it was there."""
        if self._open.pop(rpc, 0) is None:
            self._budget.give_back(rpc)

    def end(self) -> None:
        """End those that there are."""
        for rpc in tuple(self._open):
            rpc.abandon()
            rpc.finish(StatusCode.UNAVAILABLE, STOPPING)

    def _turn_away(self, rpc: Reflection) -> None:
        rpc.stream.drop_unsent()  # which nobody would bound any more
        rpc.turn_away(self._no_room())

    def _no_room(self) -> Refused:
        problem = f"{self._budget.used:,} calls ask about services"
        return over_limit(self.shared.counters, "max_pending", problem)


class Reflection(Rpc):
    """What there is, told to tools such as grpcurl, one question after the other."""

    __slots__ = ("_asked", "_ended", "_last", "_pending", "_questions", "_relays")

    def __init__(
        self, stream: http2.Stream, head: RequestHead, peer: str, asked: Reflections
    ) -> None:
        super().__init__(stream, head, peer)
        self._asked = asked
        self._questions: deque[Data] = deque()
        self._relays: dict[Connection, Stream] = {}
        self._last: Connection | None = None  # who described something; what it names is its, too
        self._pending: Any = None  # the question that a connector was asked
        self._ended = False

    def start(self) -> None:
        """See whether there is room. Raises :class:`Refused`."""
        super().start()
        self._asked.add(self)

    def take(self, messages: list[Data], *, ended: bool) -> None:
        """Answer each question."""
        if self.is_over:
            return
        if self.inflater is not None:
            self.inflater.renew()
        self._questions.extend(messages)
        self._ended |= ended
        if len(self._questions) > _MOST_WAITING:
            self._end(StatusCode.RESOURCE_EXHAUSTED, "too many questions at once")
        else:
            self._go_on()

    def _go_on(self) -> None:
        try:
            while self._questions and self._pending is None and not self.is_over:
                # Who asks and does not read is not answered without end, nor all at once.
                if self.stream.unsent_bytes > _MOST_UNREAD:
                    self.stream.drop_unsent()
                    self._end(StatusCode.RESOURCE_EXHAUSTED, "the answers are not being read")
                    return
                question = self._questions.popleft()
                self._answer(question, decode(reflection_pb2.ServerReflectionRequest, question))
        except ProtocolError as error:
            self._end(StatusCode.INVALID_ARGUMENT, str(error))
        else:
            if self._ended and self._pending is None and not self.is_over:
                self._end(StatusCode.OK, "")

    def _answer(self, question: Data, request: Any) -> None:
        answer = self._asked.files.answer(request, self._asked.shared)
        connection = self._who_knows(request) if answer.HasField("error_response") else None
        if connection is None or connection.streams is None:
            self.send((answer.SerializeToString(),))
            return
        self._last = connection
        self._pending = answer
        self._relay(connection).send(bytes(question))

    def _who_knows(self, request: Any) -> Connection | None:
        kind = request.WhichOneof("message_request")
        if kind == "file_containing_symbol":
            found = self._asked.shared.registry.describer(
                request.file_containing_symbol, REFLECTION_SERVICES
            )
            return found or self._last
        return self._last

    def _relay(self, connection: Connection) -> Stream:
        relay = self._relays.get(connection)
        if relay is None:
            assert connection.streams is not None
            name = next(name for name in REFLECTION_SERVICES if name in connection.introspection)
            opening = StreamOpening(method_path=f"/{name}/ServerReflectionInfo", peer=self.peer)
            relay = connection.streams.ask(opening, _Relay(self, connection))
            self._relays[connection] = relay
        return relay

    def relayed(self, connection: Connection, messages: list[Received]) -> None:
        """A connector has answered."""
        relay = self._relays.get(connection)
        if relay is not None:
            relay.consume(sum(map(len, messages)) + OVERHEAD * len(messages))
        if self._pending is None or connection is not self._last or self.is_over:
            return
        self._pending = None
        self.send(messages[:1])
        self._go_on()

    def lost(self, connection: Connection) -> None:
        """A connector answers no more: what it was asked has the gateway's own answer."""
        self._relays.pop(connection, None)
        if connection is self._last:
            self._last = None
            answer, self._pending = self._pending, None
            if answer is not None and not self.is_over:
                self.send((answer.SerializeToString(),))
                self._go_on()
        connection.end_if_drained()

    def _end(self, code: StatusCode, problem: str) -> None:
        self.abandon()
        self.finish(code, problem)
        bound_unread(self.stream, self._asked.shared)

    def abandon(self) -> None:
        """Nobody asks any more."""
        relays, self._relays = self._relays, {}
        for connection, relay in relays.items():
            relay.cancel("nobody asks any more")
            connection.end_if_drained()
        self._asked.discard(self)


class _Relay(Listener):
    """Hears what one connector says of its services."""

    __slots__ = ("_connection", "_rpc")

    def __init__(self, rpc: Reflection, connection: Connection) -> None:
        self._rpc = rpc
        self._connection = connection

    def take(self, messages: list[Received], *, ended: bool) -> None:
        """An answer has come."""
        self._rpc.relayed(self._connection, messages)

    def take_status(self, code: StatusCode, message: str, trailing: Metadata) -> None:
        """It answers no more."""
        self._rpc.lost(self._connection)

    def break_off(self, code: StatusCode, reason: str) -> None:
        """It cannot answer any more."""
        self._rpc.lost(self._connection)


def bound_unread(stream: http2.Stream, shared: Shared) -> None:
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

    def answer(self, request: Any, shared: Shared) -> Any:
        """The response to one question."""
        response = reflection_pb2.ServerReflectionResponse(
            valid_host=request.host, original_request=request
        )
        kind = request.WhichOneof("message_request")
        try:
            if kind == "list_services":
                served = shared.registry.services(), shared.backends.services()
                for name in (*self._services, *sorted({*served[0], *served[1]})):
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
