"""Events: subscriptions and delivery, over real sockets."""

from __future__ import annotations

import time
import uuid

import grpc
import pytest

from revconn._proto.registry_pb2 import EventMessage, SubscriptionRequest
from tests.gateway.conftest import LARGE, counted
from tests.support.waiting import eventually


def subscribe(connector, *event_types, action=SubscriptionRequest.SUBSCRIBE) -> None:
    connector.send(subscription=SubscriptionRequest(action=action, event_types=event_types))


def unsubscribe(connector, *event_types) -> None:
    subscribe(connector, *event_types, action=SubscriptionRequest.UNSUBSCRIBE)


def publish(connector, event_type, payload=b"", **fields) -> None:
    connector.send(event=EventMessage(event_type=event_type, payload=payload, **fields))


def receive_event(connector) -> EventMessage:
    message = connector.receive()
    assert message.WhichOneof("message_type") == "event", message
    return message.event


@pytest.fixture
def subscriber(gateway, connect):
    """A connector, and how to have it subscribed by the time the call returns."""

    def subscriber(*event_types, gateway=gateway):
        connector = connect(gateway)
        subscribe(connector, *event_types)
        eventually(lambda: gateway.connections()[-1].subscriptions == len(event_types))
        return connector

    return subscriber


def test_an_event_goes_to_every_subscriber_of_its_type_and_to_nobody_else(
    gateway, subscriber, connect
) -> None:
    first, second, other = subscriber("a", "b"), subscriber("a"), subscriber("b")
    publisher = connect(gateway)
    publish(publisher, "a", b"1")
    publish(publisher, "b", b"2")
    assert [receive_event(first).payload for _ in range(2)] == [b"1", b"2"]
    assert receive_event(second).payload == b"1"
    assert receive_event(other).payload == b"2"
    assert counted(gateway, "events_published") == 2
    assert counted(gateway, "events_delivered") == 4


def test_a_publisher_that_subscribed_hears_itself(subscriber) -> None:
    connector = subscriber("a")
    publish(connector, "a", b"1")
    assert receive_event(connector).payload == b"1"


def test_an_event_arrives_as_it_was_published(subscriber) -> None:
    connector = subscriber("a")
    event = EventMessage(
        event_id="mine",
        event_type="a",
        publisher_id=connector.connection_id,
        payload=b"\x00\xff",
        timestamp=7,
        metadata={"k": "v"},
    )
    connector.send(event=event)
    assert receive_event(connector) == event


@pytest.mark.parametrize("word", ["", "somebody else"])
def test_its_publisher_is_the_connection_that_it_came_on(subscriber, connect, gateway, word):
    connector, publisher = subscriber("a"), connect(gateway)
    publish(publisher, "a", publisher_id=word)
    assert receive_event(connector).publisher_id == publisher.connection_id


def test_an_id_and_a_time_are_filled_in(subscriber) -> None:
    connector = subscriber("a")
    before = int(time.time())
    publish(connector, "a")
    publish(connector, "a")
    first, second = receive_event(connector), receive_event(connector)
    assert first.event_id == str(uuid.UUID(first.event_id)) != second.event_id
    assert before <= first.timestamp <= time.time()


def test_an_event_nobody_wants_is_dropped(gateway, subscriber) -> None:
    connector = subscriber("a")
    publish(connector, "b")
    publish(connector, "a", b"1")
    assert receive_event(connector).payload == b"1"
    assert counted(gateway, "events_unwanted") == 1


def test_subscribing_twice_is_subscribing_once(gateway, subscriber) -> None:
    connector = subscriber("a")
    subscribe(connector, "a", "a")
    for number in range(2):
        publish(connector, "a", bytes([number]))
    assert [receive_event(connector).payload for _ in range(2)] == [b"\x00", b"\x01"]
    assert gateway.connections()[0].subscriptions == 1


def test_unsubscribing_ends_it(gateway, subscriber) -> None:
    connector = subscriber("a", "b")
    unsubscribe(connector, "a", "never subscribed to")
    publish(connector, "a", b"1")
    publish(connector, "b", b"2")
    assert receive_event(connector).payload == b"2"
    assert gateway.connections()[0].subscriptions == 1


def test_subscriptions_end_with_their_connection(gateway, subscriber, connect) -> None:
    subscriber("a").cancel()
    eventually(lambda: not gateway.connections())
    publish(connect(gateway), "a")
    eventually(lambda: counted(gateway, "events_unwanted") == 1)
    assert gateway._thread._serving.shared.events._subscribers == {}


def test_a_connector_that_leaves_gets_what_was_published_before(subscriber) -> None:
    connector = subscriber("a")
    publish(connector, "a", b"1")
    connector.disconnect()
    assert receive_event(connector).payload == b"1"
    assert connector.ended() == (grpc.StatusCode.OK, "")


# Whose key may do what


KEYS = {
    "key": None,
    "order-key": ["publish:orders.*", "subscribe:orders.done"],
    "service-key": ["*"],
}


@pytest.fixture
def divided(run_gateway):
    """A gateway whose keys may do different things, and a subscriber to everything of ours."""
    return run_gateway(api_keys=KEYS)


def error_of(connector) -> str:
    status = connector.receive().status
    assert status.status == status.ERROR
    return status.message


def test_a_key_publishes_the_types_that_it_may_and_no_others(
    divided, subscriber, connect, caplog
) -> None:
    listener = subscriber("orders.new", "bills.new", gateway=divided)
    publisher = connect(divided, api_key="order-key")
    for event_type in ("bills.new", "bills.new", "orders", "orders.new"):
        publish(publisher, event_type)
    assert error_of(publisher) == "the API key may not publish 'bills.new'"
    assert receive_event(listener).event_type == "orders.new"
    publisher.ask("1", "/other.Other/Say")
    publisher.receive_response()  # and no other status before it
    assert counted(divided, "events_forbidden") == 3
    assert counted(divided, "events_published") == 1
    assert caplog.text.count("ignored an event (PERMISSION_DENIED): the API key may not") == 1


def test_a_key_subscribes_to_the_types_that_it_may_and_no_others(divided, connect) -> None:
    listener, publisher = connect(divided, api_key="order-key"), connect(divided)
    subscribe(listener, "orders.new", "bills.new", "orders.done")
    assert error_of(listener) == "the API key may not subscribe to 'orders.new'"
    subscribe(listener, "orders.new")
    for event_type in ("bills.new", "orders.new", "orders.done"):
        publish(publisher, event_type)
    assert receive_event(listener).event_type == "orders.done"
    eventually(lambda: counted(divided, "subscriptions_forbidden") == 2 + 1)
    assert counted(divided, "events_unwanted") == 2


def test_of_many_types_that_a_key_may_not_have_few_are_looked_at(run_gateway, connect) -> None:
    gateway = run_gateway(api_keys=KEYS, max_subscriptions=10)
    connector = connect(gateway, api_key="order-key")
    subscribe(connector, *(f"bills.{number}" for number in range(100_000)))
    assert "may not subscribe to 'bills.0'" in error_of(connector)
    assert counted(gateway, "subscriptions_forbidden") == 10


def test_a_key_with_patterns_of_services_alone_gets_to_no_events(divided, connect) -> None:
    connector = connect(divided, "echo.Echo", api_key="service-key")
    subscribe(connector, "a")
    assert "may not subscribe to 'a'" in error_of(connector)
    publish(connector, "a")
    assert "may not publish 'a'" in error_of(connector)


def test_a_key_with_patterns_of_events_alone_registers_and_calls_nothing(divided, connect) -> None:
    with pytest.raises(EOFError, match="PERMISSION_DENIED: the API key may not register"):
        connect(divided, "orders.Orders", api_key="order-key")
    connector = connect(divided, api_key="order-key")
    connector.ask("1", "/orders.Orders/List")
    assert connector.receive_response().status_code == 403


def test_a_key_that_loses_a_type_is_sent_no_more_of_it(divided, subscriber, connect) -> None:
    listener, other = (
        connect(divided, api_key="order-key"),
        subscriber("orders.done", gateway=divided),
    )
    subscribe(listener, "orders.done")
    eventually(lambda: divided.connections()[0].subscriptions == 1)
    divided.replace_keys({**KEYS, "order-key": ["subscribe:bills.*"]})
    publish(other, "orders.done")
    assert receive_event(other).event_type == "orders.done"
    listener.ask("1", "/other.Other/Say")
    listener.receive_response()  # and no event before it
    assert counted(divided, "events_delivered") == 1


# Limits


def test_more_subscriptions_than_allowed_are_refused_with_a_status(
    run_gateway, connect, caplog
) -> None:
    gateway = run_gateway(max_subscriptions=2)
    connector = connect(gateway)
    for _ in range(2):
        subscribe(connector, "a", "b", "c")
    status = connector.receive().status
    assert status.status == status.ERROR
    assert "may have 2 subscriptions (the gateway's max_subscriptions)" in status.message
    publish(connector, "b")
    assert receive_event(connector).event_type == "b"
    assert gateway.connections()[0].subscriptions == 2
    assert counted(gateway, "refused_max_subscriptions") == 2
    assert caplog.text.count("ignored a subscription (RESOURCE_EXHAUSTED): a connection") == 1
    unsubscribe(connector, "a")
    subscribe(connector, "c")
    publish(connector, "c")
    assert receive_event(connector).event_type == "c"


def test_an_endless_type_is_refused_and_said_once(gateway, connect, caplog) -> None:
    connector = connect(gateway)
    for first in "abc":
        subscribe(connector, first + "x" * 256)
    assert "no type of events is that long" in connector.receive().status.message
    connector.ask("1", "/other.Other/Say")
    connector.receive_response()  # and no other status before it
    assert caplog.text.count("ignored a subscription") == 1


@pytest.fixture
def slow(stall):
    """A subscriber that does not read."""

    def slow(gateway):
        connector = stall(gateway, "slow.Slow")
        subscribe(connector, "a")
        eventually(lambda: gateway.connections()[-1].subscriptions)
        return connector

    return slow


def test_a_slow_subscriber_loses_its_oldest_events_and_delays_nobody(
    run_gateway, slow, subscriber, caplog
) -> None:
    gateway = run_gateway(max_queued_events=10)
    laggard = slow(gateway)
    publisher = subscriber("a", gateway=gateway)
    for number in range(60):
        publish(publisher, "a", LARGE, timestamp=number + 1)
        assert receive_event(publisher).timestamp == number + 1
    (slow_info, publisher_info) = gateway.connections()
    assert publisher_info.events_dropped == 0
    assert slow_info.events_dropped == counted(gateway, "events_dropped") == 49
    assert caplog.text.count("does not keep up with the events") == 1

    laggard.start_reading()
    laggard.receive()
    received = [receive_event(laggard).timestamp for _ in range(11)]
    assert received == [1, *range(51, 61)], "the one that was on its way, and the newest"


def test_what_a_slow_subscriber_keeps_is_bounded_in_bytes_too(run_gateway, slow, connect) -> None:
    gateway = run_gateway(max_queued_bytes=600_000)
    slow(gateway)
    publisher = connect(gateway)
    for _ in range(40):
        publish(publisher, "a", LARGE)
    eventually(lambda: counted(gateway, "events_published") == 40)
    outbound = gateway._thread._serving.registry.connections[0].outbound
    assert outbound._event_bytes <= 600_000
    assert gateway.connections()[0].events_dropped > 20


def test_requests_go_ahead_of_events(gateway, slow, connect, call) -> None:
    laggard = slow(gateway)
    publisher = connect(gateway)
    for _ in range(40):
        publish(publisher, "a", LARGE)
    eventually(lambda: counted(gateway, "events_published") == 40)
    pending = call(gateway, "/slow.Slow/Say")
    eventually(lambda: gateway.connections()[0].pending == 1)
    laggard.start_reading()
    kinds = [laggard.receive().WhichOneof("message_type") for _ in range(42)]
    assert kinds.index("request") < 20
    assert not pending.done()


def test_losses_are_reported_again_after_a_while(clock, run_gateway, slow, connect, caplog) -> None:
    gateway = run_gateway(max_queued_events=1, heartbeat_timeout=1000.0)
    slow(gateway)
    publisher = connect(gateway)
    for round_ in (1, 2):
        for _ in range(20):
            publish(publisher, "a", LARGE)
        eventually(lambda round_=round_: counted(gateway, "events_published") == 20 * round_)
        assert caplog.text.count("does not keep up with the events") == round_
        clock.advance(60.0)
    assert "lost so far" in caplog.text


def test_an_event_larger_than_a_subscriber_takes_is_lost_to_it(gateway, connect) -> None:
    small = connect(gateway, max_message_bytes=100)
    subscribe(small, "a")
    publish(small, "a", b"x" * 200)
    publish(small, "a", b"1")
    assert receive_event(small).payload == b"1"
    assert gateway.connections()[0].events_dropped == 1
