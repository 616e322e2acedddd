"""Ordinary callers bring more than they cost, however fast they call."""

from __future__ import annotations

import threading

import grpc
import pytest

from revconn import Connector, Response

CALLS = 1_000  # twice as many as a connection may make that costs a frame more each than it brings
AT_ONCE = 64
TIMEOUT = 60.0
METHODS = {
    "Say": lambda request: request.payload,
    "Empty": lambda request: b"",
    "Fail": lambda request: Response(status=404, error="there is none"),
    "Said": lambda request: Response(request.payload, headers={"x": "1"}),
}


def call_on_and_on(
    channel: grpc.Channel,
    path: str,
    *,
    count: int = CALLS,
    at_once: int = AT_ONCE,
    timeout: float = TIMEOUT,
) -> set[grpc.StatusCode]:
    """How so many calls end, most of them at the same time."""
    method = channel.unary_unary(path)
    room, codes = threading.Semaphore(at_once), set()

    def done(call: grpc.Future) -> None:
        codes.add(call.code())
        room.release()

    for _ in range(count):
        assert room.acquire(timeout=TIMEOUT)
        method.future(b"\x0ahello", timeout=timeout).add_done_callback(done)
    for _ in range(at_once):
        assert room.acquire(timeout=TIMEOUT)
    return codes


@pytest.mark.parametrize("name", METHODS)
def test_a_caller_of_grpcio_is_not_taken_for_a_flood(impatient, gateway, name) -> None:
    connector = Connector(gateway.address, api_key="key")
    connector.add_method(f"/echo.Echo/{name}", METHODS[name])
    with connector, grpc.insecure_channel(gateway.address) as channel:
        connector.wait_ready(TIMEOUT)
        codes = call_on_and_on(channel, f"/echo.Echo/{name}")
    assert codes == {grpc.StatusCode.NOT_FOUND if name == "Fail" else grpc.StatusCode.OK}
    assert gateway.stats()["connections_flooding"] == 0


def test_a_caller_whose_calls_are_not_answered_in_time_is_not_either(
    clock, gateway, connect
) -> None:
    connect(gateway, "echo.Echo")  # and answers nothing
    with grpc.insecure_channel(gateway.address) as channel:
        # Long enough: on a slow machine a call comes late, and its end is not late by as much.
        codes = call_on_and_on(channel, "/echo.Echo/Say", count=600, at_once=200, timeout=1.5)
    assert codes == {grpc.StatusCode.DEADLINE_EXCEEDED}
    assert gateway.stats()["connections_flooding"] == 0
