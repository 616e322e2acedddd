"""The gateway's benchmark: every path is really called, and the bars judge what was measured."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from typing import Any

import pytest

from benchmarks.bars import Verdict
from benchmarks.gateway.bars import judge
from benchmarks.gateway.fleet import Fleet, FleetFigures, Return
from benchmarks.gateway.paths import Programs
from benchmarks.gateway.report import render
from benchmarks.gateway.rounds import Calls, by_path, cpu_ratio, of_server, p50_ratio, rate_ratio
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
    SECTIONS,
    THIN_TO_GUIDE,
    TO_GUIDE,
    Section,
)

ROOT = pathlib.Path(__file__).resolve().parents[2]


def calls(path: str, cpu: float = 1.0, rate: float = 10.0, **changes: Any) -> Calls:
    """A round whose call costs ``cpu`` seconds, three quarters of it the gateway's."""
    figures = {
        "path": path,
        "requests": 100,
        "requests_per_second": rate,
        "p50": 0.001,
        "p99": 0.002,
        "errors": 0,
        "first_error": "",
        "server_cpu_seconds": cpu * 100 * 0.75,
        "connector_cpu_seconds": cpu * 100 * 0.25,
    }
    return Calls(**{**figures, **changes})


def returns(*seconds: float) -> tuple[Return, ...]:
    return tuple(Return(each, 0.5, 0.7) for each in seconds)


def fleet(connectors: int = 10, **changes: Any) -> FleetFigures:
    figures: dict[str, Any] = {
        "fleet": Fleet(connectors, rate=5.0, seconds=2.0),
        "calls": 10,
        "seconds": 2.0,
        "p50": 0.001,
        "p99": 0.002,
        "heartbeats": 30,
        "lost": 0,
        "errors": 0,
        "first_error": "",
        "memory": 50 << 20,
        "peak_memory": 60 << 20,
        "memory_per_connector": 5 << 10,
        "connected": 1.5,
        "returns": returns(2.0),
        "idle_cpu": 0.04,
        "cpu": 0.3,
    }
    return FleetFigures(**{**figures, **changes})


def judged(section: Section, *rounds: Calls) -> list[Verdict]:
    """The verdicts of one section, but for the one on failed calls."""
    *bars, _ = judge({section: rounds}, [])
    return bars


def met(section: Section, *rounds: Calls) -> list[bool]:
    return [verdict.met for verdict in judged(section, *rounds)]


def test_the_cost_of_a_call_is_compared_over_all_rounds() -> None:
    rounds = [calls("direct", 1.0), calls("a", 2.0), calls("direct", 3.0), calls("a", 8.0)]
    paths = by_path(rounds)
    assert cpu_ratio(paths["a"], paths["direct"]) == pytest.approx(2.5)


def test_the_gateways_share_of_the_cost_is_compared_without_the_connectors() -> None:
    ours = [calls("a", server_cpu_seconds=6.0, connector_cpu_seconds=100.0)]
    theirs = [calls("b", server_cpu_seconds=4.0, connector_cpu_seconds=1.0)]
    assert cpu_ratio(ours, theirs, of_server) == pytest.approx(1.5)


def test_rates_and_latencies_are_compared_within_each_round() -> None:
    ours = [calls("a", rate=rate, p50=rate) for rate in (10.0, 40.0, 1000.0)]
    theirs = [calls("b", rate=rate, p50=rate) for rate in (10.0, 10.0, 10.0)]
    assert rate_ratio(ours, theirs) == p50_ratio(ours, theirs) == 4.0


@pytest.mark.parametrize(
    ("cpu", "rate", "bars_met"),
    [(0.24, 41.0, [True, True]), (0.26, 41.0, [False, True]), (0.24, 39.0, [True, False])],
)
def test_a_call_costs_a_quarter_of_a_direct_one_and_four_times_as_many_are_made(
    cpu: float, rate: float, bars_met: list[bool]
) -> None:
    rounds = [calls(path.name, cpu, rate) for path in (POOL, INLINE)]
    cpu_met, rate_met = bars_met
    assert met(CALLS, calls(DIRECT.name), *rounds) == [cpu_met, cpu_met, rate_met, rate_met]


@pytest.mark.parametrize(("p50", "bar_met"), [(0.0009, True), (0.001, False)])
def test_a_lone_call_takes_less_time_than_a_direct_one(p50: float, bar_met: bool) -> None:
    rounds = [calls(path.name, p50=p50) for path in (POOL, INLINE)]
    assert met(LONE, calls(DIRECT.name), *rounds) == [bar_met, bar_met]


@pytest.mark.parametrize(
    ("cpu", "rate", "bars_met"),
    [(1.19, 80.0, [True, True]), (1.21, 80.0, [False, True]), (1.19, 60.0, [True, False])],
)
def test_between_connectors_the_thin_gateways_cost_and_the_direct_rate_are_the_measure(
    cpu: float, rate: float, bars_met: list[bool]
) -> None:
    rounds = [calls(DIRECT.name), calls(THIN_TO_GUIDE.name), calls(TO_GUIDE.name, cpu, rate)]
    assert met(BETWEEN, *rounds) == bars_met


@pytest.mark.parametrize(("section", "limit"), [(KIB_64, 1.0), (MIB, 2.0)])
def test_a_large_payload_has_a_bar_of_its_own_and_tls_may_double_the_cost(
    section: Section, limit: float
) -> None:
    def of(plain: float, encrypted: float) -> list[bool]:
        rounds = [calls(path.name, plain) for path in (POOL, INLINE)]
        return met(section, calls(DIRECT.name), *rounds, calls(POOL_TLS.name, encrypted))

    assert of(limit, 2 * limit) == [True, True, True]
    assert of(1.01 * limit, 2 * limit) == [False, False, True]
    assert of(limit, 2.01 * limit) == [True, True, False]


def test_what_was_not_measured_misses_its_bar() -> None:
    for section in SECTIONS:
        verdicts = judged(section, calls(DIRECT.name))
        assert not any(verdict.met or verdict.measured for verdict in verdicts), section


def test_a_failed_call_misses_a_bar() -> None:
    rounds = [calls(DIRECT.name), calls(POOL.name, errors=2, first_error="gone")]
    assert judge({LONE: rounds}, [])[-1] == Verdict(
        "failed calls: none", f"2 {POOL.name}: gone", False
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"lost": 1},
        {"calls": 9},
        {"errors": 1, "first_error": "UNAVAILABLE"},
        {"memory_per_connector": 11 << 10},
        {"returns": returns(9.0, 3.1, 2.0)},
        {"idle_cpu": 0.06},
    ],
)
def test_whatever_a_fleet_loses_or_costs_too_much_misses_a_bar(changes: dict[str, Any]) -> None:
    assert all(verdict.met for verdict in judge({}, [fleet()]))
    assert [verdict.met for verdict in judge({}, [fleet(**changes)])].count(False) == 1


def test_one_slow_return_of_three_is_none_that_counts() -> None:
    assert all(verdict.met for verdict in judge({}, [fleet(returns=returns(9.0, 2.9, 2.0))]))


def test_of_a_larger_fleet_only_what_it_loses_is_judged() -> None:
    costly = {"memory_per_connector": 11 << 10, "returns": returns(3.1), "idle_cpu": 0.06}
    assert all(verdict.met for verdict in judge({}, [fleet(5001, **costly)]))
    assert not all(verdict.met for verdict in judge({}, [fleet(5001, lost=1)]))


def test_a_gateway_in_the_place_of_ours_is_given_a_port_and_nothing_else() -> None:
    own = Programs(("loadgen",), ("ours", "--loop=auto"))
    assert own.ours("--key=k", port=7) == ("ours", "--loop=auto", "--key=k", "--port=7")
    other = Programs(("loadgen",), ("other",), replaced=True)
    assert other.ours("--key=k", port=7) == ("other", "--port=7")
    assert other.missing(POOL_TLS) == "the gateway was replaced"


def test_the_report_shows_each_path_the_fleet_and_the_bars() -> None:
    measured = {CALLS: [calls(DIRECT.name, 4.0), calls(POOL.name, 1.0, 50.0)]}
    held, missing = [fleet()], {POOL_TLS.name: "no certificate"}
    text = render({"machine": "a machine"}, measured, missing, held, judge(measured, held))
    assert "- machine: a machine" in text
    assert f"## {CALLS.title}: 64 in flight, 64 B" in text
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {POOL.name} ")]
    assert {"0.25", "5.00"} <= {cell.strip() for cell in row.split("|")}
    assert f"Not measured: {POOL_TLS.name}: no certificate." in text
    assert "## 10 connectors" in text
    assert " 5 KiB " in text
    assert "| yes " in text
    assert "| MISSED " in text


def test_each_path_that_needs_no_go_is_called_and_a_fleet_comes_back(
    tmp_path: pathlib.Path,
) -> None:
    report = tmp_path / "report.md"
    command = [sys.executable, "-m", "benchmarks.gateway", "--loadgen=python", "--rounds=1"]
    command += ["--seconds=0.1", "--connectors=5", "--idle=0.6", f"--report={report}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stderr
    text = " ".join(report.read_text().split())
    for section in SECTIONS:
        for path in section.paths:
            assert f"| {path.name} |" in text or f"Not measured: {path.name}: " in text
    assert "| failed calls: none | 0 |" in text
    assert "| 5 connectors: none is lost | 0 |" in text
    assert "killed and started again, median of 3: all are back after" in text


def test_a_part_that_nobody_knows_is_refused() -> None:
    command = [sys.executable, "-m", "benchmarks.gateway", "--only=calls,tea"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "no part tea" in run.stderr
