"""When connections are looked at: what they are due for comes in time, however the ages are set."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from revconn.gateway import Gateway
from revconn.gateway.listening import Listener
from revconn.gateway.shared import Shared

_TICK = 0.25
_SLACK = 3.0 + _TICK  # seconds that anything may come late


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


def live(peer: AnyPeer, *, age: float | None = None, heard: float = 0.0, **options: Any) -> Any:
    """What is done to a connection until it is closed; it is heard each so many seconds."""

    async def look() -> dict[str, float]:
        settings = Gateway(max_connection_age=age, **options)._settings
        listener = Listener(settings, Shared(settings), lambda *_: None)
        listener._peers[peer] = float("inf") if age is None else age  # type: ignore[index]
        while not peer.is_closed and peer.now < 10_000:
            peer.now += _TICK
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
    assert keepalive < done["pinged"] <= keepalive + _SLACK
    assert done["pinged"] + 20.0 < done["closed"] <= done["pinged"] + 20.0 + _SLACK


@pytest.mark.parametrize("timeout", [0.5, 10.0, 300.0])
def test_who_never_calls_is_given_up(timeout: float) -> None:
    done = live(AnyPeer(served=0, streams=0), handshake_timeout=timeout, heartbeat_timeout=1200.0)
    assert timeout < done["closed"] <= timeout + _SLACK


@pytest.mark.parametrize("timeout", [0.5, 300.0])
def test_who_is_idle_is_told_to_go(timeout: float) -> None:
    peer = AnyPeer(streams=0)
    peer.leave = peer.close  # type: ignore[method-assign]
    assert timeout < live(peer, idle_timeout=timeout)["closed"] <= timeout + _SLACK


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
    assert 3600.0 < done["left"] <= 3600.0 + _SLACK
    assert done["left"] < done["ended"] <= 3600.0 + grace + 2 * _SLACK


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
