"""The bars: what is compared with what, round by round, and when a run meets them."""

import pytest

from benchmarks.bars import judge
from benchmarks.cases import BUSY, CASES, FLOOD, LARGEST, MIB_LONE
from benchmarks.measure import Figures, Load
from benchmarks.residents import Residents

MIB = 1 << 20
RESIDENTS = Residents(process=30 * MIB, idle_connector=100_000, request_in_flight=1_000)


def figures(peer, load, *, cpu=1.0, rate=1.0, p50=1.0, lateness=0.01, errors=0, peak=60 * MIB):
    return Figures(
        peer=peer,
        load=load,
        requests=10_000,
        requests_per_second=rate,
        p50=p50,
        p99=p50,
        errors=errors,
        first_error="status 500" if errors else "",
        cpu_seconds=cpu,
        loadgen_cpu_seconds=0.1,
        heartbeats=3,
        heartbeat_lateness=lateness,
        peak_memory=peak,
    )


SLOW_PYTHON = {"literal": 40.0, "server": 40.0, "bare": 2.0}


def good_run(rounds=1):
    """Everybody as fast as go, but for the peers that are to be beaten, which are slow."""
    return [
        figures(
            peer,
            case.load,
            cpu=64.0 if case.load == LARGEST else SLOW_PYTHON.get(peer, 1.0),
            p50=SLOW_PYTHON.get(peer, 1.0),
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
    ("peer", "in_flight", "payload", "change", "bar"),
    [
        ("revconn", 256, 64, {"cpu": 3.1}, "revconn ≤ 3 × go"),
        ("revconn", 256, 64, {"rate": 0.39}, "revconn ≥ 0.4 × go"),
        ("revconn-inline", 256, 64, {"cpu": 2.1}, "revconn-inline ≤ 2 × go"),
        ("revconn-inline", 256, 64, {"rate": 0.69}, "revconn-inline ≥ 0.7 × go"),
        ("server", 256, 64, {"cpu": 7.0}, "revconn ≤ 0.13 × server"),
        ("literal", 256, 64, {"cpu": 9.0}, "revconn ≤ 0.1 × literal"),
        ("revconn", 1, 64, {"p50": 2.4}, "revconn ≤ 1.15 × bare"),
        ("revconn-inline", 1, 64, {"p50": 1.6}, "revconn-inline ≤ 0.75 × bare"),
        ("revconn", 64, 64 << 10, {"cpu": 2.1}, "revconn ≤ 2 × go"),
        ("revconn", 64, 64 << 10, {"rate": 0.59}, "revconn ≥ 0.6 × go"),
        ("revconn", 64, 1 << 20, {"cpu": 2.1}, "revconn ≤ 2 × go"),
        ("revconn", 64, 1 << 20, {"rate": 0.59}, "revconn ≥ 0.6 × go"),
        ("revconn", 1, 64 << 20, {"cpu": 193.0}, "revconn ≤ 192 × revconn with 1 in flight, 1 MiB"),
        ("revconn-busy", 32, 64, {"lateness": 1.0}, "32 handlers that compute"),
        ("revconn-slow", 1000, 256 << 10, {"peak": 159 * MIB}, "memory under a flood"),
        ("revconn-grpcio", 64, 64, {"lateness": 1.0}, "the latest heartbeat of all"),
        ("revconn-tls", 64, 1 << 20, {"errors": 1}, "wrong or missing answers of all"),
    ],
)
def test_each_bar_is_missed_by_the_figure_that_it_is_about(peer, in_flight, payload, change, bar):
    title = Load(in_flight, payload).title
    run = [
        figures(peer, each.load, **{"p50": each.p50, "cpu": each.cpu_seconds, **change})
        if (each.peer, each.load.title) == (peer, title)
        else each
        for each in good_run()
    ]
    others = {"the latest heartbeat of all revconn peers: < 1 s"}
    found = [name for name in missed(run) if bar in name]
    assert len(found) == 1
    assert set(missed(run)) - set(found) <= others
    assert ("1 in flight" in found[0]) == (in_flight == 1)


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
