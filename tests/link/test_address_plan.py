"""Which addresses of a name have links: decided with passed-in time, no thread and no resolver."""

from __future__ import annotations

from typing import Any

import pytest

from revconn.link.every_address import (
    Abort,
    AddressPlan,
    Decision,
    GiveUp,
    Leave,
    LookUp,
    Stage,
)
from revconn.link.records import Wait
from revconn.runtime.state import State

INTERVAL = 30.0
PATIENCE = 20.0
DRAIN = 10.0


class Scene:
    """A plan, what its links are doing by address, and the time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.states: dict[str, State] = {}
        self.plan = AddressPlan(
            self.now,
            patience=PATIENCE,
            drain_timeout=DRAIN,
            draw=lambda low, high: (low + high) / 2,
        )

    def found(self, *ips: str, state: State = State.CONNECTING) -> list[str]:
        """The addresses that are to have a link, from now on in this state."""
        appeared = [member.ip for member in self.plan.found(ips, self.now)]
        self.states.update(dict.fromkeys(appeared, state))
        return appeared

    def decides(self, after: float = 0.0) -> Any:
        self.now += after
        return self.plan.decide(self.now, lambda member: self.states[member.ip])

    def leaving(self, after: float = 0.0) -> str | None:
        """Which one is told to leave now."""
        decision = self.decides(after)
        return decision.member.ip if isinstance(decision, Leave) else None

    def waits(self, decision: Decision) -> float:
        assert isinstance(decision, Wait), decision
        return decision.until - self.now


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
def two(scene: Scene) -> Scene:
    """The name has a and b, and both are ready."""
    scene.found("a", "b", state=State.READY)
    return scene


# Look-ups


def test_the_name_is_looked_up_at_once(scene: Scene) -> None:
    assert scene.decides() == LookUp()


def test_every_address_has_one_link_in_the_resolvers_order(scene: Scene) -> None:
    assert scene.found("b", "a", "b") == ["b", "a"]
    assert scene.found("a", "b") == []


def test_the_next_look_up_is_an_interval_later(two: Scene) -> None:
    assert two.waits(two.decides()) == INTERVAL
    assert two.decides(INTERVAL) == LookUp()


def test_intervals_are_drawn_a_fifth_around_thirty_seconds() -> None:
    bounds: list[tuple[float, float]] = []
    plan = AddressPlan(
        0.0,
        patience=PATIENCE,
        drain_timeout=DRAIN,
        draw=lambda *asked: bounds.append(asked) or asked[0],
    )
    plan.found(["a"], 0.0)
    assert bounds == [(pytest.approx(24.0), pytest.approx(36.0))]
    assert plan.due == pytest.approx(24.0)


def test_a_look_up_that_fails_changes_nothing_and_is_followed_by_another(two: Scene) -> None:
    two.now += INTERVAL
    two.plan.failed(two.now)
    assert two.waits(two.decides()) == INTERVAL
    assert two.found("a", "b") == []


def test_a_first_look_up_that_fails_is_repeated_when_the_backoff_says_so(scene: Scene) -> None:
    scene.plan.failed(scene.now, 0.7)
    assert scene.waits(scene.decides()) == pytest.approx(0.7)
    assert scene.decides(0.8) == LookUp()


# New ones first


def test_one_that_vanished_leaves_at_once_where_none_has_appeared(two: Scene) -> None:
    two.found("a")
    assert two.leaving() == "b"


def test_one_that_vanished_stays_until_those_that_appeared_are_ready(two: Scene) -> None:
    assert two.found("a", "c", "d") == ["c", "d"]
    assert two.waits(two.decides()) == PATIENCE
    two.states["c"] = State.READY
    assert two.leaving() is None
    two.states["d"] = State.READY
    assert two.leaving() == "b"


@pytest.mark.parametrize("state", [State.CONNECTING, State.BACKING_OFF])
def test_those_that_do_not_become_ready_are_waited_for_no_longer_than_an_attempt(
    two: Scene, state: State
) -> None:
    two.found("a", "c", state=state)
    assert two.leaving(PATIENCE - 0.1) is None
    assert two.leaving(0.1) == "b"


def test_one_that_gave_up_is_not_waited_for(two: Scene) -> None:
    two.found("a", "c", state=State.CLOSED)
    assert two.leaving() == "b"


@pytest.mark.parametrize("state", [State.CONNECTING, State.BACKING_OFF, State.CLOSED])
def test_the_last_that_serves_stays_while_the_name_has_none_that_does(
    scene: Scene, state: State
) -> None:
    scene.found("a", state=State.READY)
    scene.found("b", state=state)
    assert scene.leaving(10 * PATIENCE) is None
    scene.found("b")  # that look-up was due
    assert scene.waits(scene.decides()) == INTERVAL
    scene.states["b"] = State.READY
    assert scene.leaving() == "a"


def test_one_that_vanished_and_serves_nobody_goes_when_patience_ends(scene: Scene) -> None:
    scene.found("a", state=State.BACKING_OFF)
    scene.found("b")
    assert scene.leaving(PATIENCE - 0.1) is None
    assert scene.leaving(0.1) == "a"


def test_several_that_vanished_are_told_to_leave_one_after_the_other(two: Scene) -> None:
    two.found("c", state=State.READY)
    assert [two.leaving(), two.leaving(), two.leaving()] == ["a", "b", None]


# There and back


def test_one_that_comes_back_before_it_left_stays(two: Scene) -> None:
    two.found("a", "c")
    assert two.found("a", "b", "c") == []
    assert two.leaving(PATIENCE) is None
    assert {member.stage for member in two.plan.members} == {Stage.PRESENT}


def test_one_that_comes_back_when_it_was_told_to_leave_has_a_second_link(two: Scene) -> None:
    two.found("a")
    assert two.leaving() == "b"
    assert two.found("a", "b") == ["b"]
    assert [member.ip for member in two.plan.members] == ["a", "b", "b"]


# Leaving


def test_one_that_does_not_end_is_given_up_and_then_aborted(two: Scene) -> None:
    two.found("a")
    member = two.decides().member
    assert member.until == two.now + DRAIN
    assert two.waits(two.decides()) == DRAIN
    assert two.decides(DRAIN) == GiveUp(member)
    assert two.waits(two.decides()) == 1.0
    assert two.decides(1.0) == Abort(member)
    assert two.waits(two.decides()) == INTERVAL - DRAIN - 1.0


def test_one_that_has_left_is_forgotten(two: Scene) -> None:
    two.found("a")
    two.plan.over(two.decides().member)
    assert [member.ip for member in two.plan.members] == ["a"]
    assert two.waits(two.decides()) == INTERVAL
    assert two.found("a", "b") == ["b"]
