"""A gateway that treats connectors as the reference gateway does, its mistakes included.

What it does to whom is what the documentation says of the gateway that speaks this protocol in
production; its times can be shortened. It announces no features.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from math import ceil
from typing import Any, Callable

import grpc

from revconn._proto.registry_pb2 import (
    ConnectionMessage,
    ConnectionRegister,
    ConnectionStatus,
    ForwardRequest,
    ForwardResponse,
)
from revconn.core.routing import lookup_order

__all__ = ["ReferenceGateway"]

_SERVICE = "registry.RegistryService"
_STREAMS = 64
_MIB = 1 << 20
_TIMEOUT = 60.0


class _Stream:
    """One connector's stream. ``owes`` are the ids of the requests that were sent on it.

    ``heard`` says of each service when it was last kept: they are forgotten one by one.
    """

    def __init__(self, register: ConnectionRegister) -> None:
        self.id = register.connection_id or str(uuid.uuid4())
        self.services = list(dict.fromkeys(register.services))
        self.heard = dict.fromkeys(self.services or [""], time.monotonic())
        self.owes: set[str] = set()
        self.leaving = False
        self.outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def say(self, **kind: Any) -> None:
        self.outgoing.put(ConnectionMessage(**kind).SerializeToString())

    def end(self) -> None:
        """With status OK, after what it was told before."""
        self.outgoing.put(None)


class _Pending:
    def __init__(self, stream: _Stream, reply: Callable[[ForwardResponse], None]) -> None:
        self.stream = stream
        self.reply = reply
        self.since = time.monotonic()


class ReferenceGateway:
    """Listens on loopback. Callers are connectors that send requests, and :meth:`call`.

    ``counts`` has what it would only have logged. ``_lock`` guards everything.

    :param heartbeat_timeout: seconds without a heartbeat until a connection is forgotten, at the
        next look, of which there is one every ``sweep_interval`` seconds.
    :param request_timeout: seconds that a request may be pending.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        api_key: str = "key",
        heartbeat_timeout: float = 120.0,
        sweep_interval: float = 60.0,
        request_timeout: float = 30.0,
        max_pending: int = 1000,
        max_message_bytes: int = 4 * _MIB,
    ) -> None:
        self._api_key = api_key
        self._heartbeat_timeout = heartbeat_timeout
        self._request_timeout = request_timeout
        self._max_pending = max_pending
        self._max_message_bytes = max_message_bytes
        self._lock = threading.Lock()
        self._known: dict[str, _Stream] = {}
        self._routes: dict[str, deque[_Stream]] = {}
        self._pending: dict[str, _Pending] = {}  # the oldest first
        self.counts: Counter[str] = Counter()
        self._locked_up = threading.Event()
        self._stopped = threading.Event()
        self._timers = [
            threading.Thread(target=self._every, args=timer, name="reference-gateway-timer")
            for timer in ((sweep_interval, self._forget), (request_timeout / 30, self._expire))
        ]
        self._pool = ThreadPoolExecutor(_STREAMS)
        self._server = grpc.server(
            self._pool,
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.http2.max_ping_strikes", 0),
            ],
        )
        handlers = {"EstablishConnection": grpc.stream_stream_rpc_method_handler(self._establish)}
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(_SERVICE, handlers),)
        )
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()
        for timer in self._timers:
            timer.start()

    # What a test does

    def call(
        self,
        path: str,
        payload: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        request_id: str = "",
    ) -> Future[ForwardResponse]:
        """Call a service as a caller on the gateway's own path does."""
        answered: Future[ForwardResponse] = Future()
        request = ForwardRequest(
            request_id=request_id or str(uuid.uuid4()),
            method_path=path,
            payload=payload,
            headers=headers or {},
        )
        self._submit(request, answered.set_result)
        return answered

    def routes(self, service: str) -> list[str]:
        """The ids of the connections that requests for a service go to."""
        with self._lock:
            return [stream.id for stream in self._routes.get(service, ())]

    def half_forget(self, service: str) -> None:
        """Lose a service's routes, as after a call of it in a pause between heartbeats."""
        with self._lock:
            self._routes[service].clear()
            self.counts["half-forgotten"] += 1

    @property
    def is_locked_up(self) -> bool:
        """Whether it has met a response in chunks."""
        return self._locked_up.is_set()

    def stop(self) -> None:
        """Break every stream and stop listening."""
        self._stopped.set()
        self._server.stop(0).wait(_TIMEOUT)
        self._pool.shutdown()
        for timer in self._timers:
            timer.join()

    def __enter__(self) -> ReferenceGateway:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    # Streams, in the server's threads

    def _establish(
        self, received: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        if self._hangs():
            return
        stream = self._register(next(received, b""), context)
        if not context.add_callback(stream.end):  # the stream broke: nobody reads what it is told
            stream.end()
        reader = threading.Thread(
            target=self._read, args=(stream, received), name="reference-gateway-reader", daemon=True
        )
        reader.start()
        while (message := stream.outgoing.get()) is not None and not self._hangs():
            yield message
        with self._lock:
            self._remove(stream)

    def _hangs(self) -> bool:
        """Do nothing more, if it is locked up, until it is stopped."""
        return self._locked_up.is_set() and self._stopped.wait()

    def _register(self, first: bytes, context: grpc.ServicerContext) -> _Stream:
        message = ConnectionMessage.FromString(first)
        if not message.HasField("register"):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "First message must be register")
        if message.register.api_key != self._api_key:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Invalid token")
        stream = _Stream(message.register)
        stream.say(
            status=ConnectionStatus(
                connection_id=stream.id, status=ConnectionStatus.CONNECTED, message="Connected"
            )
        )
        with self._lock:
            for service in stream.services:
                self._routes.setdefault(service, deque()).append(stream)
            if stream.id in self._known:
                self._unroute(stream.id)
            self._known[stream.id] = stream
        return stream

    def _read(self, stream: _Stream, received: Iterator[bytes]) -> None:
        with contextlib.suppress(Exception):  # the stream broke: its end is seen elsewhere
            for data in received:
                if self._hangs() or not self._hear(stream, data):
                    return
            self._let_go(stream)

    def _hear(self, stream: _Stream, data: bytes) -> bool:
        """Take in a message; whether to read on."""
        if len(data) > self._max_message_bytes:
            with self._lock:
                self._remove(stream)
            stream.end()
            return False
        message = ConnectionMessage.FromString(data)
        kind = message.WhichOneof("message_type")
        if kind == "response":
            self._answered(message.response)
        elif kind == "request":
            self._submit(message.request, lambda response: stream.say(response=response))
        elif kind == "heartbeat":
            self._beat(message.heartbeat.connection_id)
        elif kind == "status" and message.status.status == ConnectionStatus.DISCONNECTED:
            self._let_go(stream)
            return False
        else:
            self.counts[f"ignored {kind}"] += 1
        return True

    def _beat(self, connection_id: str) -> None:
        with self._lock:
            now = time.monotonic()
            known = self._known.get(connection_id)
            if known is not None:
                known.heard = dict.fromkeys(known.heard, now)
            elif ring := self._routes.get(connection_id):  # a service's name keeps that alone
                ring[0].heard[connection_id] = now
            else:
                self.counts["unknown heartbeat"] += 1

    def _let_go(self, stream: _Stream) -> None:
        """It said goodbye, or half-closed: its stream ends when all that was sent is settled."""
        with self._lock:
            self._remove(stream)
            stream.leaving = True
            settled = not stream.owes
        if settled:
            stream.end()

    # Requests, in any thread

    def _submit(self, request: ForwardRequest, reply: Callable[[ForwardResponse], None]) -> None:
        request_id = request.request_id

        def fail(problem: str) -> None:
            reply(ForwardResponse(request_id=request_id, status_code=500, error_message=problem))

        service, slash, _ = request.method_path.strip("/").partition("/")
        if not slash or "." not in service:
            return fail("Invalid service path format")
        with self._lock:
            problem = ""
            stream = self._route(service)
            repeated = self._pending.get(request_id)
            if stream is None:
                problem = f"No reverse connection found for service: {service}"
            elif len(self._pending) >= self._max_pending:
                problem = "Too many pending requests"
            else:
                self._pending[request_id] = _Pending(stream, reply)
                stream.owes.add(request_id)
        if stream is None or problem:
            return fail(problem)
        request.timeout_seconds = ceil(self._request_timeout)
        stream.say(request=request)
        if repeated is not None:
            closed = ForwardResponse(
                request_id=request_id, status_code=500, error_message="Response channel closed"
            )
            repeated.reply(closed)
            self._free(repeated.stream, request_id)
            self._settle(closed)
        return None

    def _route(self, service: str) -> _Stream | None:
        """Whose turn it is. Requires holding ``_lock``."""
        for name in lookup_order(service):
            ring = self._routes.get(name)
            while ring:
                if time.monotonic() - ring[0].heard[name] <= self._heartbeat_timeout:
                    ring.rotate(-1)
                    return ring[-1]
                ring.popleft()  # and the route never returns, whatever heartbeats follow
                self.counts["half-forgotten"] += 1
        return None

    def _answered(self, response: ForwardResponse) -> None:
        chunk = response.response_stream_info
        if chunk.is_streamed:
            if chunk.is_final_chunk:
                self._locked_up.set()
        elif not self._settle(response):
            self.counts["unknown response"] += 1

    def _settle(self, response: ForwardResponse) -> bool:
        """Whether it was pending."""
        with self._lock:
            pending = self._pending.pop(response.request_id, None)
        if pending is None:
            return False
        pending.reply(response)
        self._free(pending.stream, response.request_id)
        return True

    def _free(self, stream: _Stream, request_id: str) -> None:
        with self._lock:
            stream.owes.discard(request_id)
            settled = stream.leaving and not stream.owes
        if settled:
            stream.end()

    # Forgetting

    def _every(self, interval: float, look: Callable[[], None]) -> None:
        while not (self._stopped.wait(interval) or self._hangs()):
            look()

    def _forget(self) -> None:
        """Services that were silent for too long, and connections with none left.

        The streams stay open.
        """
        oldest = time.monotonic() - self._heartbeat_timeout
        with self._lock:
            for stream in list(self._known.values()):
                for service in [name for name, heard in stream.heard.items() if heard < oldest]:
                    del stream.heard[service]
                    self._unroute(stream.id, service)
                if not stream.heard:
                    self._remove(stream)
                    self.counts["forgotten"] += 1

    def _expire(self) -> None:
        oldest = time.monotonic() - self._request_timeout
        with self._lock:
            expired = [key for key, pending in self._pending.items() if pending.since < oldest]
        for request_id in expired:
            self._settle(
                ForwardResponse(
                    request_id=request_id, status_code=500, error_message="Request timeout"
                )
            )

    def _remove(self, stream: _Stream) -> None:
        """Forget a connection. Requires holding ``_lock``."""
        if self._known.pop(stream.id, None) is not None:
            self._unroute(stream.id)

    def _unroute(self, connection_id: str, *services: str) -> None:
        """Drop the routes of an id (to ``services``; none: to all), whichever connection they
        lead to. Requires ``_lock``."""
        for service, ring in list(self._routes.items()):
            if services and service not in services:
                continue
            kept = deque(stream for stream in ring if stream.id != connection_id)
            if kept:
                self._routes[service] = kept
            else:
                del self._routes[service]
