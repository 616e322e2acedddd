"""What the library has to reach, and whether a run shows it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.cases import BUSY, FLEET, FLOOD, KIB_64, LARGEST, LONE, MANY, MIB, MIB_LONE, PINGED
from benchmarks.measure import Figures, Load
from benchmarks.peers import PEERS
from benchmarks.residents import Residents

__all__ = ["SUBJECT", "Verdict", "judge", "ratio"]

SUBJECT = "revconn"
_LATENESS = 1.0  # seconds
_FLEET_LATENCY = 0.5  # seconds
_FLOOD_BYTES = 2 * (64 << 20)  # twice max_in_flight_bytes: payloads, and what is made of them

_AT_MOST, _AT_LEAST = "≤", "≥"

Value = Callable[[Figures], float]


@dataclass(frozen=True)
class Verdict:
    """A bar, what was measured (empty: nothing), and whether that meets it."""

    bar: str
    measured: str
    met: bool


@dataclass(frozen=True)
class _Bar:
    """``value`` of ``peer`` divided by that of ``baseline``, each under its load."""

    what: str
    value: Value
    peer: str
    baseline: str
    load: Load
    sign: str
    limit: float
    baseline_load: Load | None = None

    def judge(self, figures: Sequence[Figures]) -> Verdict:
        ours = _rounds(figures, self.peer, self.load)
        theirs = _rounds(figures, self.baseline, self.baseline_load or self.load)
        name = f"{self.what}, {self.load.title}: {self.peer} {self.sign} {self.limit:g} × "
        name += self._other
        if not ours or not theirs:
            return Verdict(name, "", False)
        measured = ratio(ours, theirs, self.value)
        met = measured <= self.limit if self.sign == _AT_MOST else measured >= self.limit
        return Verdict(name, f"{measured:.3g}", met)

    @property
    def _other(self) -> str:
        if self.baseline_load is None:
            return self.baseline
        return f"{self.baseline} with {self.baseline_load.title}"


def _cpu(figures: Figures) -> float:
    return figures.cpu_per_request


def _rate(figures: Figures) -> float:
    return figures.requests_per_second


def _latency(figures: Figures) -> float:
    return figures.p50


_CPU, _RATE, _LATENCY = "CPU per request", "requests per second", "median latency"

_BARS = (
    _Bar(_CPU, _cpu, "revconn", "go", MANY, _AT_MOST, 1.4),
    _Bar(_RATE, _rate, "revconn", "go", MANY, _AT_LEAST, 0.6),
    _Bar(_CPU, _cpu, "revconn-inline", "go", MANY, _AT_MOST, 0.8),
    _Bar(_RATE, _rate, "revconn-inline", "go", MANY, _AT_LEAST, 1.0),
    _Bar(_CPU, _cpu, "revconn", "server", MANY, _AT_MOST, 0.13),
    _Bar(_CPU, _cpu, "revconn", "literal", MANY, _AT_MOST, 0.1),
    _Bar(_LATENCY, _latency, "revconn", "bare", LONE, _AT_MOST, 1.15),
    _Bar(_LATENCY, _latency, "revconn-inline", "bare", LONE, _AT_MOST, 0.75),
    _Bar(_LATENCY, _latency, "revconn", "go", PINGED, _AT_MOST, 1.4),
    _Bar(_LATENCY, _latency, "revconn-inline", "go", PINGED, _AT_MOST, 1.0),
    _Bar(_LATENCY, _latency, "revconn-inline", "bare", PINGED, _AT_MOST, 0.55),
    _Bar(_CPU, _cpu, "revconn", "go", KIB_64, _AT_MOST, 1.1),
    _Bar(_RATE, _rate, "revconn", "go", KIB_64, _AT_LEAST, 0.8),
    _Bar(_CPU, _cpu, "revconn-tls", "go-tls", KIB_64, _AT_MOST, 1.3),
    _Bar(_CPU, _cpu, "revconn", "go", MIB, _AT_MOST, 1.3),
    _Bar(_RATE, _rate, "revconn", "go", MIB, _AT_LEAST, 0.75),
    # In step with its size it would take 64 times as long, quadratically 4,096 times. The caches
    # hold the smaller one, and memory of the larger one's size comes fresh from the system.
    _Bar(_CPU, _cpu, "revconn", "revconn", LARGEST, _AT_MOST, 192, baseline_load=MIB_LONE),
)


def judge(figures: Sequence[Figures], residents: Residents | None) -> list[Verdict]:
    """Every bar, met or not; one that was not measured is not met."""
    verdicts = [bar.judge(figures) for bar in _BARS]
    verdicts.append(_judge_fleet(_rounds(figures, "revconn-fleet", FLEET)))
    verdicts.append(_judge_busy(_rounds(figures, "revconn-busy", BUSY)))
    verdicts.append(_judge_flood(_rounds(figures, "revconn-slow", FLOOD), residents))
    return verdicts + list(_judge_all(figures))


def ratio(ours: Sequence[Figures], theirs: Sequence[Figures], value: Value) -> float:
    """The median of each round's own ratio: whatever else the machine did weighs on both."""
    return statistics.median(value(our) / value(their) for our, their in zip(ours, theirs))


def _judge_fleet(rounds: Sequence[Figures]) -> Verdict:
    connectors = PEERS["revconn-fleet"].connections
    name = f"99th percentile of the latency, {connectors} connectors in a process, each with"
    name += f" {FLEET.title}: {_AT_MOST} {_FLEET_LATENCY:g} s"
    if not rounds:
        return Verdict(name, "", False)
    latency = statistics.median(each.p99 for each in rounds)
    return Verdict(name, f"{latency:.2f} s", latency <= _FLEET_LATENCY)


def _judge_busy(rounds: Sequence[Figures]) -> Verdict:
    name = f"{BUSY.in_flight} handlers that compute: no heartbeat {_LATENESS:g} s late"
    if not rounds:
        return Verdict(name, "", False)
    late = max(each.heartbeat_lateness for each in rounds)
    seconds = max(each.load.seconds for each in rounds)
    return Verdict(name, f"{1e3 * late:.0f} ms in {seconds:g} s", late < _LATENESS)


def _judge_flood(rounds: Sequence[Figures], residents: Residents | None) -> Verdict:
    name = (
        f"memory under a flood of {FLOOD.title} and handlers of 0.05 s: ≤ {_FLOOD_BYTES >> 20} MiB"
        " more than an idle process"
    )
    if not rounds or residents is None:
        return Verdict(name, "", False)
    more = max(each.peak_memory for each in rounds) - residents.process
    seconds = max(each.load.seconds for each in rounds)
    return Verdict(name, f"{more >> 20} MiB in {seconds:g} s", more <= _FLOOD_BYTES)


def _judge_all(figures: Iterable[Figures]) -> Iterable[Verdict]:
    """What holds for the library in every case: right answers and heartbeats in time."""
    ours = [each for each in figures if each.peer.startswith(SUBJECT)]
    late = [each for each in ours if each.heartbeat_lateness >= _LATENESS]
    wrong = [each for each in ours if each.errors]
    worst = max((each.heartbeat_lateness for each in ours), default=0.0)
    measured = f"{1e3 * worst:.0f} ms" if ours else ""
    where = "".join(f"; {each.peer}, {each.load.title}" for each in late)
    bar = f"the latest heartbeat of all revconn peers: < {_LATENESS:g} s"
    yield Verdict(bar, measured + where, bool(ours) and not late)
    where = "; ".join(
        f"{each.peer}, {each.load.title}: {each.errors}: {each.first_error}" for each in wrong
    )
    yield Verdict(
        "wrong or missing answers of all revconn peers: none",
        where or ("0" if ours else ""),
        bool(ours) and not wrong,
    )


def _rounds(figures: Iterable[Figures], peer: str, load: Load) -> list[Figures]:
    return [each for each in figures if each.peer == peer and each.load.title == load.title]
