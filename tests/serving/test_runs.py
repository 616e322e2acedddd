"""Who runs, and what they are doing."""

from __future__ import annotations

import threading
from typing import Any, Callable

import pytest

from revconn import Request
from revconn._proto.registry_pb2 import ForwardRequest
from revconn.core.routing import Routes
from revconn.serving.handlers import LONG, Answering, Handler, Runs, handler_stack
from tests.support.requests import request_of
from tests.support.threads import in_thread

TIMEOUT = 60.0
SECRET = "a secret in the payload"


def request(number: int = 1) -> Request:
    message = ForwardRequest(
        request_id=f"r{number}", method_path=f"/echo.Echo/Say{number}", payload=SECRET.encode()
    )
    return request_of(message)


def test_a_run_is_there_until_it_ends() -> None:
    runs, one, two = Runs(), request(1), request(2)
    runs.running.update({1: (one, 100.0), 2: (two, 101.0)})
    assert {thread: run.request for thread, run in runs.now().items()} == {1: one, 2: two}
    del runs.running[1]
    assert {thread: run.since for thread, run in runs.now().items()} == {2: 101.0}


def test_who_ran_in_a_time_that_is_past_is_known_of_long_runs() -> None:
    runs, long, short, late, earlier, still = Runs(), *map(request, range(5))
    for each, since, until in [
        (earlier, 90.0, 100.1),
        (short, 100.5, 100.9),
        (long, 99.0, 101.9),
        (late, 101.8, 102.4),
    ]:
        if until - since > LONG:
            runs.remember(each, since, until)
    runs.running[5] = (still, 100.0)
    assert runs.during(100.0, 102.0) == [still, long]


class Release(threading.Event):
    """What a handler waits for; it says when the handler has come to it."""

    def __init__(self) -> None:
        super().__init__()
        self.awaited = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.awaited.set()
        return super().wait(timeout)


@pytest.fixture
def held() -> Any:
    """``held(handler)``: the identifier of a thread that waits in it."""
    threads = []
    release = Release()

    def start(handler: Callable[[Request, threading.Event], bytes]) -> int:
        routes: Routes[Handler] = Routes()
        idents = []

        def handle(request: Request) -> bytes:
            idents.append(threading.get_ident())
            return handler(request, release)

        routes.add_method("/echo.Echo/Say1", handle)
        threads.append(in_thread(Answering(routes, 1000).answer, request()))
        assert release.awaited.wait(TIMEOUT)
        return idents[0]

    yield start
    release.set()
    for thread in threads:
        thread.result(TIMEOUT)


def wait_deeply(depth: int, release: threading.Event) -> bytes:
    if depth:
        return wait_deeply(depth - 1, release)
    release.wait(TIMEOUT)
    return b""


def test_the_stack_begins_with_the_handler_and_shows_code_but_no_values(held) -> None:
    thread = held(lambda request, release: wait_deeply(1, release))
    stack = handler_stack(thread)
    lines = stack.splitlines()
    assert lines[0] == "Stack (most recent call last):"
    assert "in answer" in lines[1]
    assert "in handle" in stack
    assert "wait_deeply(depth - 1, release)" in stack
    assert "release.wait(TIMEOUT)" in stack
    assert SECRET not in stack


def test_of_a_deep_stack_the_innermost_part_is_shown(held) -> None:
    stack = handler_stack(held(lambda request, release: wait_deeply(200, release)))
    assert stack.count("wait_deeply") <= 2 * 30
    assert "release.wait(TIMEOUT)" in stack


def test_a_thread_that_runs_no_handler_has_no_stack() -> None:
    assert handler_stack(threading.get_ident()) is None
    assert handler_stack(-1) is None
