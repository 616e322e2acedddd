"""Connectors that mean trouble, and a healthy one; each a process of its own.

usage: python -m tests.gateway.trouble KIND GATEWAY-ADDRESS
"""

from __future__ import annotations

import itertools
import sys
import time
import uuid

from revconn import Connector
from revconn._proto.registry_pb2 import (
    ConnectionMessage,
    ConnectionRegister,
    ForwardResponse,
    Heartbeat,
)
from tests.support.http2_client import Client
from tests.support.scripted_connector import ScriptedConnector

SERVICE = "trouble.Trouble"
HEARTBEAT_INTERVAL = 0.5


def healthy(address: str) -> None:
    connector = Connector(address, api_key="key", heartbeat_interval=HEARTBEAT_INTERVAL)
    connector.add_method("/echo.Echo/Say", lambda request: request.payload)
    connector.start(block=False)
    connector.wait_ready(10.0)
    ready()
    connector.wait()


def idle(address: str) -> None:
    """Registers and beats: what happens to it comes from outside."""
    connector = ScriptedConnector(address)
    connector.register(SERVICE)
    ready()
    beat(connector)


def deaf(address: str) -> None:
    """Registers, and never reads: not even the id that it would need for heartbeats."""
    connector = ScriptedConnector(address, reads=False)
    connector.send(register=ConnectionRegister(api_key="key", services=[SERVICE]))
    ready()
    time.sleep(3600)


def garbage(address: str) -> None:
    ready()
    for _ in range(50):
        with ScriptedConnector(address) as connector:
            connector.register(SERVICE)
            connector.send_bytes(b"\xff" * 100_000)
            connector.ended()
    beat(None)


def unasked(address: str) -> None:
    """Sends 5,000 answers a second that nobody asked for, at little cost to the machine."""
    client = Client(address)
    client.open()
    register = ConnectionRegister(api_key="key", services=[SERVICE])
    client.send(ConnectionMessage(register=register).SerializeToString())
    (connected,) = map(ConnectionMessage.FromString, client.receive())
    heartbeat = Heartbeat(connection_id=connected.status.connection_id)
    ready()
    due = time.monotonic()
    while True:
        client.send(ConnectionMessage(heartbeat=heartbeat).SerializeToString())
        client.send(*(unasked_answer() for _ in range(50)))
        due += 0.01
        time.sleep(max(0.0, due - time.monotonic()))


def unasked_answer() -> bytes:
    response = ForwardResponse(request_id=str(uuid.uuid4()), payload=b"x" * 1000)
    return ConnectionMessage(response=response).SerializeToString()


def reconnecting(address: str) -> None:
    """A hundred times a second."""
    due = time.monotonic()
    for number in itertools.count():
        with ScriptedConnector(address) as connector:
            connector.register(SERVICE)
        if not number:
            ready()
        due += 0.01
        time.sleep(max(0.0, due - time.monotonic()))


def beat(connector: ScriptedConnector | None) -> None:
    while True:
        if connector is not None:
            connector.heartbeat()
        time.sleep(HEARTBEAT_INTERVAL)


def ready() -> None:
    print("ready", flush=True)


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2])
