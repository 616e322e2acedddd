"""What thousands of connectors cost the gateway: at rest, called, and when they all come back."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass

from benchmarks.gateway.paths import Programs
from benchmarks.measure import cpu_seconds, event, line, memory, programs, resident

__all__ = ["Fleet", "FleetFigures", "Return", "measure_fleet", "room_for"]

_SPARE = 200  # descriptors that a process needs besides
_BEATS = 4  # that may be missing before the gateway gives a connector up


@dataclass(frozen=True)
class Fleet:
    """How many connectors, how often they beat, and how they are called. Times are seconds."""

    connectors: int = 5000
    heartbeat_interval: float = 5.0
    idle: float = 20.0
    rate: float = 200.0
    seconds: float = 15.0
    restarts: int = 3

    @property
    def heartbeat_timeout(self) -> float:
        return _BEATS * self.heartbeat_interval

    def flags(self) -> list[str]:
        return [
            f"--connectors={self.connectors}",
            f"--heartbeat-interval={self.heartbeat_interval}",
            f"--idle={self.idle}",
            f"--rate={self.rate}",
            f"--seconds={self.seconds}",
        ]


@dataclass(frozen=True)
class Return:
    """The gateway was killed and started again. ``seconds`` are from when it listens to when the
    last of the fleet has registered; what the processes computed meanwhile is CPU seconds.
    """

    seconds: float
    gateway_cpu_seconds: float
    fleet_cpu_seconds: float


@dataclass(frozen=True)
class FleetFigures:
    """What came of it. ``idle_cpu`` and ``cpu`` are shares of one core, without and with calls.

    ``connected`` is the seconds from when the gateway listens to when the last has registered.
    ``lost`` counts the connectors whose stream ended while it ran. ``memory`` is what the gateway's
    process holds while all of them are at rest, and ``peak_memory`` the most that it ever held
    until then.
    """

    fleet: Fleet
    calls: int
    seconds: float
    p50: float
    p99: float
    heartbeats: int
    lost: int
    errors: int
    first_error: str
    memory: int
    peak_memory: int
    memory_per_connector: float
    connected: float
    returns: tuple[Return, ...]
    idle_cpu: float
    cpu: float

    @property
    def back(self) -> Return:
        """The median one."""
        return sorted(self.returns, key=lambda each: each.seconds)[len(self.returns) // 2]


def measure_fleet(fleet: Fleet, started: Programs) -> FleetFigures:
    """Hold the fleet, call it, and let it come back. Raises :class:`PeerFailed`."""
    own = (
        f"--heartbeat-timeout={fleet.heartbeat_timeout}",
        f"--connectors={max(fleet.connectors, 1)}",
    )
    with programs() as start:
        server = start(*started.ours(*own))
        address = line(server)
        empty = resident(server.pid)
        fleet_of = (sys.executable, "-m", "benchmarks.peers.fleet")
        connectors = start(*fleet_of, *fleet.flags(), address)
        connected = event(connectors, "connected")["seconds"]
        event(connectors, "resting")
        rested, resting = cpu_seconds(server.pid), time.monotonic()
        event(connectors, "window-start")
        called, calling = cpu_seconds(server.pid), time.monotonic()
        held, peak = resident(server.pid), memory(server.pid)
        event(connectors, "window-end")
        ended = cpu_seconds(server.pid)
        result = event(connectors, "result")
        again = started.ours(*own, port=int(address.rpartition(":")[2]))
        returns = []
        for _ in range(fleet.restarts):
            server.kill()
            server.wait()
            server = start(*again)
            line(server)
            before = cpu_seconds(server.pid)
            back = event(connectors, "back")
            computed = cpu_seconds(server.pid) - before
            returns.append(Return(back["seconds"], computed, back["cpu_seconds"]))
    return FleetFigures(
        fleet=fleet,
        calls=result["requests"],
        seconds=result["seconds"],
        p50=result["p50_seconds"],
        p99=result["p99_seconds"],
        heartbeats=result["heartbeats"],
        lost=result["lost"],
        errors=result["errors"],
        first_error=result["first_error"],
        memory=held,
        peak_memory=peak,
        memory_per_connector=(held - empty) / fleet.connectors,
        connected=connected,
        returns=tuple(returns),
        idle_cpu=(called - rested) / (calling - resting),
        cpu=(ended - called) / result["seconds"],
    )


def room_for(connectors: int) -> None:
    """Let this process, and those that it starts, open so many sockets. Raises :class:`OSError`."""
    wanted = connectors + _SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise OSError(
            f"{connectors:,} connectors need {wanted:,} descriptors: ulimit -Hn is {hard:,}"
        )
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
