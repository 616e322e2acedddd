"""grpc.health.v1: whether the gateway, and each service that connectors registered, is served."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from revconn.core.routing import Wanted
from revconn.core.status import StatusCode
from revconn.gateway.door import STOPPING
from revconn.gateway.failures import over_limit
from revconn.gateway.shared import Shared
from revconn.gateway.statuses import fail

__all__ = ["HEALTH_SERVICE", "Health"]

HEALTH_SERVICE = "grpc.health.v1.Health"

Context = grpc.aio.ServicerContext[Any, Any]


class Health:
    """Answers from the registry itself. It belongs to the gateway's thread.

    The library's own servicer keeps the status of every name that was ever set: here connectors
    would choose the names. And a call of ``a.B.C`` goes to whoever registered ``a.B``, which it
    could not know.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._watchers: set[asyncio.Event] = set()
        self._is_leaving = False
        self._is_over = False
        shared.registry.on_change.append(self._wake_watchers)
        shared.backends.on_change.append(self._wake_watchers)

    def handler(self) -> grpc.GenericRpcHandler:
        """What the server is to be given."""
        kinds = {
            "Check": grpc.unary_unary_rpc_method_handler,
            "Watch": grpc.unary_stream_rpc_method_handler,
        }
        methods = {"Check": self._check, "Watch": self._watch}
        handlers = {
            name: kinds[name](
                method, HealthCheckRequest.FromString, HealthCheckResponse.SerializeToString
            )
            for name, method in methods.items()
        }
        return grpc.method_handlers_generic_handler(HEALTH_SERVICE, handlers)

    def leave(self) -> None:
        """Say NOT_SERVING of everything from now on."""
        self._is_leaving = True
        self._wake_watchers()

    def end(self) -> None:
        """End the calls of those who watch."""
        self._is_over = True
        self._wake_watchers()

    async def _check(
        self, request: HealthCheckRequest, context: Context
    ) -> HealthCheckResponse | None:
        self._shared.arrivals.called(context.peer)
        status = self._status(request.service)
        if status == HealthCheckResponse.SERVICE_UNKNOWN:
            problem = f"no connector serves {request.service[:200]}"
            await fail(context, StatusCode.NOT_FOUND, problem)
            return None
        return HealthCheckResponse(status=status)

    async def _watch(self, request: HealthCheckRequest, context: Context) -> None:
        self._shared.arrivals.called(context.peer)
        if len(self._watchers) >= self._shared.limits.max_pending:
            problem = f"{len(self._watchers):,} calls watch a service"
            refused = over_limit(self._shared.counters, "max_pending", problem)
            return await fail(context, refused.code, refused.message)
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            said = None
            while not self._is_over:
                status = self._status(request.service)
                if status != said:
                    await context.write(HealthCheckResponse(status=status))
                    said = status
                await changed.wait()
                changed.clear()
        finally:
            self._watchers.discard(changed)
        return await fail(context, StatusCode.UNAVAILABLE, STOPPING)

    def _status(self, service: str) -> int:
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
