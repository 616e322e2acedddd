"""A turn of the gateway's loop: how much of it each peer has, and what is done at its end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

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


def test_the_more_peers_say_much_in_a_turn_the_less_each_may(loop, shares) -> None:
    hear(loop, 1000)
    assert shares == [64, 64, 42, 32, 25, 21, 18, 16]


def test_who_says_as_little_as_a_heartbeat_takes_nothing_from_others(loop, shares) -> None:
    hear(loop, 70)
    assert shares == [64] * PEERS


def test_one_that_fails_at_the_end_of_a_turn_keeps_nobody_else_from_it(loop) -> None:
    done = []
    loop.set_exception_handler(lambda *_: done.append("failed"))
    turn = Turn(loop)
    turn.at_end(lambda: 1 / 0)
    turn.at_end(lambda: done.append("the next"))
    go_round(loop)
    go_round(loop)
    assert done == ["failed", "the next"]
