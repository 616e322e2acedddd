from __future__ import annotations

from typing import Any

import pytest

from revconn.core.status import StatusCode
from revconn.gateway.registry import Connection, ConnectionInfo, Registry


class Ends(list):
    def __call__(self, code: StatusCode, reason: str) -> None:
        self.append(code)


def make(name: str, *services: str, now: float = 0.0) -> Connection:
    return Connection(
        id=name,
        key=0,
        services=services,
        peer=f"ipv4:{name}",
        connected_at=now,
        send=lambda message: True,
        end=Ends(),
    )


def register(registry: Registry, name: str, *services: str, **options: Any) -> Connection:
    connection = make(name, *services, **options)
    registry.add(connection)
    return connection


def turns(registry: Registry, service: str, count: int) -> str:
    taken = (registry.take_turn(service) for _ in range(count))
    return "".join("-" if connection is None else connection.id for connection in taken)


def test_connections_of_one_service_take_turns() -> None:
    registry = Registry()
    for name in "abc":
        register(registry, name, "echo.Echo")
    assert turns(registry, "echo.Echo", 7) == "abcabca"


def test_turns_of_one_service_do_not_disturb_another() -> None:
    registry = Registry()
    register(registry, "a", "one", "two")
    register(registry, "b", "one", "two")
    assert (
        turns(registry, "one", 1) + turns(registry, "two", 2) + turns(registry, "one", 1) == "aabb"
    )


def test_a_service_is_found_by_its_nearest_parent() -> None:
    registry = Registry()
    register(registry, "a", "x")
    register(registry, "b", "x.y")
    assert turns(registry, "x.y.z", 1) + turns(registry, "x.z", 1) == "ba"


def test_the_exact_name_goes_before_a_parent() -> None:
    registry = Registry()
    register(registry, "a", "x")
    register(registry, "b", "x.y")
    assert turns(registry, "x.y", 2) == "bb"


@pytest.mark.parametrize("service", ["", "other", "x.yz", "xx"])
def test_a_service_nobody_serves_is_not_found(service: str) -> None:
    registry = Registry()
    register(registry, "a", "x.y")
    assert registry.take_turn(service) is None
    assert not registry.serves(service)


def test_a_child_of_a_service_is_served() -> None:
    registry = Registry()
    register(registry, "a", "x")
    assert registry.serves("x.y.z")


def test_a_draining_connection_gets_no_turn_but_is_still_there() -> None:
    registry = Registry()
    leaving = register(registry, "a", "x", "y")
    register(registry, "b", "x")
    leaving.pending.add("1")
    registry.drain(leaving, "it left")
    assert turns(registry, "x", 2) + turns(registry, "y", 1) == "bb-"
    assert [connection.id for connection in registry.connections] == ["a", "b"]
    assert leaving.end == []


def test_a_connection_that_drains_with_nothing_pending_ends_in_peace() -> None:
    registry = Registry()
    leaving = register(registry, "a", "x")
    registry.drain(leaving, "it left")
    assert leaving.end == [StatusCode.OK]


def test_draining_twice_is_draining_once() -> None:
    registry = Registry()
    leaving = register(registry, "a", "x")
    leaving.pending.add("1")
    registry.drain(leaving, "it left")
    registry.drain(leaving, "it left")
    registry.remove(leaving)
    assert registry.connections == ()


def test_a_removed_connection_leaves_nothing_behind() -> None:
    registry = Registry()
    gone = register(registry, "a", "x", "y")
    registry.remove(gone)
    assert registry.connections == ()
    assert not registry.serves("x")
    assert turns(registry, "y", 1) == "-"


def test_a_connection_expires_when_its_last_heartbeat_is_as_old_as_the_timeout() -> None:
    registry = Registry()
    silent = register(registry, "a", now=100.0)
    alive = register(registry, "b", now=100.0)
    alive.last_heartbeat = 190.0
    assert registry.expired(219.9, 120.0) == []
    assert registry.expired(220.0, 120.0) == [silent]


def test_a_picture_of_a_connection_says_where_it_stands() -> None:
    registry = Registry()
    connection = register(registry, "a", "x", now=10.0)
    connection.last_heartbeat = 15.0
    connection.pending.add("1")
    connection.unmatched = 2
    assert registry.describe(20.0) == (
        ConnectionInfo(
            connection_id="a",
            services=("x",),
            peer="ipv4:a",
            age=10.0,
            heartbeat_age=5.0,
            pending=1,
            draining=False,
            unmatched=2,
        ),
    )
