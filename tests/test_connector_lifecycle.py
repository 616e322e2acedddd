from __future__ import annotations

import logging
import re
import threading
from typing import Callable

import grpc
import pytest

from revconn import (
    AuthenticationError,
    Backoff,
    ConfigurationError,
    Connector,
    HandshakeError,
    RevconnError,
    State,
)
from revconn.link.link import Link
from tests.support.connectors import NEVER
from tests.support.scripted_gateway import ScriptedGateway
from tests.support.threads import in_thread
from tests.support.waiting import eventually

NewConnector = Callable[..., Connector]
NOBODY_LISTENS = "127.0.0.1:1"
GATEWAY = {"revconn-features": ""}  # whoever says so is one
TIMEOUT = 60.0


# start


def test_start_without_block_returns_before_anything_is_connected(new_connector) -> None:
    connector = new_connector(NOBODY_LISTENS)
    connector.start(block=False)
    assert connector.state in (State.IDLE, State.CONNECTING, State.BACKING_OFF)


def test_a_blocking_start_returns_when_another_thread_stops_the_connector(
    new_connector, gateway
) -> None:
    connector = new_connector(gateway.address)
    started = in_thread(connector.start)
    peer = gateway.accept_ready()
    connector.wait_ready(TIMEOUT)
    assert not started.done()
    stopped = in_thread(connector.stop)
    peer.hears_goodbye()
    assert started.result(TIMEOUT) is None
    stopped.result(TIMEOUT)
    assert connector.state is State.CLOSED


def test_a_blocking_start_raises_the_fatal_error_that_ended_it(new_connector, gateway) -> None:
    connector = new_connector(gateway.address)
    started = in_thread(connector.start)
    gateway.accept().end(grpc.StatusCode.UNAUTHENTICATED, "Invalid token")
    with pytest.raises(AuthenticationError, match="Invalid token; check api_key") as raised:
        started.result(TIMEOUT)
    assert raised.value.target == gateway.address


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_blocking_start_returns_whatever_a_state_callback_raises_in_the_end(
    new_connector, gateway
) -> None:
    def interrupt(state: State) -> None:
        if state is State.CLOSED:
            raise KeyboardInterrupt

    connector = new_connector(gateway.address)
    connector.on_state_change(interrupt)
    started = in_thread(connector.start)
    gateway.accept().end(grpc.StatusCode.UNAUTHENTICATED, "Invalid token")
    with pytest.raises(AuthenticationError):
        started.result(TIMEOUT)


def test_a_connector_starts_once(new_connector) -> None:
    connector = new_connector(NOBODY_LISTENS)
    connector.start(block=False)
    with pytest.raises(RevconnError, match="starts once; make a new one"):
        connector.start(block=False)


def test_a_connector_that_was_stopped_does_not_start(new_connector) -> None:
    connector = new_connector(NOBODY_LISTENS)
    connector.stop()
    with pytest.raises(RevconnError, match="starts once; make a new one"):
        connector.start()


def test_with_nothing_to_serve_start_says_what_to_add(new_connector) -> None:
    connector = new_connector(NOBODY_LISTENS, services=[])
    with pytest.raises(ConfigurationError, match="nothing to serve.*add a handler"):
        connector.start()
    assert connector.state is State.IDLE


def test_the_handlers_services_are_registered_with_those_named(new_connector, gateway) -> None:
    connector = new_connector(gateway.address, services=["b.B"])
    connector.add_method("/a.A/Do", lambda request: b"")
    connector.add_service("c.C", lambda request: b"")
    connector.start(block=False)
    registered = gateway.accept().hears("register")
    assert registered.api_key == "key"
    assert sorted(registered.services) == ["a.A", "b.B", "c.C"]
    assert registered.connection_id == ""


def test_after_the_start_a_known_service_gets_a_method_and_a_new_one_is_refused(
    new_connector, gateway
) -> None:
    connector = new_connector(gateway.address)
    connector.start(block=False)
    peer = gateway.accept_ready()
    connector.add_method("/echo.Echo/Late", lambda request: b"in time")
    with pytest.raises(ConfigurationError, match="new after the start"):
        connector.add_method("/other.Other/Late", lambda request: b"")
    peer.request(method="/echo.Echo/Late")
    assert peer.answer().payload == b"in time"


# Why there is no connection


def test_a_wait_that_runs_out_says_why_and_when_it_tries_again(new_connector, gateway) -> None:
    connector = new_connector(gateway.address, backoff=Backoff(**NEVER), api_key="a-secret-key")
    connector.start(block=False)
    gateway.accept().end(grpc.StatusCode.UNAVAILABLE, "upgrading the database")
    eventually(lambda: connector.state is State.BACKING_OFF)
    (link,) = connector.links
    assert link.last_error == "UNAVAILABLE: upgrading the database"
    assert 0 < link.next_attempt_in <= NEVER["maximum"]
    with pytest.raises(TimeoutError) as raised:
        connector.wait_ready(0.0)
    why = rf"{gateway.address}: UNAVAILABLE: upgrading the database; next attempt in \d+\.\d s>"
    assert re.search(why, str(raised.value))
    assert re.search(why, repr(connector))
    assert "a-secret-key" not in f"{raised.value} {connector.links}"


def test_a_connection_that_is_lost_is_a_reason_too_until_there_is_another(
    new_connector, gateway
) -> None:
    connector = new_connector(gateway.address)
    connector.start(block=False)
    gateway.accept_ready().end(grpc.StatusCode.UNAVAILABLE, "moving house")
    second = gateway.accept()
    eventually(lambda: connector.links[0].last_error == "moving house")
    assert connector.links[0].next_attempt_in is None
    assert repr(connector).endswith(f"; {gateway.address}: moving house>")
    second.connected("id-2")
    connector.wait_ready(TIMEOUT)
    eventually(lambda: connector.links[0].last_error is None)
    assert repr(connector) == f"<Connector {gateway.address} READY connection_id=id-2>"


def test_a_link_that_was_given_up_says_why(new_connector, gateway) -> None:
    with ScriptedGateway() as other:
        connector = new_connector([gateway.address, other.address])
        connector.start(block=False)
        gateway.accept().end(grpc.StatusCode.UNAUTHENTICATED, "Invalid token")
        other.accept_ready()
        connector.wait_ready(TIMEOUT)
        eventually(lambda: connector.links[0].state is State.CLOSED)
        given_up, serving = connector.links
        assert given_up.last_error.startswith("UNAUTHENTICATED: Invalid token; check api_key")
        assert (serving.last_error, serving.next_attempt_in) == (None, None)
        connector.abort()


# wait_ready


def test_wait_ready_returns_once_the_gateway_has_accepted(new_connector, gateway) -> None:
    connector = new_connector(gateway.address)
    waiting = in_thread(connector.wait_ready, TIMEOUT)
    connector.start(block=False)
    peer = gateway.accept()
    peer.hears("register")
    assert not waiting.done()
    peer.connected("an-id")
    waiting.result(TIMEOUT)
    assert connector.state is State.READY
    assert connector.connection_id == "an-id"


def test_wait_ready_gives_up_after_its_timeout(new_connector, gateway) -> None:
    connector = new_connector(gateway.address)
    connector.start(block=False)
    with pytest.raises(TimeoutError, match="not ready within 0.05 s"):
        connector.wait_ready(0.05)


@pytest.mark.parametrize("wait", ["wait_ready", "wait"])
def test_every_wait_raises_the_fatal_error_whenever_it_looks(new_connector, gateway, wait) -> None:
    connector = new_connector(gateway.address)
    waiting = in_thread(getattr(connector, wait), TIMEOUT)
    gateway.announces = GATEWAY
    connector.start(block=False)
    gateway.accept().end(grpc.StatusCode.PERMISSION_DENIED, "not yours")
    with pytest.raises(AuthenticationError, match="not yours"):
        waiting.result(TIMEOUT)
    connector.stop()
    with pytest.raises(AuthenticationError, match="not yours"):
        getattr(connector, wait)(TIMEOUT)


def test_wait_ready_says_that_the_connector_was_stopped(new_connector) -> None:
    connector = new_connector(NOBODY_LISTENS)
    connector.start(block=False)
    waiting = in_thread(connector.wait_ready, TIMEOUT)
    connector.stop()
    with pytest.raises(RevconnError, match="stopped before it was ready"):
        waiting.result(TIMEOUT)


# wait


def test_wait_gives_up_after_its_timeout(new_connector) -> None:
    connector = new_connector(NOBODY_LISTENS)
    connector.start(block=False)
    with pytest.raises(TimeoutError, match="still running after 0.05 s"):
        connector.wait(0.05)


def test_wait_returns_when_the_connector_was_stopped(new_connector) -> None:
    connector = new_connector(NOBODY_LISTENS)
    connector.start(block=False)
    waiting = in_thread(connector.wait, TIMEOUT)
    connector.stop()
    waiting.result(TIMEOUT)


def test_a_handler_that_waits_for_the_end_is_told_that_it_would_wait_for_itself(
    new_connector, gateway
) -> None:
    connector = new_connector(gateway.address)
    connector.add_method("/echo.Echo/Say", lambda request: connector.wait())
    connector.start(block=False)
    peer = gateway.accept_ready()
    peer.request()
    assert peer.answer().status_code == 500


def test_a_callback_cannot_wait_for_ever_for_what_its_own_thread_has_to_do(
    new_connector, gateway, caplog
) -> None:
    connector = new_connector(gateway.address)
    connector.on_state_change(lambda state: connector.wait_ready())
    connector.start(block=False)
    gateway.accept_ready()
    connector.wait_ready(TIMEOUT)
    assert "could wait for itself; give a timeout" in caplog.text


# with


def test_a_with_block_connects_and_says_goodbye(new_connector, gateway) -> None:
    connector = new_connector(gateway.address)
    goodbye = in_thread(lambda: gateway.accept_ready().hears_goodbye())
    with connector as entered:
        assert entered is connector
        connector.wait_ready(TIMEOUT)
    goodbye.result(TIMEOUT)
    assert connector.state is State.CLOSED


# States


def test_callbacks_hear_every_state_once_and_in_order(new_connector, gateway) -> None:
    connector = new_connector(gateway.address, backoff=Backoff(**NEVER))
    heard: list[State] = []
    connector.on_state_change(heard.append)
    connector.start(block=False)
    peer = gateway.accept_ready()
    connector.wait_ready(TIMEOUT)
    peer.end()
    eventually(lambda: connector.state is State.BACKING_OFF)
    connector.stop()
    assert heard == [
        State.CONNECTING,
        State.READY,
        State.BACKING_OFF,
        State.DRAINING,
        State.CLOSED,
    ]


def test_a_callback_that_fails_is_logged_and_changes_nothing(
    new_connector, gateway, caplog
) -> None:
    def fail(state: State) -> None:
        raise SystemExit("not this thread's to say")

    connector = new_connector(gateway.address)
    heard: list[State] = []
    connector.on_state_change(fail)
    connector.on_state_change(heard.append)
    connector.start(block=False)
    gateway.accept_ready()
    connector.wait_ready(TIMEOUT)
    connector.abort()
    connector.wait(TIMEOUT)
    assert heard == [State.CONNECTING, State.READY, State.CLOSED]
    assert "a state callback failed" in caplog.text


def test_a_stop_that_needs_no_start_is_told_to_callbacks(new_connector) -> None:
    connector = new_connector(NOBODY_LISTENS)
    heard: list[State] = []
    connector.on_state_change(heard.append)
    connector.stop()
    connector.stop()
    assert heard == [State.CLOSED]


def test_what_a_connector_shows_of_itself_never_holds_the_key(
    new_connector, gateway, caplog
) -> None:
    caplog.set_level(logging.DEBUG)
    connector = new_connector(gateway.address, api_key="a-secret")
    assert repr(connector) == f"<Connector {gateway.address} IDLE connection_id=None>"
    connector.start(block=False)
    peer = gateway.accept_ready("id-7")
    connector.wait_ready(TIMEOUT)
    assert repr(connector) == f"<Connector {gateway.address} READY connection_id=id-7>"
    assert "a-secret" not in f"{connector.links} {connector.stats()} {vars(connector)}"
    assert "a-secret" not in str(peer.metadata)
    peer.end(grpc.StatusCode.UNAVAILABLE)
    gateway.accept().end(grpc.StatusCode.UNAUTHENTICATED, "Invalid token")
    with pytest.raises(AuthenticationError) as refused:
        connector.wait(TIMEOUT)
    assert "a-secret" not in f"{refused.value!r} {vars(refused.value)}"
    assert "gave up" in caplog.text
    assert "a-secret" not in caplog.text


def test_the_id_is_gone_when_the_connection_is(new_connector, gateway) -> None:
    connector = new_connector(gateway.address, backoff=Backoff(**NEVER))
    connector.start(block=False)
    peer = gateway.accept_ready("id-1")
    connector.wait_ready(TIMEOUT)
    peer.end()
    eventually(lambda: connector.state is State.BACKING_OFF)
    assert connector.connection_id is None


# Several gateways


@pytest.fixture
def second_gateway():
    with ScriptedGateway() as gateway:
        yield gateway


def test_each_target_gets_a_connection_and_requests_are_served_from_all(
    new_connector, gateway, second_gateway
) -> None:
    connector = new_connector([gateway.address, second_gateway.address])
    connector.add_method("/echo.Echo/Say", lambda request: b"Echo: " + request.payload)
    connector.start(block=False)
    peers = [gateway.accept_ready("id-a"), second_gateway.accept_ready("id-b")]
    eventually(lambda: {link.state for link in connector.links} == {State.READY})
    assert [(link.target, link.connection_id) for link in connector.links] == [
        (gateway.address, "id-a"),
        (second_gateway.address, "id-b"),
    ]
    for peer in peers:  # ids are each gateway's own: the same one twice is two requests
        peer.request("same-id", payload=b"hi")
    assert [peer.answer("same-id").payload for peer in peers] == [b"Echo: hi", b"Echo: hi"]


def test_a_gateway_that_refuses_the_key_leaves_the_other_one_serving(
    new_connector, gateway, second_gateway, caplog
) -> None:
    connector = new_connector([gateway.address, second_gateway.address])
    connector.add_method("/echo.Echo/Say", lambda request: b"")
    connector.start(block=False)
    gateway.accept().end(grpc.StatusCode.UNAUTHENTICATED, "Invalid token")
    peer = second_gateway.accept_ready()
    eventually(lambda: [link.state for link in connector.links] == [State.CLOSED, State.READY])
    assert connector.state is State.READY
    eventually(lambda: f"gave up {gateway.address}: " in caplog.text)
    peer.request()
    assert peer.answer().status_code == 200
    stopped = in_thread(connector.stop)
    peer.hears_goodbye()
    stopped.result(TIMEOUT)
    connector.wait(TIMEOUT)  # it was asked to end: no error


def test_when_all_gateways_refuse_the_key_start_says_what_to_fix(
    new_connector, gateway, second_gateway
) -> None:
    connector = new_connector([gateway.address, second_gateway.address])
    started = in_thread(connector.start)
    for each in (gateway, second_gateway):
        each.accept().end(grpc.StatusCode.UNAUTHENTICATED, "Invalid token")
    with pytest.raises(AuthenticationError, match="check api_key"):
        started.result(TIMEOUT)
    assert connector.state is State.CLOSED


def test_one_link_that_is_down_does_not_hide_that_another_is_ready(new_connector, gateway) -> None:
    connector = new_connector([NOBODY_LISTENS, gateway.address], backoff=Backoff(**NEVER))
    connector.start(block=False)
    gateway.accept_ready("id-b")
    connector.wait_ready(TIMEOUT)
    eventually(lambda: connector.links[0].state is State.BACKING_OFF)
    assert connector.state is State.READY
    assert connector.connection_id == "id-b"


# Whose fault it was


def test_a_fatal_error_survives_every_later_stop(new_connector, gateway) -> None:
    gateway.announces = GATEWAY
    connector = new_connector(gateway.address)
    with connector:
        gateway.accept().end(grpc.StatusCode.UNIMPLEMENTED, "no such service")
        with pytest.raises(HandshakeError, match="what listens there is no gateway"):
            connector.wait(TIMEOUT)
    connector.abort()
    with pytest.raises(HandshakeError, match="what listens there is no gateway"):
        connector.wait(TIMEOUT)


def test_stopping_while_the_gateway_refuses_is_no_error(new_connector, gateway) -> None:
    connector = new_connector(gateway.address)
    connector.start(block=False)
    peer = gateway.accept()
    peer.hears("register")
    refusing = threading.Thread(target=peer.end, args=(grpc.StatusCode.UNAUTHENTICATED, "no"))
    connector.stop()
    refusing.start()
    refusing.join()
    connector.wait(TIMEOUT)


def test_one_that_finds_no_thread_to_start_with_has_ended(new_connector, monkeypatch) -> None:
    def start_none(link: Link) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Link, "start", start_none)
    connector = new_connector("127.0.0.1:1", services=["echo.Echo"])
    with pytest.raises(RuntimeError, match="can't start new thread"):
        connector.start(block=False)
    assert connector.state is State.CLOSED
    connector.stop()
    connector.wait(TIMEOUT)
