from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from revconn.testing import Fault, FaultProxy
from tests.support.waiting import eventually

TIMEOUT = 60.0


class Scene:
    """A listener, a proxy before it, and connections through both."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self._listener.settimeout(TIMEOUT)
        self.proxy = stack.enter_context(FaultProxy(self._listener.getsockname()[1]))

    def dial(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.proxy.port), TIMEOUT)
        return self._stack.enter_context(connection)

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """The two ends of a connection."""
        near = self.dial()
        far, _ = self._listener.accept()
        self._stack.enter_context(far).settimeout(TIMEOUT)
        assert_passes(near, far)  # the proxy has joined them
        return near, far


@pytest.fixture
def scene() -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(stack)


def assert_passes(source: socket.socket, sink: socket.socket) -> None:
    source.sendall(b"hello")
    assert sink.recv(100) == b"hello"


def assert_silent(end: socket.socket) -> None:
    end.settimeout(0.1)
    with pytest.raises(socket.timeout):
        end.recv(1)


def test_what_is_said_passes_both_ways(scene: Scene) -> None:
    near, far = scene.connect()
    assert_passes(far, near)
    assert_passes(near, far)


def test_an_end_passes_too(scene: Scene) -> None:
    near, far = scene.connect()
    near.close()
    assert far.recv(1) == b""


def test_a_reset_breaks_both_sides(scene: Scene) -> None:
    near, far = scene.connect()
    scene.proxy.reset_all()
    for end in (near, far):
        with pytest.raises(ConnectionResetError):
            end.recv(1)


def test_a_half_open_connection_is_broken_on_one_side_only(scene: Scene) -> None:
    near, far = scene.connect()
    scene.proxy.half_open_all()
    with pytest.raises(ConnectionResetError):
        far.recv(1)
    for _ in range(3):
        near.sendall(b"is anybody there?")
    assert_silent(near)


def test_a_connection_made_after_others_were_half_opened_works(scene: Scene) -> None:
    scene.connect()
    scene.proxy.half_open_all()
    near, far = scene.connect()
    assert_passes(far, near)


def test_nothing_is_left_of_a_half_open_connection_once_the_other_side_ends_it(
    scene: Scene,
) -> None:
    near, _ = scene.connect()
    scene.proxy.half_open_all()
    near.close()
    eventually(lambda: "pump" not in str([thread.name for thread in threading.enumerate()]))
    assert scene.proxy._sockets == scene.proxy._abandoned == set()


def test_a_stalled_connection_goes_on_where_it_was(scene: Scene) -> None:
    near, far = scene.connect()
    scene.proxy.fault = Fault.STALL
    near.sendall(b"hello")
    assert_silent(far)
    far.settimeout(TIMEOUT)
    scene.proxy.fault = Fault.NONE
    assert far.recv(100) == b"hello"


def test_a_refused_connection_is_reset_and_others_go_on(scene: Scene) -> None:
    near, far = scene.connect()
    scene.proxy.fault = Fault.REFUSE
    with pytest.raises(ConnectionResetError):
        scene.dial().recv(1)
    assert_passes(near, far)


def test_what_is_held_back_passes_when_the_delay_is_lifted(scene: Scene) -> None:
    near, far = scene.connect()
    scene.proxy.slow_down(3600.0)
    near.sendall(b"hello")
    assert_silent(far)
    far.settimeout(TIMEOUT)
    scene.proxy.slow_down(0.0)
    assert far.recv(100) == b"hello"


def test_a_delay_holds_back_what_is_said(scene: Scene) -> None:
    near, far = scene.connect()
    scene.proxy.slow_down(0.1)
    started = time.monotonic()
    assert_passes(near, far)
    assert time.monotonic() - started >= 0.1


def test_a_connection_to_nobody_is_reset(scene: Scene) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    scene.proxy.forward_to(port)
    with pytest.raises(ConnectionResetError):
        scene.dial().recv(1)


def test_waiting_for_connections_that_do_not_come_ends(scene: Scene) -> None:
    scene.connect()
    scene.proxy.wait_connections(1)
    with pytest.raises(TimeoutError, match="1 connections, not 2"):
        scene.proxy.wait_connections(2, timeout=0.01)


def test_a_fault_that_is_misspelt_is_refused(scene: Scene) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'falt'; fault is an option"):
        scene.proxy.falt = Fault.REFUSE  # type: ignore[attr-defined]


def test_a_closed_proxy_leaves_no_thread(scene: Scene) -> None:
    scene.connect()
    scene.proxy.half_open_all()
    scene.connect()
    scene.proxy.close()
    scene.proxy.close()
    assert "fault-proxy" not in str([thread.name for thread in threading.enumerate()])
