"""Without a key: connections that say nothing, too little, or too slowly."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.gateway.attacks.insiders import register_once
from tests.gateway.attacks.names import LIMITS
from tests.gateway.attacks.scene import Scene, endures
from tests.gateway.attacks.strangers import ESTABLISH
from tests.support.certificates import Authority

# Latency is compared: nothing else may run meanwhile. Memory is read from /proc.
pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc"),
]


def test_300_silent_connections_leave_a_gateway_with_256_descriptors_some_for_others() -> None:
    # Once: nobody was let in any more, until an attacker left.
    with Scene(descriptors=256) as scene:
        flood = {"count": LIMITS["max_sockets"] + 100}
        endures(scene, "strangers.silent_sockets", **flood, counts=["sockets"], sends=200)


@pytest.mark.parametrize("path", [ESTABLISH, "/echo.Echo/Say"], ids=["connectors", "callers"])
def test_300_connections_with_a_silent_stream_each_leave_some_for_others(path: str) -> None:
    # Once: a connector found no place until one of them was timed out.
    with Scene(descriptors=256, handshake_timeout=10.0) as scene:
        flood = {"path": path, "count": LIMITS["max_sockets"] + 100}
        counts = {"counts": ["sockets"], "sends": 300}
        endures(
            scene,
            "strangers.silent_streams",
            **flood,
            **counts,
            meanwhile=lambda: register_once(scene.address),
        )


def test_a_gateway_ends_what_comes_a_byte_at_a_time(scene: Scene) -> None:
    slow = {"path": "/echo.Echo/Say", "count": 100, "per_second": 20}
    endures(
        scene,
        "strangers.slow_bytes",
        **slow,
        counts=["handshake"],
        sends=2_000,
        ends=True,
        seconds=2.5,
    )


def test_300_tls_handshakes_that_do_not_go_on_are_ended(
    authority: Authority, tmp_path: Path
) -> None:
    with Scene(authority=authority, directory=tmp_path, max_sockets=400) as scene:
        endures(
            scene,
            "strangers.stalled_handshakes",
            count=300,
            counts=["handshake"],
            sends=300,
            ends=True,
            seconds=2.0,
        )
