"""What refuses a connector over sockets: a gateway, or an ingress in its place."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Callable

import pytest
from hyperframe.frame import DataFrame

from revconn import AuthenticationError, Connector, HandshakeError, State, StatusCode
from revconn._proto.registry_pb2 import ConnectionMessage, ConnectionStatus
from revconn.gateway import Gateway
from revconn.link import records
from tests.support.reference_gateway import ReferenceGateway
from tests.support.scripted_http2 import GRPC_HEADERS, Http2Peer, HungUp, ScriptedHttp2

TIMEOUT = 30.0
Answer = Callable[[Http2Peer], None]


def page(status: int) -> Answer:
    """An ingress' error page."""

    def answer(peer: Http2Peer) -> None:
        headers = [(":status", str(status)), ("content-type", "text/html")]
        peer.say(peer.headers_frame(headers), DataFrame(1, b"<html>", flags=["END_STREAM"]))

    return answer


def status(code: StatusCode, words: str | None = None) -> Answer:
    """A status in the headers, and nothing else: trailers-only."""

    def answer(peer: Http2Peer) -> None:
        message = [] if words is None else [("grpc-message", words)]
        headers = [*GRPC_HEADERS, ("grpc-status", str(int(code))), *message]
        peer.say(peer.headers_frame(headers, end=True))

    return answer


def connected(peer: Http2Peer) -> None:
    peer.accept_stream()
    said = ConnectionStatus(connection_id="id-1", status=ConnectionStatus.CONNECTED)
    peer.send(ConnectionMessage(status=said).SerializeToString())
    peer.hears_message()
    peer.trailers(("grpc-status", "14"))


INGRESS = {
    "404": page(404),
    "403": page(403),
    "401": page(401),
    "bare UNIMPLEMENTED": status(StatusCode.UNIMPLEMENTED),
    "bare UNAUTHENTICATED": status(StatusCode.UNAUTHENTICATED),
    "bare PERMISSION_DENIED": status(StatusCode.PERMISSION_DENIED),
    "UNIMPLEMENTED in words": status(StatusCode.UNIMPLEMENTED, "unknown service"),
    "PERMISSION_DENIED in words": status(StatusCode.PERMISSION_DENIED, "RBAC: access denied"),
}


class Script:
    """Answers each connection as the next of ``answers`` says; the last one for ever."""

    def __init__(self, *answers: Answer) -> None:
        self.server = ScriptedHttp2()
        self.answered = 0
        self._answers = answers
        self._thread = threading.Thread(target=self._serve, name="script", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer = self.server.accept()
                with contextlib.suppress(HungUp, ConnectionError):
                    peer.begin()
                    answer = self._answers[min(self.answered, len(self._answers) - 1)]
                    self.answered += 1
                    answer(peer)
                    peer.hears_hang_up()

    def close(self) -> None:
        self.server._listener.shutdown(2)  # wakes the thread, as closing does not
        self._thread.join(TIMEOUT)
        self.server.close()


@pytest.fixture
def script() -> Iterator[Callable[..., Script]]:
    made: list[Script] = []

    def start(*answers: Answer) -> Script:
        made.append(Script(*answers))
        return made[-1]

    yield start
    for each in made:
        each.close()


def started(connector: Connector) -> Connector:
    connector.start(block=False)
    return connector


@pytest.mark.parametrize("answer", INGRESS.values(), ids=INGRESS)
def test_after_an_ingress_had_spoken_for_it_the_gateway_is_found_again(
    new_connector, script, answer
) -> None:
    states: list[State] = []
    ends = threading.Event()
    gateway = script(connected, answer, answer, connected)
    connector = new_connector(gateway.server.address)

    def note(state: State) -> None:
        states.append(state)
        if state is State.CLOSED or states.count(State.READY) == 2:
            ends.set()

    connector.on_state_change(note)
    started(connector)
    assert ends.wait(TIMEOUT)
    assert State.CLOSED not in states


@pytest.mark.parametrize("answer", INGRESS.values(), ids=INGRESS)
def test_a_new_start_waits_for_the_gateway_that_an_ingress_speaks_for(
    new_connector, script, answer
) -> None:
    connector = new_connector(script(answer, answer, connected).server.address)
    started(connector).wait_ready(TIMEOUT)


@pytest.mark.parametrize("answer", [INGRESS["404"], INGRESS["bare UNAUTHENTICATED"]])
def test_a_new_start_gives_up_when_nothing_else_has_answered_for_a_while(
    new_connector, script, answer, monkeypatch
) -> None:
    monkeypatch.setattr(records, "CONFIRMED_AFTER", 0.2)
    ingress = script(answer)
    connector = started(new_connector(ingress.server.address))
    with pytest.raises(HandshakeError, match="check the target") as raised:
        connector.wait(TIMEOUT)
    assert not isinstance(raised.value, AuthenticationError), "it was not the gateway's word"
    assert not raised.value.by_gateway
    assert ingress.answered > 1


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (status(StatusCode.UNAUTHENTICATED, "Invalid token"), AuthenticationError),
        (status(StatusCode.UNAUTHENTICATED, "no such key"), AuthenticationError),
        (status(StatusCode.INVALID_ARGUMENT, "not a register message"), HandshakeError),
    ],
    ids=["as the reference gateway", "in other words", "INVALID_ARGUMENT"],
)
def test_a_gateways_own_refusal_ends_a_new_start_at_the_first_attempt(
    new_connector, script, answer, kind
) -> None:
    gateway = script(answer)
    connector = started(new_connector(gateway.server.address))
    with pytest.raises(kind) as raised:
        connector.wait(TIMEOUT)
    assert raised.value.by_gateway
    assert gateway.answered == 1


def test_a_proxys_refusal_in_words_is_not_taken_for_the_gateways_that_served(
    new_connector, script
) -> None:
    refused = status(StatusCode.UNAUTHENTICATED, "Jwt is missing")
    gateway = script(connected, refused, connected)
    connector = new_connector(gateway.server.address)
    started(connector).wait_ready(TIMEOUT)
    with pytest.raises(TimeoutError):
        connector.wait(0.5)
    assert gateway.answered > 2


def test_a_key_that_is_withdrawn_ends_a_connector_that_served(new_connector) -> None:
    with Gateway(api_keys=["key", "other"]) as gateway:
        connector = started(new_connector(gateway.address))
        connector.wait_ready(TIMEOUT)
        gateway.replace_keys(["other"])
        with pytest.raises(AuthenticationError, match="Invalid token"):
            connector.wait(TIMEOUT)


def test_a_key_that_the_reference_gateway_does_not_know_any_more_does_so_too(new_connector) -> None:
    with ReferenceGateway() as gateway:
        connector = started(new_connector(gateway.address))
        connector.wait_ready(TIMEOUT)
        gateway._api_key = "another"
        with gateway._lock:
            for stream in gateway._known.values():
                stream.end()
        with pytest.raises(AuthenticationError, match="Invalid token"):
            connector.wait(TIMEOUT)


def test_is_fatal_of_a_users_own_has_the_last_word_on_an_ingress(new_connector, script) -> None:
    ingress = script(INGRESS["404"])
    connector = new_connector(ingress.server.address, is_fatal=lambda error: True)
    with pytest.raises(HandshakeError) as raised:
        started(connector).wait(TIMEOUT)
    assert not raised.value.is_final
    assert ingress.answered == 1
