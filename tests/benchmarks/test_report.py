"""The report: ratios round by round, and the bars."""

from benchmarks.measure import Figures
from benchmarks.report import missed_bars, render


def figures(peer, *, cpu_seconds, in_flight=256, lateness=0.01, errors=0):
    return Figures(
        peer=peer,
        in_flight=in_flight,
        requests=10_000,
        requests_per_second=5_000.0,
        p50=0.001,
        p99=0.002,
        errors=errors,
        first_error="status 500" if errors else "",
        cpu_seconds=cpu_seconds,
        loadgen_cpu_seconds=0.1,
        heartbeats=3,
        heartbeat_lateness=lateness,
    )


def test_every_bar_is_met_by_a_connector_that_is_cheap_enough_and_on_time():
    run = [figures("revconn", cpu_seconds=1.0), figures("literal", cpu_seconds=1.6)]
    assert missed_bars(run) == []


def test_too_much_cpu_per_request_misses_the_bar():
    run = [figures("revconn", cpu_seconds=1.0), figures("literal", cpu_seconds=1.4)]
    assert missed_bars(run) == [
        "revconn gives 1.40x literal's requests per CPU second with 256 in flight; the bar is 1.5x"
    ]


def test_a_late_heartbeat_under_any_load_misses_the_bar():
    run = [figures("revconn", cpu_seconds=1.0), figures("literal", cpu_seconds=2.0)]
    run.append(figures("revconn", cpu_seconds=1.0, in_flight=64, lateness=1.25))
    assert missed_bars(run) == [
        "revconn's heartbeat was 1.25 s late with 64 in flight; the bar is 1.0 s"
    ]


def test_a_wrong_answer_misses_the_bar():
    run = [figures("revconn", cpu_seconds=1.0, errors=2), figures("literal", cpu_seconds=2.0)]
    assert missed_bars(run) == ["revconn: 2 errors with 256 in flight: status 500"]


def test_a_variant_must_be_right_and_on_time_and_may_cost_more():
    run = [figures("revconn", cpu_seconds=1.0), figures("literal", cpu_seconds=1.6)]
    run.append(figures("revconn-grpcio", cpu_seconds=1.5, lateness=2.0, errors=1))
    assert missed_bars(run) == [
        "revconn-grpcio's heartbeat was 2.00 s late with 256 in flight; the bar is 1.0 s",
        "revconn-grpcio: 1 errors with 256 in flight: status 500",
    ]


def test_a_peer_that_is_not_the_library_has_no_bars():
    run = [figures("revconn", cpu_seconds=1.0), figures("literal", cpu_seconds=1.6)]
    assert missed_bars([*run, figures("bare", cpu_seconds=9.0, lateness=5.0, errors=1)]) == []


def test_a_bar_that_was_not_measured_is_missed():
    unmeasured = "revconn and literal were not both measured with 256 in flight"
    assert missed_bars([figures("revconn", cpu_seconds=1.0)]) == [unmeasured]


def test_a_variant_that_failed_has_missed_its_bars():
    run = [figures("revconn", cpu_seconds=1.0), figures("literal", cpu_seconds=1.6)]
    missing = {"go": "no `go` on PATH", "revconn-grpcio": "Traceback"}
    assert missed_bars(run, missing) == ["revconn-grpcio could not be measured"]


def test_the_ratio_is_the_median_of_what_each_round_gave():
    run = []
    for busy in (1, 3, 1):  # the machine was three times as slow in one round
        run.append(figures("revconn", cpu_seconds=1.0 * busy))
        run.append(figures("literal", cpu_seconds=2.0 * busy))
    row = next(line for line in render(run, {}, {}).splitlines() if line.startswith("| revconn"))
    assert row.split("|")[2:4] == ["          100.0 ", "                 2.00 "]


def test_the_report_names_what_was_not_measured_and_what_is_not_valid():
    text = render([figures("bare", cpu_seconds=1.0, errors=1)], {"go": "no `go` on PATH"}, {})
    assert "Not measured: go\n\n    no `go` on PATH" in text
    assert "Not valid: bare with 256 in flight had 1 errors: status 500" in text
