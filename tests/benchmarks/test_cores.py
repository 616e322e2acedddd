"""Processes beside each other: every row is of a real `revconn serve`."""

import sys

from benchmarks.cores import rates, render


def test_a_serving_process_is_measured_as_often_as_asked():
    loadgen = [sys.executable, "-m", "benchmarks.loadgen"]
    measured = rates([1], loadgen, rounds=2, seconds=0.5)
    assert list(measured) == [1]
    assert len(measured[1]) == 2
    assert all(0 < rate < 100 for rate in measured[1])  # each request computes for 20 ms


def test_each_round_is_compared_with_its_own_first_row():
    lines = render({1: [10.0, 20.0, 30.0], 2: [20.0, 30.0, 60.0]})
    assert lines[-1].split() == ["|", "2", "|", "30.0", "|", "2.00", "|"]
