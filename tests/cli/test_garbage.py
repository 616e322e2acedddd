"""A gateway's process looks for garbage while few calls are under way, or after a minute."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from revconn.cli import garbage
from revconn.cli.garbage import GarbageWatch


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One for each time that it looked."""
    looked: list[str] = []
    monkeypatch.setattr(gc, "collect", lambda: looked.append("looked"))
    return looked


def younger_were_looked_through(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    monkeypatch.setattr(gc, "get_count", lambda: (0, 0, times))


def test_python_itself_looks_through_all_objects_no_more(looks) -> None:
    before = gc.get_threshold()
    GarbageWatch(lambda: 0, 0.0)
    assert gc.get_threshold()[:2] == before[:2]
    assert gc.get_threshold()[2] > 1_000_000


@pytest.mark.parametrize(
    ("times", "calls", "now", "expected"),
    [(9, 0, 2.0, False), (10, 1_000, 2.0, True), (10, 1_001, 59.0, False), (10, 1_001, 60.0, True)],
    ids=["nothing to look for", "few calls", "many calls", "many calls for a minute"],
)
def test_it_looks_when_that_holds_up_few(
    looks, monkeypatch, times: int, calls: int, now: float, expected: bool
) -> None:
    gc.set_threshold(700, 10, 10)
    watch = GarbageWatch(lambda: calls, 0.0)
    younger_were_looked_through(monkeypatch, times)
    assert watch.tick(now) is expected
    assert looks == ["looked"] * expected


def test_the_minute_begins_anew_with_each_look(looks, monkeypatch) -> None:
    gc.set_threshold(700, 10, 10)
    watch = GarbageWatch(lambda: 5_000, 0.0)
    younger_were_looked_through(monkeypatch, 10)
    assert [watch.tick(now) for now in (60.0, 90.0, 119.0, 120.0)] == [True, False, False, True]


def test_a_thread_of_its_own_sees_to_it(monkeypatch) -> None:
    pauses = iter([None, None])
    ticks: list[float] = []
    monkeypatch.setattr(garbage.time, "sleep", lambda seconds: next(pauses))
    monkeypatch.setattr(GarbageWatch, "tick", lambda self, now: ticks.append(now))
    made: list = []
    monkeypatch.setattr(garbage, "guarded_thread", lambda name, body: _NotStarted(made, body))
    GarbageWatch.start(lambda: 0)
    with pytest.raises(StopIteration):
        made[0]()
    assert len(ticks) == 2


class _NotStarted:
    def __init__(self, made: list, body) -> None:
        made.append(body)

    def start(self) -> None:
        pass
