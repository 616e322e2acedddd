"""What a run says of the gateway: a table of calls, one of the fleet, and the bars."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from benchmarks.bars import Verdict
from benchmarks.gateway.calls import DIRECT, JUDGED, Calls, by_path, cpu_per_call, ratios
from benchmarks.gateway.fleet import HEARTBEAT_TIMEOUT, FleetFigures
from benchmarks.measure import readable
from benchmarks.report import bars, table

__all__ = ["judge", "render"]

_LIMIT = 2.5  # times the CPU time of a direct call


def render(
    facts: Mapping[str, str],
    calls: Sequence[Calls],
    fleet: FleetFigures | None,
    verdicts: Sequence[Verdict],
) -> str:
    """The report, as Markdown that also reads well in a terminal."""
    lines = [f"- {name}: {fact}" for name, fact in facts.items()]
    if calls:
        lines += ["", "## Calls", "", *_calls(calls)]
    if fleet is not None:
        held = f"{fleet.fleet.connectors:,} connectors"
        lines += ["", f"## {held}", "", *_fleet(fleet)]
    return "\n".join([*lines, *bars(verdicts)]) + "\n"


def judge(calls: Sequence[Calls], fleet: FleetFigures | None) -> list[Verdict]:
    """Every bar of what was measured."""
    verdicts = []
    if calls:
        measured = ratios(calls)
        for path in JUDGED:
            bar = f"CPU per call, gateway and connector, {path.name}: ≤ {_LIMIT:g} × {DIRECT.name}"
            verdicts.append(
                Verdict(bar, f"{measured[path.name]:.3g}", measured[path.name] <= _LIMIT)
            )
        errors = sum(each.errors for each in calls)
        first = next((each.first_error for each in calls if each.errors), "")
        verdicts.append(Verdict("failed calls: none", f"{errors:,} {first}".strip(), not errors))
    if fleet is not None:
        verdicts += _judge_fleet(fleet)
    return verdicts


def _judge_fleet(figures: FleetFigures) -> list[Verdict]:
    fleet, stats = figures.fleet, figures.stats
    wanted = round(fleet.rate * fleet.seconds)
    name = f"{fleet.connectors:,} connectors"
    expired, left = stats["connections_expired"], stats["connections"]
    answered = f"{figures.calls:,} of {wanted:,}; {figures.errors:,} errors {figures.first_error}"
    return [
        Verdict(f"{name}: none expires", f"{expired:,}", not expired),
        Verdict(f"{name}: all stay connected", f"{left:,}", left == fleet.connectors),
        Verdict(
            f"{name}: every call is answered, nothing fails",
            answered.strip(),
            figures.calls == wanted and not figures.errors,
        ),
    ]


def _calls(rounds: Sequence[Calls]) -> list[str]:
    times = ratios(rounds)
    head = [
        "path",
        "calls",
        "server or gateway, CPU µs/call",
        "connector, CPU µs/call",
        "together",
        "× direct",
        "calls/s",
        "p50 ms",
        "p99 ms",
    ]
    rows = []
    for name, of_path in by_path(rounds).items():
        server, connector = cpu_per_call(of_path)
        rows.append(
            [
                name,
                f"{sum(each.requests for each in of_path):,}",
                f"{1e6 * server:,.0f}",
                f"{1e6 * connector:,.0f}",
                f"{1e6 * (server + connector):,.0f}",
                f"{times[name]:.2f}",
                f"{_median(of_path, lambda each: each.requests_per_second):,.0f}",
                f"{1e3 * _median(of_path, lambda each: each.p50):.1f}",
                f"{1e3 * _median(of_path, lambda each: each.p99):.1f}",
            ]
        )
    return table(head, rows, left=1)


def _median(rounds: Sequence[Calls], value: Callable[[Calls], float]) -> float:
    return statistics.median(map(value, rounds))


def _fleet(figures: FleetFigures) -> list[str]:
    fleet, stats = figures.fleet, figures.stats
    rows = [
        [
            "heartbeats",
            f"one in {fleet.heartbeat_interval:g} s each; {figures.heartbeats:,} in all",
        ],
        ["connections expired", f"{stats['connections_expired']:,} ({HEARTBEAT_TIMEOUT:g} s)"],
        ["calls", f"{figures.calls:,} in {figures.seconds:.1f} s, at each connector in turn"],
        ["errors", f"{figures.errors:,} {figures.first_error}".strip()],
        ["latency of a call, p50", f"{1e3 * figures.p50:.1f} ms"],
        ["latency of a call, p99", f"{1e3 * figures.p99:.1f} ms"],
        ["gateway's CPU, heartbeats alone", f"{figures.idle_cpu:.0%} of a core"],
        [f"gateway's CPU, {fleet.rate:g} calls/s as well", f"{figures.cpu:.0%} of a core"],
        ["gateway's memory", readable(figures.memory)],
        ["of it, for each idle connection", readable(round(figures.memory_per_connection))],
    ]
    return table(["what", "measured"], rows, left=2)
