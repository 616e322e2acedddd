"""Calls in interleaved rounds, and how what they cost compares."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.gateway.paths import Path, Programs, Site, stand
from benchmarks.measure import Load, PeerFailed, cpu_seconds, event, programs

__all__ = [
    "Calls",
    "Cost",
    "Rounds",
    "by_path",
    "cpu_ratio",
    "measure_calls",
    "of_connector",
    "of_server",
    "p50_ratio",
    "rate_ratio",
    "together",
]


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


Rounds = Sequence[Calls]
Cost = Callable[[Rounds], float]


def measure_calls(
    paths: Sequence[Path], load: Load, rounds: int, started: Programs
) -> Iterator[Calls]:
    """Put each path under the load, once in each of the interleaved rounds.

    All paths stand from the first to the last round, so that the rounds can be short: what else
    the machine does then weighs on every path. Raises :class:`PeerFailed`.
    """
    with programs() as start:
        sites = [stand(path, started, start) for path in paths]
        for _ in range(rounds):
            for site in sites:
                yield _measure(site, load, started.loadgen)


def _measure(site: Site, load: Load, loadgen: Sequence[str]) -> Calls:
    with programs() as start:
        generator = start(*loadgen, *load.flags(), *site.flags())
        event(generator, "window-start")
        before = [cpu_seconds(pid) for pid in site.pids]
        event(generator, "window-end")
        spent = [cpu_seconds(pid) - then for pid, then in zip(site.pids, before)]
        result = event(generator, "result")
    if not result["requests"]:
        raise PeerFailed(f"{site.path.name}: no call was answered; {result['first_error']}")
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


def by_path(calls: Iterable[Calls]) -> dict[str, list[Calls]]:
    """Each path's rounds."""
    paths: dict[str, list[Calls]] = {}
    for each in calls:
        paths.setdefault(each.path, []).append(each)
    return paths


def of_server(rounds: Rounds) -> float:
    """CPU seconds of a call that are the gateway's, or the direct server's, over all rounds."""
    return sum(each.server_cpu_seconds for each in rounds) / _requests(rounds)


def of_connector(rounds: Rounds) -> float:
    """CPU seconds of a call that are the answering connector's, over all rounds."""
    return sum(each.connector_cpu_seconds for each in rounds) / _requests(rounds)


def together(rounds: Rounds) -> float:
    """CPU seconds of a call, the gateway's and the connector's."""
    return of_server(rounds) + of_connector(rounds)


def cpu_ratio(ours: Rounds, theirs: Rounds, cost: Cost = together) -> float:
    """Over all rounds: so short, a single one says little."""
    return cost(ours) / cost(theirs)


def rate_ratio(ours: Rounds, theirs: Rounds) -> float:
    """The median of each round's own ratio of calls per second."""
    return _median_ratio(ours, theirs, lambda each: each.requests_per_second)


def p50_ratio(ours: Rounds, theirs: Rounds) -> float:
    """The median of each round's own ratio of median latencies."""
    return _median_ratio(ours, theirs, lambda each: each.p50)


def _median_ratio(ours: Rounds, theirs: Rounds, value: Callable[[Calls], float]) -> float:
    return statistics.median(value(our) / value(their) for our, their in zip(ours, theirs))


def _requests(rounds: Rounds) -> int:
    return sum(each.requests for each in rounds)
