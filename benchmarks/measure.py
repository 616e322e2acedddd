"""One measurement: a peer, a load generator, and a window of time over which CPU is counted."""

from __future__ import annotations

import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

from benchmarks.peers import Peer

__all__ = ["HEARTBEAT_INTERVAL", "Figures", "Load", "PeerFailed", "measure"]

HEARTBEAT_INTERVAL = 1.0  # what every reverse peer is written to do
_ROOT = pathlib.Path(__file__).resolve().parent.parent


class PeerFailed(Exception):
    """The peer could not be measured; the message is what it and the load generator said."""


@dataclass(frozen=True)
class Load:
    """What is asked of a peer. Times are seconds, ``payload`` is bytes per request."""

    in_flight: int
    payload: int = 64
    seconds: float = 3.0
    warmup: float = 0.5

    def flags(self) -> list[str]:
        return [
            f"--in-flight={self.in_flight}",
            f"--payload={self.payload}",
            f"--seconds={self.seconds}",
            f"--warmup={self.warmup}",
            f"--heartbeat-interval={HEARTBEAT_INTERVAL}",
        ]


@dataclass(frozen=True)
class Figures:
    """What one measurement gave. Times are seconds."""

    peer: str
    in_flight: int
    requests: int
    requests_per_second: float
    p50: float
    p99: float
    errors: int
    first_error: str
    cpu_seconds: float
    loadgen_cpu_seconds: float
    heartbeats: int
    heartbeat_lateness: float

    @property
    def cpu_per_request(self) -> float:
        return self.cpu_seconds / self.requests

    @property
    def requests_per_cpu_second(self) -> float:
        return self.requests / self.cpu_seconds

    @property
    def loadgen_cpu_per_request(self) -> float:
        return self.loadgen_cpu_seconds / self.requests


def measure(peer: Peer, load: Load, loadgen: Sequence[str]) -> Figures:
    """Run ``peer`` under ``load`` once. Raises :class:`PeerFailed`."""
    with tempfile.TemporaryFile("w+") as stderr, contextlib.ExitStack() as processes:

        def start(*command: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                command, cwd=_ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True
            )
            processes.callback(_end, process)
            return process

        try:
            if peer.listens:
                served = start(*peer.command)
                address = _line(served)
                generator = start(*loadgen, *load.flags(), f"--connect={address}")
            else:
                generator = start(*loadgen, *load.flags())
                address = _event(generator, "listening")["address"]
                served = start(*peer.command, address)
            _event(generator, "window-start")
            cpu_before = _cpu_seconds(served.pid)
            _event(generator, "window-end")
            cpu_seconds = _cpu_seconds(served.pid) - cpu_before
            result = _event(generator, "result")
        except (EOFError, OSError) as error:
            stderr.seek(0)
            raise PeerFailed(stderr.read().strip() or str(error)) from error
    if not result["requests"]:
        raise PeerFailed(f"no request was answered in the window; {result['first_error']}")
    return Figures(
        peer=peer.name,
        in_flight=load.in_flight,
        requests=result["requests"],
        requests_per_second=result["requests_per_second"],
        p50=result["p50_seconds"],
        p99=result["p99_seconds"],
        errors=result["errors"],
        first_error=result["first_error"],
        cpu_seconds=cpu_seconds,
        loadgen_cpu_seconds=result["cpu_seconds"],
        heartbeats=result["heartbeats"],
        heartbeat_lateness=result["heartbeat_lateness_seconds"],
    )


def _event(process: subprocess.Popen[str], name: str) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(_line(process))
    if event["event"] != name:
        raise EOFError(f"the load generator said {event}, not {name}")
    return event


def _line(process: subprocess.Popen[str]) -> str:
    output: IO[str] | None = process.stdout
    assert output is not None
    line = output.readline()
    if not line:
        raise EOFError(f"{process.args!r} ended early")
    return line.strip()


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def _cpu_seconds(pid: int) -> float:
    """User and system time of a running process: from its CPU clock, elsewhere from ps."""
    if sys.platform == "linux":
        return time.clock_gettime(~pid << 3 | 2)  # what clock_getcpuclockid(3) returns
    ps = ["ps", "-o", "time=", "-p", str(pid)]
    clock = subprocess.run(ps, capture_output=True, text=True, check=True).stdout
    minutes, _, seconds = clock.strip().rpartition(":")
    return 60 * int(minutes) + float(seconds)
