"""Backends: services that listen themselves, say so with ``Register``, and are dialled.

Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter, deque
from typing import Callable, NamedTuple

import grpc
import grpc.aio

from revconn._proto.registry_pb2 import RegisterRequest
from revconn.core.features import VIA_HEADER
from revconn.core.routing import lookup_order
from revconn.core.status import StatusCode
from revconn.exceptions import ConfigurationError
from revconn.gateway.counters import Counters
from revconn.gateway.failures import NobodyServes, Refused, over_limit
from revconn.gateway.handshake import check_services
from revconn.gateway.keys import ApiKeys
from revconn.gateway.limits import Limits
from revconn.gateway.metadata import Metadata
from revconn.logger import get_logger
from revconn.target import Target

__all__ = ["Backends", "Reply"]

logger = get_logger(__name__)


class Reply(NamedTuple):
    """What a backend answered, all of it."""

    code: StatusCode
    message: str
    payload: bytes = b""
    initial: Metadata = ()
    trailing: Metadata = ()


class _Backend:
    """One address that the holder of one key registered, and the channel to it."""

    def __init__(self, key: int, address: str, limits: Limits) -> None:
        self.key = key
        self.address = address
        self.services: tuple[str, ...] = ()
        self.last_heartbeat = time.monotonic()
        self.pending = 0
        self.forgotten = False
        options = [
            ("grpc.max_receive_message_length", limits.max_sent_message_bytes),
            ("grpc.max_send_message_length", -1),
            # What was registered is dialled, not what the environment says.
            ("grpc.enable_http_proxy", 0),
        ]
        # With the scheme: without it a host named "unix" would be a socket's path.
        self._channel = grpc.aio.insecure_channel(f"dns:///{address}", options=options)
        self._reachable = True

    @property
    def is_ready(self) -> bool:
        """Whether it has not just been out of reach."""
        return self._channel.get_state() is not grpc.ChannelConnectivity.TRANSIENT_FAILURE

    async def call(self, path: str, payload: bytes, metadata: Metadata, timeout: float) -> Reply:
        """Make a unary call; cancelling this cancels it."""
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(path)
        call = method(payload, metadata=metadata, timeout=timeout)
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            code = StatusCode(error.code().value[0])
            if code is StatusCode.UNAVAILABLE and not self.is_ready:
                self._note_unreachable(error.details() or "")
                return Reply(code, "the backend of the service cannot be reached")
            initial, trailing = error.initial_metadata(), error.trailing_metadata()
            return Reply(code, error.details() or "", b"", _pairs(initial), _pairs(trailing))
        self._reachable = True
        initial, trailing = await call.initial_metadata(), await call.trailing_metadata()
        return Reply(StatusCode.OK, "", answer, _pairs(initial), _pairs(trailing))

    def _note_unreachable(self, reason: str) -> None:
        if self._reachable:
            self._reachable = False
            logger.warning("backend %s cannot be reached: %.200r", self.address, reason)

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


class Backends:
    """The backends that are registered now, and a ring of them for every service.

    Who registers makes the gateway dial: only the holder of a key may, and only ``host:port``.
    """

    def __init__(self, keys: ApiKeys, limits: Limits, counters: Counters) -> None:
        self._keys = keys
        self._limits = limits
        self._counters = counters
        self._backends: dict[tuple[int, str], _Backend] = {}
        self._rings: dict[str, deque[_Backend]] = {}
        self._per_key: Counter[int] = Counter()
        self._pending = 0
        self._name = uuid.uuid4().hex
        self._closing: set[asyncio.Task[None]] = set()
        self.on_change: Callable[[], None] = _do_nothing  # called when a service comes or goes

    def __len__(self) -> int:
        """How many calls wait for a backend's answer."""
        return self._pending

    def register(self, request: RegisterRequest) -> str:
        """Route the services to the address, for another while; the address.

        Raises :class:`Refused`.
        """
        key = self._keys.identify(request.api_key)
        if key is None:
            raise Refused(StatusCode.UNAUTHENTICATED, "Invalid token")
        address = _check_address(request.address)
        services = check_services(request.services, key, self._keys)
        if not services:
            raise Refused(StatusCode.INVALID_ARGUMENT, "no services: register package.Service")
        backend = self._backends.get((key, address)) or self._add(key, address)
        backend.last_heartbeat = time.monotonic()
        if backend.services != services:
            self._unroute(backend)
            backend.services = services
            for service in services:
                self._rings.setdefault(service, deque()).append(backend)
            self.on_change()
            logger.info("backend %s registered %s", address, ", ".join(services))
        else:
            logger.debug("backend %s registered again", address)
        return address

    def _add(self, key: int, address: str) -> _Backend:
        if len(self._backends) >= self._limits.max_connections:
            problem = f"{self._limits.max_connections:,} backends are registered"
            raise over_limit(self._counters, "max_connections", problem)
        if self._per_key[key] >= self._limits.max_connections_per_key:
            problem = f"{self._per_key[key]:,} backends are registered with that API key"
            raise over_limit(self._counters, "max_connections_per_key", problem)
        backend = self._backends[key, address] = _Backend(key, address, self._limits)
        self._per_key[key] += 1
        return backend

    def serves(self, service: str) -> bool:
        """Whether a backend serves ``service``, or a dotted parent of it."""
        return any(name in self._rings for name in lookup_order(service))

    async def call(
        self, service: str, path: str, payload: bytes, metadata: Metadata, timeout: float
    ) -> Reply:
        """Call the backend whose turn it is; ``timeout`` in seconds. Raises :class:`Refused`."""
        via = ",".join(str(value) for name, value in metadata if name == VIA_HEADER)
        if self._name in via.split(","):
            problem = f"a backend of {service} leads back to this gateway"
            raise Refused(StatusCode.FAILED_PRECONDITION, problem)
        backend = self._take_turn(service)
        backend.pending += 1
        self._pending += 1
        self._counters.calls += 1
        try:
            reply = await backend.call(
                path, payload, (*metadata, (VIA_HEADER, self._name)), timeout
            )
        except asyncio.CancelledError:
            self._counters.calls_given_up += 1
            raise
        finally:
            backend.pending -= 1
            self._pending -= 1
            self._close_if_done(backend)
        self._counters.calls_answered += 1
        return reply

    def _take_turn(self, service: str) -> _Backend:
        found = (self._rings[name] for name in lookup_order(service) if name in self._rings)
        ring = next(found, None)
        if ring is None:
            self._counters.calls_unserved += 1
            raise NobodyServes(service)
        if self._pending >= self._limits.max_pending:
            problem = f"{self._pending:,} calls wait for a backend's answer"
            raise over_limit(self._counters, "max_pending", problem)
        ring.rotate(-1)
        backend = next((each for each in ring if each.is_ready), ring[0])
        if backend.pending >= self._limits.max_pending_per_connection:
            problem = f"{backend.pending:,} calls wait for the backend's answer"
            raise over_limit(self._counters, "max_pending_per_connection", problem)
        return backend

    def expire(self, now: float, heartbeat_timeout: float) -> None:
        """Forget those that did not register again in time, or whose key was withdrawn."""
        for backend in tuple(self._backends.values()):
            if not self._keys.accepts(backend.key):
                self._forget(backend, "its API key was withdrawn")
            elif now - backend.last_heartbeat >= heartbeat_timeout:
                self._forget(backend, f"not registered again for {heartbeat_timeout:g} seconds")

    def _forget(self, backend: _Backend, reason: str) -> None:
        logger.info("backend %s forgotten: %s", backend.address, reason)
        del self._backends[backend.key, backend.address]
        self._per_key[backend.key] -= 1
        self._unroute(backend)
        self.on_change()
        backend.forgotten = True
        self._close_if_done(backend)

    def _unroute(self, backend: _Backend) -> None:
        for service in backend.services:
            ring = self._rings[service]
            ring.remove(backend)
            if not ring:
                del self._rings[service]

    def _close_if_done(self, backend: _Backend) -> None:
        if backend.forgotten and not backend.pending:
            closing = asyncio.ensure_future(backend.close())
            self._closing.add(closing)  # the loop alone does not hold it
            closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close every channel, and with it what is under way."""
        for backend in tuple(self._backends.values()):
            self._forget(backend, "the gateway is stopping")
            await backend.close()
        await asyncio.gather(*self._closing)


def _do_nothing() -> None: ...


def _check_address(text: str) -> str:
    try:
        target = Target.parse(text)
    except ConfigurationError:
        target = None
    if target is None or target.port is None or target.address != text or "/" in text:
        problem = f"{text[:200]!r} is not an address to dial; register host:port"
        raise Refused(StatusCode.INVALID_ARGUMENT, problem)
    return text


def _pairs(metadata: grpc.aio.Metadata | None) -> Metadata:
    return tuple((str(name), value) for name, value in metadata or ())
