from __future__ import annotations

from revconn.logger import Reminder, Reminders


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


def test_of_what_comes_again_and_again_the_lines_tell_how_often() -> None:
    reminders = Reminders()
    counts = [(now, reminders.count("a", now)) for now in range(200)]
    assert [each for each in counts if each[1]] == [(0, 1), (60, 60), (180, 120)]
    assert reminders.count("b", 200.0) == 1


def test_what_has_not_come_for_long_is_new_again() -> None:
    reminders = Reminders()
    for now in range(10):
        reminders.count("a", now)
    assert [reminders.count("a", now) for now in (1000.0, 1059.0, 1060.0)] == [10, 0, 2]


def test_peers_that_make_up_kinds_fill_no_memory() -> None:
    reminders = Reminders(most=2)
    assert [reminders.count(kind, 0.0) for kind in "aabacab"] == [1, 0, 1, 0, 1, 0, 1]
    assert len(reminders._kinds) == 2
