"""The report: a table per load, what could not be measured, and the bars."""

import sysconfig

import pytest

from benchmarks.bars import Verdict
from benchmarks.measure import Load
from benchmarks.report import machine, render
from tests.benchmarks.test_bars import RESIDENTS, figures

MANY = Load(256)


def row(text, peer):
    line = next(line for line in text.splitlines() if line.startswith(f"| {peer} "))
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_a_ratio_is_the_median_of_what_each_round_gave():
    run = []
    for busy in (1, 3, 1):  # the machine was three times as slow in one round
        run.append(figures("revconn", MANY, cpu=2.0 * busy))
        run.append(figures("go", MANY, cpu=1.0 * busy))
    assert row(render(run, {}, {}), "revconn")[:3] == ["revconn", "200.0", "2.00"]


def test_loads_of_different_payloads_or_gateways_have_tables_of_their_own():
    run = [
        figures("revconn", MANY),
        figures("revconn", Load(64, 64 << 10)),
        figures("revconn", Load(1)),
        figures("revconn", Load(1, dynamic_windows=True)),
    ]
    text = render(run, {}, {})
    assert [line for line in text.splitlines() if line.startswith("##")] == [
        "## 256 in flight, 64 B",
        "## 64 in flight, 64 KiB",
        "## 1 in flight, 64 B",
        "## 1 in flight, 64 B, a gateway that pings",
    ]


def test_the_report_names_what_was_not_measured_and_what_is_not_valid():
    text = render([figures("bare", MANY, errors=1)], {"go": "no `go` on PATH"}, {})
    assert "Not measured: go\n\n    no `go` on PATH" in text
    assert "Not valid: bare, 256 in flight, 64 B, had 1 errors: status 500" in text


def test_the_report_says_of_each_bar_whether_it_was_met():
    verdicts = [Verdict("a ≤ 3 × b", "2.5", True), Verdict("c ≤ 2 × d", "", False)]
    text = render([], {}, {"machine": "a small one"}, None, verdicts)
    assert "- machine: a small one" in text
    assert row(text, "a ≤ 3 × b") == ["a ≤ 3 × b", "2.5", "yes"]
    assert row(text, "c ≤ 2 × d") == ["c ≤ 2 × d", "not measured", "MISSED"]


def test_the_report_states_what_waiting_costs_in_memory():
    text = render([], {}, {}, RESIDENTS)
    assert "one idle connector holds 30 MiB, each further connector 97.66 KiB" in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("'--enable-optimizations' '--with-lto'", ", PGO and LTO"),
        ("'--enable-optimizations'", ", PGO"),
        (None, ", neither PGO nor LTO"),
    ],
)
def test_the_facts_say_how_the_interpreter_was_built(monkeypatch, options, said):
    monkeypatch.setattr(sysconfig, "get_config_var", {"CONFIG_ARGS": options}.get)
    assert machine("Go")["python build"].endswith(said)
