"""The bars: what is compared with what, round by round, and when a run meets them."""

import pytest

from benchmarks.bars import judge
from benchmarks.cases import (
    BUSY,
    CASES,
    FLEET,
    FLOOD,
    KIB_64,
    LARGEST,
    LONE,
    MANY,
    MIB,
    MIB_LONE,
    PINGED,
)
from benchmarks.measure import Figures, Load
from benchmarks.residents import Residents

RESIDENTS = Residents(process=30 << 20, idle_connector=100_000, request_in_flight=1_000)


def figures(
    peer,
    load,
    *,
    cpu=1.0,
    rate=1.0,
    p50=1.0,
    p99=0.4,
    lateness=0.01,
    errors=0,
    peak=60 << 20,
):
    return Figures(
        peer=peer,
        load=load,
        requests=10_000,
        requests_per_second=rate,
        p50=p50,
        p99=p99,
        errors=errors,
        first_error="status 500" if errors else "",
        cpu_seconds=cpu,
        loadgen_cpu_seconds=0.1,
        heartbeats=3,
        heartbeat_lateness=lateness,
        peak_memory=peak,
    )


SLOW = {"literal": 40.0, "server": 40.0, "bare": 2.0, "go": 2.0, "go-tls": 2.0}


def good_run(rounds=1):
    """One of everything for everybody, but for the peers that are to be beaten: slow."""
    return [
        figures(
            peer,
            case.load,
            cpu=64.0 if case.load == LARGEST else SLOW.get(peer, 1.0),
            p50=SLOW.get(peer, 1.0),
        )
        for case in CASES
        for _ in range(rounds)
        for peer in case.peers
    ]


def missed(run, residents=RESIDENTS):
    return [verdict.bar for verdict in judge(run, residents) if not verdict.met]


def test_a_run_in_which_the_library_is_fast_and_on_time_meets_every_bar():
    assert missed(good_run()) == []


def test_every_bar_is_missed_by_a_run_that_measured_nothing():
    verdicts = judge([], None)
    assert not any(verdict.met or verdict.measured for verdict in verdicts)


@pytest.mark.parametrize(
    ("peer", "load", "change", "bar"),
    [
        ("revconn", MANY, {"cpu": 2.9}, "revconn ≤ 1.4 × go"),
        ("revconn", MANY, {"rate": 0.59}, "revconn ≥ 0.6 × go"),
        ("revconn-inline", MANY, {"cpu": 1.7}, "revconn-inline ≤ 0.8 × go"),
        ("revconn-inline", MANY, {"rate": 0.99}, "revconn-inline ≥ 1 × go"),
        ("server", MANY, {"cpu": 7.0}, "revconn ≤ 0.13 × server"),
        ("literal", MANY, {"cpu": 9.0}, "revconn ≤ 0.1 × literal"),
        ("revconn", LONE, {"p50": 2.4}, "revconn ≤ 1.15 × bare"),
        ("revconn-inline", LONE, {"p50": 1.6}, "revconn-inline ≤ 0.75 × bare"),
        ("revconn", PINGED, {"p50": 2.9}, "revconn ≤ 1.4 × go"),
        ("go", PINGED, {"p50": 0.9}, "revconn-inline ≤ 1 × go"),
        ("revconn-inline", PINGED, {"p50": 1.2}, "revconn-inline ≤ 0.55 × bare"),
        ("revconn", KIB_64, {"cpu": 2.3}, "revconn ≤ 1.1 × go"),
        ("revconn", KIB_64, {"rate": 0.79}, "revconn ≥ 0.8 × go"),
        ("revconn-tls", KIB_64, {"cpu": 2.7}, "revconn-tls ≤ 1.3 × go-tls"),
        ("revconn", MIB, {"cpu": 2.7}, "revconn ≤ 1.3 × go"),
        ("revconn", MIB, {"rate": 0.74}, "revconn ≥ 0.75 × go"),
        ("revconn", LARGEST, {"cpu": 193.0}, "revconn ≤ 192 × revconn with 1 in flight, 1 MiB"),
        ("revconn-fleet", FLEET, {"p99": 0.6}, "99th percentile of the latency, 50 connectors"),
        ("revconn-busy", BUSY, {"lateness": 1.0}, "32 handlers that compute"),
        ("revconn-slow", FLOOD, {"peak": 159 << 20}, "memory under a flood"),
        ("revconn-grpcio", MANY, {"lateness": 1.0}, "the latest heartbeat of all"),
        ("revconn-tls", MIB, {"errors": 1}, "wrong or missing answers of all"),
    ],
)
def test_each_bar_is_missed_by_the_figure_that_it_is_about(peer, load, change, bar):
    run = [
        figures(peer, each.load, **{"p50": each.p50, "cpu": each.cpu_seconds, **change})
        if (each.peer, each.load.title) == (peer, load.title)
        else each
        for each in good_run()
    ]
    others = {"the latest heartbeat of all revconn peers: < 1 s"}
    found = [name for name in missed(run) if bar in name]
    assert len(found) == 1
    assert set(missed(run)) - set(found) <= others
    assert " × " not in bar or f", {load.title}: {bar}" in found[0]


def test_a_ratio_is_the_median_of_what_each_round_gave():
    run = [each for each in good_run(rounds=3) if each.load not in (MIB_LONE, LARGEST)]
    for busy in (1, 3, 1):  # the machine was three times as slow in one round
        run.append(figures("revconn", MIB_LONE, cpu=1.0 * busy))
        run.append(figures("revconn", LARGEST, cpu=64.0 * busy))
    (verdict,) = [each for each in judge(run, RESIDENTS) if "64 MiB" in each.bar]
    assert verdict.measured == "64"


def test_what_other_peers_do_wrong_misses_no_bar():
    run = [
        figures(each.peer, each.load, cpu=each.cpu_seconds, p50=each.p50, errors=1, lateness=5.0)
        if not each.peer.startswith("revconn")
        else each
        for each in good_run()
    ]
    assert missed(run) == []


@pytest.mark.parametrize("load", [BUSY, FLOOD])
def test_the_long_loads_are_recognised_whatever_their_length(load):
    run = [each for each in good_run() if each.load.title != load.title]
    peer = {BUSY: "revconn-busy", FLOOD: "revconn-slow"}[load]
    run.append(figures(peer, Load(load.in_flight, load.payload, seconds=60.0)))
    assert missed(run) == []
