"""Backends: services that listen themselves, say so with ``Register``, and are dialled.

Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterable
from typing import Callable, NamedTuple

from revconn._proto.registry_pb2 import (
    ForwardRequest,
    ForwardResponse,
    RegisterRequest,
)
from revconn.core.connection import VIA_HEADER
from revconn.core.framing import pack
from revconn.core.metadata import Metadata, headers_from_metadata
from revconn.core.routing import Wanted
from revconn.core.status import StatusCode, encode_message, http_status
from revconn.gateway.addresses import Address, quoted
from revconn.gateway.client import Answer, Client, ClientCall, Lost
from revconn.gateway.dialling import Dialled, Dialler
from revconn.gateway.keys import ApiKeys
from revconn.gateway.limits import Counters, Limits, Watch
from revconn.gateway.refusals import NobodyServes, Refused, over_limit
from revconn.gateway.report import Journal
from revconn.gateway.tenants import Tenants
from revconn.logger import get_logger

__all__ = ["BackendRequest", "Backends", "Reply", "Unreachable"]

# Its name is what applications configure: it stays, whatever the file is called.
logger = get_logger("revconn.gateway.dialling")

# Seconds from the first message of a backend's answer to its end. A unary method sends them
# together: for it this is no limit.
_END_TIMEOUT = 1.0
# What a backend surely did nothing for, because its connection was about to end, goes to the next
# connection; another time, and whoever calls is told.
_MOST_ATTEMPTS = 2


class Reply(NamedTuple):
    """What a backend answered, all of it."""

    code: StatusCode
    message: str
    payload: bytes = b""
    initial: Metadata = ()
    trailing: Metadata = ()

    def response(self, request_id: str, *, framed: bool) -> ForwardResponse:
        """The reply as a ``ForwardResponse``, for a connector that asked."""
        headers = headers_from_metadata((*self.initial, *self.trailing))
        headers.update({"content-type": "application/grpc", "grpc-status": str(int(self.code))})
        if self.message:
            headers["grpc-message"] = encode_message(self.message)
        return ForwardResponse(
            request_id=request_id,
            status_code=http_status(self.code),
            headers=headers,
            payload=pack(self.payload, framed=framed and not self.code),
            error_message=self.message,
        )


class BackendRequest(NamedTuple):
    """What a backend is sent: one message, metadata, and how many seconds it may take."""

    payload: bytes
    metadata: Metadata
    timeout: float


# Told apart from other refusals because a connector that comes back may take such a call over, but
# only one of which the backend has surely seen nothing.
class Unreachable(Refused):
    """A call that did not get to the backend; ``is_unsent``: for sure, nothing of it was sent."""

    def __init__(self, *, is_unsent: bool) -> None:
        problem = "the backend of the service cannot be reached"
        super().__init__(StatusCode.UNAVAILABLE, problem)
        self.is_unsent = is_unsent


class _Backend:
    """One address that the holder of one key registered.

    :ivar pending: calls that wait for its answer.
    :ivar is_forgotten: whether it is to be closed with the last of them.
    """

    def __init__(self, key: int, address: Address, dialler: Dialler, journal: Journal) -> None:
        self.key = key
        self.address = address
        self.services: tuple[str, ...] = ()
        self.last_heartbeat = time.monotonic()
        self.pending = 0
        self.is_forgotten = False
        self._journal = journal
        self._dialled = Dialled(address, dialler)

    @property
    def is_ready(self) -> bool:
        """Whether it has not just been out of reach."""
        return self._dialled.is_ready

    def renew(self) -> None:
        """The backend registered again, and is there for another heartbeat timeout."""
        self.last_heartbeat = time.monotonic()
        self._dialled.renew()

    def serve(self, services: tuple[str, ...]) -> None:
        """The backend serves these services from now on, instead of those before."""
        self.services = services

    def forget(self) -> None:
        """The backend is not dialled any more."""
        self.is_forgotten = True

    async def call(self, path: str, payload: bytes, metadata: Metadata, timeout: float) -> Reply:
        """Make a unary call; cancelling this cancels it. Raises :class:`Refused`."""
        self.pending += 1
        try:
            return await self._call(path, payload, metadata, timeout)
        finally:
            self.pending -= 1

    async def _call(self, path: str, payload: bytes, metadata: Metadata, timeout: float) -> Reply:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        attempt = 0
        while True:
            attempt += 1
            try:
                client = await self._dialled.connect(deadline - loop.time())
                answer = await self._ask(client, path, payload, metadata, deadline)
            except OSError as error:
                raise self._unreachable(str(error), is_unsent=True) from None
            except Lost as lost:
                if lost.is_unsent and attempt < _MOST_ATTEMPTS:
                    continue
                raise self._unreachable(str(lost), is_unsent=lost.is_unsent) from None
            return Reply(*answer)

    @staticmethod
    async def _ask(
        client: Client, path: str, payload: bytes, metadata: Metadata, deadline: float
    ) -> Answer:
        call = client.call(path, payload, metadata, deadline)
        try:
            outcome = await _only_answer(call)
        finally:
            call.cancel()  # unless it is over
        # There is no telling in advance: gRPC does not say which methods stream.
        if outcome is None:
            problem = f"{path[:200]} does not answer with one message: only unary calls work here"
            raise Refused(StatusCode.UNIMPLEMENTED, problem)
        return outcome

    def _unreachable(self, details: str, *, is_unsent: bool) -> Unreachable:
        # For the log alone: it tells which ports are open where the gateway is.
        self._journal.unreachable(str(self.address), details)
        return Unreachable(is_unsent=is_unsent)

    def look(self) -> None:
        """See whether the backend is still there, while calls wait for it."""
        self._dialled.look()

    def close(self) -> None:
        """End the connection."""
        self._dialled.close()


class Backends:
    """The backends that are registered now, and a ring of them for every service.

    Who registers makes the gateway dial: only the holder of a key may, only ``host:port``, and
    only where the gateway ``dials`` at all. Others are told that all is well, and nothing is done
    for them: services are deployed that register some name first, and serve on a stream then.
    """

    def __init__(
        self,
        keys: ApiKeys,
        limits: Limits,
        counters: Counters,
        journal: Journal,
        tenants: Tenants,
        *,
        dials: bool,
        dials_private: bool,
    ) -> None:
        self._keys = keys
        self._limits = limits
        self._counters = counters
        self._journal = journal
        self._tenants = tenants
        self._dials = dials
        self._dialler = Dialler(limits, dials_private=dials_private)
        self._backends: dict[tuple[int, Address], _Backend] = {}
        self._rings: dict[str, deque[_Backend]] = {}
        self._per_key: Counter[int] = Counter()
        self._name = uuid.uuid4().hex
        self.on_change: list[Callable[[], None]] = []  # called when a service comes or goes

    def register(self, request: RegisterRequest, peer: str) -> Address | None:
        """Route the services to the address, for another while; ``None`` if it is not dialled.

        Raises :class:`Refused`.
        """
        # The key comes first: whoever has none learns nothing about addresses, services or limits.
        key = self._keys.identify(request.api_key)
        if key is None:
            raise Refused(StatusCode.UNAUTHENTICATED, "Invalid token")
        services = self._keys.check_services(key, request.services)
        address = Address.parse(request.address)
        # Services are deployed that register a bare name, or an address inside their own network,
        # and open their stream only after a success: an error would keep them away for good.
        why_not = self._why_not(request, address)
        if address is None or why_not:
            self._journal.not_dialled(peer, why_not)
            return None
        backend = self._backends.get((key, address)) or self._add(key, address)
        backend.renew()
        # Registered again and again, as the heartbeat timeout asks for: only a change is news to
        # the health checks, to calls that wait, and to the log.
        if backend.services != services:
            self._unroute(backend)
            backend.serve(services)
            for service in services:
                self._rings.setdefault(service, deque()).append(backend)
            self._tenants.serve(key, services)
            self._tell_change()
            self._journal.registered_backend(peer, str(address), services)
        return address

    def _why_not(self, request: RegisterRequest, address: Address | None) -> str:
        if not self._dials:
            return "this gateway dials nobody (dial_backends)"
        if address is None:
            return f"{quoted(request.address)} is not host:port"
        if not request.services:
            return "it names no services"
        if address.is_private and not self._dialler.dials_private:
            return f"{quoted(request.address)} is a private address (dial_private)"
        return ""

    def _add(self, key: int, address: Address) -> _Backend:
        # Each costs a connection, and it is a peer who asks for them: backends are
        # bounded as connectors' streams are, in all and for each key.
        if len(self._backends) >= self._limits.max_connections:
            problem = f"{self._limits.max_connections:,} backends are registered"
            raise over_limit(self._counters, "max_connections", problem)
        if self._per_key[key] >= self._limits.max_connections_per_key:
            problem = f"{self._per_key[key]:,} backends are registered with that API key"
            raise over_limit(self._counters, "max_connections_per_key", problem)
        backend = _Backend(key, address, self._dialler, self._journal)
        self._backends[key, address] = backend
        self._per_key[key] += 1
        return backend

    def services(self) -> Iterable[str]:
        """The names that a backend serves."""
        return self._rings.keys()

    def serves(self, wanted: Wanted) -> bool:
        """Whether a backend serves that."""
        return any(name in self._rings for name in wanted.names)

    async def call(
        self, wanted: Wanted, path: str, payload: bytes, metadata: Metadata, timeout: float
    ) -> Reply:
        """Call the backend whose turn it is; ``timeout`` in seconds. Raises :class:`Refused`."""
        # A backend may be another gateway, whose backend may be this one: without the names of all
        # that a call went through it would go round until its deadline, and pend in each of them.
        via = ",".join(str(value) for name, value in metadata if name == VIA_HEADER)
        if self._name in via.split(","):
            problem = f"a backend of {wanted.service[:200]} leads back to this gateway"
            raise Refused(StatusCode.FAILED_PRECONDITION, problem)
        backend = self._take_turn(wanted)
        self._counters.calls += 1
        try:
            reply = await backend.call(
                path, payload, (*metadata, (VIA_HEADER, self._name)), timeout
            )
        # The caller gave up, or its time is up: a backend is told so by the cancellation alone, and
        # nobody is left to be told anything.
        except asyncio.CancelledError:
            self._counters.calls_given_up += 1
            raise
        finally:
            self._close_if_done(backend)
        self._counters.calls_answered += 1
        return reply

    async def exchange(
        self,
        wanted: Wanted,
        request: ForwardRequest,
        prepare: Callable[[ForwardRequest], BackendRequest],
        tell: Callable[[Reply | Refused], None],
    ) -> None:
        """Call a backend with what ``prepare`` makes of a request, and tell what came of it.

        Cancelling this cancels the call, and nothing is told.
        """
        outcome: Reply | Refused
        path = request.method_path
        try:
            payload, metadata, timeout = prepare(request)
            outcome = await self.call(wanted, path, payload, metadata, timeout)
        except Refused as refused:
            outcome = refused
        except asyncio.CancelledError:
            raise
        except BaseException:
            logger.exception("%.200r for a backend: a bug in the gateway", path)
            problem = "the gateway failed; its log says how"
            outcome = Refused(StatusCode.INTERNAL, problem)
        tell(outcome)

    def _take_turn(self, wanted: Wanted) -> _Backend:
        found = (self._rings[name] for name in wanted.names if name in self._rings)
        ring = next(found, None)
        if ring is None:
            self._counters.calls_unserved += 1
            raise NobodyServes(wanted.service)
        ring.rotate(-1)
        # Where all are out of reach the next in turn is called all the same: it may be there again,
        # and if not, the log says why.
        backend = next((each for each in ring if each.is_ready), ring[0])
        if backend.pending >= self._limits.max_pending_per_connection:
            problem = f"{backend.pending:,} calls wait for the backend's answer"
            raise over_limit(self._counters, "max_pending_per_connection", problem)
        return backend

    def expire(self, now: float, heartbeat_timeout: float) -> None:
        """Forget those that did not register again in time, or whose key was withdrawn."""
        for backend in tuple(self._backends.values()):
            # A Register carries no connection that could be ended at once when its key is
            # withdrawn.
            if not self._keys.accepts(backend.key):
                self._forget(backend, "its API key was withdrawn")
            elif now - backend.last_heartbeat >= heartbeat_timeout:
                self._forget(backend, f"not registered again for {heartbeat_timeout:g} seconds")
            else:
                backend.look()

    def _forget(self, backend: _Backend, reason: str) -> None:
        self._journal.forgot_backend(str(backend.address), reason)
        del self._backends[backend.key, backend.address]
        self._per_key[backend.key] -= 1
        self._unroute(backend)
        self._tell_change()
        # Its connection goes with the last call that it still answers: those were accepted.
        backend.forget()
        self._close_if_done(backend)

    def _unroute(self, backend: _Backend) -> None:
        self._tenants.leave(backend.key, backend.services)
        for service in backend.services:
            ring = self._rings[service]
            ring.remove(backend)
            if not ring:
                del self._rings[service]

    def _tell_change(self) -> None:
        for listener in self.on_change:
            listener()

    def _close_if_done(self, backend: _Backend) -> None:
        if backend.is_forgotten and not backend.pending:
            backend.close()

    def close(self) -> None:
        """Close every connection, and with it what is under way."""
        for backend in tuple(self._backends.values()):
            self._forget(backend, "the gateway is stopping")
            backend.close()
        self._dialler.close()


async def _only_answer(call: ClientCall) -> Answer | None:
    """The answer of a unary method; ``None`` for one with no message, or more, or no end.

    Raises :class:`Lost`.
    """
    await call.begun
    watch = Watch(_END_TIMEOUT)
    try:
        outcome = await call.ended
    except asyncio.CancelledError:
        if watch.ran_out:
            return None
        raise
    finally:
        watch.stop()
    if isinstance(outcome, Lost):
        raise outcome
    return outcome
