"""What a call through the gateway costs, and one of a grpc.aio server that is called directly."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Callable

from benchmarks.measure import Load, PeerFailed, cpu_seconds, event, line, programs
from benchmarks.peers import connector, gateway

__all__ = [
    "DIRECT",
    "JUDGED",
    "PATHS",
    "Calls",
    "Path",
    "by_path",
    "cpu_per_call",
    "measure_calls",
    "ratios",
    "stats",
]

_CONNECT_TIMEOUT = 10.0


@dataclass(frozen=True)
class Path:
    """The way of a call: through the gateway to a ``connector``, or directly to a server."""

    name: str
    connector: tuple[str, ...] = ()


DIRECT = Path("grpc.aio server, called directly")
JUDGED = (
    Path("http2, handler pool", connector()),
    Path("http2, inline handler", connector("--inline")),
)
PATHS = (
    DIRECT,
    *JUDGED,
    Path("grpcio, handler pool", connector("--transport=grpcio")),
    Path("grpcio, inline handler", connector("--transport=grpcio", "--inline")),
)


@dataclass(frozen=True)
class Calls:
    """One round on one path. ``server_cpu_seconds`` is the gateway's, or the direct server's."""

    path: str
    requests: int
    requests_per_second: float
    p50: float
    p99: float
    errors: int
    first_error: str
    server_cpu_seconds: float
    connector_cpu_seconds: float


@dataclass(frozen=True)
class _Site:
    """A path that can be called, and the processes whose CPU time counts; the server's first."""

    path: Path
    address: str
    pids: tuple[int, ...]


def measure_calls(
    paths: Sequence[Path], load: Load, requests: int, rounds: int, loadgen: Sequence[str]
) -> Iterator[Calls]:
    """Make ``requests`` calls on each path, in interleaved ``rounds``; none takes longer than
    ``load.seconds``.

    All paths stand from the first to the last round, so that the rounds can be short: what else
    the machine does then weighs on every path. Raises :class:`PeerFailed`.
    """
    with programs() as start:
        sites = [_stand(path, start) for path in paths]
        for _ in range(rounds):
            for site in sites:
                yield _measure(site, load, requests // rounds, loadgen)


def _stand(path: Path, start: Callable[..., subprocess.Popen[str]]) -> _Site:
    if not path.connector:
        server = start(sys.executable, "-m", "benchmarks.peers.aio")
        return _Site(path, line(server), (server.pid,))
    server = start(*gateway())
    address = line(server)
    connected = start(*path.connector, address)
    _await_connector(server)
    return _Site(path, address, (server.pid, connected.pid))


def _measure(site: _Site, load: Load, requests: int, loadgen: Sequence[str]) -> Calls:
    with programs() as start:
        flags = [*load.flags(), f"--requests={requests}", f"--connect={site.address}"]
        generator = start(*loadgen, *flags)
        event(generator, "window-start")
        before = [cpu_seconds(pid) for pid in site.pids]
        event(generator, "window-end")
        spent = [cpu_seconds(pid) - then for pid, then in zip(site.pids, before)]
        result = event(generator, "result")
    if not result["requests"]:
        raise PeerFailed(f"no call was answered in the window; {result['first_error']}")
    return Calls(
        path=site.path.name,
        requests=result["requests"],
        requests_per_second=result["requests_per_second"],
        p50=result["p50_seconds"],
        p99=result["p99_seconds"],
        errors=result["errors"],
        first_error=result["first_error"],
        server_cpu_seconds=spent[0],
        connector_cpu_seconds=sum(spent[1:]),
    )


def by_path(rounds: Iterable[Calls]) -> dict[str, list[Calls]]:
    """Each path's rounds."""
    paths: dict[str, list[Calls]] = {}
    for each in rounds:
        paths.setdefault(each.path, []).append(each)
    return paths


def cpu_per_call(rounds: Sequence[Calls]) -> tuple[float, float]:
    """Seconds of the gateway's (or the direct server's) and of the connector's, over all rounds."""
    requests = sum(each.requests for each in rounds)
    server = sum(each.server_cpu_seconds for each in rounds)
    return server / requests, sum(each.connector_cpu_seconds for each in rounds) / requests


def ratios(rounds: Iterable[Calls]) -> dict[str, float]:
    """The CPU time of a call on each path, as a multiple of the direct one's."""
    costs = {path: sum(cpu_per_call(of_path)) for path, of_path in by_path(rounds).items()}
    return {path: cost / costs[DIRECT.name] for path, cost in costs.items()}


def stats(server: subprocess.Popen[str]) -> dict[str, Any]:
    """The counters of a gateway that was started as a program."""
    assert server.stdin is not None
    server.stdin.write("\n")
    server.stdin.flush()
    counters: dict[str, Any] = json.loads(line(server))
    return counters


def _await_connector(server: subprocess.Popen[str]) -> None:
    give_up = time.monotonic() + _CONNECT_TIMEOUT
    while not stats(server)["connections"]:
        if time.monotonic() > give_up:
            raise EOFError(f"the connector did not register within {_CONNECT_TIMEOUT:g} s")
        time.sleep(0.02)
