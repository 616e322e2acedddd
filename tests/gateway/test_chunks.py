"""Responses too large for one message, from connectors and to them."""

from __future__ import annotations

import grpc
import pytest

from revconn._proto.registry_pb2 import ConnectionMessage, ForwardResponse, ResponseStreamInfo
from revconn.core.chunks import ChunkJoiner, split
from tests.gateway.conftest import counted
from tests.support.waiting import eventually

SAY = "/echo.Echo/Say"


@pytest.fixture
def connector(gateway, connect):
    return connect(gateway, "echo.Echo", features="chunks,cancel")


def chunk(connector, request_id, index, payload=b"", *, final=False, size=None, **info) -> None:
    connector.respond(
        request_id,
        payload,
        response_stream_info=ResponseStreamInfo(
            is_streamed=True,
            chunk_index=index,
            is_final_chunk=final,
            chunk_size=len(payload) if size is None else size,
            **info,
        ),
    )


# From a connector


def test_chunks_are_joined_for_the_caller(gateway, connector, call) -> None:
    pending = call(gateway, SAY)
    payload = b"\x0a" + bytes(range(256)) * 40_000
    response = ForwardResponse(
        request_id=connector.receive_request().request_id,
        status_code=200,
        headers={"x-kept": "yes"},
        payload=payload,
    )
    chunks = list(split(response, 1_000_000))
    for each in (*reversed(chunks[:-1]), chunks[-1]):
        connector.send(response=each)
    assert pending.result() == payload
    assert ("x-kept", "yes") in pending.trailing_metadata()
    assert gateway._thread._serving.shared.calls.joining.held_bytes == 0


def test_status_headers_and_message_are_the_final_chunks(gateway, connector, call) -> None:
    pending = call(gateway, SAY)
    request_id = connector.receive_request().request_id
    chunk(connector, request_id, 0, b"a")
    connector.respond(
        request_id,
        b"b",
        status_code=409,
        error_message="taken",
        response_stream_info=ResponseStreamInfo(
            is_streamed=True, chunk_index=1, is_final_chunk=True, chunk_size=1
        ),
    )
    assert pending.code() is grpc.StatusCode.ABORTED
    assert pending.details() == "taken"


WRONG = {
    "a gap": ([(0, {}), (2, {"final": True})], "the final chunk came without chunk 1"),
    "a duplicate": ([(0, {}), (0, {})], "chunk 0 came twice"),
    "a lie about its size": ([(0, {"size": 9})], "chunk 0 is said to hold 9 bytes"),
    "a lie about all sizes": (
        [(0, {"total_size": 3}), (1, {"final": True})],
        "the chunks are said to hold 3 bytes",
    ),
}


@pytest.mark.parametrize(("chunks", "said"), WRONG.values(), ids=WRONG)
def test_chunks_that_do_not_fit_together_fail_that_call_alone(
    gateway, connector, call, chunks, said
) -> None:
    bad, good = call(gateway, "/echo.Echo/Bad"), call(gateway, "/echo.Echo/Good")
    requests = {r.method_path: r for r in (connector.receive_request() for _ in range(2))}
    bad_id, good_id = (requests[f"/echo.Echo/{name}"].request_id for name in ("Bad", "Good"))
    chunk(connector, good_id, 0, b"go")
    for index, options in chunks:
        chunk(connector, bad_id, index, b"x", **options)
    assert bad.code() is grpc.StatusCode.INTERNAL
    assert said in bad.details()
    chunk(connector, good_id, 1, b"od", final=True)
    assert good.result() == b"good"
    cancel = connector.receive().cancel
    assert cancel.request_id == bad_id
    assert said in cancel.reason
    assert counted(gateway, "answers_broken") == 1
    assert gateway._thread._serving.shared.calls.joining.held_bytes == 0


def test_a_missing_final_chunk_ends_with_the_deadline(run_gateway, connect, call) -> None:
    gateway = run_gateway(request_timeout=2.0)
    connector = connect(gateway, "echo.Echo", features="chunks")
    pending = call(gateway, SAY)
    chunk(connector, connector.receive_request().request_id, 0, b"x")
    assert pending.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "the final chunk of the connector's answer did not come" in pending.details()


def test_a_response_larger_than_allowed_fails_that_call(run_gateway, connect, call) -> None:
    gateway = run_gateway(max_response_bytes=10_000)
    connector = connect(gateway, "echo.Echo", features="chunks")
    pending = call(gateway, SAY)
    request_id = connector.receive_request().request_id
    chunk(connector, request_id, 0, b"x" * 6000)
    chunk(connector, request_id, 1, b"x" * 6000)
    assert pending.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert pending.details().startswith(f"{SAY}: the chunks exceed the 10,000 bytes")
    assert "the gateway's max_response_bytes" in pending.details()
    assert counted(gateway, "refused_max_response_bytes") == 1


def test_unfinished_responses_are_bounded_together(run_gateway, connect, call) -> None:
    gateway = run_gateway(max_joining_bytes=10_000)
    connector = connect(gateway, "echo.Echo", features="chunks")
    first, second = call(gateway, SAY), call(gateway, SAY)
    ids = [connector.receive_request().request_id for _ in range(2)]
    for request_id in ids:
        chunk(connector, request_id, 0, b"x" * 6000)
    failed = eventually(lambda: next((one for one in (first, second) if one.done()), None))
    assert failed.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "hold 6,000 bytes already (the gateway's max_joining_bytes)" in failed.details()
    chunk(connector, ids[0], 1, final=True)
    other = first if failed is second else second
    assert other.result() == b"x" * 6000


def test_chunks_start_again_on_the_next_connection(gateway, connector, connect, call) -> None:
    following = connect(gateway, features="chunks")
    pending = call(gateway, SAY)
    request_id = connector.receive_request().request_id
    chunk(connector, request_id, 0, b"from the first")
    connector.cancel()
    eventually(lambda: len(gateway.connections()) == 1)
    chunk(following, request_id, 0, b"sec")
    chunk(following, request_id, 1, b"ond", final=True)
    assert pending.result() == b"second"


def test_chunks_that_take_turns_on_two_connections_are_joined_apart(
    gateway, connector, connect, call
) -> None:
    """A connector whose connection is replaced sends what it answers on both."""
    calls = gateway._thread._serving.shared.calls
    following = connect(gateway, features="chunks")
    pending = call(gateway, SAY)
    request_id = connector.receive_request().request_id
    chunk(connector, request_id, 0, b"an")
    eventually(lambda: calls.joining.held_bytes == 2)
    chunk(following, request_id, 0, b"an")
    eventually(lambda: calls.joining.held_bytes == 4)
    chunk(connector, request_id, 1, b"sw")
    eventually(lambda: calls.joining.held_bytes == 6)
    chunk(following, request_id, 1, b"swer", final=True)
    assert pending.result() == b"answer"
    assert calls.joining.held_bytes == 0


def test_a_whole_answer_in_the_midst_of_chunks_is_the_answer(gateway, connector, call) -> None:
    pending = call(gateway, SAY)
    request_id = connector.receive_request().request_id
    chunk(connector, request_id, 0, b"x")
    connector.respond(request_id, status_code=500, error_message="it broke on the way")
    assert pending.code() is grpc.StatusCode.INTERNAL
    assert pending.details() == "it broke on the way"


def test_a_caller_that_gives_up_frees_what_had_come(gateway, connector, call) -> None:
    pending = call(gateway, SAY)
    chunk(connector, connector.receive_request().request_id, 0, b"x" * 1000)
    calls = gateway._thread._serving.shared.calls
    eventually(lambda: calls.joining.held_bytes == 1000)
    pending.cancel()
    eventually(lambda: calls.joining.held_bytes == 0)


# To a connector that asked


def answer_large(gateway, connector, request_id, size) -> bytes:
    payload = b"\x0a" * size
    response = ForwardResponse(
        request_id=request_id, status_code=200, headers={"x": "y"}, payload=payload
    )
    for each in split(response, 1_000_000):
        connector.send(response=each)
    return payload


def test_who_announced_chunks_is_answered_in_chunks(gateway, connector, connect) -> None:
    asker = connect(gateway, features="chunks")
    asker.ask("1", SAY)
    connector.receive_request()
    payload = answer_large(gateway, connector, "1", 10_000_000)
    joiner = ChunkJoiner(max_bytes=10_000_000)
    whole = None
    while whole is None:
        response = asker.receive_response()
        assert ConnectionMessage(response=response).ByteSize() <= 4 * 1024 * 1024
        whole = joiner.add(response)
    assert (whole.payload, dict(whole.headers)) == (payload, {"x": "y"})


def test_a_stated_limit_is_kept(gateway, connector, connect) -> None:
    asker = connect(gateway, features="chunks", max_message_bytes=2000)
    asker.ask("1", SAY)
    connector.receive_request()
    connector.respond("1", b"x" * 5000)
    joiner = ChunkJoiner(max_bytes=5000)
    while joiner.add(asker.receive_response()) is None:
        pass
    assert max(len(message) for message in asker.received_bytes) <= 2000
    assert joiner.held_bytes == 5000


def test_who_announced_nothing_is_answered_in_one_message(gateway, connector, connect) -> None:
    asker = connect(gateway)
    asker.ask("1", SAY)
    connector.receive_request()
    payload = answer_large(gateway, connector, "1", 10_000_000)
    response = asker.receive_response()
    assert response.payload == payload
    assert not response.HasField("response_stream_info")


@pytest.mark.parametrize("features", [None, "chunks"])
def test_a_response_that_cannot_be_sent_is_a_429(gateway, connector, connect, features) -> None:
    asker = connect(gateway, features=features, max_message_bytes=1000)
    asker.ask("1", SAY)
    connector.receive_request()
    connector.respond("1", headers={"a": "x" * 5000})
    response = asker.receive_response()
    assert (response.request_id, response.status_code) == ("1", 429)
    assert "the gateway's max_sent_message_bytes" in response.error_message
