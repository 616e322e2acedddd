"""The protocol guide's client, translated literally: a thread per request, a plain queue."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Iterator

import grpc

from revconn._proto.registry_pb2 import (
    ConnectionMessage,
    ConnectionRegister,
    ConnectionStatus,
    ForwardRequest,
    ForwardResponse,
    Heartbeat,
)

HEARTBEAT_INTERVAL = 1.0


class Client:
    def __init__(self, gateway: str) -> None:
        channel = grpc.insecure_channel(gateway)
        self._establish = channel.stream_stream(
            "/registry.RegistryService/EstablishConnection",
            request_serializer=ConnectionMessage.SerializeToString,
            response_deserializer=ConnectionMessage.FromString,
        )
        self._outbound: queue.Queue[ConnectionMessage] = queue.Queue()

    def run(self) -> None:
        register = ConnectionRegister(api_key="benchmark", services=["echo.Echo"])
        self._outbound.put(ConnectionMessage(register=register))
        for message in self._establish(self._outgoing()):
            kind = message.WhichOneof("message_type")
            if kind == "status" and message.status.status == ConnectionStatus.CONNECTED:
                heartbeat = threading.Thread(
                    target=self._heartbeat, args=(message.status.connection_id,), daemon=True
                )
                heartbeat.start()
            elif kind == "request":
                handler = threading.Thread(
                    target=self._handle, args=(message.request,), daemon=True
                )
                handler.start()

    def _outgoing(self) -> Iterator[ConnectionMessage]:
        while True:
            yield self._outbound.get()

    def _heartbeat(self, connection_id: str) -> None:
        while True:
            time.sleep(HEARTBEAT_INTERVAL)
            heartbeat = Heartbeat(timestamp=int(time.time()), connection_id=connection_id)
            self._outbound.put(ConnectionMessage(heartbeat=heartbeat))

    def _handle(self, request: ForwardRequest) -> None:
        response = ForwardResponse(
            request_id=request.request_id, status_code=200, payload=request.payload
        )
        self._outbound.put(ConnectionMessage(response=response))


if __name__ == "__main__":
    Client(sys.argv[1]).run()
