"""When connections are looked at: what they are due for comes in time, however the ages are set."""

from __future__ import annotations

import asyncio
import math
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revconn.gateway import Gateway
from revconn.gateway.listening import Listener
from revconn.gateway.shared import Shared

_TICK = 0.25


def slack(shortest: float) -> float:
    """Seconds that anything may come late, where that is the shortest time-out."""
    return min(3.0, shortest / 4) + _TICK


class AnyPeer:
    """A connection with a call on it, and what was done to it, when."""

    is_shaking_hands = False

    def __init__(self, *, served: int = 1, streams: int = 1) -> None:
        self.served = served
        self.opened_at = self.heard_at = self.idle_since = 0.0
        self.pinged_at: float | None = None
        self.is_closed = False
        self.endpoint = SimpleNamespace(streams=range(streams), is_leaving=False)
        self.now = 0.0
        self.done: dict[str, float] = {}

    def note(self, what: str) -> None:
        self.done.setdefault(what, self.now)

    def ping(self, now: float) -> None:
        self.pinged_at = now
        self.note("pinged")

    def leave(self) -> None:
        self.endpoint.is_leaving = True
        self.note("left")

    def end(self, reason: str) -> None:
        self.is_closed = True
        self.note("ended")

    def close(self, reason: str = "") -> None:
        self.is_closed = True
        self.note("closed")


def live(
    peer: AnyPeer,
    *,
    age: float | None = None,
    heard: float = 0.0,
    calls_at: float = 0.0,
    **options: Any,
) -> Any:
    """What is done to a connection until it is closed; it is heard each so many seconds."""

    async def look() -> dict[str, float]:
        settings = Gateway(max_connection_age=age, **options)._settings
        listener = Listener(settings, Shared(settings), lambda *_: None)
        listener._peers[peer] = float("inf") if age is None else age  # type: ignore[index]
        while not peer.is_closed and peer.now < 10_000:
            peer.now += _TICK
            if calls_at and peer.now >= calls_at:
                peer.served, peer.endpoint.streams = 1, range(1)
            if heard and peer.now % heard == 0:
                peer.heard_at, peer.pinged_at = peer.now, None
            listener.look(peer.now)
        return peer.done

    return asyncio.run(look())


@pytest.mark.parametrize(
    ("timeout", "heartbeat"), [(1.0, 120.0), (10.0, 20.0), (10.0, 120.0), (600.0, 1200.0)]
)
def test_who_is_silent_is_pinged_and_given_up(timeout: float, heartbeat: float) -> None:
    keepalive = max(10.0, heartbeat / 2)
    done = live(AnyPeer(), handshake_timeout=timeout, heartbeat_timeout=heartbeat)
    late = slack(min(timeout, keepalive))
    assert keepalive < done["pinged"] <= keepalive + late
    assert done["pinged"] + 20.0 < done["closed"] <= done["pinged"] + 20.0 + late


@pytest.mark.parametrize("timeout", [0.5, 10.0, 300.0])
def test_who_never_calls_is_given_up(timeout: float) -> None:
    done = live(AnyPeer(served=0, streams=0), handshake_timeout=timeout, heartbeat_timeout=1200.0)
    assert timeout < done["closed"] <= timeout + slack(timeout)


def test_a_connection_that_makes_its_first_call_late_is_told_its_age_in_time() -> None:
    peer = AnyPeer(served=0, streams=0)
    done = live(peer, age=20.0, calls_at=18.0, heard=1.0, handshake_timeout=60.0, idle_timeout=300)
    assert 20.0 < done["left"] <= 20.0 + slack(18.0)


@pytest.mark.parametrize("timeout", [0.5, 300.0])
def test_who_is_idle_is_told_to_go(timeout: float) -> None:
    peer = AnyPeer(streams=0)
    peer.leave = peer.close  # type: ignore[method-assign]
    assert timeout < live(peer, idle_timeout=timeout)["closed"] <= timeout + slack(timeout)


@pytest.mark.parametrize("grace", [0.0, 5.0, 60.0])
@pytest.mark.parametrize("timeout", [10.0, 300.0])
def test_who_is_too_old_is_told_to_go_before_it_is_ended(timeout: float, grace: float) -> None:
    done = live(
        AnyPeer(),
        age=3600.0,
        heard=5.0,
        max_connection_age_grace=grace,
        handshake_timeout=timeout,
        heartbeat_timeout=600.0,
    )
    late = slack(timeout)
    assert 3600.0 < done["left"] <= 3600.0 + late
    assert grace < done["ended"] - done["left"] <= grace + late


def test_while_nobody_is_due_nobody_is_looked_at() -> None:
    peer = AnyPeer()
    looks: list[float] = []
    look_at = Listener._look_at

    def count(self: Listener, peer: Any, now: float) -> float:
        looks.append(now)
        return look_at(self, peer, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Listener, "_look_at", count)
        live(peer, heard=5.0, age=1000.0, max_connection_age_grace=0.0)
    assert 50 < len(looks) < 150  # of 4,000 ticks; each 10 s is when one that came could be due


class Life(NamedTuple):
    """What somebody does, in seconds."""

    comes_at: float
    calls_after: float | None
    is_answered_after: float
    speaks_each: float | None


def lives(random: Random) -> list[Life]:
    """Of many who come, call, say something and fall idle at different times."""
    return [
        Life(
            comes_at=random.choice([0.0, random.uniform(0.0, 400.0)]),
            calls_after=random.choice([None, 0.0, random.uniform(0.0, 70.0)]),
            is_answered_after=random.choice([1.0, random.uniform(0.0, 300.0)]),
            speaks_each=random.choice([None, 0.5, 5.0, 30.0]),
        )
        for _ in range(random.choice([1, 3, 30]))
    ]


class LivelyPeer(AnyPeer):
    """One that comes at some time, and makes one call; and what it was due for, and when."""

    def __init__(self, life: Life) -> None:
        super().__init__(served=0, streams=0)
        self.life = life
        self.opened_at = self.heard_at = self.idle_since = self.now = life.comes_at
        self.calls_at = math.inf
        if life.calls_after is not None:
            self.calls_at = life.comes_at + life.calls_after
        self.too_old_at = self.ends_at = 0.0

    def go_on(self, now: float) -> None:
        """Do what is to be done by then."""
        self.now = now
        if not self.served and now >= self.calls_at:
            self.served, self.endpoint.streams = 1, range(1)
            self.heard_at, self.pinged_at = now, None
        elif self.life.speaks_each and now - self.heard_at >= self.life.speaks_each:
            self.heard_at, self.pinged_at = now, None
        if self.endpoint.streams and now >= self.calls_at + self.life.is_answered_after:
            self.endpoint.streams, self.idle_since = range(0), now
            self.ends_at = now
        if self.endpoint.is_leaving and not self.endpoint.streams and now >= self.ends_at:
            self.end("it was left")

    def overdue(self, now: float, settings: Any, soonest: float) -> dict[str, float]:
        """For how long something has been due that was not done."""
        if self.is_closed:
            return {}
        if not self.served:
            return {"call": now - self.opened_at - settings.limits.handshake_timeout}
        due = {}
        if not self.endpoint.is_leaving:
            # Of who was too old before its first call that is noticed like all that comes anew.
            is_known = self.too_old_at > self.calls_at
            due["age"] = now - (self.too_old_at if is_known else self.calls_at + soonest)
        if not self.endpoint.streams:
            if not self.endpoint.is_leaving:
                due["idle"] = now - self.idle_since - settings.idle_timeout
        elif self.pinged_at is None:
            due["ping"] = now - self.heard_at - max(10.0, settings.heartbeat_timeout / 2)
        else:
            due["answer"] = now - self.pinged_at - 20.0
        return due

    def leave(self) -> None:
        """As a connection does: one without a call ends once the peer has read that."""
        if not self.endpoint.is_leaving:
            self.ends_at = self.now + 10.0
        super().leave()


# Handshake, idle, heartbeat and age: each of them, in its turn, is the first that anybody meets.
TIMEOUTS = [(4, 300, 1200, 3600), (60, 8, 1200, 3600), (60, 300, 20, 3600), (60, 300, 1200, 30)]


@pytest.mark.parametrize(("handshake", "idle", "heartbeat", "age"), TIMEOUTS)
@settings(max_examples=50)
@given(random=st.integers(0, 2**32).map(Random))
def test_of_many_nobody_is_overlooked_and_nobody_is_early(
    random: Random, handshake: float, idle: float, heartbeat: float, age: float
) -> None:
    looks = []

    async def run() -> None:
        gateway = Gateway(
            handshake_timeout=handshake,
            idle_timeout=idle,
            heartbeat_timeout=heartbeat,
            max_connection_age=age,
            max_connection_age_grace=7.0,
        )
        options = gateway._settings
        listener = Listener(options, Shared(options), lambda *_: None)
        waiting = sorted(map(LivelyPeer, lives(random)), key=lambda peer: peer.opened_at)
        shortest = min(handshake, idle, max(10.0, heartbeat / 2), age * 0.9)
        late, now = slack(shortest), 0.0
        look_at_all = listener._look_at

        def look_at(peer: Any, now: float) -> float:
            looks.append(now)
            return look_at_all(peer, now)

        listener._look_at = look_at  # type: ignore[method-assign]
        for _ in range(int(600 / _TICK)):
            now += _TICK
            while waiting and waiting[0].opened_at <= now:
                peer = waiting.pop(0)
                peer.too_old_at = peer.opened_at + age * random.uniform(0.9, 1.1)
                listener._peers[peer] = peer.too_old_at  # type: ignore[index]
            for peer in tuple(listener._peers):
                peer.go_on(now)  # type: ignore[attr-defined]
                if peer.is_closed:
                    del listener._peers[peer]
            before = {peer: dict(peer.done) for peer in listener._peers}
            due = {peer: peer.overdue(now, options, shortest) for peer in listener._peers}
            listener.look(now)
            for peer, was_due in due.items():
                if peer.done != before[peer] and "ended" not in before[peer]:
                    assert max(was_due.values(), default=1.0) > 0 or peer.endpoint.is_leaving
                overdue = peer.overdue(now, options, shortest)
                assert max(overdue.values(), default=0.0) <= late, overdue
        spacing = min(3.0, shortest / 4)
        assert len(set(looks)) <= now / max(spacing, _TICK) + 1

    asyncio.run(run())
