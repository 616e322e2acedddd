from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable

import pytest

from revconn import Connector, Request, RequestError, Response, StatusCode
from revconn._proto.registry_pb2 import Heartbeat
from revconn.core.framing import frame, unframe
from revconn.runtime.threads import BinarySemaphore
from revconn.serving import workers as workers_module
from tests.support.calls import send_home
from tests.support.scripted_gateway import Peer
from tests.support.waiting import eventually

TIMEOUT = 60.0
MB = 10**6


@pytest.fixture
def connect(new_connector, gateway) -> Callable[..., tuple[Connector, Peer]]:
    """``connect(handler, **options)``: a connector that serves, and its peer."""

    def connect(handler: Callable[[Request], Any], **options) -> tuple[Connector, Peer]:
        connector = new_connector(gateway.address, **options)
        connector.add_method("/echo.Echo/Say", handler)
        connector.start(block=False)
        return connector, gateway.accept_ready()

    return connect


class Gate:
    """A handler that waits to be let go, and remembers who came."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.threads: set[str] = set()
        self._let_go: dict[str, threading.Event] = {}
        self._lock = threading.Lock()
        self._is_open = False

    def __call__(self, request: Request) -> bytes:
        self.entered.append(request.request_id)
        self.threads.add(threading.current_thread().name)
        assert self._event(request.request_id).wait(TIMEOUT)
        return request.request_id.encode()

    def holds(self, count: int) -> None:
        eventually(lambda: len(self.entered) == count)

    def open(self, *request_ids: str) -> None:
        for request_id in request_ids:
            self._event(request_id).set()

    def open_for_all(self) -> None:
        with self._lock:
            self._is_open = True
            held = list(self._let_go)
        self.open(*held)

    def _event(self, request_id: str) -> threading.Event:
        with self._lock:
            event = self._let_go.setdefault(request_id, threading.Event())
            if self._is_open:
                event.set()
            return event


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.open_for_all()


# What handlers give back


@pytest.mark.parametrize(
    ("result", "payload"),
    [
        (b"bytes", b"bytes"),
        (bytearray(b"array"), b"array"),
        (memoryview(b"view"), b"view"),
        (None, b""),
        (Heartbeat(connection_id="x"), Heartbeat(connection_id="x").SerializeToString()),
        (Response(b"response"), b"response"),
    ],
)
def test_a_handler_may_return_bytes_a_message_a_response_or_none(connect, result, payload) -> None:
    _, peer = connect(lambda request: result)
    peer.request("r1")
    answer = peer.answer("r1")
    assert (answer.status_code, answer.payload, answer.error_message) == (200, payload, "")


def test_a_response_carries_its_status_headers_and_error(connect) -> None:
    _, peer = connect(
        lambda request: Response(b"{}", status=409, headers={"x-seen": "yes"}, error="twice")
    )
    peer.request()
    answer = peer.answer()
    assert (answer.status_code, answer.payload, answer.error_message) == (409, b"{}", "twice")
    assert answer.headers["x-seen"] == "yes"
    assert answer.headers["grpc-status"] == str(int(StatusCode.ABORTED))


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RequestError(404, "no such ä"), 404, StatusCode.NOT_FOUND),
        (RequestError(StatusCode.NOT_FOUND, "no such ä"), 404, StatusCode.NOT_FOUND),
        (RequestError(StatusCode.DATA_LOSS, "no such ä"), 500, StatusCode.DATA_LOSS),
    ],
)
def test_a_request_error_fails_the_request_with_its_status(connect, error, status, code) -> None:
    def fail(request: Request) -> bytes:
        raise error

    _, peer = connect(fail)
    peer.request()
    answer = peer.answer()
    assert (answer.status_code, answer.error_message) == (status, "no such ä")
    assert answer.headers["grpc-status"] == str(int(code))
    assert answer.headers["grpc-message"] == "no such %C3%A4"


@pytest.mark.parametrize("error", [LookupError("secret"), SystemExit("secret")])
def test_any_other_exception_is_a_500_that_tells_the_log_and_not_the_peer(
    connect, caplog, error
) -> None:
    def fail(request: Request) -> bytes:
        raise error

    _, peer = connect(fail)
    peer.request("r-13")
    answer = peer.answer("r-13")
    assert (answer.status_code, answer.error_message) == (500, "internal error")
    assert "secret" not in str(answer)
    assert "request_id='r-13'" in caplog.text
    assert f"{type(error).__name__}: secret" in caplog.text


def test_a_wrong_result_is_a_500_and_the_log_says_which_handler_returned_what(
    connect, caplog
) -> None:
    def confused(request: Request) -> int:
        return 42

    _, peer = connect(confused)
    peer.request()
    assert peer.answer().status_code == 500
    assert "confused returned int; return bytes" in caplog.text


@pytest.mark.parametrize("method", ["/echo.Echo/Nope", "/other.Other/Say", "Say", "", "//"])
def test_an_unknown_method_is_a_404_with_grpcs_unimplemented(connect, method) -> None:
    _, peer = connect(lambda request: b"")
    peer.request(method=method)
    answer = peer.answer()
    assert answer.status_code == 404
    assert answer.headers["grpc-status"] == str(int(StatusCode.UNIMPLEMENTED))
    assert answer.error_message == f"unknown method {method}"


def test_a_method_path_may_come_without_its_first_slash(connect) -> None:
    _, peer = connect(lambda request: b"found")
    peer.request(method="echo.Echo/Say")
    assert peer.answer().payload == b"found"


def test_a_framed_request_is_unframed_and_answered_in_kind(connect) -> None:
    _, peer = connect(lambda request: b"<" + request.payload + b">")
    peer.request(payload=frame(b"hi"))
    answer = peer.answer()
    assert answer.status_code == 200
    assert unframe(answer.payload) == b"<hi>"
    assert answer.headers["content-type"] == "application/grpc"
    assert answer.headers["grpc-status"] == "0"


def test_a_frame_that_does_not_inflate_is_a_400_and_reaches_no_handler(connect) -> None:
    seen = []
    _, peer = connect(seen.append)
    peer.request(payload=b"\x01\x00\x00\x00\x02hi")
    assert peer.answer().status_code == 400
    assert seen == []


def test_a_handler_sees_what_the_gateway_sent(connect) -> None:
    seen: list[Request] = []
    _, peer = connect(seen.append)
    peer.request("id-9", payload=b"\x08\x01", user_agent="test", te="trailers")
    peer.answer("id-9")
    (request,) = seen
    assert request.request_id == "id-9"
    assert request.method == "/echo.Echo/Say"
    assert request.payload == b"\x08\x01"
    assert dict(request.headers) == {"user-agent": "test", "te": "trailers"}


# Who runs them


def test_as_many_run_at_once_as_there_are_workers(connect, gate) -> None:
    connector, peer = connect(gate, max_workers=3)
    peer.requests(*"abcd")
    gate.holds(3)
    eventually(lambda: connector.stats()["waiting"] == 1)
    assert all(name.startswith("revconn-handler") for name in gate.threads)
    gate.open("b")
    assert peer.answer("b").payload == b"b"
    gate.holds(4)
    gate.open(*"acd")
    assert set(peer.answers(3)) == set("acd")


def test_a_worker_that_was_called_and_has_not_woken_yet_calls_the_others(
    connect, gate, monkeypatch
) -> None:
    monkeypatch.setattr(workers_module, "_LINGER", TIMEOUT)
    connector, peer = connect(gate, max_workers=3)
    peer.requests(*"abc")
    gate.holds(3)
    gate.open(*"abc")
    peer.answers(3)
    workers = connector._supervisor.calls.workers
    eventually(lambda: workers._parked == 3)
    wake = workers._calls
    unheard = BinarySemaphore()
    with monkeypatch.context() as patch:
        patch.setattr(workers, "_calls", unheard)
        for request_id in "def":
            peer.requests(request_id)
        eventually(lambda: connector.stats()["waiting"] == 3)
    assert unheard.acquire(timeout=0)
    wake.release()
    gate.holds(6)
    gate.open(*"def")
    assert set(peer.answers(3)) == set("def")
    send_home(workers, monkeypatch)


def test_answers_go_out_in_the_order_in_which_they_are_ready(connect, gate) -> None:
    _, peer = connect(gate)
    peer.requests(*"abc")
    gate.holds(3)
    for request_id in "cab":
        gate.open(request_id)
        assert peer.answer(request_id).payload == request_id.encode()


def test_handlers_run_in_the_users_executor_which_is_not_shut_down(connect, gate) -> None:
    with ThreadPoolExecutor(2, thread_name_prefix="mine") as executor:
        connector, peer = connect(gate, executor=executor)
        peer.requests(*"abc")
        gate.open(*"abc")
        assert set(peer.answers(3)) == set("abc")
        assert all(name.startswith("mine") for name in gate.threads)
        connector.abort()
        assert executor.submit(lambda: "still here").result(TIMEOUT) == "still here"


def test_others_get_a_turn_in_the_users_executor_while_requests_never_end(connect) -> None:
    with ThreadPoolExecutor(1) as executor:
        connector, peer = connect(lambda request: b"", executor=executor, max_workers=1)
        done = threading.Event()

        def keep_asking() -> None:
            for number in range(20):
                peer.request(f"r{number}")
            while not done.is_set():
                peer.request(peer.hears("response").request_id)

        asking = threading.Thread(target=keep_asking)
        asking.start()
        eventually(lambda: connector.stats()["answered"] > 20)
        assert executor.submit(lambda: "my turn").result(TIMEOUT) == "my turn"
        done.set()
        asking.join()


def test_an_executor_that_is_shut_down_with_workers_still_queued_strands_nobody(connect) -> None:
    executor = ThreadPoolExecutor(1)
    busy = threading.Event()
    executor.submit(busy.wait, TIMEOUT)
    connector, peer = connect(lambda request: b"", executor=executor)
    peer.request("r1")
    eventually(lambda: connector.stats()["waiting"] == 1)
    executor.shutdown(wait=False, cancel_futures=True)
    assert peer.answer("r1").status_code == 503
    busy.set()
    peer.hears_goodbye()


# How many


def test_beyond_max_in_flight_requests_are_refused_at_once(connect, gate) -> None:
    connector, peer = connect(gate, max_in_flight=2, max_workers=1)
    peer.requests(*"abc")
    refused = peer.answer("c")
    assert refused.status_code == 429
    assert refused.headers["grpc-status"] == str(int(StatusCode.RESOURCE_EXHAUSTED))
    assert refused.error_message == "too many requests: 2 are in flight"
    gate.open(*"ab")
    assert set(peer.answers(2)) == set("ab")
    gate.open("d")
    peer.request("d")
    assert peer.answer("d").status_code == 200
    assert connector.stats()["overloaded"] == 1


def test_beyond_max_in_flight_bytes_the_gateway_is_held_back_and_nothing_is_lost(
    connect, gate
) -> None:
    connector, peer = connect(gate, max_in_flight_bytes=MB, max_workers=64)
    ids = [f"r{number}" for number in range(60)]
    peer.requests(*ids, payload=bytes(MB // 2))
    eventually(lambda: connector.stats()["accepted"] >= 2)
    gate.open(*ids)
    assert set(peer.answers(60)) == set(ids)


def test_a_repeated_id_is_handled_once_while_the_first_is_in_flight(connect, gate) -> None:
    connector, peer = connect(gate)
    peer.requests("a", "a", "b")
    gate.holds(2)
    assert connector.stats()["repeated"] == 1
    gate.open("a", "b")
    assert set(peer.answers(2)) == {"a", "b"}
    assert sorted(gate.entered) == ["a", "b"]
    peer.request("a")  # it is in flight no more: a new request
    assert peer.answer("a").status_code == 200


@pytest.mark.parametrize("request_id", ["", "x" * 300])
def test_a_request_that_cannot_be_answered_is_ignored_with_a_log_line(
    connect, caplog, request_id
) -> None:
    _, peer = connect(lambda request: b"")
    peer.request(request_id)
    peer.request("r1")
    assert peer.answer("r1").status_code == 200
    assert "unanswerable" in caplog.text


# How large


def test_a_request_of_20_megabytes_arrives(connect) -> None:
    _, peer = connect(lambda request: str(len(request.payload)).encode())
    peer.request(payload=bytes([7]) * 20 * MB)
    assert peer.answer(timeout=60.0).payload == b"20000000"


def test_an_answer_that_is_too_large_fails_alone(connect, caplog) -> None:
    _, peer = connect(lambda request: bytes(int(request.payload)), max_message_bytes=100_000)
    peer.request("large", payload=b"100000")
    peer.request("small", payload=b"99000")
    answers = peer.answers(2)
    assert len(answers["small"].payload) == 99_000
    assert answers["large"].status_code == 500
    assert "larger than the limit of 100,000 bytes" in answers["large"].error_message
    eventually(lambda: "the answer was not sent" in caplog.text)  # after it was replaced, perhaps
    assert "request_id='large'" in caplog.text
