"""The steps of a request: every one is really taken, and takes time."""

from benchmarks.steps import measure


def test_each_step_of_the_path_takes_a_batch_and_is_timed():
    measured = measure(batch=4, rounds=3)
    assert len(measured) == 6
    assert all(0 < seconds < 1 for seconds in measured.values())
