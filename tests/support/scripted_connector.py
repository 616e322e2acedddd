"""A connector that says exactly what a test tells it to, on a real socket."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from typing import Any

import grpc

from revconn._proto.registry_pb2 import (
    ConnectionMessage,
    ConnectionRegister,
    ConnectionStatus,
    ForwardRequest,
    ForwardResponse,
    Heartbeat,
)

__all__ = ["ScriptedConnector"]

PATIENCE = 60.0
_END = object()


class ScriptedConnector:
    """One EstablishConnection stream. Nothing is sent or answered unless the test says so.

    ``reads=False``: nothing is read either until ``start_reading``. Of what it is sent it takes
    64 KiB until then, HTTP/2's first window.
    ``received_bytes`` is every message as it came.
    """

    def __init__(
        self, address: str, *, reads: bool = True, metadata: Sequence[tuple[str, str]] = ()
    ) -> None:
        # A connection of its own: closing it must not disturb other connectors of the test.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        if not reads:
            # grpc would widen the window to what it takes the link for: up to 32 MB were seen.
            options.append(("grpc.http2.bdp_probe", 0))
        self._channel = grpc.insecure_channel(address, options=options)
        self._outbound: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._inbound: queue.SimpleQueue[Any] = queue.SimpleQueue()
        method = self._channel.stream_stream("/registry.RegistryService/EstablishConnection")
        self._call = method(iter(self._outbound.get, _END), metadata=tuple(metadata))
        self.received_bytes: list[bytes] = []
        self._reader = threading.Thread(target=self._read, name="scripted-connector")
        self.connection_id = ""
        if reads:
            self.start_reading()

    def __enter__(self) -> ScriptedConnector:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def start_reading(self) -> None:
        self._reader.start()

    def _read(self) -> None:
        try:
            for received in self._call:
                self.received_bytes.append(received)
                self._inbound.put(ConnectionMessage.FromString(received))
        except grpc.RpcError:
            pass  # ended() tells
        self._inbound.put(_END)

    def initial_metadata(self) -> dict[str, str]:
        """What the gateway opened its side of the stream with."""
        return dict(self._call.initial_metadata())

    def send_bytes(self, message: bytes) -> None:
        self._outbound.put(message)

    def send(self, **kind: Any) -> None:
        """Send one message, by the name of its type: ``send(heartbeat=Heartbeat(…))``."""
        self.send_bytes(ConnectionMessage(**kind).SerializeToString())

    def receive(self, timeout: float = PATIENCE) -> ConnectionMessage:
        """The next message; ``EOFError`` when the stream has ended instead."""
        message = self._inbound.get(timeout=timeout)
        if message is _END:
            self._inbound.put(_END)
            raise EOFError(f"{self._call.code()}: {self._call.details()}")
        return message

    def register(self, *services: str, api_key: str = "key", connection_id: str = "") -> str:
        """Register, and wait for CONNECTED; the connection's id."""
        self.send_registration(*services, api_key=api_key, connection_id=connection_id)
        status = self.receive().status
        assert status.status == ConnectionStatus.CONNECTED
        self.connection_id = status.connection_id
        return status.connection_id

    def send_registration(
        self, *services: str, api_key: str = "key", connection_id: str = ""
    ) -> None:
        register = ConnectionRegister(
            api_key=api_key, services=services, connection_id=connection_id
        )
        self.send(register=register)

    def receive_request(self) -> ForwardRequest:
        message = self.receive()
        assert message.WhichOneof("message_type") == "request", message
        return message.request

    def receive_response(self) -> ForwardResponse:
        message = self.receive()
        assert message.WhichOneof("message_type") == "response", message
        return message.response

    def ask(self, request_id: str, method_path: str, payload: bytes = b"", **fields: Any) -> None:
        """Call a service through the gateway."""
        self.send(
            request=ForwardRequest(
                request_id=request_id, method_path=method_path, payload=payload, **fields
            )
        )

    def respond(self, request_id: str, payload: bytes = b"", **fields: Any) -> None:
        """Answer with status 200, or with the ``fields`` of a ForwardResponse given."""
        fields = {"status_code": 200, **fields}
        self.send(response=ForwardResponse(request_id=request_id, payload=payload, **fields))

    def heartbeat(self, connection_id: str | None = None) -> None:
        own = self.connection_id if connection_id is None else connection_id
        self.send(heartbeat=Heartbeat(connection_id=own))

    def disconnect(self, message: str = "") -> None:
        status = ConnectionStatus.DISCONNECTED
        self.send(
            status=ConnectionStatus(
                connection_id=self.connection_id, status=status, message=message
            )
        )

    def half_close(self) -> None:
        self._outbound.put(_END)

    def cancel(self) -> None:
        """Break the stream."""
        self._call.cancel()
        self._outbound.put(_END)

    def ended(self, timeout: float = PATIENCE) -> tuple[grpc.StatusCode, str]:
        """Wait for the end of the stream: its status and message."""
        self._reader.join(timeout)
        if self._reader.is_alive():
            raise TimeoutError("the stream has not ended")
        return self._call.code(), self._call.details()

    def close(self) -> None:
        self.cancel()
        self._channel.close()
        if self._reader.ident is not None:
            self._reader.join(PATIENCE)
