"""Streaming calls' benchmark: when its bars are met, and what it leaves behind."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from benchmarks import __main__ as everything
from benchmarks import golang, report, streams
from benchmarks.bars import Verdict
from benchmarks.measure import PeerFailed
from benchmarks.streams import (
    BESIDE,
    DOWN,
    DOWN_16,
    ECHO,
    KIB_64,
    KIB_64_16,
    MIB,
    MIB_16,
    PING_PONG,
    STREAMS,
    UP,
    Measured,
    Rounds,
    Run,
    Stream,
    judge,
)

OURS, DIRECT = "revconn", "grpc.server"


def good_run() -> Rounds:
    """Everything on both, ours cheap and fast; the connector's with those that nobody reads."""
    run = {(load, OURS): [Measured(20.0, 1.0, 1.0, 1.0)] for load in (*STREAMS, BESIDE)}
    run.update({(load, DIRECT): [Measured(1.0, 10.0, 10.0, 1.0)] for load in STREAMS})
    return run


def missed(run: Rounds) -> list[str]:
    return [verdict.bar for verdict in judge(run) if not verdict.met]


def test_a_run_in_which_ours_is_cheap_and_fast_meets_every_bar() -> None:
    assert missed(good_run()) == []


def test_every_bar_is_missed_by_a_run_that_measured_nothing() -> None:
    verdicts = list(judge({}))
    assert not any(verdict.met or verdict.measured for verdict in verdicts)
    assert {verdict.bar for verdict in verdicts} == {each.bar for each in judge(good_run())}


@pytest.mark.parametrize(
    ("load", "change", "bar"),
    [
        (DOWN, {"cpu": 9.3}, "1.2 × grpctunnel's 7.7 µs"),
        (ECHO, {"cpu": 29.3, "direct": 300.0}, "2 × grpctunnel's 14.6 µs"),
        (UP, {"cpu": 15.3}, "2 × grpctunnel's 7.6 µs"),
        (DOWN, {"rate": 14.9, "beside": 14.9}, "≥ 15 × grpc.server"),
        (DOWN_16, {"rate": 4.9}, "≥ 5 × grpc.server"),
        (KIB_64, {"rate": 0.79}, "64 KiB, 1 stream ≥ 0.8 × grpc.server"),
        (KIB_64_16, {"rate": 0.79}, "64 KiB, 16 streams ≥ 0.8 × grpc.server"),
        (MIB, {"rate": 0.79}, "1 MiB, 1 stream ≥ 0.8 × grpc.server"),
        (MIB_16, {"rate": 0.79}, "1 MiB, 16 streams ≥ 0.8 × grpc.server"),
        (ECHO, {"cpu": 1.6}, "≤ 0.15 × grpc.server"),
        (PING_PONG, {"p50": 1.6}, "p50 of a ping-pong"),
        (BESIDE, {"rate": 15.9}, "≥ 0.8 × alone"),
    ],
)
def test_each_bar_is_missed_by_the_figure_that_it_is_about(
    load: Stream, change: dict[str, float], bar: str
) -> None:
    run = good_run()
    figures = {"rate": 20.0, "cpu": 1.0, "p50": 1.0, **change}
    run[load, OURS] = [Measured(figures["rate"], figures["cpu"], 1.0, figures["p50"])]
    if "direct" in change:
        run[load, DIRECT] = [Measured(1.0, change["direct"], 1.0, 1.0)]
    (found,) = missed(run)
    assert bar in found


def test_figures_are_the_medians_of_all_rounds() -> None:
    run = good_run()
    run[MIB, OURS] = [Measured(rate, 1.0, 1.0, 1.0) for rate in (0.1, 0.9, 7.0)]
    found = {each.bar: each.measured for each in judge(run)}
    assert found["messages/s, down, 1 MiB, 1 stream ≥ 0.8 × grpc.server"] == "0.9"


@pytest.fixture
def without_the_rest(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """All benchmarks but for what is about streaming calls, as if they had run."""
    monkeypatch.setattr(golang, "build", lambda: "")
    monkeypatch.setattr(everything, "_run", lambda *_: [])
    monkeypatch.setattr(everything, "_residents", lambda *_: None)
    monkeypatch.setattr(everything, "judge", lambda *_: [])
    monkeypatch.setattr(report, "machine", lambda _: {"machine": "a small one"})
    return monkeypatch


@pytest.mark.parametrize(("met", "code"), [(True, 0), (False, 1)])
def test_streaming_calls_are_measured_and_judged_with_all_else(
    without_the_rest: pytest.MonkeyPatch, tmp_path: pathlib.Path, met: bool, code: int
) -> None:
    run = Run("- machine: a small one\n", [Verdict("a ≥ b", "0.8", met)])
    without_the_rest.setattr(streams, "run_all", lambda *_: run)
    assert everything.main(["--check", f"--report={tmp_path}/results.md"]) == code
    written = (tmp_path / "results-streams.md").read_text(encoding="utf-8")
    assert written == "# Results of one run: streaming calls\n\n- machine: a small one\n"


def test_streaming_calls_that_could_not_be_measured_miss_their_bars(
    without_the_rest: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> Run:
        raise PeerFailed("the server did not start")

    without_the_rest.setattr(streams, "run_all", fail)
    assert everything.main(["--check"]) == 1
    said = capsys.readouterr().out
    assert "Not measured: streaming calls\n\n    the server did not start" in said
    assert said.count("MISSED: ") == len(list(judge({})))


def test_a_run_of_some_peers_alone_has_no_streaming_calls(
    without_the_rest: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> Run:
        raise AssertionError("nobody asked for them")

    without_the_rest.setattr(streams, "run_all", fail)
    assert everything.main(["--peers=revconn"]) == 0
    assert everything.main(["--in-flight=1"]) == 0
