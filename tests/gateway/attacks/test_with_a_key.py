"""With a key: a connector that takes more than its share of what all have takes it from itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.gateway.attacks.insiders import register_once
from tests.gateway.attacks.scene import Scene, endures
from tests.support.waiting import eventually

# Latency is compared: nothing else may run meanwhile. Memory is read from /proc.
pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc"),
]

MANY = 40_000


@pytest.mark.parametrize("by_connectors", [False, True], ids=["callers", "connectors"])
def test_connectors_that_answer_nothing_leave_room_for_calls_of_others(
    scene: Scene, by_connectors: bool
) -> None:
    # Once: of calls of others two in three failed, until those that waited ran out of time.
    dead = {"calls": 600, "by_connectors": by_connectors}
    counts = ["pending|pending per connection"]
    endures(scene, "insiders.dead_services", **dead, counts=counts, sends=1_000, ready=True)


def test_answers_that_are_never_whole_leave_room_for_those_of_others() -> None:
    # Once: one in six of others' answers was refused.
    limits = {
        "max_message_bytes": 65_536,
        "max_response_bytes": 1 << 20,
        "max_joining_bytes": 8 << 20,
    }
    with Scene(**limits) as scene:
        chunks = {"size": 1_000_000, "calls": 20, "called": "/echo.Echo/Chunks"}
        counts = {"counts": ["joining"], "sends": 8 << 20}
        endures(scene, "insiders.unfinished_chunks", **chunks, **counts, ready=True)


def test_connectors_that_do_not_read_have_no_place_after_they_were_ended() -> None:
    places = 20
    limits = {"heartbeat_timeout": 1.2, "max_connections": places + 1}
    with Scene(**limits) as scene:
        memory = scene.memory()
        deaf = {"count": places, "calls": 200, "size": 100_000}
        with scene.attack("insiders.deaf_connectors", **deaf) as attacking:
            attacking.wait_until_ready()
            with scene.victim() as victim:
                calls = victim.call_for(1.0)
            eventually(lambda: scene.stats()["connections_expired"] >= places)
            eventually(lambda: scene.stats()["connections"] == 1, 5.0)
            eventually(lambda: scene.stats()["pending"] == 0, 5.0)
            eventually(lambda: scene.memory() - memory < 24 << 20, 5.0)
            register_once(scene.address)
        assert attacking.report["sent"] == 200
        assert not calls.failures, calls


def test_many_connectors_that_answer_what_nobody_asked_take_turns() -> None:
    # See test_turns: in which all of it was dealt with at once, and for 0.2 s nothing else.
    with Scene(max_connections=400, max_connections_per_key=400, max_sockets=1000) as scene:
        answers = {"connectors": 300, "answers": 60, "counts": ["answers to nobody"]}
        endures(scene, "insiders.unmatched_answers", **answers, sends=18_000, ready=True)


@pytest.fixture(scope="module")
def crowd() -> Iterator[Scene]:
    """Where that many calls may wait at once."""
    limits = {"max_pending": 50_000, "max_pending_per_connection": 50_000, "max_sockets": 1000}
    with Scene(request_timeout=60.0, handshake_timeout=20.0, **limits) as scene:
        yield scene


def test_40_000_callers_who_give_up_at_once_are_not_noticed(crowd: Scene) -> None:
    # Once: 12.7 s for a call.
    cancels = {"count": MANY, "connections": 160, "ready": True}
    counts = {"counts": ["given up"], "sends": MANY}
    endures(crowd, "insiders.cancelled_calls", **cancels, **counts, most=256 << 20)


@pytest.mark.parametrize("asks", [True, False], ids=["of calls", "of nothing"])
def test_40_000_cancels_of_one_connector_are_not_noticed(crowd: Scene, asks: bool) -> None:
    counts = ["given up"] if asks else []
    cancels = {"count": MANY, "asks": asks, "ready": True}
    endures(crowd, "insiders.cancel_requests", **cancels, counts=counts, sends=10_000)
