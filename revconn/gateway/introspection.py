"""What the gateway says of itself: grpc.health.v1, and server reflection.

Apart from all else, because the libraries for both are an extra: without them neither is served.
Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha import reflection, reflection_pb2

from revconn._proto import registry_pb2
from revconn.core.connection import decode
from revconn.core.routing import Wanted
from revconn.core.status import ProtocolError, StatusCode
from revconn.gateway.refusals import STOPPING, Refused, fail, over_limit
from revconn.gateway.shared import Shared
from revconn.gateway.tls import Arrivals

__all__ = ["HEALTH_SERVICE", "Health", "reflection_handlers"]

HEALTH_SERVICE = "grpc.health.v1.Health"

_V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"
_V1 = "grpc.reflection.v1.ServerReflection"

Context = grpc.aio.ServicerContext[Any, Any]


class Health:
    """Whether the gateway, and each service that connectors or backends registered, is served.

    Answers from the registry itself. The library's own servicer keeps the status of every name
    that was ever set: here connectors would choose the names. And a call of ``a.B.C`` goes to
    whoever registered ``a.B``, which the library's servicer could not know.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        # One event for each Watch call, set at any change: to know which names a change touches is
        # not worth a table, since watchers are few and compare what they would say.
        self._watchers: set[asyncio.Event] = set()
        self._is_leaving = False
        self._is_over = False
        shared.registry.on_change.append(self._wake_watchers)
        shared.backends.on_change.append(self._wake_watchers)

    def handler(self) -> grpc.GenericRpcHandler:
        """Check and Watch, as the server wants them."""
        kinds = {
            "Check": grpc.unary_unary_rpc_method_handler,
            "Watch": grpc.unary_stream_rpc_method_handler,
        }
        methods = {"Check": self._check, "Watch": self._watch}
        # Requests come encoded: what grpc cannot decode it logs, with a traceback, each time.
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: kinds[name](method, None, HealthCheckResponse.SerializeToString)
            for name, method in methods.items()
        }
        return grpc.method_handlers_generic_handler(HEALTH_SERVICE, handlers)

    def leave(self) -> None:
        """Say NOT_SERVING of everything from now on."""
        # While the gateway finishes what it has: whoever balances calls looks for another one.
        self._is_leaving = True
        self._wake_watchers()

    def end(self) -> None:
        """End the calls of those who watch."""
        self._is_over = True
        self._wake_watchers()

    async def _check(self, received: bytes, context: Context) -> HealthCheckResponse | None:
        self._shared.arrivals.called(context.peer)
        try:
            service = _service(received)
        except Refused as error:
            refused = error
        else:
            status = self._status(service)
            # The health protocol asks for NOT_FOUND from Check, and for SERVICE_UNKNOWN from Watch,
            # which goes on: the service may come.
            if status != HealthCheckResponse.SERVICE_UNKNOWN:
                return HealthCheckResponse(status=status)
            refused = Refused(StatusCode.NOT_FOUND, f"no connector serves {service[:200]}")
        await fail(context, refused.code, refused.message)
        return None

    async def _watch(self, received: bytes, context: Context) -> None:
        self._shared.arrivals.called(context.peer)
        try:
            service = _service(received)
            self._require_room()
        except Refused as error:
            refused = error
        else:
            await self._tell(service, context)
            refused = Refused(StatusCode.UNAVAILABLE, STOPPING)
        return await fail(context, refused.code, refused.message)

    def _require_room(self) -> None:
        if len(self._watchers) >= self._shared.limits.max_pending:
            problem = f"{len(self._watchers):,} calls watch a service"
            raise over_limit(self._shared.counters, "max_pending", problem)

    async def _tell(self, service: str, context: Context) -> None:
        """Say how the service is, and whenever that changes, until the gateway stops."""
        # It is there before the status is looked at: a change in between is not missed.
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            said = None
            while not self._is_over:
                status = self._status(service)
                if status != said:
                    await context.write(HealthCheckResponse(status=status))
                    said = status
                await changed.wait()
                changed.clear()
        finally:
            self._watchers.discard(changed)

    def _status(self, service: str) -> int:
        # By the very names that a call from outside would be routed by.
        wanted = Wanted.by_outsider(service)
        known = self._shared.registry.serves(wanted) or self._shared.backends.serves(wanted)
        if service and not known:
            return int(HealthCheckResponse.SERVICE_UNKNOWN)
        return int(
            HealthCheckResponse.NOT_SERVING if self._is_leaving else HealthCheckResponse.SERVING
        )

    def _wake_watchers(self) -> None:
        for changed in self._watchers:
            changed.set()


def _service(received: bytes) -> str:
    """Which service a request asks about. Raises :class:`Refused`."""
    try:
        return decode(HealthCheckRequest, received).service
    except ProtocolError as error:
        raise Refused(StatusCode.INVALID_ARGUMENT, str(error)) from None


def reflection_handlers(arrivals: Arrivals) -> tuple[grpc.GenericRpcHandler, ...]:
    """Server reflection: what the gateway itself serves, told to tools such as grpcurl.

    One handler for each version; their messages are the same but for the package's name.
    """
    files = [module.DESCRIPTOR for module in (registry_pb2, health_pb2, reflection_pb2)]
    services = [name.full_name for file in files for name in file.services_by_name.values()]
    # asyncio's, by the name under which every release since 1.48 has it
    servicer = reflection.aio.ReflectionServicer(services, pool=_pool_of(files))

    async def reflect(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
        arrivals.called(context.peer)
        responses: Any = servicer.ServerReflectionInfo(_decoded(requests), context)
        try:
            async for response in responses:
                yield response
        except ProtocolError as error:
            problem = str(error)
        else:
            return
        await fail(context, StatusCode.INVALID_ARGUMENT, problem)

    # Requests come encoded: what grpc cannot decode it logs, with a traceback, each time.
    method: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
        reflect, None, reflection_pb2.ServerReflectionResponse.SerializeToString
    )
    return tuple(
        grpc.method_handlers_generic_handler(service, {"ServerReflectionInfo": method})
        # Tools ask for v1 first, older ones only know v1alpha.
        for service in (_V1, _V1ALPHA)
    )


async def _decoded(requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for received in requests:
        yield decode(reflection_pb2.ServerReflectionRequest, received)


def _pool_of(files: list[FileDescriptor]) -> descriptor_pool.DescriptorPool:
    # Ours are not in the pool that all modules of a process share.
    pool = descriptor_pool.DescriptorPool()
    for file in files:
        pool.AddSerializedFile(file.serialized_pb)
    return pool
