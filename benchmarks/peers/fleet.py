"""Many connectors in one process, each on a bare socket of its own, and a caller of all of them.

They register, beat, wait a while, and then answer calls that are made at a steady rate and reach
them in turn. When the gateway goes away, they come back as soon as it listens again, with no
backoff: what that takes is the gateway's time. So that it is, and thousands of them fit into a
process, they speak as much HTTP/2 as that needs, and no more: what either side sends stays below
the windows that a connection begins with.

It prints a JSON object per line: the events "connected", "resting" (each has sent a heartbeat or
two: nothing is new any more), "window-start" (the calls begin), "window-end", "result", and "back"
whenever they are.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio

from revconn._proto.registry_pb2 import (
    ConnectionMessage,
    ConnectionRegister,
    ForwardResponse,
    Heartbeat,
)

CONNECTING = 256  # handshakes under way at once
KNOCK_INTERVAL = 0.005  # seconds between attempts while nobody listens
REGISTER_TIMEOUT = 60.0
SETTLING = 1.0  # seconds after the last has registered, before anything is measured
CALL_TIMEOUT = 10.0
PAYLOAD = b"\x0a" + b"x" * 63

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM = ACK = 1
END_HEADERS = 4
STREAM = 1  # the only one of a connection


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    head = struct.pack(">HBBBI", len(payload) >> 8, len(payload) & 255, kind, flags, stream)
    return head + payload


def message_frame(**kind: Any) -> bytes:
    encoded = ConnectionMessage(**kind).SerializeToString()
    return frame(DATA, 0, STREAM, b"\0" + struct.pack(">I", len(encoded)) + encoded)


def opening(authority: str) -> bytes:
    """The preface, and the head of EstablishConnection; each field is a literal, in no table."""

    def field(name: str, value: str) -> bytes:
        return b"\0%c%b%c%b" % (len(name), name.encode(), len(value), value.encode())

    post, http = b"\x83", b"\x86"  # entries of the static table
    head = post + http + field(":path", "/registry.RegistryService/EstablishConnection")
    head += field(":authority", authority) + field("content-type", "application/grpc")
    head += field("te", "trailers")
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0)
    return preface + frame(HEADERS, END_HEADERS, STREAM, head)


class Tally:
    """What was seen."""

    def __init__(self) -> None:
        self.heartbeats = 0
        self.lost = 0
        self.latencies: list[float] = []
        self.errors: list[str] = []

    def result(self, seconds: float) -> dict[str, Any]:
        latencies = sorted(self.latencies) or [0.0]
        return {
            "event": "result",
            "requests": len(self.latencies),
            "seconds": seconds,
            "p50_seconds": latencies[int(0.50 * (len(latencies) - 1))],
            "p99_seconds": latencies[int(0.99 * (len(latencies) - 1))],
            "heartbeats": self.heartbeats,
            "lost": self.lost,
            "errors": len(self.errors),
            "first_error": self.errors[0] if self.errors else "",
        }


class FleetConnector:
    """One stream on one socket, at a time. Everything happens in the event loop's thread."""

    def __init__(self, address: str, number: int, tally: Tally) -> None:
        self.service = f"fleet.Echo{number}"
        host, _, port = address.rpartition(":")
        self._address = (host, int(port))
        self._opening = opening(address)
        self._tally = tally
        self._socket: socket.socket | None = None
        self._frames = self._messages = b""
        self._id = ""
        self._registered: asyncio.Future[None] | None = None
        self.lost = asyncio.Event()

    async def connect(self) -> None:
        """Connect and register. Raises :class:`OSError`."""
        loop = asyncio.get_running_loop()
        connection = socket.socket()
        connection.setblocking(False)
        try:
            await loop.sock_connect(connection, self._address)
        except OSError:
            connection.close()
            raise
        if connection.getsockname() == self._address:  # its own port, which nobody listened on
            connection.close()
            raise ConnectionRefusedError(f"nobody listens on {self._address}")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._frames, self._messages = connection, b"", b""
        self._registered = loop.create_future()
        self.lost.clear()
        loop.add_reader(connection, self._read)
        register = ConnectionRegister(api_key="benchmark", services=[self.service])
        self._send(self._opening + message_frame(register=register))
        await asyncio.wait_for(self._registered, REGISTER_TIMEOUT)

    def beat(self) -> None:
        if self._socket is not None:
            heartbeat = Heartbeat(timestamp=int(time.time()), connection_id=self._id)
            self._send(message_frame(heartbeat=heartbeat))
            self._tally.heartbeats += 1

    def _send(self, data: bytes) -> None:
        assert self._socket is not None
        try:
            if self._socket.send(data) != len(data):
                self._tally.errors.append("the gateway does not read")
        except OSError as error:
            self._lose(f"sending: {error}")

    def _read(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lose("its connection ended")
            return
        self._frames += data
        while self._socket is not None and len(self._frames) >= 9:
            high, low, kind, flags, stream = struct.unpack_from(">HBBBI", self._frames)
            end = 9 + (high << 8 | low)
            if len(self._frames) < end:
                break
            payload, self._frames = self._frames[9:end], self._frames[end:]
            self._take(kind, flags, stream, payload)

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            self._messages += payload
            for message in self._whole_messages():
                self._take_message(message)
        elif kind in (SETTINGS, PING) and not flags & ACK:
            self._send(frame(kind, ACK, 0, payload if kind == PING else b""))
        ended = kind in (DATA, HEADERS) and flags & END_STREAM
        if self._socket is not None and (ended or kind in (RST_STREAM, GOAWAY)):
            self._lose("the gateway ended its stream")

    def _whole_messages(self) -> Iterator[ConnectionMessage]:
        while len(self._messages) >= 5:
            end = 5 + struct.unpack_from(">I", self._messages, 1)[0]
            if len(self._messages) < end:
                return
            encoded, self._messages = self._messages[5:end], self._messages[end:]
            yield ConnectionMessage.FromString(encoded)

    def _take_message(self, message: ConnectionMessage) -> None:
        if message.HasField("request"):
            request = message.request
            response = ForwardResponse(
                request_id=request.request_id, status_code=200, payload=request.payload
            )
            self._send(message_frame(response=response))
        elif self._registered is not None and not self._registered.done():
            self._id = message.status.connection_id
            self._registered.set_result(None)

    def close(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _lose(self, why: str) -> None:
        self.close()
        self._tally.lost += 1
        self.lost.set()
        if self._registered is not None and not self._registered.done():
            self._registered.set_exception(ConnectionError(why))


async def main(options: argparse.Namespace) -> None:
    tally = Tally()
    fleet = [FleetConnector(options.gateway, n, tally) for n in range(options.connectors)]
    seconds = await connect_all(fleet)
    beats = asyncio.ensure_future(beat_in_turn(fleet, options.heartbeat_interval))
    await asyncio.sleep(SETTLING)
    emit({"event": "connected", "seconds": seconds})
    await asyncio.sleep(options.heartbeat_interval)
    emit({"event": "resting"})
    await asyncio.sleep(options.idle)
    emit({"event": "window-start"})
    seconds = await call_all(fleet, options, tally)
    emit({"event": "window-end"})
    emit(tally.result(seconds))
    while not beats.done():  # until it is killed
        for connector in fleet:
            await connector.lost.wait()
        computed = time.process_time()
        seconds = await connect_all(fleet)
        computed = time.process_time() - computed
        emit({"event": "back", "seconds": seconds, "cpu_seconds": computed})


async def connect_all(fleet: list[FleetConnector]) -> float:
    """Connect them all; the seconds from when the gateway listened to when the last was registered.

    One of them knocks until it is let in: the first that registers shows that the gateway listens.
    One that is being killed may still let it connect, and not register. Raises :class:`OSError`.
    """
    loop = asyncio.get_running_loop()
    room = asyncio.Semaphore(CONNECTING)

    async def connect(connector: FleetConnector) -> None:
        async with room:
            await connector.connect()

    give_up = loop.time() + REGISTER_TIMEOUT
    while True:
        started = loop.time()
        try:
            await fleet[0].connect()
            break
        except ConnectionError:
            if loop.time() > give_up:
                raise
            await asyncio.sleep(KNOCK_INTERVAL)
    await asyncio.gather(*map(connect, fleet[1:]))
    return loop.time() - started


async def beat_in_turn(fleet: list[FleetConnector], interval: float) -> None:
    """Each beats once in each interval, spread evenly over it."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    for connector in itertools.cycle(fleet):
        due += interval / len(fleet)
        await asyncio.sleep(due - loop.time())
        connector.beat()


async def call_all(fleet: list[FleetConnector], options: argparse.Namespace, tally: Tally) -> float:
    """Call each connector in turn, at the rate wanted; how long that took, in seconds."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with grpc.aio.insecure_channel(options.gateway) as channel:

        async def call(service: str) -> None:
            began = loop.time()
            try:
                answer = await channel.unary_unary(f"/{service}/Say")(PAYLOAD, timeout=CALL_TIMEOUT)
            except grpc.aio.AioRpcError as error:
                tally.errors.append(f"{error.code().name}: {error.details()}")
                return
            if answer != PAYLOAD:
                tally.errors.append("wrong payload")
            tally.latencies.append(loop.time() - began)

        calls = []
        for number in range(round(options.rate * options.seconds)):
            await asyncio.sleep(started + number / options.rate - loop.time())
            service = fleet[number % len(fleet)].service
            calls.append(asyncio.ensure_future(call(service)))
        await asyncio.gather(*calls)
    return loop.time() - started


def emit(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gateway", help="host:port")
    parser.add_argument("--connectors", type=int, default=5000)
    parser.add_argument("--heartbeat-interval", type=float, default=5.0)
    parser.add_argument("--idle", type=float, default=20.0, help="seconds before the calls (20)")
    parser.add_argument("--rate", type=float, default=200.0, help="calls a second (200)")
    parser.add_argument("--seconds", type=float, default=15.0, help="of calls (15)")
    asyncio.run(main(parser.parse_args()))
