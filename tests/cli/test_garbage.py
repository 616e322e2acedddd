"""A gateway's process looks for garbage while few calls are under way, or after a minute."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest

from revconn.cli import garbage
from revconn.cli.garbage import GarbageWatch


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


class Machine:
    """Its clock, and a look through all objects, which takes a while."""

    now = 0.0
    takes = 0.0
    looks = 0

    def monotonic(self) -> float:
        return self.now

    def collect(self) -> None:
        self.looks += 1
        self.now += self.takes


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    gc.set_threshold(700, 10, 10)
    monkeypatch.setattr(garbage, "time", machine)
    monkeypatch.setattr(gc, "collect", machine.collect)
    return machine


def younger_were_looked_through(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    monkeypatch.setattr(gc, "get_count", lambda: (0, 0, times))


def test_python_itself_looks_through_all_objects_no_more(machine) -> None:
    watch = GarbageWatch(lambda: 0)
    assert gc.get_threshold()[:2] == (700, 10)
    assert gc.get_threshold()[2] > 1_000_000
    watch.give_up(RuntimeError())
    assert gc.get_threshold() == (700, 10, 10)


@pytest.mark.parametrize(
    ("times", "calls", "now", "expected"),
    [(9, 0, 2.0, False), (10, 1_000, 2.0, True), (10, 1_001, 59.0, False), (10, 1_001, 60.0, True)],
    ids=["nothing to look for", "few calls", "many calls", "many calls for a minute"],
)
def test_it_looks_when_that_holds_up_few(
    machine, monkeypatch, times: int, calls: int, now: float, expected: bool
) -> None:
    watch = GarbageWatch(lambda: calls)
    younger_were_looked_through(monkeypatch, times)
    machine.now = now
    assert watch.tick() is expected
    assert machine.looks == expected


def test_the_minute_begins_anew_with_each_look(machine, monkeypatch) -> None:
    watch = GarbageWatch(lambda: 5_000)
    younger_were_looked_through(monkeypatch, 10)
    looked = []
    for machine.now in (60.0, 90.0, 119.0, 120.0):
        looked.append(watch.tick())
    assert looked == [True, False, False, True]


def test_the_longer_a_look_takes_the_longer_it_rests(machine, monkeypatch) -> None:
    watch = GarbageWatch(lambda: 0)
    younger_were_looked_through(monkeypatch, 10)
    machine.now, machine.takes = 10.0, 0.2
    assert watch.tick()
    machine.now = 20.0
    assert not watch.tick()
    machine.now = 20.3
    assert watch.tick()


def test_a_python_that_collects_in_small_steps_is_left_alone(machine) -> None:
    gc.set_threshold(700, 10, 0)
    GarbageWatch(lambda: 0)
    assert gc.get_threshold() == (700, 10, 0)


def test_a_thread_of_its_own_sees_to_it(monkeypatch, caplog) -> None:
    class Broken(Exception):
        pass

    def tick(self: GarbageWatch) -> None:
        raise Broken

    ended = threading.Event()
    monkeypatch.setattr(garbage, "_INTERVAL", 0.0)
    monkeypatch.setattr(GarbageWatch, "tick", tick)
    monkeypatch.setattr(GarbageWatch, "give_up", lambda self, error: ended.set())
    GarbageWatch.start(lambda: 0)
    assert ended.wait(10)
    assert "revconn-gateway-garbage" in caplog.text
    caplog.clear()
