"""A grpcio stream and nothing else: every request is answered in the receive loop."""

from __future__ import annotations

import queue
import sys
import threading
import time

import grpc

from revconn._proto.registry_pb2 import (
    ConnectionMessage,
    ConnectionRegister,
    ForwardResponse,
    Heartbeat,
)

HEARTBEAT_INTERVAL = 1.0


def main(gateway: str) -> None:
    establish = grpc.insecure_channel(gateway).stream_stream(
        "/registry.RegistryService/EstablishConnection",
        request_serializer=ConnectionMessage.SerializeToString,
        response_deserializer=ConnectionMessage.FromString,
    )
    outbound: queue.SimpleQueue[ConnectionMessage] = queue.SimpleQueue()
    register = ConnectionRegister(api_key="benchmark", services=["echo.Echo"])
    outbound.put(ConnectionMessage(register=register))
    messages = establish(iter(outbound.get, None))
    connection_id = next(messages).status.connection_id
    heartbeat = threading.Thread(target=beat, args=(outbound, connection_id), daemon=True)
    heartbeat.start()
    for message in messages:
        response = ForwardResponse(
            request_id=message.request.request_id,
            status_code=200,
            payload=message.request.payload,
        )
        outbound.put(ConnectionMessage(response=response))


def beat(outbound: queue.SimpleQueue[ConnectionMessage], connection_id: str) -> None:
    while True:
        time.sleep(HEARTBEAT_INTERVAL)
        heartbeat = Heartbeat(timestamp=int(time.time()), connection_id=connection_id)
        outbound.put(ConnectionMessage(heartbeat=heartbeat))


if __name__ == "__main__":
    main(sys.argv[1])
