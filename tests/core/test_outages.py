from __future__ import annotations

import pytest

from revconn.core.outages import Outage, duration


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-0.1, "0.0 s"),
        (0.04, "0.0 s"),
        (0.44, "0.4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 m 0 s"),
        (192.3, "3 m 12 s"),
        (3599.6, "1 h 0 m"),
        (7500.0, "2 h 5 m"),
        (86_400.0, "1 d 0 h"),
        (100 * 86_400 + 3 * 3600 + 59, "100 d 3 h"),
    ],
)
def test_a_duration_is_shown_in_two_units_at_most(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_after_a_loss_the_reminders_come_at_growing_intervals() -> None:
    outage = Outage(1000.0, "reset")
    reminded = [now for now in range(86_400) if outage.failed("refused", 1000.0 + now)]
    assert reminded[:6] == [10, 30, 70, 150, 310, 630]
    intervals = [later - sooner for sooner, later in zip(reminded, reminded[1:])]
    assert intervals == sorted(intervals)
    assert intervals[-1] == 3600
    assert len(reminded) < 35


def test_what_never_was_connected_says_so_at_the_first_failure() -> None:
    outage = Outage(1000.0)
    reminded = [now for now in range(100) if outage.failed("refused", 1000.0 + now)]
    assert reminded == [0, 10, 30, 70]


def test_a_reminder_says_how_long_it_has_lasted_and_what_was_tried() -> None:
    outage = Outage(1000.0, "reset")
    outage.failed("refused", 1001.0)
    assert outage.so_far(1001.0) == ""
    for now in range(6):
        outage.failed("refused", 1010.0 + now)
    assert outage.so_far(1070.0) == " for 1 m 10 s, 7 attempts"


def test_the_end_says_how_long_it_took_and_what_went_wrong_last() -> None:
    outage = Outage(1000.0, "reset")
    assert outage.over(1000.4) == ": back after 0.4 s, 1 attempt, last error: reset"
    for _ in range(8):
        outage.failed("refused", 1100.0)
    assert outage.over(1192.0) == ": back after 3 m 12 s, 9 attempts, last error: refused"


def test_a_start_that_succeeds_at_once_was_no_outage() -> None:
    outage = Outage(1000.0)
    assert outage.over(1001.0) == ""
    outage.failed("refused", 1001.0)
    assert outage.over(1012.0) == ": after 12 s, 2 attempts, last error: refused"
