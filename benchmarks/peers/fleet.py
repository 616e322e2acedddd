"""Many connectors in one process, each on a socket of its own, and a caller of all of them.

They register, beat, wait a while, and then answer calls that are made at a steady rate and reach
them in turn. What they are made of is grpc.aio and nothing of this library but the messages, so
that a thousand of them fit into a process.

It prints a JSON object per line: the events "connected", "window-start" (the calls begin),
"window-end", and at last "result".
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

import grpc
import grpc.aio

from revconn._proto.registry_pb2 import (
    ConnectionMessage,
    ConnectionRegister,
    ForwardResponse,
    Heartbeat,
)

ESTABLISH = "/registry.RegistryService/EstablishConnection"
CONNECTING = 50  # handshakes under way at once
CALL_TIMEOUT = 10.0
PAYLOAD = b"\x0a" + b"x" * 63
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


class Tally:
    """What was seen."""

    def __init__(self) -> None:
        self.heartbeats = 0
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
            "errors": len(self.errors),
            "first_error": self.errors[0] if self.errors else "",
        }


class FleetConnector:
    """One stream on one socket."""

    def __init__(self, address: str, number: int, tally: Tally) -> None:
        self.service = f"fleet.Echo{number}"
        self._tally = tally
        self._channel = grpc.aio.insecure_channel(address, options=OWN_CONNECTION)
        establish = self._channel.stream_stream(
            ESTABLISH,
            request_serializer=ConnectionMessage.SerializeToString,
            response_deserializer=ConnectionMessage.FromString,
        )
        self._stream = establish()
        self._writing = asyncio.Lock()  # grpc takes one message at a time
        self._id = ""

    async def connect(self) -> None:
        register = ConnectionRegister(api_key="benchmark", services=[self.service])
        await self._write(register=register)
        self._id = (await self._stream.read()).status.connection_id

    async def beat(self, interval: float, delay: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + delay
        while True:
            await asyncio.sleep(due - loop.time())
            await self._write(
                heartbeat=Heartbeat(timestamp=int(time.time()), connection_id=self._id)
            )
            self._tally.heartbeats += 1
            due += interval

    async def answer(self) -> None:
        """Answer until the stream ends, which it is not supposed to do."""
        while (message := await self._stream.read()) is not grpc.aio.EOF:
            request = message.request
            await self._write(
                response=ForwardResponse(
                    request_id=request.request_id, status_code=200, payload=request.payload
                )
            )
        self._tally.errors.append(f"a stream ended: {await self._stream.details()}")

    async def _write(self, **kind: Any) -> None:
        async with self._writing:
            await self._stream.write(ConnectionMessage(**kind))


async def main(options: argparse.Namespace) -> None:
    tally = Tally()
    fleet = [FleetConnector(options.gateway, n, tally) for n in range(options.connectors)]
    room = asyncio.Semaphore(CONNECTING)

    async def connect(connector: FleetConnector) -> None:
        async with room:
            await connector.connect()

    await asyncio.gather(*map(connect, fleet))
    interval = options.heartbeat_interval
    work = [
        asyncio.ensure_future(connector.beat(interval, interval * number / len(fleet)))
        for number, connector in enumerate(fleet)
    ]
    work += [asyncio.ensure_future(connector.answer()) for connector in fleet]
    emit({"event": "connected"})
    await asyncio.sleep(options.idle)
    emit({"event": "window-start"})
    seconds = await call_all(fleet, options, tally)
    emit({"event": "window-end"})
    for task in work:
        if task.done() and task.exception() is not None:
            tally.errors.append(repr(task.exception()))
    emit(tally.result(seconds))
    await asyncio.Event().wait()  # until it is killed, so that all of them stay connected


async def call_all(fleet: list[FleetConnector], options: argparse.Namespace, tally: Tally) -> float:
    """Call each connector in turn, at the rate wanted; how long that took, in seconds."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with grpc.aio.insecure_channel(options.gateway, options=OWN_CONNECTION) as channel:

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
    parser.add_argument("--connectors", type=int, default=1000)
    parser.add_argument("--heartbeat-interval", type=float, default=1.0)
    parser.add_argument("--idle", type=float, default=10.0, help="seconds before the calls (10)")
    parser.add_argument("--rate", type=float, default=200.0, help="calls a second (200)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of calls (60)")
    asyncio.run(main(parser.parse_args()))
