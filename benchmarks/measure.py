"""One measurement: a peer, a load generator, and a window of time over which CPU is counted."""

from __future__ import annotations

import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Callable

from benchmarks.peers import Peer

__all__ = [
    "HEARTBEAT_INTERVAL",
    "Figures",
    "Load",
    "PeerFailed",
    "cpu_seconds",
    "event",
    "line",
    "measure",
    "memory",
    "programs",
    "readable",
    "resident",
    "running",
]

HEARTBEAT_INTERVAL = 1.0  # what every reverse peer is written to do
_ROOT = pathlib.Path(__file__).resolve().parent.parent


class PeerFailed(Exception):
    """The peer could not be measured; the message is what it and the load generator said."""


@dataclass(frozen=True)
class Load:
    """What is asked of a peer. Times are seconds, ``payload`` is bytes per request.

    With ``dynamic_windows`` the gateway estimates the bandwidth to adapt its windows to it, as
    grpc-go and grpc-java do by default: PING and WINDOW_UPDATE follow every lone answer.
    """

    in_flight: int
    payload: int = 64
    seconds: float = 2.5
    warmup: float = 0.5
    dynamic_windows: bool = False

    @property
    def title(self) -> str:
        """Such as "64 in flight, 64 KiB"; two loads of one title are compared."""
        title = f"{self.in_flight} in flight, {readable(self.payload)}"
        return f"{title}, a gateway that pings" if self.dynamic_windows else title

    def flags(self) -> list[str]:
        return [
            f"--in-flight={self.in_flight}",
            f"--payload={self.payload}",
            f"--seconds={self.seconds}",
            f"--warmup={self.warmup}",
            f"--heartbeat-interval={HEARTBEAT_INTERVAL}",
            *(["--dynamic-windows"] if self.dynamic_windows else []),
        ]


@dataclass(frozen=True)
class Figures:
    """What one measurement gave. Times are seconds."""

    peer: str
    load: Load
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
    peak_memory: int

    @property
    def cpu_per_request(self) -> float:
        return self.cpu_seconds / self.requests

    @property
    def loadgen_cpu_per_request(self) -> float:
        return self.loadgen_cpu_seconds / self.requests


def measure(peer: Peer, load: Load, loadgen: Sequence[str]) -> Figures:
    """Run ``peer`` under ``load`` once. Raises :class:`PeerFailed`."""
    with running(peer, load, loadgen) as (served, generator):
        cpu_before = cpu_seconds(served.pid)
        event(generator, "window-end")
        cpu = cpu_seconds(served.pid) - cpu_before
        peak_memory = memory(served.pid)
        result = event(generator, "result")
    if not result["requests"]:
        raise PeerFailed(f"no request was answered in the window; {result['first_error']}")
    return Figures(
        peer=peer.name,
        load=load,
        requests=result["requests"],
        requests_per_second=result["requests_per_second"],
        p50=result["p50_seconds"],
        p99=result["p99_seconds"],
        errors=result["errors"],
        first_error=result["first_error"],
        cpu_seconds=cpu,
        loadgen_cpu_seconds=result["cpu_seconds"],
        heartbeats=result["heartbeats"],
        heartbeat_lateness=result["heartbeat_lateness_seconds"],
        peak_memory=peak_memory,
    )


@contextlib.contextmanager
def running(
    peer: Peer, load: Load, loadgen: Sequence[str]
) -> Iterator[tuple[subprocess.Popen[str], subprocess.Popen[str]]]:
    """The peer and the load generator, at the start of the measured window."""
    with programs() as start, tempfile.TemporaryDirectory() as directory:
        certificate = f"{directory}/certificate.pem"
        generate = [*loadgen, *load.flags()]
        command = [*peer.command]
        if peer.connections > 1:
            generate.append(f"--connections={peer.connections}")
        if peer.tls:
            generate.append(f"--certificate={certificate}")
            command.append(f"--ca={certificate}")
        if peer.listens:
            served = start(*command)
            generator = start(*generate, f"--connect={line(served)}")
        else:
            generator = start(*generate)
            served = start(*command, event(generator, "listening")["address"])
        event(generator, "window-start")
        yield served, generator


@contextlib.contextmanager
def programs() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """What starts a program, by its command. All of them end with the block.

    Raises :class:`PeerFailed`, with what they wrote to stderr, when one ended too early.
    """
    with contextlib.ExitStack() as stack:
        stderr = stack.enter_context(tempfile.TemporaryFile("w+"))

        def start(*command: str) -> subprocess.Popen[str]:
            pipe = subprocess.PIPE
            process = subprocess.Popen(
                command, cwd=_ROOT, stdin=pipe, stdout=pipe, stderr=stderr, text=True
            )
            stack.callback(_end, process)
            return process

        try:
            yield start
        except (EOFError, OSError) as error:
            stderr.seek(0)
            raise PeerFailed(stderr.read().strip() or str(error)) from error


def memory(pid: int) -> int:
    """The most bytes of memory that a process held so far; elsewhere than on Linux: holds now.

    Raises :class:`OSError` when it has ended.
    """
    return _memory(pid, "VmHWM")


def resident(pid: int) -> int:
    """The bytes of memory that a process holds now. Raises :class:`OSError` when it has ended."""
    return _memory(pid, "VmRSS")


def _memory(pid: int, field: str) -> int:
    if sys.platform == "linux":
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        found = [line.split()[1] for line in status.splitlines() if line.startswith(field)]
        if not found:  # nobody has waited for it yet
            raise ProcessLookupError(f"process {pid} has ended")
        (size,) = found
    else:
        ps = ["ps", "-o", "rss=", "-p", str(pid)]
        size = subprocess.run(ps, capture_output=True, text=True, check=True).stdout
    return int(size) << 10


def readable(size: int) -> str:
    """Bytes for people: ``64 B``, ``64 KiB``, ``1 MiB``."""
    for power, unit in ((20, "MiB"), (10, "KiB")):
        if size >> power:
            return f"{size / (1 << power):.4g} {unit}"
    return f"{size} B"


def event(process: subprocess.Popen[str], name: str) -> dict[str, Any]:
    """Wait for the event of that name, which is to be the next; what it says."""
    said: dict[str, Any] = json.loads(line(process))
    if said["event"] != name:
        raise EOFError(f"the load generator said {said}, not {name}")
    return said


def line(process: subprocess.Popen[str]) -> str:
    """The next line of a program's output."""
    output: IO[str] | None = process.stdout
    assert output is not None
    text = output.readline()
    if not text:
        raise EOFError(f"{process.args!r} ended early")
    return text.strip()


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    with process:  # not until its output ends: a process that it left behind may hold that
        pass


def cpu_seconds(pid: int) -> float:
    """User and system time of a running process: from its CPU clock, elsewhere from ps."""
    if sys.platform == "linux":
        return time.clock_gettime(~pid << 3 | 2)  # what clock_getcpuclockid(3) returns
    ps = ["ps", "-o", "time=", "-p", str(pid)]
    clock = subprocess.run(ps, capture_output=True, text=True, check=True).stdout
    minutes, _, seconds = clock.strip().rpartition(":")
    return 60 * int(minutes) + float(seconds)
