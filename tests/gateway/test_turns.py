"""A turn of the gateway's loop: how much of it each peer has, and what is done at its end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from revconn.gateway import wires
from revconn.gateway.wires import Turn, Wire
from revconn.http2.endpoint import Endpoint
from revconn.http2.writing import Settings

PEERS = 8


class AnyWire(Wire):
    """Whoever's."""

    def over(self, reason: str) -> None:
        pass


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How much each peer was allowed, in order."""
    allowed: list[int] = []

    def receive(self: Endpoint, data: bytes, turn: int | None = None) -> bytes:
        assert turn is not None
        allowed.append(turn)
        return b""

    monkeypatch.setattr(Endpoint, "receive", receive)
    return allowed


def go_round(loop: asyncio.AbstractEventLoop) -> None:
    loop.call_soon(loop.stop)
    loop.run_forever()


def hear(loop: asyncio.AbstractEventLoop, size: int) -> None:
    """All peers say so many bytes, which are read in one turn."""
    turn = Turn(loop)
    with ExitStack() as stack:
        for _ in range(PEERS):
            ours, theirs = socket.socketpair()
            stack.enter_context(theirs)
            ours.setblocking(False)
            wire = AnyWire(ours, "anybody", Settings(turn=64), turn, loop, None)
            stack.callback(wire.close)
            theirs.send(bytes(size))
        go_round(loop)  # a look at the sockets, and all that it finds
        go_round(loop)  # the end of the turn


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(wires, "time", clock)
    return clock


class Clock:
    """Each look at it takes a quarter of a millisecond."""

    now = 0.0

    def monotonic(self) -> float:
        self.now += 2**-11
        return self.now


def test_once_a_turn_has_lasted_long_each_peer_may_do_less(loop, shares, clock) -> None:
    hear(loop, 1000)
    assert shares == [64, 64, 64, 64, 64, 49, 34, 18]


def test_there_is_always_enough_for_a_call(loop, clock) -> None:
    turn = Turn(loop)
    turn.begin()
    assert [turn.share(64, 0.0), turn.share(64, 3600.0)] == [64, 8]


def test_while_many_are_put_off_each_may_do_little(loop, clock) -> None:
    turn = Turn(loop)
    turn.begin()
    turn.later(lambda: None)
    assert turn.share(64, 0.0) == 32
    for _ in range(20):
        turn.later(lambda: None)
    assert turn.share(64, 0.0) == 8


def test_what_is_put_off_is_done_in_its_order_a_few_in_each_turn(loop, clock) -> None:
    turn = Turn(loop)
    done: list[int] = []
    for number in range(20):
        turn.later(partial(done.append, number))
    go_round(loop)
    assert 0 < len(done) < 20
    turn.later(partial(done.append, 20))
    while len(done) < 21:
        before = len(done)
        go_round(loop)
        assert before < len(done) < before + 12
    assert done == list(range(21))


def test_what_puts_itself_off_again_waits_behind_the_others(loop) -> None:
    turn = Turn(loop)
    done: list[str] = []

    def twice() -> None:
        done.append("first")
        if done.count("first") < 2:
            turn.later(twice)

    turn.later(twice)
    turn.later(lambda: done.append("second"))
    for _ in range(3):
        go_round(loop)
    assert done == ["first", "second", "first"]


def test_who_says_as_little_as_a_heartbeat_takes_nothing_from_others(loop, shares) -> None:
    hear(loop, 70)
    assert shares == [64] * PEERS


@pytest.mark.parametrize("when", [Turn.at_end, Turn.later])
def test_one_that_fails_keeps_nobody_else_from_it(loop, when) -> None:
    done = []
    loop.set_exception_handler(lambda *_: done.append("failed"))
    turn = Turn(loop)
    when(turn, lambda: 1 / 0)
    when(turn, lambda: done.append("the next"))
    go_round(loop)
    go_round(loop)
    assert done == ["failed", "the next"]


class EndingTLS:
    """What is read with it is the peer's last word."""

    is_shaking_hands = False
    is_over = True

    def decrypt(self, received: bytes) -> bytes:
        return received

    def encrypt(self, output: list[bytes]) -> bytes:
        return b"".join(output)

    def take_output(self) -> bytes:
        return b""


def test_a_peer_that_hangs_up_is_heard_to_its_end_first(loop, monkeypatch) -> None:
    heard: list[bytes] = []

    def receive(self: Endpoint, data: bytes, turn: int | None = None) -> bytes:
        heard.append(data[:1000])
        return data[1000:]

    monkeypatch.setattr(Endpoint, "receive", receive)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    wire = AnyWire(ours, "anybody", Settings(), Turn(loop), loop, EndingTLS())  # type: ignore[arg-type]
    with theirs:
        theirs.send(bytes(3500))
        while not wire.is_closed:
            go_round(loop)
    go_round(loop)  # what ends with the turn
    assert sum(map(len, heard)) == 3500


@pytest.mark.parametrize(("size", "is_put_off"), [(1000, False), (5000, True)])
def test_in_a_crowd_only_who_says_little_is_heard_at_once(
    loop, shares, clock, size: int, is_put_off: bool
) -> None:
    turn = Turn(loop)
    ours, theirs = socket.socketpair()
    wire = AnyWire(ours, "anybody", Settings(turn=64), turn, loop, None)
    ours.setblocking(False)
    order: list[int] = []
    for _ in range(20):
        turn.later(lambda: order.append(len(shares)))
    with theirs:
        theirs.send(bytes(size))
        while len(order) < 20 or not shares:
            go_round(loop)
        wire.close()
    came_first = order.count(0)  # of those who waited before
    assert (came_first == 20) == is_put_off


def test_who_is_put_off_is_read_again_once_all_was_taken(loop, monkeypatch) -> None:
    heard: list[bytes] = []

    def receive(self: Endpoint, data: bytes, turn: int | None = None) -> bytes:
        heard.append(data)
        return data[100:]

    monkeypatch.setattr(Endpoint, "receive", receive)
    turn = Turn(loop)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    wire = AnyWire(ours, "anybody", Settings(), turn, loop, None)
    with theirs:
        theirs.send(bytes(250))
        go_round(loop)
        theirs.send(b"more")
        for _ in range(4):
            go_round(loop)
        wire.close()
    assert list(map(len, heard)) == [250, 150, 50, 4]


def test_who_is_put_off_was_heard_all_the_same(loop, shares, clock) -> None:
    turn = Turn(loop)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    wire = AnyWire(ours, "anybody", Settings(), turn, loop, None)
    wire.heard_at = wire.pinged_at = 0.0
    for _ in range(20):
        turn.later(lambda: None)
    with theirs:
        theirs.send(bytes(5000))
        go_round(loop)
        assert (shares, wire.pinged_at) == ([], None)
        assert wire.heard_at > 0.0
        wire.close()


def test_while_what_it_said_is_taken_in_a_peer_is_heard(loop, monkeypatch) -> None:
    # Nothing is read meanwhile, the answer to a ping neither.
    seen: list[tuple[bool, float | None]] = []

    def receive(self: Endpoint, data: bytes, turn: int | None = None) -> bytes:
        seen.append((wire.heard_at > 0.0, wire.pinged_at))
        wire.heard_at = wire.pinged_at = 0.0
        return data[100:]

    monkeypatch.setattr(Endpoint, "receive", receive)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    wire = AnyWire(ours, "anybody", Settings(), Turn(loop), loop, None)
    with theirs:
        theirs.send(bytes(350))
        for _ in range(4):
            go_round(loop)
        wire.close()
    assert seen == [(True, None)] * 4
