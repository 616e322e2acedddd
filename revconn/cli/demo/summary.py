"""What the demo has shown, at a glance."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from revconn.cli.demo.screen import Screen

__all__ = ["Tally", "milliseconds", "percentile", "percentiles", "show_summary"]

_PICTURE = """\
    caller            gateway               connector           handler
┌────────────┐     ┌────────────┐         ┌────────────┐     ┌───────────┐
│ gRPC stub  │     │ port {port:<5} │◀──dials─│ opens      │     │           │
│            │ ──▶ │            │         │ no port    │ ──▶ │  hello()  │
│ pid {own:<7}│     │ pid {gateway:<7}│─calls──▶│ pid {connector:<7}│     │           │
└────────────┘     └────────────┘         └────────────┘     └───────────┘"""


@dataclass
class Tally:
    """What was counted and measured; times in seconds."""

    latencies: list[float] = field(default_factory=list)
    errors: int = 0
    heartbeats: int = 0
    failed_in_outage: int = 0
    time_to_return: float | None = None
    duration: float = 0.0


def show_summary(
    screen: Screen, tally: Tally, address: str, gateway_pid: int, connector_pid: int
) -> None:
    """The path of a call, and the figures."""
    screen.title("What you saw")
    picture = _PICTURE.format(
        port=address.rpartition(":")[2],
        own=os.getpid(),
        gateway=gateway_pid,
        connector=connector_pid,
    )
    for line in picture.splitlines():
        screen.say(line)
    screen.say("")
    made = len(tally.latencies)
    figures = [
        ("calls", f"{made:,} made, {made:,} answered; {percentiles(tally.latencies)}"),
        ("errors", f"{tally.errors} provoked, {tally.errors} returned with their exact status"),
        ("heartbeats", f"{tally.heartbeats} reached the gateway"),
    ]
    if tally.time_to_return is not None:
        outage = (
            f"answered again {tally.time_to_return:.2f} s after the kill;"
            f" {tally.failed_in_outage} calls failed"
        )
        figures.append(("outage", outage))
    for name, value in figures:
        screen.say(f"{screen.style(f'{name:<12}', 'dim')} {value}")
    screen.say("")
    screen.success(f"all of it worked, in {tally.duration:.1f} s")


def milliseconds(seconds: float) -> str:
    """A duration for people."""
    return f"{seconds * 1000:.2f} ms"


def percentiles(latencies: Sequence[float]) -> str:
    """The median and the 99th percentile, for people."""
    median, highest = percentile(latencies, 50), percentile(latencies, 99)
    return f"p50 {milliseconds(median)}, p99 {milliseconds(highest)}"


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that ``percent`` per cent of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]
