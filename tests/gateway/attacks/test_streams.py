"""Without a key: streams that nothing happens on, and more of them than anybody needs."""

from __future__ import annotations

import sys

import pytest

from tests.gateway.attacks.insiders import register_once
from tests.gateway.attacks.scene import Scene, endures
from tests.gateway.attacks.strangers import ESTABLISH

# Latency is compared: nothing else may run meanwhile. Memory is read from /proc.
pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc"),
]

SAY = "/echo.Echo/Say"


@pytest.mark.parametrize(
    ("path", "asks"),
    [
        ("/grpc.health.v1.Health/Watch", True),
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", False),
    ],
    ids=["watch", "reflection"],
)
def test_of_33_000_idle_streams_on_a_connection_few_are_kept(
    scene: Scene, path: str, asks: bool
) -> None:
    # Before there was a limit of streams: 6.1 and 6.4 s for a call, 340 and 500 MiB.
    idle = {"path": path, "asks": asks, "count": 33_000}
    endures(scene, "strangers.idle_streams", **idle, counts=["streams"], sends=33_000)


def test_8_000_calls_a_second_of_a_service_that_there_is_not(scene: Scene) -> None:
    # Once: 13 s for a call.
    flood = {"path": "/nobody.Nowhere/Say", "says": "empty", "per_second": 8_000}
    endures(scene, "strangers.new_streams", **flood, counts=["unserved"], sends=4_000)


def test_8_000_wrong_keys_a_second(scene: Scene) -> None:
    # Once: 18 s for a call, 290 MiB.
    flood = {"path": ESTABLISH, "says": "wrong key", "per_second": 8_000}
    endures(scene, "strangers.new_streams", **flood, counts=["not let in"], sends=4_000)


def test_streams_that_are_reset_as_soon_as_they_are_opened_end_their_connection(
    scene: Scene,
) -> None:
    # Once: 15 s for a call, and one that failed; 280 MiB.
    flood = {"path": SAY, "resets": True}
    endures(scene, "strangers.new_streams", **flood, counts=["flooding"], sends=4_000, ends=True)


def test_8_000_calls_a_second_that_are_reset_before_they_are_answered(scene: Scene) -> None:
    # Once: 12 s for a call, 270 MiB.
    flood = {"path": SAY, "says": "empty", "resets": True, "per_second": 8_000}
    counts = ["given up|flooding"]
    endures(scene, "strangers.new_streams", **flood, counts=counts, sends=4_000)


def test_1_200_calls_whose_message_never_comes_leave_room_for_others(scene: Scene) -> None:
    # Once: 9 calls of 10 were refused.
    silent = {"path": SAY, "count": 1_200, "connections": 5}
    endures(scene, "strangers.silent_calls", **silent, counts=["pending"], sends=1_200)


def test_10_000_streams_that_never_register_leave_room_for_connectors(scene: Scene) -> None:
    # Once: 3.4 s for a call, 160 MiB; and no connector could register.
    silent = {"path": ESTABLISH, "count": 10_000, "connections": 40}
    endures(
        scene,
        "strangers.silent_calls",
        **silent,
        counts=["handshake|not let in"],
        sends=10_000,
        meanwhile=lambda: register_once(scene.address),
    )
