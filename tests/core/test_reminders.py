from __future__ import annotations

from revconn.core.reminders import Reminder


def test_what_lasts_is_mentioned_at_first_and_then_at_growing_intervals() -> None:
    reminder = Reminder(first=60.0, most=600.0)
    mentioned = [now for now in range(3600) if reminder.is_due(now)]
    assert mentioned == [0, 60, 180, 420, 900, 1500, 2100, 2700, 3300]


def test_what_comes_and_goes_is_mentioned_no_more_often() -> None:
    reminder = Reminder(first=60.0)
    mentioned = []
    for now in range(0, 500, 2):
        if reminder.is_due(now):
            mentioned.append(now)
        reminder.rest(now + 1)
    assert mentioned == [0, 60, 180, 420]


def test_what_was_long_gone_is_new_again() -> None:
    reminder = Reminder(first=60.0)
    assert [reminder.is_due(now) for now in (0, 60)] == [True, True]
    reminder.rest(299.0)
    assert not reminder.is_due(100.0)
    reminder.rest(300.0)
    assert [now for now in range(301, 600) if reminder.is_due(now)] == [301, 361, 481]


def test_what_never_was_can_rest() -> None:
    reminder = Reminder()
    reminder.rest(1e6)
    assert reminder.is_due(0.0)
