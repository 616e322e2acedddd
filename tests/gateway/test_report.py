"""The log has a line for whatever happens to a connection, with fields for machines."""

from __future__ import annotations

import logging
from typing import Any

import grpc
import pytest

from revconn._proto.registry_pb2 import ConnectionStatus
from revconn.core.status import StatusCode
from revconn.gateway.keys import ApiKeys
from revconn.gateway.report import Journal
from tests.support.waiting import eventually

LOGGER = "revconn.gateway.journal"  # which the guides name

STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "taskName"}


@pytest.fixture
def events(caplog) -> Any:
    """The fields of every event so far."""
    caplog.set_level(logging.INFO, LOGGER)

    def events() -> list[dict[str, Any]]:
        return [
            {name: value for name, value in vars(record).items() if name not in STANDARD}
            for record in caplog.records
            if record.name == LOGGER
        ]

    return events


def test_a_connection_has_a_beginning_a_farewell_and_an_end(
    events, clock, run_gateway, connect, caplog
) -> None:
    gateway = run_gateway(api_keys=["one", "two"])
    connector = connect(gateway, "a.A", "b.B", api_key="two")
    (connection,) = gateway.connections()
    clock.advance(1.5)
    connector.disconnect("for\nlunch")
    connector.ended()
    eventually(lambda: len(events()) == 3)
    facts = {
        "connection_id": connector.connection_id,
        "key": 2,
        "services": ["a.A", "b.B"],
        "peer": connection.peer,
    }
    assert events() == [
        {**facts, "event": "connected", "age": 0.0},
        {**facts, "event": "draining", "age": 1.5, "reason": r"'for\nlunch'"},
        {
            **facts,
            "event": "ended",
            "age": 1.5,
            "reason": "it left, and all that was sent to it is settled",
        },
    ]
    assert [record.getMessage() for record in caplog.records] == [
        f"connection {connection.connection_id} from {connection.peer} registered a.A, b.B",
        rf"connection {connection.connection_id} is leaving: 'for\nlunch'",
        f"connection {connection.connection_id} ended: it left, and all that was sent to it is"
        " settled",
    ]


def test_a_refused_connector_leaves_a_line_without_its_key(events, gateway, dial, caplog) -> None:
    with pytest.raises(EOFError, match="Invalid token"):
        dial(gateway).register(api_key="hunter2")
    eventually(events)
    ((event),) = events()
    assert event == {"event": "refused", "reason": "Invalid token", "peer": event["peer"]}
    assert event["peer"].startswith("ipv4:127.0.0.1:")
    assert "hunter2" not in caplog.text


def test_a_silent_one_expires_once_and_ends(events, clock, gateway, connect) -> None:
    connector = connect(gateway, "a.A")
    clock.advance(120.0)
    assert connector.ended()[0] is grpc.StatusCode.UNAVAILABLE
    eventually(lambda: len(events()) == 3)
    assert [event["event"] for event in events()] == ["connected", "expired", "ended"]
    assert {event.get("reason") for event in events()} == {None, "no heartbeat for 120 seconds"}
    assert gateway.stats()["connections_expired"] == 1


def test_a_farewell_said_twice_is_one(events, gateway, connect, call) -> None:
    connector = connect(gateway, "a.A")
    pending = call(gateway, "/a.A/Do")
    request = connector.receive_request()
    connector.disconnect()
    connector.disconnect()
    connector.half_close()
    connector.respond(request.request_id)
    pending.cancel()
    connector.ended()
    eventually(lambda: events()[-1]["event"] == "ended")
    assert [event["event"] for event in events()] == ["connected", "draining", "ended"]


def test_one_that_hangs_up_without_a_word_drains_too(events, gateway, connect) -> None:
    connector = connect(gateway)
    connector.half_close()
    connector.ended()
    eventually(lambda: len(events()) == 3)
    assert events()[1]["reason"] == "it closed its side of the stream"
    assert events()[1]["services"] == []


def test_however_much_a_connector_registers_its_line_stays_short(
    events, gateway, connect, caplog
) -> None:
    connect(gateway, "x" * 1000, *(f"a.Service{number}" for number in range(1000)))
    eventually(events)
    assert len(events()[0]["services"]) == 100
    assert sum(map(len, events()[0]["services"])) < 3000
    assert all(len(record.getMessage()) < 1500 for record in caplog.records)


# What peers repeat


@pytest.mark.parametrize("said", ["heartbeat", "answer", "status"])
def test_what_a_peer_says_in_vain_on_each_of_its_connections_is_told_of_once(
    clock, gateway, connect, caplog, said
) -> None:
    connectors = [connect(gateway) for _ in range(3)]
    for connector in connectors:
        for _ in range(2):
            if said == "heartbeat":
                connector.heartbeat("echo.Echo")
            elif said == "answer":
                connector.respond("nobody asked")
            else:
                connector.send(status=ConnectionStatus(status=ConnectionStatus.ERROR))
        connector.ask("all is read", "/a/b")
        connector.receive_response()
    assert caplog.text.count(": ignored ") == 1
    clock.advance(60.0)
    connectors[0].heartbeat()  # so that it does not expire
    connectors[0].heartbeat("echo.Echo")
    connectors[0].ask("all is read", "/a/b")
    connectors[0].receive_response()
    if said == "heartbeat":
        assert caplog.messages[-1].endswith("'echo.Echo' (6 times since this was last logged)")


# What strangers cause


def knock(dial, gateway, times: int) -> None:
    for _ in range(times):
        with pytest.raises(EOFError, match="Invalid token"):
            dial(gateway).register(api_key="wrong")


def test_refused_connectors_are_told_of_at_first_and_then_as_a_sum(
    events, clock, gateway, dial
) -> None:
    knock(dial, gateway, 6)
    clock.advance(60.0)
    eventually(lambda: len(events()) == 2)
    assert (events()[1]["times"], events()[1]["addresses"]) == (5, 1)
    assert gateway.stats()["connections_refused"] == 6


def test_what_was_not_told_yet_is_told_as_the_gateway_stops(events, gateway, dial) -> None:
    knock(dial, gateway, 4)
    gateway.stop()
    assert [event.get("times") for event in events()] == [None, 3]


@pytest.fixture
def journal() -> Journal:
    return Journal(ApiKeys("hunter2"))


def told(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOGGER]


def refuse(journal: Journal, peer: str, code=StatusCode.UNAUTHENTICATED, reason="no") -> None:
    journal.refused(peer, code, reason)


def test_strangers_from_many_addresses_are_one_line_in_all(clock, journal, caplog) -> None:
    for number in range(32_241):
        refuse(journal, f"ipv4:192.0.2.{number % 211}:{number}")
    journal.tick(clock.now)
    assert told(caplog) == ["refused a connector at ipv4:192.0.2.0:0: no"]
    clock.advance(60.0)
    journal.tick(clock.now)
    assert told(caplog)[1:] == [
        "refused a connector at ipv4:192.0.2.168:32240: no,"
        " and 32,239 more in 60 s, from 211 addresses"
    ]


def test_more_addresses_than_are_remembered_are_said_to_be_more(clock, journal, caplog) -> None:
    for number in range(5000):
        refuse(journal, f"ipv4:10.1.{number // 250}.{number % 250}:1")
    journal.close()
    assert told(caplog)[1].endswith(", and 4,998 more in 0 s, from more than 1,000 addresses")


@pytest.mark.parametrize(
    ("peers", "said"),
    [
        (["ipv6:[2001:db8::%x]:1", "ipv6:%%5B2001:db8::%x%%5D:1"], "one address"),
        (["ipv6:[2001:db8:0:%x::1]:1"], "9 addresses"),
        (["ipv6:[::ffff:192.0.2.1]:%d"], "one address"),
        (["ipv6:[::ffff:192.0.2.%d]:1"], "9 addresses"),
        (["ipv6:[fe80::%x%%eth0]:1"], "one address"),
        (["unix:/run/%d.sock"], "one address"),
    ],
)
def test_a_network_of_ipv6_is_one_address(clock, journal, caplog, peers, said) -> None:
    refuse(journal, "ipv4:192.0.2.99:1")
    for number in range(1, 10):
        for peer in peers:
            refuse(journal, peer % number)
    journal.close()
    assert told(caplog)[1].endswith(f", from {said}")


def test_each_kind_of_refusal_has_lines_of_its_own(clock, journal, caplog) -> None:
    for code in (StatusCode.UNAUTHENTICATED, StatusCode.INVALID_ARGUMENT):
        for number in range(3):
            refuse(journal, "ipv4:192.0.2.1:1", code, f"reason {number}")
            journal.refused_backend("ipv4:192.0.2.1:1", code, f"reason {number}")
    assert len(told(caplog)) == 4
    journal.close()
    assert len(told(caplog)) == 8


def test_no_key_gets_into_a_sum(clock, journal, caplog) -> None:
    for _ in range(3):
        refuse(journal, "ipv4:192.0.2.1:1", reason="hunter2 is\nno name")
    journal.close()
    assert told(caplog)[1].endswith(": *** is no name, and 1 more in 0 s, from one address")


# Keys that peers know


@pytest.mark.parametrize("key", ["topsecret", "top\\'secret", "topsecret-" * 30])
def test_no_key_that_a_peer_says_elsewhere_gets_into_a_line(
    events, run_gateway, connect, dial, caplog, key
) -> None:
    gateway = run_gateway(api_keys=key)
    connector = connect(gateway, key, f"a.{key}.B", api_key=key)
    connector.heartbeat(key)
    connector.disconnect(key)
    connector.ended()
    with pytest.raises(EOFError, match="is not a service name"):
        dial(gateway).register(f"/{key}", api_key=key)
    eventually(lambda: [event["event"] for event in events()].count("refused") == 1)
    assert "***" in caplog.text
    assert "secret" not in caplog.text
    assert "secret" not in repr([vars(record) for record in caplog.records])


def test_one_that_expires_for_the_ids_in_its_heartbeats_is_told_so(
    clock, gateway, connect, caplog
) -> None:
    connector = connect(gateway, "echo.Echo")
    connector.heartbeat("echo.Echo")
    eventually(lambda: "ignored a heartbeat" in caplog.text)
    clock.advance(120.0)
    connector.ended()
    assert (
        "expired: no heartbeat for 120 seconds with its id; the last one named 'echo.Echo'"
        in caplog.text
    )
