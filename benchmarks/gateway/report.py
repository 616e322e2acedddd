"""What a run says of the gateway: a table for each section and each fleet, and the bars."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from benchmarks.bars import Verdict
from benchmarks.gateway.bars import Measured
from benchmarks.gateway.fleet import FleetFigures
from benchmarks.gateway.rounds import (
    Rounds,
    by_path,
    cpu_ratio,
    of_connector,
    of_server,
    p50_ratio,
    rate_ratio,
    together,
)
from benchmarks.gateway.sections import Section
from benchmarks.measure import readable
from benchmarks.report import bars, table

__all__ = ["render"]


def render(
    facts: Mapping[str, str],
    measured: Measured,
    missing: Mapping[str, str],
    fleets: Sequence[FleetFigures],
    verdicts: Iterable[Verdict],
) -> str:
    """The report, as Markdown that also reads well in a terminal."""
    lines = [f"- {name}: {fact}" for name, fact in facts.items()]
    for section, calls in measured.items():
        lines += ["", f"## {section.title}: {section.load.title}", ""]
        lines += _calls(section, by_path(calls))
    for path, reason in missing.items():
        lines += ["", f"Not measured: {path}: {reason}."]
    for figures in fleets:
        lines += ["", f"## {figures.fleet.connectors:,} connectors", "", *_fleet(figures)]
    return "\n".join([*lines, *bars(verdicts)]) + "\n"


def _calls(section: Section, paths: Mapping[str, Rounds]) -> list[str]:
    times = f"× {section.against}"
    of_whom = "gateway" if section.cost is of_server else "together"
    head = [
        "path",
        "calls",
        "gateway or server, CPU µs/call",
        "connector, CPU µs/call",
        "together",
        f"{of_whom} {times}",
        "calls/s",
        times,
        "p50 ms",
        times,
        "p99 ms",
    ]
    baseline = paths.get(section.baseline.name)
    rows = []
    for name, rounds in paths.items():
        rows.append(
            [
                name,
                f"{sum(each.requests for each in rounds):,}",
                f"{1e6 * of_server(rounds):,.1f}",
                f"{1e6 * of_connector(rounds):,.1f}",
                f"{1e6 * together(rounds):,.1f}",
                _times(
                    lambda ours, theirs: cpu_ratio(ours, theirs, section.cost), rounds, baseline
                ),
                f"{statistics.median(each.requests_per_second for each in rounds):,.0f}",
                _times(rate_ratio, rounds, baseline),
                f"{1e3 * statistics.median(each.p50 for each in rounds):.2f}",
                _times(p50_ratio, rounds, baseline),
                f"{1e3 * statistics.median(each.p99 for each in rounds):.1f}",
            ]
        )
    return table(head, rows, left=1)


def _times(
    ratio: Callable[[Rounds, Rounds], float], rounds: Rounds, baseline: Rounds | None
) -> str:
    return f"{ratio(rounds, baseline):.2f}" if baseline else "–"


def _fleet(figures: FleetFigures) -> list[str]:
    fleet, back = figures.fleet, figures.back
    rows = [
        ["all registered after", f"{figures.connected:.2f} s"],
        [
            "heartbeats",
            f"one in {fleet.heartbeat_interval:g} s each; {figures.heartbeats:,} in all",
        ],
        ["connectors lost", f"{figures.lost:,}"],
        ["gateway's memory", readable(figures.memory)],
        ["of it, for each connector", readable(round(figures.memory_per_connector))],
        ["the most that it ever held", readable(figures.peak_memory)],
        ["gateway's CPU, heartbeats alone", f"{figures.idle_cpu:.1%} of a core"],
        [f"gateway's CPU, {fleet.rate:g} calls/s as well", f"{figures.cpu:.1%} of a core"],
        ["calls", f"{figures.calls:,} in {figures.seconds:.1f} s, at each connector in turn"],
        ["errors", f"{figures.errors:,} {figures.first_error}".strip()],
        ["latency of a call, p50", f"{1e3 * figures.p50:.1f} ms"],
        ["latency of a call, p99", f"{1e3 * figures.p99:.1f} ms"],
        [
            f"killed and started again, median of {len(figures.returns)}: all are back after",
            f"{back.seconds:.2f} s; the gateway computes {back.gateway_cpu_seconds:.2f} s"
            f" of it, the connectors {back.fleet_cpu_seconds:.2f} s",
        ],
    ]
    return table(["what", "measured"], rows, left=2)
