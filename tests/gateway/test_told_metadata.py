"""Feature "metadata": what headers cannot say of a call, said to those who know it alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from revconn._proto.registry_pb2 import ForwardRequest, ForwardResponse, MetadataEntry
from revconn.core.metadata import encode_extension
from revconn.core.requests import encode_request
from revconn.core.routing import Wanted
from revconn.gateway.call import Call
from revconn.gateway.outbound import Outgoing
from revconn.gateway.wishes import ConnectorCall

TIMEOUT = 30.0


def entry(key: str, value: bytes) -> MetadataEntry:
    return MetadataEntry(key=key, value=value)


@pytest.fixture
def channel(gateway, resources) -> grpc.Channel:
    options = [("grpc.max_metadata_size", 64 << 10)]
    return resources.enter_context(grpc.insecure_channel(gateway.address, options))


@pytest.fixture
def ask(channel, resources):
    """Make a call, and go on; what the caller gets comes later."""
    pool = resources.enter_context(ThreadPoolExecutor(2))

    def ask(payload: bytes = b"hi", **options: Any) -> Any:
        method = channel.unary_unary("/echo.Echo/Say")

        def wait() -> Any:
            try:
                return method.with_call(payload, timeout=TIMEOUT, **options)[1]
            except grpc.RpcError as error:
                return error

        return pool.submit(wait)

    return ask


@pytest.mark.parametrize("size", [2, 300_000])
def test_a_connector_that_knows_is_told_who_calls_and_what_repeats(
    gateway, connect, ask, size
) -> None:
    connector = connect(gateway, "echo.Echo", features="metadata")
    outcome = ask(b"x" * size, metadata=(("k", "1"), ("k", "2"), ("b-bin", b"\0\xff")))
    request = connector.receive_request()
    assert request.peer.startswith("ipv4:127.0.0.1:")
    told = [(each.key, each.value) for each in request.metadata]
    assert [pair for pair in told if pair[0] in ("k", "b-bin")] == [
        ("k", b"1"),
        ("k", b"2"),
        ("b-bin", b"\0\xff"),
    ]
    assert request.headers["k"] == "1,2"
    assert len(request.payload) == size
    connector.respond(request.request_id, b"ok")
    assert outcome.result(TIMEOUT).code() is grpc.StatusCode.OK


def test_metadata_that_headers_tell_is_not_told_twice(gateway, connect, ask) -> None:
    connector = connect(gateway, "echo.Echo", features="metadata")
    outcome = ask(metadata=(("k", "1"),))
    request = connector.receive_request()
    assert not request.metadata
    assert request.headers["k"] == "1"
    connector.respond(request.request_id, b"ok")
    outcome.result(TIMEOUT)


@pytest.mark.parametrize("size", [2, 300_000])
def test_a_connector_that_does_not_know_is_told_nothing_of_it(gateway, connect, ask, size) -> None:
    connector = connect(gateway, "echo.Echo")
    outcome = ask(b"x" * size, metadata=(("k", "1"), ("k", "2")))
    request = connector.receive_request()
    assert (request.peer, len(request.metadata)) == ("", 0)
    assert request.headers["k"] == "1,2"
    assert len(request.payload) == size
    assert request.streaming_info.is_stream_end
    connector.respond(request.request_id, b"ok")
    assert outcome.result(TIMEOUT).code() is grpc.StatusCode.OK


def test_a_request_that_was_cut_for_one_connector_moves_to_another_as_it_is() -> None:
    def connection(*features: str) -> Any:
        return SimpleNamespace(
            protocol=SimpleNamespace(features=frozenset(features)),
            pending=set(),
            load=SimpleNamespace(pending=0),
            outbound=SimpleNamespace(put_request=Outgoing),
        )

    class Asked(ConnectorCall):
        def __init__(self) -> None:
            Call.__init__(self, "1", "/a.B/C", Wanted.by_connector("a.B"), 0.0)

    call = Asked()
    extension = encode_extension((), b"ipv4:1.2.3.4:5")
    call.extension = len(extension)
    whole = encode_request(b"1", b"/a.B/C", b"", b"hi", 7, extension)
    plain = encode_request(b"1", b"/a.B/C", b"", b"hi", 7)
    call.queue(connection("metadata"), whole)
    assert call.unsent == whole
    call.queue(connection(), whole)
    assert call.unsent == plain
    call.queue(connection("metadata"), plain)
    call.queue(connection(), plain)
    assert call.unsent == plain


def test_a_connector_does_not_say_who_calls(gateway, connect) -> None:
    answerer = connect(gateway, "echo.Echo", features="metadata")
    asker = connect(gateway, features="metadata")
    forged = ForwardRequest(
        request_id="1",
        method_path="/echo.Echo/Say",
        payload=b"hi",
        peer="ipv4:1.2.3.4:5",
        metadata=[entry("a", b"1")],
    )
    asker.send(request=forged)
    request = answerer.receive_request()
    assert (request.peer, len(request.metadata)) == ("", 0)
    assert (request.request_id, request.payload) == ("1", b"hi")
    answerer.respond("1", b"ok")
    assert asker.receive_response().payload == b"ok"


@pytest.mark.parametrize("status", [200, 404])
def test_a_caller_gets_what_an_answer_says_in_its_place(gateway, connect, ask, status) -> None:
    connector = connect(gateway, "echo.Echo", features="metadata")
    outcome = ask()
    request = connector.receive_request()
    response = ForwardResponse(
        request_id=request.request_id,
        status_code=status,
        headers={"in-headers": "no"},
        payload=b"ok",
        initial_metadata=[entry("a", b"1"), entry("a", b"2"), entry("Te", b"no")],
        trailing_metadata=[entry("c-bin", b"\xff"), entry("c-bin", b"\0")],
    )
    connector.send(response=response)
    seen = outcome.result(TIMEOUT)
    assert [tuple(pair) for pair in seen.initial_metadata()] == [("a", "1"), ("a", "2")]
    assert [tuple(pair) for pair in seen.trailing_metadata()] == [
        ("c-bin", b"\xff"),
        ("c-bin", b"\0"),
    ]


def test_a_message_is_cut_to_what_a_caller_takes_and_no_further(gateway, connect, ask) -> None:
    connector = connect(gateway, "echo.Echo")
    outcome = ask()
    request = connector.receive_request()
    connector.respond(
        request.request_id, b"", status_code=404, error_message="x" * 60_000, headers={"a": "1"}
    )
    details = outcome.result(TIMEOUT).details()
    assert details.endswith("...")
    # It announces 80 KiB, of which half is used, less what else goes into a list.
    assert 38 << 10 < len(details) < 40 << 10
