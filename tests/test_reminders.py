from __future__ import annotations

from revconn.logger import MOST_SOURCES, Reminder, Reminders, Sum, Sums


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


# Sums of what strangers cause


def flood(sums: Sums, seconds: range) -> list[int]:
    """One each second, and when there was a line."""
    lines = []
    for now in seconds:
        if sums.count("kind", now % 7, now, now):
            lines.append(now)
        lines += [now for _ in sums.due(now)]
    return lines


def test_a_flood_is_one_line_at_first_and_then_a_sum_at_growing_intervals() -> None:
    assert flood(Sums(first=60.0, most=600.0), range(3600)) == [
        0, 60, 180, 420, 900, 1500, 2100, 2700, 3300
    ]  # fmt: skip


def test_a_sum_tells_how_many_there_were_from_where_and_the_last_of_them() -> None:
    sums = Sums(first=60.0)
    flood(sums, range(60))
    assert sums.due(60.0) == [Sum("kind", last=59, times=59, sources=7, seconds=60.0)]
    assert sums.due(60.0) == sums.rest(60.0) == []


def test_the_rest_is_told_a_while_after_the_flood() -> None:
    sums = Sums(first=60.0, quiet=300.0)
    assert flood(sums, range(2000))[-1] == 1860
    assert [now for now in range(2000, 4000) if sums.due(now)] == [1999 + 300]
    assert sums.rest(4000.0) == []


def test_a_short_flood_is_told_of_when_its_interval_is_over() -> None:
    sums = Sums(first=60.0)
    flood(sums, range(3))
    assert [now for now in range(3, 1000) if sums.due(now)] == [60]


def test_the_end_tells_what_was_not_told() -> None:
    sums = Sums()
    flood(sums, range(3))
    assert sums.rest(3.0) == [Sum("kind", last=2, times=2, sources=2, seconds=3.0)]
    assert sums.rest(3.0) == []


def test_a_kind_that_has_not_come_for_long_has_a_line_of_its_own_again() -> None:
    sums = Sums(first=60.0)
    assert sums.count("kind", "a", "", 0.0)
    assert sums.due(119.0) == []
    assert not sums.count("kind", "a", "", 119.0)
    assert len(sums.due(119.0)) == 1
    assert sums.due(119.0 + 240.0) == []
    assert sums.count("kind", "a", "", 119.0 + 240.0)


def test_each_kind_is_summed_by_itself() -> None:
    sums = Sums()
    assert [sums.count(kind, "a", "", 0.0) for kind in "abab"] == [True, True, False, False]
    assert [(each.kind, each.times) for each in sums.rest(0.0)] == [("a", 1), ("b", 1)]


def test_however_many_sources_there_are_few_are_remembered() -> None:
    sums = Sums()
    for source in range(10_000):
        sums.count("kind", source, "", 0.0)
    (told,) = sums.rest(0.0)
    assert told.sources == MOST_SOURCES + 1
