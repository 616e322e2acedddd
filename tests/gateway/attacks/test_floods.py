"""Without a key: frames without end, each of which costs a little."""

from __future__ import annotations

import sys

import pytest

from tests.gateway.attacks.scene import Scene, endures

# Latency is compared: nothing else may run meanwhile. Memory is read from /proc.
pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc"),
]


@pytest.mark.parametrize("size", [0, 16_000], ids=["empty", "full"])
def test_continuation_without_end_ends_its_connection(scene: Scene, size: int) -> None:
    # Full ones, once: a call was not answered in 20 s; 900 MiB, which stayed.
    flood = {"size": size, "sends": 1_000, "ends": True, "counts": ["flooding"]}
    endures(scene, "floods.continuations", **flood)


def test_settings_that_concern_200_streams_each_time_end_their_connection(scene: Scene) -> None:
    flood = {"streams": 200, "sends": 1_000, "ends": True, "counts": ["flooding"]}
    endures(scene, "floods.setting_changes", **flood)


@pytest.mark.parametrize("reads", [True, False], ids=["read", "unread"])
def test_pings_without_end_end_their_connection(scene: Scene, reads: bool) -> None:
    # Of answers that are not read many fit into the network, and no GOAWAY is read either.
    flood = {"reads": reads, "sends": 10_000, "counts": ["flooding"]}
    endures(scene, "floods.pings", **flood)


def test_empty_data_ends_its_connection(scene: Scene) -> None:
    endures(scene, "floods.empty_data", sends=10_000, ends=True, counts=["flooding"])


def test_priorities_end_their_connection(scene: Scene) -> None:
    endures(scene, "floods.priorities", sends=10_000, ends=True, counts=["flooding"])


def test_headers_that_begin_with_4_000_sizes_of_the_table_end_their_connection(
    scene: Scene,
) -> None:
    endures(scene, "floods.table_sizes", changes=4_000, sends=100, ends=True)


def test_headers_of_8_kib_that_stand_for_32_mib_are_refused_for_their_size(scene: Scene) -> None:
    # Once: a call was not answered in 20 s; 370 MiB.
    bomb = {"references": 8_000, "counts": ["metadata"]}
    endures(scene, "floods.header_bombs", sends=100, **bomb)


def test_100_kb_of_metadata_are_refused(scene: Scene) -> None:
    # Once: 0.3 s for a call, 60 MiB, which stayed.
    flood = {"size": 100_000, "counts": ["metadata|flooding"]}
    endures(scene, "floods.header_lists", **flood, sends=100)


def test_windows_that_are_opened_by_a_byte_at_a_time_end_their_connection(scene: Scene) -> None:
    flood = {"increment": 1, "sends": 10_000, "ends": True, "counts": ["flooding"]}
    endures(scene, "floods.window_updates", **flood)


@pytest.mark.parametrize("increment", [0, (1 << 31) - 1], ids=["nothing", "too much"])
def test_windows_that_are_opened_by_what_is_not_allowed_end_their_connection(
    scene: Scene, increment: int
) -> None:
    endures(scene, "floods.window_updates", increment=increment, sends=10, ends=True)
