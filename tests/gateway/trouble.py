"""Connectors that mean trouble, and a healthy one; each a process of its own.

usage: python -m tests.gateway.trouble KIND GATEWAY-ADDRESS
"""

from __future__ import annotations

import itertools
import sys
import time
import uuid

from revconn import Connector
from revconn._proto.registry_pb2 import ConnectionRegister, ForwardResponse
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
            connector.send_bytes(b"\xff" * 1000)
            connector.ended()
    beat(None)


def unasked(address: str) -> None:
    """Sends 1,000 answers a second that nobody asked for."""
    connector = ScriptedConnector(address)
    connector.register(SERVICE)
    ready()
    for number in itertools.count():
        for _ in range(10):
            response = ForwardResponse(request_id=str(uuid.uuid4()), payload=b"x" * 100)
            connector.send(response=response)
        if number % 50 == 0:
            connector.heartbeat()
        time.sleep(0.01)


def reconnecting(address: str) -> None:
    """A hundred times a second."""
    ready()
    due = time.monotonic()
    while True:
        with ScriptedConnector(address) as connector:
            connector.register(SERVICE)
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
