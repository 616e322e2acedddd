"""What a caller sees of the gateway in HTTP/2's own terms: frames, settings, and how it ends."""

from __future__ import annotations

import contextlib
import gzip
import ssl
import zlib
from collections.abc import Iterator
from typing import Callable

import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
)

from revconn.gateway import ServerTLS
from tests.support.certificates import Authority
from tests.support.http2_caller import Http2Caller
from tests.support.scripted_http2 import HungUp, message
from tests.support.threads import in_thread
from tests.support.waiting import eventually

SAY = "/echo.Echo/Say"
NO_ERROR, REFUSED_STREAM, CANCEL = 0, 7, 8
UNAVAILABLE = "14"
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"


@pytest.fixture
def connector(gateway, connect):
    return connect(gateway, "echo.Echo", features="cancel")


@pytest.fixture
def caller(gateway, resources) -> Http2Caller:
    return resources.enter_context(Http2Caller(gateway.address))


def answer_one(connector, payload: bytes = b"\x0aok", **fields: object) -> None:
    connector.respond(connector.receive_request().request_id, payload, **fields)


# Answers


def test_an_answer_is_headers_one_message_and_trailers(caller, connector) -> None:
    caller.call(SAY, b"\x0ahi")
    answer_one(connector, headers={"note": "seen"})
    answer = caller.hears_answer()
    opening, trailers = answer.blocks
    assert opening[":status"] == "200"
    assert opening["content-type"] == "application/grpc"
    assert answer.data == message(b"\x0aok")
    assert trailers["grpc-status"] == "0"
    assert trailers["note"] == "seen"
    assert answer.reset in (None, NO_ERROR)


def test_a_failure_is_trailers_and_nothing_else(caller, connector) -> None:
    caller.call(SAY)
    headers = {"grpc-status": "5", "note": "seen"}
    answer_one(connector, b"", status_code=404, error_message="größer als 50 %", headers=headers)
    answer = caller.hears_answer()
    (trailers,) = answer.blocks
    assert trailers[":status"] == "200"
    assert trailers["content-type"] == "application/grpc"
    assert trailers["grpc-status"] == "5"
    assert trailers["grpc-message"] == "gr%C3%B6%C3%9Fer als 50 %25"
    assert trailers["note"] == "seen"
    assert answer.data == b""


def test_a_connection_goes_on_after_a_failure(caller, connector) -> None:
    caller.call("/no.Body/Home", stream_id=1)
    assert caller.hears_answer(1).status == UNAVAILABLE
    caller.call(SAY, stream_id=3)
    answer_one(connector)
    assert caller.hears_answer(3).data == message(b"\x0aok")


def test_an_answer_waits_for_the_window_and_comes_as_that_opens(gateway, connector) -> None:
    payload = b"x" * 40
    with Http2Caller(gateway.address, {SettingsFrame.INITIAL_WINDOW_SIZE: 10}) as caller:
        caller.call(SAY)
        answer_one(connector, payload)
        while len(caller.answers[1].data if 1 in caller.answers else b"") < 10:
            caller.hears_frame()
        caller.ping()  # whatever was sent too soon would have come by now
        assert len(caller.answers[1].data) == 10
        caller.open_window(1, stream_only=True)
        assert caller.hears(DataFrame).data == message(payload)[10:11]
        caller.say(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 1000}))
        assert caller.hears_answer().data == message(payload)


# Compression


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_a_compressed_request_arrives_as_it_was(
    caller, connector, encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    said = b"\x0a" * 100_000
    caller.call(SAY, compress(said), ("grpc-encoding", encoding), compressed=True)
    request = connector.receive_request()
    assert request.payload == said
    assert "grpc-encoding" not in request.headers
    connector.respond(request.request_id)
    assert caller.hears_answer().status == "0"


def test_a_message_of_a_compressed_call_need_not_be_compressed(caller, connector) -> None:
    caller.call(SAY, b"\x0ahi", ("grpc-encoding", "gzip"))
    assert connector.receive_request().payload == b"\x0ahi"


def test_callers_are_told_which_compressions_are_taken(caller, connector) -> None:
    caller.call(SAY)
    answer_one(connector)
    opening, _ = caller.hears_answer().blocks
    assert {"gzip", "identity"} <= set(opening["grpc-accept-encoding"].replace(" ", "").split(","))


@pytest.mark.parametrize("accepted", ["gzip", "identity", None])
def test_an_answer_is_in_an_encoding_that_the_caller_takes(caller, connector, accepted) -> None:
    more = [("grpc-accept-encoding", accepted)] if accepted else []
    caller.call(SAY, b"", *more)
    inflated = b"\x0a" * 10_000
    packed = message(gzip.compress(inflated), compressed=True)
    headers = {"content-type": "application/grpc", "grpc-encoding": "gzip", "grpc-status": "0"}
    answer_one(connector, packed, headers=headers)
    answer = caller.hears_answer()
    opening = answer.blocks[0]
    if answer.data[0]:
        assert (opening["grpc-encoding"], accepted) == ("gzip", "gzip")
        assert gzip.decompress(answer.data[5:]) == inflated
    else:
        assert answer.data == message(inflated)
    assert answer.status == "0"


def test_a_compression_that_is_not_known_is_refused_by_name(caller, connector) -> None:
    caller.call(SAY, b"?", ("grpc-encoding", "snappy-2"), compressed=True)
    answer = caller.hears_answer()
    assert answer.status == "12"
    assert "snappy-2" in answer.blocks[-1]["grpc-message"]


def test_what_does_not_inflate_is_an_internal_failure(caller, connector) -> None:
    caller.call(SAY, b"no gzip", ("grpc-encoding", "gzip"), compressed=True)
    assert caller.hears_answer().status == "13"


# Requests


@pytest.mark.parametrize("kind", ["application/grpc", "application/grpc+proto"])
def test_a_call_may_name_the_encoding_of_its_messages(caller, connector, kind) -> None:
    caller.call(SAY, b"", ("content-type", kind))
    answer_one(connector)
    assert caller.hears_answer().status == "0"


def test_a_request_may_come_in_any_pieces(caller, connector) -> None:
    block = caller.request_block(SAY, [("note", "x" * 100)])
    caller.say(PriorityFrame(1, depends_on=0, stream_weight=3))
    caller.say(HeadersFrame(1, block[:1]))
    for start in range(1, len(block), 20):
        last = ["END_HEADERS"] if start + 20 >= len(block) else []
        caller.say(ContinuationFrame(1, block[start : start + 20], flags=last))
    for byte in message(b"\x0ahello"):
        caller.say(DataFrame(1, bytes([byte])))
    caller.say(DataFrame(1, b"", flags=["END_STREAM"]))
    request = connector.receive_request()
    assert request.payload == b"\x0ahello"
    assert request.headers["note"] == "x" * 100
    connector.respond(request.request_id)
    assert caller.hears_answer().status == "0"


def test_a_request_may_be_padded(caller, connector) -> None:
    block = caller.request_block(SAY)
    caller.say(
        HeadersFrame(1, block, pad_length=7, flags=["PADDED", "END_HEADERS"]),
        DataFrame(1, message(b"\x0ahi"), pad_length=255, flags=["PADDED"]),
        DataFrame(1, b"", pad_length=3, flags=["PADDED", "END_STREAM"]),
    )
    request = connector.receive_request()
    assert request.payload == b"\x0ahi"
    connector.respond(request.request_id)
    assert caller.hears_answer().status == "0"


def test_calls_on_one_connection_are_answered_in_any_order(caller, connector) -> None:
    for stream_id in (1, 3, 5):
        caller.call(SAY, b"%d" % stream_id, stream_id=stream_id)
    requests = [connector.receive_request() for _ in range(3)]
    for request in reversed(requests):
        connector.respond(request.request_id, request.payload)
    for stream_id in (1, 3, 5):
        assert caller.hears_answer(stream_id).data == message(b"%d" % stream_id)


def test_a_stream_that_is_reset_is_a_call_that_was_given_up(gateway, caller, connector) -> None:
    caller.call(SAY)
    request = connector.receive_request()
    caller.say(RstStreamFrame(1, error_code=CANCEL))
    assert connector.receive().cancel.request_id == request.request_id
    eventually(lambda: gateway.stats()["pending"] == 0)
    caller.ping()  # the connection goes on


def test_a_connection_that_breaks_gives_its_calls_up(gateway, caller, connector) -> None:
    for stream_id in (1, 3):
        caller.call(SAY, stream_id=stream_id)
    sent = {connector.receive_request().request_id for _ in range(2)}
    caller.close()
    assert {connector.receive().cancel.request_id for _ in range(2)} == sent
    eventually(lambda: gateway.stats()["pending"] == 0)


# The connection


def test_a_caller_may_ping_as_often_as_it_likes(caller, connector) -> None:
    caller.hears(SettingsFrame)
    caller.call(SAY)
    request = connector.receive_request()
    for number in range(300):
        caller.ping(b"%8d" % number)
    connector.respond(request.request_id)
    assert caller.hears_answer().status == "0"
    for number in range(300):  # without a call, too
        caller.ping(b"%8d" % number)
    caller.call(SAY, stream_id=3)
    answer_one(connector)
    assert caller.hears_answer(3).status == "0"


def test_a_caller_that_goes_away_gets_the_answers_it_waits_for(caller, connector) -> None:
    caller.call(SAY)
    request = connector.receive_request()
    caller.goaway(NO_ERROR, 0, b"bye")
    caller.say(PingFrame(0, opaque_data=b"12345678"))
    connector.respond(request.request_id, b"\x0aok")
    answer = caller.hears_answer()
    assert (answer.data, answer.status) == (message(b"\x0aok"), "0")


@pytest.fixture
def stopping(gateway, caller, connector) -> Iterator[str]:
    """A gateway that has begun to stop, as stream 1 knows by a Watch; stream 3's call is pending.

    The id of that request.
    """
    caller.call("/grpc.health.v1.Health/Watch", stream_id=1)
    hears_status(caller, SERVING)
    caller.call(SAY, stream_id=3)
    request_id = connector.receive_request().request_id
    stopped = in_thread(gateway.stop, 30.0)
    hears_status(caller, NOT_SERVING)
    yield request_id
    stopped.result(60)


def hears_status(caller: Http2Caller, status: bytes) -> None:
    """Wait until the last message on stream 1 is a health status."""
    while 1 not in caller.answers or not caller.answers[1].data.endswith(message(status)):
        caller.hears_frame()


def test_a_gateway_that_stops_says_goaway_and_what_it_has_yet_to_answer(
    caller, connector, stopping
) -> None:
    connector.respond(stopping, b"\x0aok")
    goaways = all_goaways(caller)
    assert goaways[0].error_code == NO_ERROR
    assert all(goaway.last_stream_id >= 3 for goaway in goaways)
    assert (caller.answers[3].data, caller.answers[3].status) == (message(b"\x0aok"), "0")
    assert caller.answers[1].status == UNAVAILABLE


def all_goaways(caller: Http2Caller) -> list[GoAwayFrame]:
    """Every GOAWAY until the gateway hangs up."""
    goaways = []
    with contextlib.suppress(HungUp):
        while True:
            goaways.append(caller.hears(GoAwayFrame))
    return goaways


def test_a_call_that_comes_as_the_gateway_stops_is_refused_and_those_before_it_are_not(
    caller, connector, stopping
) -> None:
    caller.call(SAY, stream_id=5)
    late = caller.hears_answer(5)
    assert late.reset == REFUSED_STREAM or late.status == UNAVAILABLE
    connector.respond(stopping, b"\x0aok")
    assert caller.hears_answer(3).status == "0"


@pytest.mark.parametrize("offered", [["h2"], ["h2", "http/1.1"], ["http/1.1", "h2"]])
def test_over_tls_a_caller_is_answered_in_http2(
    run_gateway, connect, tmp_path, offered, resources
) -> None:
    authority = Authority()
    gateway = run_gateway(tls=ServerTLS(*authority.issue_files(tmp_path)))
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.set_alpn_protocols(offered)
    caller = resources.enter_context(Http2Caller(gateway.address, tls=context))
    assert caller.socket.selected_alpn_protocol() == "h2"
    caller.call("/no.Body/Home")
    assert caller.hears_answer().status == UNAVAILABLE
