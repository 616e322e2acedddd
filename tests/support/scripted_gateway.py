"""A gateway on a real socket that says exactly what a test tells it to."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

import grpc

from revconn._proto.registry_pb2 import (
    CancelRequest,
    ConnectionMessage,
    ConnectionStatus,
    ForwardRequest,
    ForwardResponse,
)

_TIMEOUT = 60.0
_METHOD = "EstablishConnection"
_SERVICE = "registry.RegistryService"


class Peer:
    """One connector's stream, seen from the gateway's side."""

    def __init__(self, context: grpc.ServicerContext, announces: Mapping[str, str]) -> None:
        self._context = context
        self._announces = tuple(announces.items())
        self.metadata = dict(context.invocation_metadata())
        self._to_say: queue.Queue = queue.Queue()
        self._heard: queue.Queue = queue.Queue()
        self._answered: set[tuple[str, bool]] = set()  # by request, and whether by its stand-in
        self._lock = threading.Lock()  # guards _answered
        self.heard_bytes: list[bytes] = []
        self.is_open = True

    # What the test makes the gateway say

    def say(self, message: ConnectionMessage | bytes) -> None:
        """Send a message, or bytes that need not be one."""
        data = message if isinstance(message, bytes) else message.SerializeToString()
        self._to_say.put(data)

    def connected(self, connection_id: str = "id-1") -> None:
        self.status(ConnectionStatus.CONNECTED, connection_id)

    def status(self, status: int, connection_id: str = "", message: str = "") -> None:
        self.say(
            ConnectionMessage(
                status=ConnectionStatus(connection_id=connection_id, status=status, message=message)
            )
        )

    def request(
        self,
        request_id: str = "r1",
        method: str = "/echo.Echo/Say",
        payload: bytes = b"",
        timeout_seconds: int = 30,
        **headers: str,
    ) -> None:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        self.say(
            ConnectionMessage(
                request=ForwardRequest(
                    request_id=request_id,
                    method_path=method,
                    payload=payload,
                    timeout_seconds=timeout_seconds,
                    headers=names,
                )
            )
        )

    def requests(self, *request_ids: str, **fields) -> None:
        """Several requests, alike but for their ids."""
        for request_id in request_ids:
            self.request(request_id, **fields)

    def requests_without_end(self) -> None:
        """Keep hundreds in flight until the connector hangs up."""
        self.requests(*(f"r{number}" for number in range(300)))
        while (heard := self.hears_any_or_hang_up()) is not None:
            if heard.WhichOneof("message_type") == "response":
                self.request(heard.response.request_id)

    def cancel(self, *request_ids: str, reason: str = "") -> None:
        """Nobody waits for these any more."""
        for request_id in request_ids:
            cancel = CancelRequest(request_id=request_id, reason=reason)
            self.say(ConnectionMessage(cancel=cancel))

    def end(self, code: grpc.StatusCode = grpc.StatusCode.OK, details: str = "") -> None:
        """End the stream with a status."""
        self._to_say.put((code, details))

    # What the connector said

    def hears(self, kind: str, timeout: float = _TIMEOUT):
        """The next message, which must be of this kind; heartbeats are passed over."""
        message = self.hears_any(timeout)
        while message.WhichOneof("message_type") == "heartbeat" != kind:
            message = self.hears_any(timeout)
        assert message.WhichOneof("message_type") == kind, message
        return getattr(message, kind)

    def hears_any(self, timeout: float = _TIMEOUT) -> ConnectionMessage:
        """The next message; fails when the connector hung up or says nothing."""
        heard = self.hears_any_or_hang_up(timeout)
        assert heard is not None, "the connector hung up"
        return heard

    def hears_hang_up(self, timeout: float = _TIMEOUT) -> None:
        """Wait until the connector's half of the stream has ended."""
        while self.hears_any_or_hang_up(timeout) is not None:
            pass

    def hears_any_or_hang_up(self, timeout: float = _TIMEOUT) -> ConnectionMessage | None:
        """The next message; ``None`` when the connector's half of the stream has ended."""
        return self._heard.get(timeout=timeout)

    def hears_goodbye(self, timeout: float = _TIMEOUT) -> None:
        """Wait for DISCONNECTED, and end the stream, as a gateway does with nothing in flight."""
        goodbye = self.hears("status", timeout)
        assert goodbye.status == ConnectionStatus.DISCONNECTED, goodbye
        self.end()

    def answer(self, request_id: str = "r1", timeout: float = _TIMEOUT) -> ForwardResponse:
        """The next answer, which must be to this request."""
        response = self.hears("response", timeout)
        assert response.request_id == request_id, response
        return response

    def answers(self, count: int, timeout: float = _TIMEOUT) -> dict[str, ForwardResponse]:
        """The next answers, by the ids of their requests."""
        responses = [self.hears("response", timeout) for _ in range(count)]
        return {response.request_id: response for response in responses}

    # The gateway's threads

    def serve(self, received):
        listener = ThreadPoolExecutor(1)
        listener.submit(self._listen, received)
        listener.shutdown(wait=False)
        while True:
            item = self._to_say.get()
            if isinstance(item, tuple):
                code, details = item
                if self._announces:
                    self._context.send_initial_metadata(self._announces)
                if code is not grpc.StatusCode.OK:
                    self._context.abort(code, details)
                return
            if self._announces:
                self._context.send_initial_metadata(self._announces)
                self._announces = ()
            yield item

    def _listen(self, received) -> None:
        try:
            for data in received:
                self.heard_bytes.append(data)
                self._hear(ConnectionMessage.FromString(data))
        except Exception:  # noqa: BLE001
            pass  # the stream broke: for the test that is a hang-up like any other
        self.is_open = False
        self._heard.put(None)
        self._to_say.put((grpc.StatusCode.OK, ""))

    def _hear(self, message: ConnectionMessage, *, by_stand_in: bool = False) -> None:
        """What comes on both connections is heard once."""
        with self._lock:
            if message.HasField("response"):
                request_id = message.response.request_id
                self._answered.add((request_id, by_stand_in))
                if (request_id, not by_stand_in) in self._answered:
                    return
            self._heard.put(message)

    def stand_in(self, received):
        """A second connection of this connector's, for what it answers while it leaves.

        The test hears the answers here, but for those that came on both.
        """
        yield ConnectionMessage(
            status=ConnectionStatus(connection_id="stand-in", status=ConnectionStatus.CONNECTED)
        ).SerializeToString()
        for data in received:
            message = ConnectionMessage.FromString(data)
            if message.HasField("status"):
                return
            if message.HasField("response"):
                self._hear(message, by_stand_in=True)


class ScriptedGateway:
    """Listens on loopback; each connection comes out of :meth:`accept`.

    ``announces`` goes out as initial metadata with the first message of each stream to come, or
    its end, and no sooner: a connector must not wait for it. While a connector's stream is open,
    another one that registers no services is taken for its stand-in, and served without the test's
    doing.
    """

    def __init__(
        self,
        port: int = 0,
        credentials: grpc.ServerCredentials | None = None,
        *,
        tolerates_pings: bool = True,
        announces: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.announces = announces
        self.welcomes_stand_ins = True
        self._last: Peer | None = None
        self._peers: queue.Queue = queue.Queue()
        self._accepted = itertools.count()
        self._pool = ThreadPoolExecutor(64)
        self._server = grpc.server(
            self._pool,
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.http2.max_ping_strikes", 0 if tolerates_pings else 1),
            ],
        )
        handler = grpc.stream_stream_rpc_method_handler(self._establish)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: handler}),)
        )
        address = f"127.0.0.1:{port}"
        if credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, credentials)
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()

    def _establish(self, received, context):
        leaving = self._last if self._last is not None and self._last.is_open else None
        if leaving is not None and self.welcomes_stand_ins:
            first = next(received)
            if not ConnectionMessage.FromString(first).register.services:
                return leaving.stand_in(received)
            received = itertools.chain([first], received)
        peer = self._last = Peer(context, self.announces)
        self._peers.put(peer)
        return peer.serve(received)

    def accept(self, timeout: float = _TIMEOUT) -> Peer:
        """The next connector that opens a stream."""
        return self._peers.get(timeout=timeout)

    def accept_ready(self, connection_id: str = "id-1") -> Peer:
        """The next connector, after a handshake that went well."""
        peer = self.accept()
        peer.hears("register")
        peer.connected(connection_id)
        return peer

    def stop(self) -> None:
        """Break every stream and stop listening."""
        self._server.stop(0).wait(_TIMEOUT)
        self._pool.shutdown(wait=False)

    def __enter__(self) -> ScriptedGateway:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
