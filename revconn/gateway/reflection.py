"""Server reflection: what the gateway itself serves, told to tools such as grpcurl."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from revconn._proto import registry_pb2
from revconn.core.connection import decode
from revconn.core.errors import ProtocolError
from revconn.core.status import StatusCode
from revconn.gateway.refusals import fail
from revconn.gateway.tls import Arrivals

__all__ = ["reflection_handlers"]

Context = grpc.aio.ServicerContext[Any, Any]

_V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"
_V1 = "grpc.reflection.v1.ServerReflection"


def reflection_handlers(arrivals: Arrivals) -> tuple[grpc.GenericRpcHandler, ...]:
    """One for each version. Their messages are the same but for the package's name."""
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
