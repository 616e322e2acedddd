"""What the gateway has to reach, and whether a run shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.bars import Verdict
from benchmarks.gateway.fleet import FleetFigures
from benchmarks.gateway.paths import Path
from benchmarks.gateway.rounds import (
    Calls,
    Rounds,
    by_path,
    cpu_ratio,
    of_server,
    p50_ratio,
    rate_ratio,
)
from benchmarks.gateway.sections import (
    BETWEEN,
    CALLS,
    DIRECT,
    INLINE,
    KIB_64,
    LONE,
    MIB,
    POOL,
    POOL_TLS,
    THIN_TO_GUIDE,
    TO_GUIDE,
    Section,
)
from benchmarks.measure import readable

__all__ = ["Measured", "judge"]

Measured = Mapping[Section, Sequence[Calls]]

# What a gateway that was a grpc.aio server reached between connectors, as a multiple of the direct
# calls' rate of the same run: README.md says how that was measured.
_GRPC_AIO_BETWEEN = 0.9
_TIMES_FASTER = 8

_JUDGED_FLEET = 5000  # connectors; of a larger one only that none is lost
_PER_CONNECTOR = 10 << 10
_BACK = 3.0  # seconds
_IDLE_CPU = 0.05  # of a core

_AT_MOST, _AT_LEAST, _BELOW = "≤", "≥", "<"


def _gateway_cpu_ratio(ours: Rounds, theirs: Rounds) -> float:
    return cpu_ratio(ours, theirs, of_server)


@dataclass(frozen=True)
class _Bar:
    """``ratio`` of ``path`` and ``baseline``, both measured in ``section``."""

    what: str
    section: Section
    path: Path
    ratio: Callable[[Rounds, Rounds], float]
    sign: str
    limit: float
    baseline: Path = DIRECT

    def judge(self, measured: Measured) -> Verdict:
        limit = f"{self.sign} {self.limit:g} × {self.baseline.name}"
        name = f"{self.what}, {self.section.load.title}, {self.path.name}: {limit}"
        rounds = by_path(measured[self.section])
        ours, theirs = rounds.get(self.path.name), rounds.get(self.baseline.name)
        if not ours or not theirs:
            return Verdict(name, "", False)
        ratio = self.ratio(ours, theirs)
        return Verdict(name, f"{ratio:.3g}", self._met(ratio))

    def _met(self, ratio: float) -> bool:
        if self.sign == _AT_LEAST:
            return ratio >= self.limit
        return ratio < self.limit if self.sign == _BELOW else ratio <= self.limit


_CPU, _GATEWAY_CPU = "CPU per call, gateway and connector", "CPU per call, gateway"
_RATE, _LATENCY = "calls per second", "median latency"

_BARS = (
    *(_Bar(_CPU, CALLS, path, cpu_ratio, _AT_MOST, 0.25) for path in (POOL, INLINE)),
    *(_Bar(_RATE, CALLS, path, rate_ratio, _AT_LEAST, 4) for path in (POOL, INLINE)),
    *(_Bar(_LATENCY, LONE, path, p50_ratio, _BELOW, 1) for path in (POOL, INLINE)),
    _Bar(_GATEWAY_CPU, BETWEEN, TO_GUIDE, _gateway_cpu_ratio, _AT_MOST, 1.2, THIN_TO_GUIDE),
    _Bar(_RATE, BETWEEN, TO_GUIDE, rate_ratio, _AT_LEAST, _TIMES_FASTER * _GRPC_AIO_BETWEEN),
    *(_Bar(_CPU, KIB_64, path, cpu_ratio, _AT_MOST, 1) for path in (POOL, INLINE)),
    *(_Bar(_CPU, MIB, path, cpu_ratio, _AT_MOST, 2) for path in (POOL, INLINE)),
    *(_Bar(_CPU, at, POOL_TLS, cpu_ratio, _AT_MOST, 2, POOL) for at in (KIB_64, MIB)),
)


def judge(measured: Measured, fleets: Sequence[FleetFigures]) -> list[Verdict]:
    """Every bar of the sections and the fleets that were to be measured."""
    verdicts = [bar.judge(measured) for bar in _BARS if bar.section in measured]
    if measured:
        calls = [each for rounds in measured.values() for each in rounds]
        errors = sum(each.errors for each in calls)
        first = next((f"{each.path}: {each.first_error}" for each in calls if each.errors), "")
        verdicts.append(Verdict("failed calls: none", f"{errors:,} {first}".strip(), not errors))
    for figures in fleets:
        verdicts += _judge_fleet(figures)
    return verdicts


def _judge_fleet(figures: FleetFigures) -> list[Verdict]:
    fleet = figures.fleet
    wanted = round(fleet.rate * fleet.seconds)
    name = f"{fleet.connectors:,} connectors"
    answered = f"{figures.calls:,} of {wanted:,}; {figures.errors:,} errors {figures.first_error}"
    verdicts = [
        Verdict(f"{name}: none is lost", f"{figures.lost:,}", not figures.lost),
        Verdict(
            f"{name}: every call is answered, nothing fails",
            answered.strip(),
            figures.calls == wanted and not figures.errors,
        ),
    ]
    if fleet.connectors > _JUDGED_FLEET:
        return verdicts
    each, beat = figures.memory_per_connector, f"a heartbeat each {fleet.heartbeat_interval:g} s"
    return [
        *verdicts,
        Verdict(
            f"{name}: ≤ {readable(_PER_CONNECTOR)} of the gateway's memory each",
            readable(round(each)),
            each <= _PER_CONNECTOR,
        ),
        Verdict(
            f"{name}: all are back within {_BACK:g} s of the gateway's restart",
            f"{figures.back.seconds:.2f} s",
            figures.back.seconds <= _BACK,
        ),
        Verdict(
            f"{name}: ≤ {_IDLE_CPU:.0%} of a core at {beat}",
            f"{figures.idle_cpu:.1%}",
            figures.idle_cpu <= _IDLE_CPU,
        ),
    ]
