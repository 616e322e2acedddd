"""Somebody hangs up in the one moment when it matters."""

from __future__ import annotations

import socket
import struct
from typing import Callable

import pytest
from hyperframe.frame import DataFrame, HeadersFrame, RstStreamFrame

from revconn.gateway import Gateway
from tests.support.http2_caller import Http2Caller
from tests.support.scripted_connector import ScriptedConnector
from tests.support.scripted_http2 import message
from tests.support.waiting import eventually

SAY = "/echo.Echo/Say"
CANCEL = 8
LARGE = b"x" * 2_000_000


class Scene:
    """A caller that is about to hang up, and the connector that serves what it calls."""

    def __init__(self, gateway: Gateway, connector: ScriptedConnector) -> None:
        self.gateway = gateway
        self.connector = connector
        self.caller = Http2Caller(gateway.address)

    def answer(self, payload: bytes = b"") -> None:
        self.connector.respond(self.connector.receive_request().request_id, payload)


def say_nothing(scene: Scene) -> None:
    """It has only connected."""


def say_headers(scene: Scene) -> None:
    block = scene.caller.request_block(SAY)
    scene.caller.say(HeadersFrame(1, block, flags=["END_HEADERS"]))
    eventually(lambda: scene.gateway._thread._serving._callers.receiving)


def say_half_a_message(scene: Scene) -> None:
    say_headers(scene)
    scene.caller.say(DataFrame(1, message(b"12345678")[:9]))
    scene.caller.ping()


def say_half_a_frame(scene: Scene) -> None:
    say_headers(scene)
    scene.caller.say(DataFrame(1, message(b"12345678")).serialize()[:12])


def call(scene: Scene) -> None:
    scene.caller.call(SAY)
    eventually(lambda: scene.gateway.stats()["pending"] == 1)


def call_and_be_answered(scene: Scene) -> None:
    scene.caller.call(SAY)
    scene.answer()
    scene.caller.hears_answer()


def call_while_it_is_answered(scene: Scene) -> None:
    scene.caller.call(SAY)
    scene.answer()


def read_half_an_answer(scene: Scene) -> None:
    scene.caller.call(SAY)
    scene.answer(LARGE)
    scene.caller.hears(DataFrame)


def give_up_while_it_is_answered(scene: Scene) -> None:
    scene.caller.call(SAY)
    request = scene.connector.receive_request()
    scene.caller.say(RstStreamFrame(1, error_code=CANCEL))
    scene.connector.respond(request.request_id)


MOMENTS = (
    say_nothing,
    say_headers,
    say_half_a_message,
    say_half_a_frame,
    call,
    call_and_be_answered,
    call_while_it_is_answered,
    read_half_an_answer,
    give_up_while_it_is_answered,
)


def close(caller: Http2Caller) -> None:
    caller.close()


def break_off(caller: Http2Caller) -> None:
    """The other side's next write fails: it is told with RST that nobody is there."""
    caller.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    caller.close()


@pytest.mark.parametrize("hang_up", [close, break_off])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_caller_that_hangs_up_is_no_error_and_leaves_nothing_behind(
    gateway, connect, caplog, moment: Callable[[Scene], None], hang_up
) -> None:
    connector = connect(gateway, "echo.Echo", features="cancel")
    scene = Scene(gateway, connector)
    moment(scene)
    hang_up(scene.caller)
    serving = gateway._thread._serving
    eventually(lambda: gateway.stats()["pending"] == serving._callers.receiving == 0)
    eventually(lambda: len(serving.listener._peers) == 1)  # the connector's
    assert serving._callers._budget.used == 0
    assert serving.shared.answers._budget.used == 0
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []
    with Http2Caller(gateway.address) as other:  # others are served
        other.call("/other.Other/Say")
        assert other.hears_answer().status == "14"


def test_an_answer_that_meets_a_cancelled_call_is_dropped(gateway, connect) -> None:
    connector = connect(gateway, "echo.Echo")
    with Http2Caller(gateway.address) as caller:
        caller.call(SAY)
        request = connector.receive_request()
        caller.say(RstStreamFrame(1, error_code=CANCEL))
        caller.ping()
        connector.respond(request.request_id)
        eventually(lambda: gateway.stats()["answers_late"] == 1)
        assert gateway.stats()["calls_given_up"] == 1
        assert gateway.stats()["pending"] == 0
        assert 1 not in caller.answers


def test_a_connector_may_leave_while_a_request_is_still_arriving(run_gateway, connect) -> None:
    gateway = run_gateway(reconnect_grace=0.0)
    connector = connect(gateway, "echo.Echo")
    with Http2Caller(gateway.address) as caller:
        block = caller.request_block(SAY)
        caller.say(HeadersFrame(1, block, flags=["END_HEADERS"]))
        caller.ping()
        connector.disconnect()
        connector.ended()
        eventually(lambda: not gateway.connections())
        caller.say(DataFrame(1, message(b""), flags=["END_STREAM"]))
        answer = caller.hears_answer()
        assert answer.status == "14"
        assert answer.blocks[-1]["grpc-message"] == "no connector serves echo.Echo"


@pytest.mark.parametrize("asks", [False, True])
def test_a_connector_that_breaks_off_is_no_error(gateway, connect, caplog, asks) -> None:
    connector = connect(gateway, "echo.Echo")
    if asks:
        connector.ask("1", SAY, LARGE)
        connector.receive_request()
    connector.close()
    eventually(lambda: not gateway.connections())
    eventually(lambda: gateway.stats()["pending"] == 0)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
