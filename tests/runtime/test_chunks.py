"""Answers too large for one message, over real sockets."""

from __future__ import annotations

import threading
from typing import Callable

import pytest

from revconn import Connector, Request, Response
from revconn._proto.registry_pb2 import ForwardResponse
from revconn.core.chunks import ChunkJoiner
from revconn.core.framing import frame
from tests.support.scripted_gateway import Peer
from tests.support.waiting import eventually

TIMEOUT = 60.0
MIB = 1 << 20
SECONDS_PER_64_KIB = 0.01
PATTERN = bytes(range(251))


def large(size: int) -> bytes:
    """Bytes in which a piece that is lost or out of place shows."""
    return (b"\x0a" + PATTERN * (size // len(PATTERN) + 1))[:size]


def say(request: Request) -> bytes:
    """As many bytes as the request says."""
    return large(int(request.payload))


@pytest.fixture
def connect(new_connector, gateway) -> Callable[..., tuple[Connector, Peer]]:
    """``connect(**options)``: a connector whose gateway knows chunks, and its peer."""
    gateway.announces = {"revconn-features": "cancel,chunks"}

    def connect(
        handler: Callable[[Request], object] = say, address: str = gateway.address, **options
    ) -> tuple[Connector, Peer]:
        connector = new_connector(address, **options)
        connector.add_method("/echo.Echo/Say", handler)
        connector.start(block=False)
        return connector, gateway.accept_ready()

    return connect


def hear_all(peer: Peer, *request_ids: str) -> dict[str, ForwardResponse]:
    """The whole answers to these, in the order in which they came."""
    joiners: dict[str, ChunkJoiner] = {}
    whole: dict[str, ForwardResponse] = {}
    while set(whole) != set(request_ids):
        response = peer.hears("response", TIMEOUT)
        if response.response_stream_info.is_streamed:
            joiner = joiners.setdefault(response.request_id, ChunkJoiner(1 << 30))
            response = joiner.add(response)
        if response is not None:
            whole[response.request_id] = response
    return whole


def bytes_before(request_id: str, peer: Peer) -> int:
    """How much of other answers came before the (whole) one to this request."""
    heard = 0
    while True:
        response = peer.hears("response", TIMEOUT)
        if response.request_id == request_id:
            assert not response.response_stream_info.is_streamed
            return heard
        heard += len(response.payload)


def test_an_answer_beyond_the_limit_comes_in_chunks(connect) -> None:
    _, peer = connect()
    peer.request("r1", payload=b"20000000")
    answer = hear_all(peer, "r1")["r1"]
    assert answer.payload == large(20_000_000)
    assert (answer.status_code, dict(answer.headers)) == (200, {})


def test_status_headers_and_words_come_along(connect) -> None:
    given = Response(large(5 * MIB), status=409, headers={"x-a": "b"}, error="taken")
    _, peer = connect(lambda request: given)
    peer.request("r1")
    answer = hear_all(peer, "r1")["r1"]
    assert (answer.status_code, answer.error_message) == (409, "taken")
    assert answer.headers["x-a"] == "b"
    assert answer.headers["grpc-status"] == "10"
    assert answer.payload == given.payload


def test_a_framed_request_is_answered_in_kind(connect) -> None:
    _, peer = connect()
    peer.request("r1", payload=frame(b"5000000"))
    answer = hear_all(peer, "r1")["r1"]
    assert answer.payload == frame(large(5_000_000))
    assert answer.headers["content-type"] == "application/grpc"


def test_the_gateways_own_limit_counts(connect, gateway) -> None:
    gateway.announces = {"revconn-features": "chunks", "revconn-max-message-bytes": "2000"}
    _, peer = connect()
    peer.request("r1", payload=b"50000")
    assert hear_all(peer, "r1")["r1"].payload == large(50_000)
    assert max(map(len, peer.heard_bytes)) <= 2000


def test_small_answers_do_not_wait_for_a_large_one(connect, proxy) -> None:
    _, peer = connect(address=proxy.address)
    proxy.slow_down(SECONDS_PER_64_KIB)
    peer.request("large", payload=b"40000000")
    assert peer.hears("response", TIMEOUT).request_id == "large"
    peer.request("small", payload=b"10")
    assert bytes_before("small", peer) < 20_000_000
    proxy.slow_down(0.0)


def test_large_answers_share_the_connection(connect) -> None:
    let_go = threading.Event()

    def hold(request: Request) -> bytes:
        assert let_go.wait(TIMEOUT)
        return say(request)

    connector, peer = connect(hold)
    peer.request("larger", payload=b"24000000")
    peer.request("large", payload=b"6000000")
    eventually(lambda: connector.stats()["accepted"] == 2)
    let_go.set()
    answers = hear_all(peer, "larger", "large")
    assert list(answers) == ["large", "larger"]
    assert answers["larger"].payload == large(24_000_000)


def test_an_answer_that_a_break_cut_short_comes_again_from_its_first_chunk(
    connect, gateway, proxy
) -> None:
    _, peer = connect(address=proxy.address)
    peer.request("r1", payload=b"30000000")
    peer.hears("response")
    peer.hears("response")
    proxy.reset_all()
    peer = gateway.accept_ready("id-2")
    answer = hear_all(peer, "r1")["r1"]
    assert answer.payload == large(30_000_000)


def test_an_answer_that_a_break_cut_short_fails_at_a_gateway_without_chunks(
    connect, gateway, proxy
) -> None:
    _, peer = connect(address=proxy.address)
    peer.request("r1", payload=b"30000000")
    peer.hears("response")
    gateway.announces = {}
    proxy.reset_all()
    peer = gateway.accept_ready("id-2")
    answer = peer.answer("r1")
    assert answer.status_code == 500
    assert "is larger than the limit of 4,194,304 bytes" in answer.error_message


def test_nobody_hears_the_rest_of_an_answer_that_was_cancelled(connect, proxy) -> None:
    connector, peer = connect(address=proxy.address)
    proxy.slow_down(SECONDS_PER_64_KIB)
    peer.request("large", payload=b"40000000")
    peer.hears("response", TIMEOUT)
    peer.cancel("large")
    peer.request("next", payload=b"10")
    assert bytes_before("next", peer) < 20_000_000
    proxy.slow_down(0.0)
    stopping = threading.Thread(target=connector.stop)
    stopping.start()
    assert peer.hears("status", TIMEOUT), "and no other chunk before the goodbye"
    peer.end()
    stopping.join()


def test_a_stop_waits_until_a_large_answer_has_left(connect) -> None:
    connector, peer = connect()
    peer.request("r1", payload=b"20000000")
    eventually(lambda: connector.stats()["answered"] == 1)
    stopping = threading.Thread(target=connector.stop)
    stopping.start()
    assert hear_all(peer, "r1")["r1"].payload == large(20_000_000)
    peer.hears_goodbye()
    stopping.join()
