"""Without a key: messages that do not become whole, and answers that nobody reads."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.gateway.attacks.names import LIMITS
from tests.gateway.attacks.scene import Scene, endures
from tests.gateway.attacks.strangers import ESTABLISH

# Latency is compared: nothing else may run meanwhile. Memory is read from /proc.
pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc"),
]

MIB = 1 << 20
# What limits what is received or unread together, and half as much again for what is on its way
# in and out of it.
MOST = LIMITS["max_receiving_bytes"] * 3 // 2 + 16 * MIB
LARGE = "/large.Large/Large"


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """Bytes run out before time does; a large answer is another connector's than the victim's."""
    with Scene(handshake_timeout=20.0, max_sockets=1000) as scene:
        scene.serve("large.Large")
        yield scene


@pytest.mark.parametrize("path", [ESTABLISH, "/echo.Echo/Say"], ids=["connectors", "callers"])
def test_200_first_messages_of_nearly_4_mib_that_lack_a_byte_take_what_is_given_to_them_together(
    scene: Scene, path: str
) -> None:
    # Once: 430 MiB after three seconds, and 0.8 GiB in the end.
    half = {"path": path, "size": 4 * MIB - 1000, "count": 200, "connections": 2}
    endures(
        scene,
        "strangers.half_messages",
        **half,
        counts=["receiving"],
        sends=16 * MIB,
        most=MOST,
        seconds=2.0,
    )


@pytest.mark.parametrize("path", [ESTABLISH, "/grpc.health.v1.Health/Check"])
def test_2_500_first_messages_that_fit_into_their_windows_take_no_more_together(
    scene: Scene, path: str
) -> None:
    # A limit of what is granted beyond a stream's first window would not see them.
    half = {"path": path, "size": 120_000, "count": 2_500, "connections": 20}
    counts = {"counts": ["receiving|pending|not let in"], "sends": 16 * MIB}
    endures(scene, "strangers.half_messages", **half, **counts, most=MOST, seconds=2.0)


def test_200_first_messages_of_8_mib_are_refused_before_they_come(scene: Scene) -> None:
    # Once: 1.6 GiB.
    half = {"path": ESTABLISH, "size": 8 * MIB, "count": 200, "connections": 2}
    endures(scene, "strangers.half_messages", **half, counts=["too large|receiving"], most=MOST)


def test_answers_of_4_mib_to_300_callers_who_do_not_read_are_not_kept(scene: Scene) -> None:
    # Once: 5.6 s for a call, 1.9 GiB after three seconds and 2.5 in the end, for ever.
    endures(
        scene,
        "strangers.windowless_callers",
        path=LARGE,
        count=300,
        counts=["unread"],
        sends=300,
        most=MOST,
        seconds=2.5,
    )
