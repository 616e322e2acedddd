"""Backends: services that listen themselves, say so with ``Register``, and are dialled.

Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Callable, NamedTuple, Union

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
from revconn.gateway.backend_streams import (
    MOST_ATTEMPTS,
    UNREACHABLE,
    BackendListener,
    BackendStream,
)
from revconn.gateway.client import Client
from revconn.gateway.client_calls import Lost, UnaryAsker
from revconn.gateway.dialling import Dialled, Dialler
from revconn.gateway.keys import ApiKeys
from revconn.gateway.limits import Counters, Limits
from revconn.gateway.refusals import NobodyServes, Refused, over_limit
from revconn.gateway.report import Journal
from revconn.gateway.tenants import Tenants
from revconn.logger import get_logger

__all__ = ["BackendRequest", "Backends", "Outcome", "Reply", "Unreachable"]

# Its name is what applications configure: it stays, whatever the file is called.
logger = get_logger("revconn.gateway.dialling")

# Seconds from the beginning of a backend's answer to its end, where the answer has to be unary; and
# those that it waits for the rest of itself where it may stream.
_END_TIMEOUT = 1.0
_SOON = 0.02


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
    """What a backend is sent: one message, metadata, and how many seconds a unary answer may take.

    ``may_stream``: so may the answer. The backend is then told of the caller's ``own_timeout``
    alone: nobody tells in advance which methods stream, and the other is not for those.
    """

    payload: bytes
    metadata: Metadata
    timeout: float
    may_stream: bool = False
    own_timeout: float | None = None


# Told apart from other refusals because a connector that comes back may take such a call over, but
# only one of which the backend has surely seen nothing.
class Unreachable(Refused):
    """A call that did not get to the backend; ``is_unsent``: for sure, nothing of it was sent."""

    def __init__(self, *, is_unsent: bool) -> None:
        super().__init__(StatusCode.UNAVAILABLE, UNREACHABLE)
        self.is_unsent = is_unsent


Outcome = Union[Reply, Refused, BackendStream]
"""What came of a call; an answer that streams has just begun."""


class _Backend:
    """One address that the holder of one key registered.

    :ivar pending: calls that wait for its answer.
    :ivar streaming: calls that stream.
    :ivar is_forgotten: whether it is to be closed with the last of them.
    """

    def __init__(self, key: int, address: Address, dialler: Dialler, journal: Journal) -> None:
        self.key = key
        self.address = address
        self.services: tuple[str, ...] = ()
        self.last_heartbeat = time.monotonic()
        self.pending = self.streaming = 0
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
        """The backend is not dialled any more; its connection goes with its last call."""
        self.is_forgotten = True
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self.is_forgotten and not (self.pending or self.streaming):
            self.close()

    async def call(self, path: str, request: BackendRequest) -> Reply | BackendStream:
        """Make a call; cancelling this cancels it. Raises :class:`Refused`."""
        self.pending += 1
        try:
            return await self._call(path, request)
        finally:
            self.pending -= 1
            self._close_if_done()

    async def _call(self, path: str, request: BackendRequest) -> Reply | BackendStream:
        loop = asyncio.get_running_loop()
        now = loop.time()
        deadline = now + request.timeout
        told = request.own_timeout if request.may_stream else request.timeout
        own_deadline = None if told is None else now + told
        attempt = 0
        while True:
            attempt += 1
            try:
                client = await self._dialled.connect(deadline - loop.time())
                return await self._ask(client, path, request, deadline, own_deadline)
            except OSError as error:
                raise self._unreachable(str(error), is_unsent=True) from None
            except Lost as lost:
                if lost.is_unsent and attempt < MOST_ATTEMPTS:
                    continue
                raise self._unreachable(str(lost), is_unsent=lost.is_unsent) from None

    async def _ask(
        self,
        client: Client,
        path: str,
        request: BackendRequest,
        deadline: float,
        own_deadline: float | None,
    ) -> Reply | BackendStream:
        may_stream = request.may_stream
        patience = _SOON if may_stream else _END_TIMEOUT
        asker = UnaryAsker(request.payload, deadline, patience, may_stream=may_stream)
        call = asker.ask(client, path, request.metadata, own_deadline)
        is_streamed = False
        try:
            outcome = await asker.answer
            is_streamed = outcome is None and may_stream
        finally:
            if not is_streamed:
                asker.stop()
                call.cancel()  # unless it is over
        if isinstance(outcome, Lost):
            raise outcome
        if outcome is not None:
            return Reply(*outcome)
        if is_streamed:
            self.streaming += 1
            return BackendStream.of(self, asker)
        # There is no telling in advance: gRPC does not say which methods stream.
        problem = f"{path[:200]} does not answer with one message: only unary calls work here"
        raise Refused(StatusCode.UNIMPLEMENTED, problem)

    def stream(
        self,
        path: str,
        metadata: Metadata,
        deadline: float | None,
        timeout: float,
        listener: BackendListener,
    ) -> BackendStream:
        """Begin a streaming call, which the backend has to take within ``timeout`` seconds."""
        self.streaming += 1
        stream = BackendStream(self, path, metadata, deadline)
        stream.dial(listener, timeout)
        return stream

    async def connect(self, timeout: float) -> Client:
        """A connection on which a call may be made. Raises :class:`OSError`."""
        return await self._dialled.connect(timeout)

    def stream_ended(self) -> None:
        """One streaming call less."""
        self.streaming -= 1
        self._close_if_done()

    def _unreachable(self, details: str, *, is_unsent: bool) -> Unreachable:
        self.log_lost(details)
        return Unreachable(is_unsent=is_unsent)

    def log_lost(self, details: str) -> None:
        """A call did not get there, or lost its connection."""
        # For the log alone: it tells which ports are open where the gateway is.
        self._journal.unreachable(str(self.address), details)

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
        self, wanted: Wanted, path: str, request: BackendRequest
    ) -> Reply | BackendStream:
        """Call the backend whose turn it is. Raises :class:`Refused`."""
        metadata = self._passed_on(wanted, request.metadata)
        backend = self._take_turn(wanted)
        self._counters.calls += 1
        try:
            reply = await backend.call(path, request._replace(metadata=metadata))
        # The caller gave up, or its time is up: a backend is told so by the cancellation alone, and
        # nobody is left to be told anything.
        except asyncio.CancelledError:
            self._counters.calls_given_up += 1
            raise
        if isinstance(reply, Reply):
            self._counters.calls_answered += 1
        elif backend.streaming > self._limits.max_streaming_calls_per_connection:
            reply.cancel("there is no room for it")
            raise self._no_room_to_stream()
        return reply

    def stream(
        self,
        wanted: Wanted,
        path: str,
        metadata: Metadata,
        deadline: float | None,
        timeout: float,
        listener: BackendListener,
    ) -> BackendStream:
        """Begin a streaming call at the backend whose turn it is. Raises :class:`Refused`.

        :param deadline: of the caller's own, on the loop's clock.
        :param timeout: seconds in which the backend has to take the call.
        """
        metadata = self._passed_on(wanted, metadata)
        backend = self._take_turn_to_stream(wanted)
        self._counters.calls += 1
        return backend.stream(path, metadata, deadline, timeout, listener)

    def _passed_on(self, wanted: Wanted, metadata: Metadata) -> Metadata:
        # A backend may be another gateway, whose backend may be this one: without the names of all
        # that a call went through it would go round until its deadline, and pend in each of them.
        via = ",".join(str(value) for name, value in metadata if name == VIA_HEADER)
        if self._name in via.split(","):
            problem = f"a backend of {wanted.service[:200]} leads back to this gateway"
            raise Refused(StatusCode.FAILED_PRECONDITION, problem)
        return (*metadata, (VIA_HEADER, self._name))

    async def exchange(
        self,
        wanted: Wanted,
        request: ForwardRequest,
        prepare: Callable[[ForwardRequest], BackendRequest],
        tell: Callable[[Outcome], None],
    ) -> None:
        """Call a backend with what ``prepare`` makes of a request, and tell what came of it.

        Cancelling this cancels the call, and nothing is told.
        """
        outcome: Outcome
        path = request.method_path
        try:
            outcome = await self.call(wanted, path, prepare(request))
        except Refused as refused:
            outcome = refused
        except asyncio.CancelledError:
            raise
        except BaseException:
            logger.exception("%.200r for a backend: a bug in the gateway", path)
            problem = "the gateway failed; its log says how"
            outcome = Refused(StatusCode.INTERNAL, problem)
        tell(outcome)

    def _turns(self, wanted: Wanted) -> deque[_Backend]:
        """The backends that serve that, whose turn it is first."""
        found = (self._rings[name] for name in wanted.names if name in self._rings)
        ring = next(found, None)
        if ring is None:
            self._counters.calls_unserved += 1
            raise NobodyServes(wanted.service)
        ring.rotate(-1)
        return ring

    def _take_turn(self, wanted: Wanted) -> _Backend:
        backend = _first_ready(self._turns(wanted))
        if backend.pending >= self._limits.max_pending_per_connection:
            problem = f"{backend.pending:,} calls wait for the backend's answer"
            raise over_limit(self._counters, "max_pending_per_connection", problem)
        return backend

    def _take_turn_to_stream(self, wanted: Wanted) -> _Backend:
        limit = self._limits.max_streaming_calls_per_connection
        able = [each for each in self._turns(wanted) if each.streaming < limit]
        if not able:
            raise self._no_room_to_stream()
        return _first_ready(able)

    def _no_room_to_stream(self) -> Refused:
        limit = self._limits.max_streaming_calls_per_connection
        problem = f"the backends of the service have {limit:,} streaming calls each"
        return over_limit(self._counters, "max_streaming_calls_per_connection", problem)

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
        backend.forget()

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

    def close(self) -> None:
        """Close every connection, and with it what is under way."""
        for backend in tuple(self._backends.values()):
            self._forget(backend, "the gateway is stopping")
            backend.close()
        self._dialler.close()


def _first_ready(backends: Sequence[_Backend]) -> _Backend:
    # Where all are out of reach the next in turn is called all the same: it may be there again, and
    # if not, the log says why.
    return next((each for each in backends if each.is_ready), backends[0])
