"""What a thousand connectors cost the gateway, at rest and called."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from benchmarks.gateway.calls import stats
from benchmarks.measure import cpu_seconds, event, line, memory, programs
from benchmarks.peers import gateway

__all__ = ["Fleet", "FleetFigures", "measure_fleet"]

HEARTBEAT_TIMEOUT = 5.0  # seconds; five times the interval


@dataclass(frozen=True)
class Fleet:
    """How many connectors, how often they beat, and how they are called. Times are seconds."""

    connectors: int = 1000
    heartbeat_interval: float = 1.0
    idle: float = 10.0
    rate: float = 200.0
    seconds: float = 60.0

    def flags(self) -> list[str]:
        return [
            f"--connectors={self.connectors}",
            f"--heartbeat-interval={self.heartbeat_interval}",
            f"--idle={self.idle}",
            f"--rate={self.rate}",
            f"--seconds={self.seconds}",
        ]


@dataclass(frozen=True)
class FleetFigures:
    """What came of it. ``idle_cpu`` and ``cpu`` are shares of one core, without and with calls.

    ``stats`` are the gateway's counters at the end, while all are still connected.
    """

    fleet: Fleet
    calls: int
    seconds: float
    p50: float
    p99: float
    heartbeats: int
    errors: int
    first_error: str
    memory: int
    memory_per_connection: float
    idle_cpu: float
    cpu: float
    stats: dict[str, Any]


def measure_fleet(fleet: Fleet) -> FleetFigures:
    """Hold the fleet and call it. Raises :class:`PeerFailed`."""
    with programs() as start:
        server = start(*gateway(f"--heartbeat-timeout={HEARTBEAT_TIMEOUT}"))
        address = line(server)
        empty = memory(server.pid)
        connectors = start(sys.executable, "-m", "benchmarks.peers.fleet", *fleet.flags(), address)
        event(connectors, "connected")
        connected = cpu_seconds(server.pid)
        event(connectors, "window-start")
        called = cpu_seconds(server.pid)
        held = memory(server.pid)
        event(connectors, "window-end")
        ended = cpu_seconds(server.pid)
        result = event(connectors, "result")
        counters = stats(server)
    return FleetFigures(
        fleet=fleet,
        calls=result["requests"],
        seconds=result["seconds"],
        p50=result["p50_seconds"],
        p99=result["p99_seconds"],
        heartbeats=result["heartbeats"],
        errors=result["errors"],
        first_error=result["first_error"],
        memory=held,
        memory_per_connection=(held - empty) / fleet.connectors,
        idle_cpu=(called - connected) / fleet.idle,
        cpu=(ended - called) / result["seconds"],
        stats=counters,
    )
