from __future__ import annotations

import threading
from typing import Callable

import pytest

from revconn.runtime.heartbeat import HeartbeatTimer
from tests.support.threads import TIMEOUT, in_thread

START = 1000.0


class Scene:
    """A session to keep alive, and a clock that moves only when the timer waits.

    ``lateness`` is how much later than asked each wait returns, in turn; then the timer is told
    to stop.
    """

    def __init__(self, lateness: list[float]) -> None:
        self.now = START
        self.beats: list[float] = []
        self.checks: list[float] = []
        self.waits: list[float] = []
        self.overdue = 0
        self._lateness = iter(lateness)

    def clock(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        late = next(self._lateness, None)
        if late is None:
            return True
        self.now += seconds + late
        return False

    def handshake_overdue(self) -> None:
        self.overdue += 1

    def beat(self) -> None:
        self.beats.append(self.now - START)

    def check_liveness(self) -> None:
        self.checks.append(self.now - START)


def play(
    lateness: list[float],
    *,
    interval: float = 30.0,
    check_interval: float = 30.0,
    scene: type[Scene] = Scene,
) -> Scene:
    played = scene(lateness)
    timer = HeartbeatTimer(
        played,
        handshake_timeout=TIMEOUT,
        interval=interval,
        check_interval=check_interval,
        clock=played.clock,
        wait=played.wait,
    )
    timer.established(interval)
    timer.run()
    return played


def test_the_first_beat_is_one_interval_after_the_handshake_and_then_one_each_interval() -> None:
    assert play([0.0] * 4).beats == [30.0, 60.0, 90.0, 120.0]


def test_late_beats_do_not_shift_the_schedule() -> None:
    scene = play([0.4, 1.5, 0.0, 29.0, 0.1])
    assert scene.beats == pytest.approx([30.4, 61.5, 90.0, 149.0, 150.1])


def test_a_thousand_late_beats_do_not_add_up_to_drift() -> None:
    assert play([0.01] * 1000).beats[-1] == pytest.approx(30_000.01)


def test_after_a_long_stall_there_is_one_beat_and_no_burst() -> None:
    scene = play([0.0, 1000.0, 0.0, 0.0])
    assert scene.beats == [30.0, 1060.0, 1080.0, 1110.0]


def test_between_beats_it_looks_for_a_gap() -> None:
    scene = play([0.0] * 6, interval=12.0, check_interval=5.0)
    assert scene.checks == [0.0, 5.0, 10.0, 12.0, 17.0, 22.0, 24.0]
    assert scene.beats == [12.0, 24.0]


def test_it_looks_sooner_when_it_is_asked_to_but_not_without_a_pause() -> None:
    class Hurried(Scene):
        def check_liveness(self) -> float | None:
            super().check_liveness()
            return {0.0: START + 3.0, 3.0: START + 3.0}.get(self.checks[-1])

    scene = play([0.0] * 3, check_interval=5.0, scene=Hurried)
    assert scene.checks == pytest.approx([0.0, 3.0, 3.01, 8.01])


def test_it_looks_for_a_gap_before_a_beat_could_hide_it() -> None:
    order: list[str] = []

    class Ordered(Scene):
        def beat(self) -> None:
            order.append("beat")

        def check_liveness(self) -> None:
            order.append("check")

    play([0.0], scene=Ordered)
    assert order == ["check", "check", "beat"]


def test_after_a_beat_that_took_longer_than_the_interval_the_next_is_due_at_once() -> None:
    class Slow(Scene):
        def beat(self) -> None:
            super().beat()
            self.now += 40.0

    scene = play([0.0] * 3, scene=Slow)
    assert scene.beats == [30.0, 70.0, 110.0]
    assert scene.waits == [30.0, 0.0, 0.0, 0.0]


# In its thread


@pytest.fixture
def beaten() -> threading.Event:
    return threading.Event()


def timer_with(
    *, handshake_timeout: float, interval: float = TIMEOUT, beat: Callable[[], None] = lambda: None
) -> tuple[HeartbeatTimer, Scene]:
    """A timer that waits for real."""
    scene = Scene([])
    scene.beat = beat  # type: ignore[method-assign]
    timer = HeartbeatTimer(
        scene, handshake_timeout=handshake_timeout, interval=interval, check_interval=interval
    )
    return timer, scene


def test_a_handshake_that_does_not_end_in_time_is_reported_once_and_nothing_beats() -> None:
    timer, scene = timer_with(handshake_timeout=0.0)
    timer.run()
    assert scene.overdue == 1
    assert scene.checks == []


@pytest.mark.parametrize("established", [True, False], ids=["established", "in the handshake"])
def test_a_stop_wakes_and_ends_the_thread(established: bool) -> None:
    timer, scene = timer_with(handshake_timeout=600.0, interval=600.0)
    running = in_thread(timer.run)
    if established:
        timer.established(600.0)
    timer.stop()
    timer.stop()
    running.result(TIMEOUT)
    assert scene.overdue == 0


def test_a_stop_before_the_thread_begins_ends_it_at_once() -> None:
    timer, scene = timer_with(handshake_timeout=0.0)
    timer.stop()
    timer.run()
    assert scene.overdue == 0


def test_it_beats_by_the_real_clock_until_it_is_stopped(beaten: threading.Event) -> None:
    timer, _ = timer_with(handshake_timeout=TIMEOUT, interval=0.001, beat=beaten.set)
    running = in_thread(timer.run)
    timer.established(0.001)
    assert beaten.wait(TIMEOUT)
    timer.stop()
    running.result(TIMEOUT)


def test_a_beat_may_stop_the_timer() -> None:
    beats = []

    def beat() -> None:
        beats.append(1)
        timer.stop()

    timer, _ = timer_with(handshake_timeout=TIMEOUT, interval=0.001, beat=beat)
    timer.established(0.001)
    in_thread(timer.run).result(TIMEOUT)
    assert beats == [1]
