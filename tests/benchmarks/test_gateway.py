"""The gateway's benchmark: every path is really called, and the bars judge what was measured."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from typing import Any

import pytest

from benchmarks.gateway.calls import DIRECT, JUDGED, PATHS, Calls, ratios
from benchmarks.gateway.fleet import Fleet, FleetFigures
from benchmarks.gateway.report import judge, render

ROOT = pathlib.Path(__file__).resolve().parents[2]


def calls(path: str, cpu: float, **changes: Any) -> Calls:
    figures = {
        "path": path,
        "requests": 100,
        "requests_per_second": 10.0,
        "p50": 0.001,
        "p99": 0.002,
        "errors": 0,
        "first_error": "",
        "server_cpu_seconds": cpu * 100 * 0.75,
        "connector_cpu_seconds": cpu * 100 * 0.25,
    }
    return Calls(**{**figures, **changes})


def fleet(**changes: Any) -> FleetFigures:
    figures: dict[str, Any] = {
        "fleet": Fleet(10, rate=5.0, seconds=2.0),
        "calls": 10,
        "seconds": 2.0,
        "p50": 0.001,
        "p99": 0.002,
        "heartbeats": 30,
        "errors": 0,
        "first_error": "",
        "memory": 50 << 20,
        "memory_per_connection": 100 << 10,
        "idle_cpu": 0.1,
        "cpu": 0.3,
        "stats": {"connections": 10, "connections_expired": 0},
    }
    return FleetFigures(**{**figures, **changes})


def of_all_paths(cpu: float) -> list[Calls]:
    return [calls(path.name, 1.0 if path == DIRECT else cpu) for path in PATHS]


def test_a_path_is_compared_with_the_direct_calls_over_all_rounds() -> None:
    rounds = [calls(DIRECT.name, 1.0), calls("a", 2.0), calls(DIRECT.name, 3.0), calls("a", 8.0)]
    assert ratios(rounds) == pytest.approx({DIRECT.name: 1.0, "a": 2.5})


@pytest.mark.parametrize(("cpu", "met"), [(2.4, True), (2.6, False)])
def test_a_call_may_cost_two_and_a_half_times_a_direct_one(cpu: float, met: bool) -> None:
    verdicts = judge(of_all_paths(cpu), None)
    assert [verdict.met for verdict in verdicts] == [met] * len(JUDGED) + [True]


def test_a_failed_call_misses_a_bar() -> None:
    rounds = [*of_all_paths(2.0), calls(DIRECT.name, 1.0, errors=2, first_error="gone")]
    (verdict,) = [verdict for verdict in judge(rounds, None) if not verdict.met]
    assert verdict.measured == "2 gone"


@pytest.mark.parametrize(
    "changes",
    [
        {"stats": {"connections": 10, "connections_expired": 1}},
        {"stats": {"connections": 9, "connections_expired": 0}},
        {"calls": 9},
        {"errors": 1, "first_error": "UNAVAILABLE"},
    ],
)
def test_whatever_a_fleet_loses_misses_a_bar(changes: dict[str, Any]) -> None:
    assert all(verdict.met for verdict in judge([], fleet()))
    assert [verdict.met for verdict in judge([], fleet(**changes))].count(False) == 1


def test_the_report_shows_each_path_the_fleet_and_the_bars() -> None:
    rounds, held = of_all_paths(2.0), fleet()
    text = render({"machine": "a machine"}, rounds, held, judge(rounds, held))
    assert "- machine: a machine" in text
    assert "| http2, handler pool " in text
    assert "## 10 connectors" in text
    assert "100 KiB" in text
    assert "| yes " in text


def test_each_path_is_called_and_the_cpu_time_of_its_processes_counted(tmp_path) -> None:
    report = tmp_path / "report.md"
    command = [sys.executable, "-m", "benchmarks.gateway", "--loadgen=python", "--requests=20"]
    command += ["--rounds=1", "--connectors=5", "--seconds=0.5", f"--report={report}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stderr
    text = report.read_text()
    for path in PATHS:
        assert f"| {path.name} " in text
    assert "| failed calls: none | 0 " in " ".join(text.split())
    assert "| 5 connectors: none expires | 0 " in " ".join(text.split())
