from __future__ import annotations

from typing import Any

import pytest

from revconn._proto.registry_pb2 import ConnectionMessage, Heartbeat
from revconn.core.routing import Wanted
from revconn.core.status import StatusCode
from revconn.gateway.limits import Limits
from revconn.gateway.outbound import STALL_AFTER, Outbound
from revconn.gateway.report import ConnectionInfo
from revconn.gateway.routes import Connection, Registry
from tests.support.connections import accepted

LIMITS = Limits()


class Ends(list):
    def __call__(self, code: StatusCode, reason: str) -> None:
        self.append(code)


def make(
    name: str,
    *services: str,
    now: float = 0.0,
    key: int = 1,
    limits: Limits = LIMITS,
    features: tuple[str, ...] = (),
    **fields: Any,
) -> Connection:
    return Connection(
        id=name,
        key=key,
        services=services,
        peer=f"ipv4:{name}",
        connected_at=now,
        protocol=accepted(name, now, *features),
        outbound=Outbound(limits),
        end=Ends(),
        max_pending=limits.max_pending_per_connection,
        max_message_bytes=limits.max_sent_message_bytes,
        **fields,
    )


def register(registry: Registry, name: str, *services: str, **options: Any) -> Connection:
    connection = make(name, *services, **options)
    registry.add(connection)
    return connection


def turns(registry: Registry, service: str, count: int, now: float = 0.0) -> str:
    taken = (registry.take_turn(Wanted.by_connector(service), now) for _ in range(count))
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
    assert registry.take_turn(Wanted.by_connector(service), 0.0) is None
    assert not registry.serves(Wanted.by_connector(service))


def test_a_child_of_a_service_is_served() -> None:
    registry = Registry()
    register(registry, "a", "x")
    assert registry.serves(Wanted.by_connector("x.y.z"))


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


def test_a_leaving_connection_stays_until_its_own_calls_are_settled_too() -> None:
    registry = Registry()
    leaving = register(registry, "a", "x")
    leaving.asked.add("1")
    registry.drain(leaving, "it left")
    assert leaving.end == []
    leaving.asked.clear()
    leaving.end_if_drained()
    assert leaving.end == [StatusCode.OK]


def stall(connection: Connection, since: float) -> None:
    connection.outbound._writing_since = since


def test_a_stalled_connection_is_passed_over_until_it_gets_going() -> None:
    registry = Registry()
    stalled = register(registry, "a", "x")
    for name in "bc":
        register(registry, name, "x")
    stall(stalled, since=10.0)
    assert turns(registry, "x", 3, now=10.0 + STALL_AFTER) == "abc"
    assert turns(registry, "x", 4, now=10.1 + STALL_AFTER) == "bcbc"
    stalled.outbound._writing_since = None
    assert set(turns(registry, "x", 3, now=20.0)) == set("abc")


def test_a_connection_with_its_share_of_requests_is_passed_over() -> None:
    registry = Registry()
    full = register(registry, "a", "x", limits=Limits(max_pending_per_connection=1))
    register(registry, "b", "x")
    full.pending.add("1")
    assert turns(registry, "x", 2) == "bb"


def test_a_connection_that_leaves_too_much_unread_is_passed_over() -> None:
    registry = Registry()
    full = register(registry, "a", "x", limits=Limits(max_queued_bytes=2))
    register(registry, "b", "x")
    full.outbound.put(b"12")
    assert turns(registry, "x", 2) == "bb"


def test_when_all_are_stalled_one_that_has_room_takes_the_turn() -> None:
    registry = Registry()
    full = register(registry, "a", "x", limits=Limits(max_queued_bytes=2))
    full.outbound.put(b"12")
    stall(register(registry, "b", "x"), since=0.0)
    assert turns(registry, "x", 2, now=10.0) == "bb"


def test_connections_are_counted_by_key() -> None:
    registry = Registry()
    first = register(registry, "a")
    register(registry, "b")
    register(registry, "c", key=2)
    assert [registry.count(key) for key in (1, 2, 3)] == [2, 1, 0]
    registry.remove(first)
    assert registry.count(1) == 1


def test_a_removed_connection_leaves_nothing_behind() -> None:
    registry = Registry()
    gone = register(registry, "a", "x", "y")
    registry.remove(gone)
    assert registry.connections == ()
    assert not registry.serves(Wanted.by_connector("x"))
    assert turns(registry, "y", 1) == "-"


def test_a_picture_of_a_connection_says_where_it_stands() -> None:
    registry = Registry()
    connection = register(registry, "a", "x", now=10.0, features=("chunks",))
    heartbeat = Heartbeat(connection_id=connection.id)
    beat = ConnectionMessage(heartbeat=heartbeat).SerializeToString()
    connection.protocol.receive([beat], 15.0)
    connection.pending.add("1")
    connection.unmatched = 2
    connection.asked.add("2")
    connection.subscriptions |= {"x", "y"}
    connection.events_dropped = 3
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
            asked=1,
            features=frozenset({"chunks"}),
            subscriptions=2,
            events_dropped=3,
        ),
    )


def test_a_forgotten_connection_gets_nothing_new_and_is_not_ended() -> None:
    registry = Registry()
    forgotten = register(registry, "a", "echo.Echo")
    registry.forget(forgotten)
    assert turns(registry, "echo.Echo", 1) == "-"
    assert (forgotten.draining, forgotten.end) == (False, [])


@pytest.mark.parametrize("is_draining", [False, True])
def test_a_forgotten_connection_may_leave_and_end_like_any_other(is_draining: bool) -> None:
    registry = Registry()
    forgotten = register(registry, "a", "echo.Echo")
    register(registry, "b", "echo.Echo")
    if is_draining:
        registry.drain(forgotten, "it left")
    registry.forget(forgotten)
    registry.drain(forgotten, "it left")
    registry.remove(forgotten)
    assert [each.id for each in registry.connections] == ["b"]
    assert turns(registry, "echo.Echo", 2) == "bb"
