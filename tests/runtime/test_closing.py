"""stop() and abort() in every state, from every caller: bounded, final, and without leftovers."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Callable

import pytest

from revconn import Backoff, Connector, State
from revconn import connector as connector_module
from revconn.testing import Fault, FaultProxy
from tests.support.connectors import NEVER, TRANSPORTS
from tests.support.pairwise import pairwise
from tests.support.scripted_gateway import Peer, ScriptedGateway
from tests.support.threads import in_thread
from tests.support.waiting import eventually

NOBODY_LISTENS = "127.0.0.1:1"
TIMEOUT = 60.0
DRAIN = 0.05
BOUND = 20.0  # seconds; what holds it up would do so for a minute, or for ever
MIB = 1 << 20


class Scene:
    """A connector in some state, and what belongs to it."""

    def __init__(self, new_connector: Callable[..., Connector], stack: ExitStack) -> None:
        self._new_connector = new_connector
        self._stack = stack
        self.handler_runs = threading.Semaphore(0)
        self.let_handler_end = threading.Event()
        stack.callback(self.end)
        self.answer = b""
        self.at_the_end: Callable[[], None] = lambda: None
        self._proxies: list[FaultProxy] = []

    def end(self) -> None:
        """Let go of what is stuck outside the connector: handlers, and peers that stall."""
        self.let_handler_end.set()
        for proxy in self._proxies:
            proxy.reset_all()

    def idle(self) -> Connector:
        return self._new_connector(NOBODY_LISTENS)

    def connecting(self) -> Connector:
        """The peer took the connection and reads nothing."""
        proxy = self._proxy(Fault.STALL)
        connector = self._start(proxy.address)
        proxy.wait_connections(1)
        return connector

    def handshaking(self) -> Connector:
        """The gateway heard the registration and never says CONNECTED."""
        gateway = self._gateway()
        connector = self._start(gateway.address)
        gateway.accept().hears("register")
        return connector

    def backing_off(self) -> Connector:
        connector = self._start(NOBODY_LISTENS, backoff=Backoff(**NEVER))
        eventually(lambda: connector.state is State.BACKING_OFF)
        return connector

    def ready(self) -> Connector:
        connector, peer = self._connect(self._gateway().address)
        in_thread(peer.hears_goodbye)
        return connector

    def ready_at_a_gateway_that_ignores_goodbyes(self) -> Connector:
        return self._connect(self._gateway().address)[0]

    def busy(self) -> Connector:
        """A handler runs, and does not end."""
        connector, peer = self._connect(self._gateway().address)
        peer.request()
        assert self.handler_runs.acquire(timeout=TIMEOUT)
        return connector

    def ready_but_stalled(self) -> Connector:
        """The peer reads nothing any more."""
        proxy = self._proxy()
        connector, _ = self._connect(proxy.address)
        proxy.fault = Fault.STALL
        return connector

    def ready_but_cut_off(self) -> Connector:
        """What is sent goes nowhere, and nobody says so."""
        proxy = self._proxy()
        connector, _ = self._connect(proxy.address)
        proxy.fault = Fault.BLACK_HOLE
        return connector

    def flooded(self) -> Connector:
        """Requests come without end."""
        self.let_handler_end.set()
        connector, peer = self._connect(self._gateway().address)
        in_thread(peer.requests_without_end)
        eventually(lambda: connector.stats()["answered"] > 300)
        return connector

    def stuck_in_sending(self) -> Connector:
        """The peer reads nothing any more, and more waits to be sent than sockets take in."""
        self.answer = bytes(3 * MIB)
        proxy = self._proxy()
        connector, peer = self._connect(proxy.address)
        peer.requests(*"abcdef")
        for _ in range(6):
            assert self.handler_runs.acquire(timeout=TIMEOUT)
        proxy.fault = Fault.STALL
        self.let_handler_end.set()
        eventually(lambda: connector.stats()["in_flight"] == 0)
        return connector

    def _connect(self, address: str) -> tuple[Connector, Peer]:
        connector = self._start(address)
        peer = self._gateways[-1].accept_ready()
        connector.wait_ready(TIMEOUT)
        return connector, peer

    def _start(self, address: str, **options) -> Connector:
        connector = self._new_connector(address, **options)
        connector.add_method("/echo.Echo/Say", self._handle)
        connector.start(block=False)
        return connector

    def _handle(self, request) -> bytes:
        self.handler_runs.release()
        assert self.let_handler_end.wait(TIMEOUT)
        self.at_the_end()
        return self.answer

    def _gateway(self) -> ScriptedGateway:
        self._gateways = [self._stack.enter_context(ScriptedGateway())]
        return self._gateways[-1]

    def _proxy(self, fault: Fault = Fault.NONE) -> FaultProxy:
        proxy = FaultProxy(self._gateway().port, fault=fault)
        self._proxies.append(proxy)
        return self._stack.enter_context(proxy)


SCENES = [
    Scene.idle,
    Scene.connecting,
    Scene.handshaking,
    Scene.backing_off,
    Scene.ready,
    Scene.ready_at_a_gateway_that_ignores_goodbyes,
    Scene.busy,
    Scene.ready_but_stalled,
    Scene.ready_but_cut_off,
    Scene.flooded,
    Scene.stuck_in_sending,
]


def twice(close: Callable[[], None]) -> None:
    close()
    close()


def from_four_threads_at_once(close: Callable[[], None]) -> None:
    barrier = threading.Barrier(4)

    def wait_and_close() -> None:
        barrier.wait(TIMEOUT)
        close()

    for closing in [in_thread(wait_and_close) for _ in range(4)]:
        closing.result(TIMEOUT)


def in_a_signal_handler(close: Callable[[], None]) -> None:
    before = signal.signal(signal.SIGINT, lambda *_: close())
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


CALLERS = [twice, from_four_threads_at_once, in_a_signal_handler]


@pytest.fixture
def scene(new_connector: Callable[..., Connector]) -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(new_connector, stack)


def closing(connector: Connector, how: str) -> Callable[[], None]:
    return connector.abort if how == "abort" else lambda: connector.stop(DRAIN)


@pytest.mark.parametrize(
    ("set_up", "call", "how", "transport_options"),
    pairwise(SCENES, CALLERS, ["stop", "abort"], TRANSPORTS),
    indirect=["transport_options"],
)
def test_closing_takes_no_longer_than_it_says_and_leaves_nothing(
    scene: Scene, how: str, set_up: Callable[[Scene], Connector], call: Callable
) -> None:
    earlier = own_threads()  # of a test that failed
    connector = set_up(scene)
    began = time.monotonic()
    call(closing(connector, how))
    took = time.monotonic() - began
    assert connector.state is State.CLOSED
    assert took < BOUND
    connector.wait(TIMEOUT)  # no error: it was asked to end
    scene.end()
    eventually(lambda: own_threads() <= earlier)


def own_threads() -> set[threading.Thread]:
    return {
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("revconn-")
        and not thread.name.startswith(("revconn-test", "revconn-fault-proxy"))
    }


@pytest.mark.parametrize("how", ["stop", "abort"])
def test_closing_in_a_handler_returns_at_once_and_ends_the_connector(
    new_connector, gateway, how
) -> None:
    connector = new_connector(gateway.address)
    took: list[float] = []

    @connector.method("/echo.Echo/Close")
    def close(request) -> bytes:
        began = time.monotonic()
        getattr(connector, how)()
        took.append(time.monotonic() - began)
        return b"closing"

    connector.start(block=False)
    peer = gateway.accept_ready()
    peer.request(method="/echo.Echo/Close")
    if how == "stop":
        assert peer.answer().payload == b"closing"
        peer.hears_goodbye()
    connector.wait(TIMEOUT)
    eventually(lambda: took)
    assert max(took) < BOUND


def draining(scene: Scene, connector: Connector, proxy: FaultProxy) -> None:
    in_thread(connector.stop, TIMEOUT)
    eventually(lambda: connector.state is State.DRAINING)


def without_a_gateway(scene: Scene, connector: Connector, proxy: FaultProxy) -> None:
    proxy.fault = Fault.REFUSE
    proxy.reset_all()
    eventually(lambda: connector.state is State.BACKING_OFF)


def connecting_again(scene: Scene, connector: Connector, proxy: FaultProxy) -> None:
    proxy.reset_all()
    proxy.fault = Fault.STALL
    eventually(lambda: connector.state is State.CONNECTING)


def stalled(scene: Scene, connector: Connector, proxy: FaultProxy) -> None:
    proxy.fault = Fault.STALL


@pytest.mark.parametrize(
    ("meanwhile", "how", "transport_options"),
    pairwise(
        [draining, without_a_gateway, connecting_again, stalled], ["stop", "abort"], TRANSPORTS
    ),
    indirect=["transport_options"],
)
def test_a_handler_that_closes_its_connector_later_returns_at_once_and_ends_it(
    scene: Scene, how: str, meanwhile: Callable
) -> None:
    took: list[float] = []

    def close() -> None:
        began = time.monotonic()
        closing(connector, how)()
        took.append(time.monotonic() - began)

    proxy = scene._proxy()
    connector, peer = scene._connect(proxy.address)
    scene.at_the_end = close
    peer.request()
    assert scene.handler_runs.acquire(timeout=TIMEOUT)
    meanwhile(scene, connector, proxy)
    scene.let_handler_end.set()
    if meanwhile is draining and how == "stop":
        peer.answer()
        peer.hears_goodbye()
    connector.wait(TIMEOUT)
    eventually(lambda: took)
    assert max(took) < BOUND


LOCKS: dict[str, Callable[[Connector], threading.Lock]] = {
    "Connector": lambda connector: connector._lock,
    "StateBoard": lambda connector: connector._board._lock,
    "Supervisor": lambda connector: connector._supervisor._lock,
    # Also the lock of the workers, the replies and the links.
    "Calls": lambda connector: connector._supervisor.calls._lock,
    "Session": lambda connector: next(iter(connector._supervisor.links[0]._sessions))._lock,
}


@pytest.mark.parametrize(
    ("lock", "how", "transport_options"),
    pairwise(LOCKS, ["stop", "abort"], TRANSPORTS),
    indirect=["transport_options"],
)
def test_a_signal_handler_that_closes_it_returns_whatever_lock_the_main_thread_holds(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, how: str, lock: str
) -> None:
    monkeypatch.setattr(connector_module, "_HELD_UP", 0.1)
    connector = scene.ready()
    with LOCKS[lock](connector):
        in_a_signal_handler(closing(connector, how))
    connector.wait(TIMEOUT)


@pytest.mark.parametrize(
    ("state", "how", "transport_options"),
    pairwise([s for s in State if s is not State.IDLE], ["stop", "abort"], TRANSPORTS),
    indirect=["transport_options"],
)
def test_closing_in_a_state_callback_returns_at_once_and_ends_the_connector(
    new_connector, gateway, how, state
) -> None:
    connector = new_connector(gateway.address)
    took: list[float] = []

    def close(reached: State) -> None:
        if reached is state:
            began = time.monotonic()
            getattr(connector, how)()
            took.append(time.monotonic() - began)

    connector.on_state_change(close)
    connector.start(block=False)
    if state is not State.CONNECTING:
        peer = gateway.accept_ready()
        if state is State.BACKING_OFF:
            peer.end()
        elif state is State.READY:
            if how == "stop":
                peer.hears_goodbye()
        else:
            connector.wait_ready(TIMEOUT)
            in_thread(peer.hears_goodbye)
            connector.stop()
    connector.wait(TIMEOUT)
    eventually(lambda: took)
    assert max(took) < BOUND


def test_an_abort_ends_a_stop_that_still_waits(scene: Scene) -> None:
    connector = scene.busy()
    stopping = in_thread(connector.stop)
    eventually(lambda: connector.state is State.DRAINING)
    connector.abort()
    stopping.result(BOUND)
    assert connector.state is State.CLOSED


def test_a_second_stop_with_less_patience_ends_the_first(scene: Scene) -> None:
    connector = scene.busy()
    stopping = in_thread(connector.stop)
    eventually(lambda: connector.state is State.DRAINING)
    connector.stop(0.0)
    stopping.result(BOUND)


def test_a_stop_waits_for_what_was_accepted_and_delivers_it(scene: Scene) -> None:
    connector, peer = scene._connect(scene._gateway().address)
    peer.requests("r1", "r2")
    for _ in range(2):
        assert scene.handler_runs.acquire(timeout=TIMEOUT)
    stopping = in_thread(connector.stop)
    eventually(lambda: connector.state is State.DRAINING)
    assert not stopping.done()
    scene.answer = b"finished"
    scene.let_handler_end.set()
    assert {r.payload for r in peer.answers(2).values()} == {b"finished"}
    peer.hears_goodbye()
    stopping.result(TIMEOUT)


def test_where_no_thread_can_be_had_it_drains_in_the_one_that_stops_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a function registered with atexit, on CPython 3.12."""
    connector, peer = scene._connect(scene._gateway().address)
    peer.request("r1")
    assert scene.handler_runs.acquire(timeout=TIMEOUT)
    start = threading.Thread.start

    def start_none_of_ours(thread: threading.Thread) -> None:
        if thread.name.startswith("revconn-") and thread.name != "revconn-test":
            raise RuntimeError("can't create new thread at interpreter shutdown")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_none_of_ours)
    stopping = in_thread(connector.stop)
    eventually(lambda: connector.state is State.DRAINING)
    scene.let_handler_end.set()
    peer.answer("r1")
    peer.hears_goodbye()
    stopping.result(TIMEOUT)
    assert connector.state is State.CLOSED


def test_what_is_unfinished_when_the_time_to_stop_runs_out_is_answered_503(
    scene: Scene, caplog
) -> None:
    connector, peer = scene._connect(scene._gateway().address)
    peer.request("r1")
    assert scene.handler_runs.acquire(timeout=TIMEOUT)
    stopping = in_thread(connector.stop, DRAIN)
    while (heard := peer.hears_any()).WhichOneof("message_type") != "response":
        pass  # the goodbye, most often
    assert (heard.response.request_id, heard.response.status_code) == ("r1", 503)
    stopping.result(TIMEOUT)
    (record,) = (record for record in caplog.records if "gave up" in record.getMessage())
    assert re.fullmatch(
        r"gave up Request\('/echo.Echo/Say', request_id='r1'\), which came \d\.\d s ago:"
        " its handler was not done when the time to stop ran out",
        record.getMessage(),
    )
    assert "in _handle" in record.stack_info


def test_requests_that_arrive_while_it_drains_are_served(scene: Scene) -> None:
    connector, peer = scene._connect(scene._gateway().address)
    peer.request("r1")
    assert scene.handler_runs.acquire(timeout=TIMEOUT)
    stopping = in_thread(connector.stop)
    eventually(lambda: connector.state is State.DRAINING)
    peer.request("r2")
    assert scene.handler_runs.acquire(timeout=TIMEOUT)
    scene.let_handler_end.set()
    assert set(peer.answers(2)) == {"r1", "r2"}
    peer.hears_goodbye()
    stopping.result(TIMEOUT)


def test_requests_that_cross_the_goodbye_are_served(scene: Scene) -> None:
    connector, peer = scene._connect(scene._gateway().address)
    stopping = in_thread(connector.stop)
    scene.let_handler_end.set()
    peer.hears("status")
    peer.requests("r1", "r2")
    assert set(peer.answers(2)) == {"r1", "r2"}
    peer.end()
    stopping.result(TIMEOUT)


def test_an_answer_that_waits_for_a_connection_is_delivered_before_the_end(scene: Scene) -> None:
    gateway = scene._gateway()
    connector, peer = scene._connect(gateway.address)
    peer.request("r1")
    assert scene.handler_runs.acquire(timeout=TIMEOUT)
    peer.end()
    second = gateway.accept()
    second.hears("register")
    scene.let_handler_end.set()
    eventually(lambda: connector.stats()["in_flight"] == 0)
    stopping = in_thread(connector.stop)
    eventually(lambda: connector.state is State.DRAINING)
    second.connected("id-2")
    assert second.answer("r1").status_code == 200
    second.hears_goodbye()
    stopping.result(TIMEOUT)
