from __future__ import annotations

import contextlib
import logging
import queue
import signal
import threading
import time
from unittest import mock

import pytest

from revconn import State
from revconn.runtime import clock
from revconn.serving import deadlines, workers
from revconn.testing import Fault
from tests.support.waiting import eventually

TIMEOUT = 60.0
MIB = 1 << 20


# Heartbeats


def test_heartbeats_carry_the_gateways_id_and_unix_seconds(new_connector, gateway) -> None:
    new_connector(gateway.address, heartbeat_interval=0.05).start(block=False)
    peer = gateway.accept_ready("an-id-the-gateway-made")
    for _ in range(3):
        heartbeat = peer.hears("heartbeat")
        assert heartbeat.connection_id == "an-id-the-gateway-made"
        assert abs(heartbeat.timestamp - time.time()) < 5.0


def test_no_heartbeat_goes_out_before_connected(new_connector, gateway) -> None:
    new_connector(gateway.address, heartbeat_interval=0.01).start(block=False)
    peer = gateway.accept()
    peer.hears("register")
    with pytest.raises(queue.Empty):
        peer.hears_any(timeout=0.1)
    peer.connected("id-1")
    assert peer.hears("heartbeat").connection_id == "id-1"


def test_heartbeats_go_on_while_every_worker_is_busy(new_connector, gateway) -> None:
    connector = new_connector(gateway.address, heartbeat_interval=0.05, max_workers=1)
    let_go = threading.Event()
    connector.add_method("/echo.Echo/Say", lambda request: let_go.wait(TIMEOUT) and b"")
    connector.start(block=False)
    peer = gateway.accept_ready()
    peer.requests("a", "b")
    eventually(lambda: connector.stats()["waiting"] == 1)
    for _ in range(3):
        peer.hears("heartbeat")
    let_go.set()
    assert set(peer.answers(2)) == {"a", "b"}


def test_heartbeats_go_on_while_handlers_compute(new_connector, gateway) -> None:
    connector = new_connector(gateway.address, heartbeat_interval=0.05, max_workers=8)
    let_go = threading.Event()

    @connector.method("/echo.Echo/Say")
    def compute(request) -> bytes:
        while not let_go.is_set():
            pass
        return b""

    connector.start(block=False)
    peer = gateway.accept_ready()
    try:
        peer.requests(*"abcdefgh", timeout_seconds=0)
        eventually(lambda: connector.stats()["in_flight"] == 8)
        for _ in range(3):
            peer.hears("heartbeat")
    finally:
        let_go.set()
    assert set(peer.answers(8)) == set("abcdefgh")


def test_a_heartbeat_overtakes_the_answers_that_wait(new_connector, gateway, proxy) -> None:
    connector = new_connector(proxy.address, heartbeat_interval=0.2, keepalive_timeout=600.0)
    begun, let_go = [], threading.Event()

    def handler(request) -> bytes:
        begun.append(request)
        assert let_go.wait(TIMEOUT)
        return bytes(3 * MIB)

    connector.add_method("/echo.Echo/Say", handler)
    connector.start(block=False)
    peer = gateway.accept_ready()
    peer.requests(*(f"r{number}" for number in range(8)))
    eventually(lambda: len(begun) == 8)
    proxy.fault = Fault.STALL
    let_go.set()
    eventually(lambda: connector.stats()["answered"] == 8)
    stalled_at = time.monotonic()
    eventually(lambda: time.monotonic() - stalled_at > 0.5)  # until a heartbeat or two are due
    proxy.fault = Fault.NONE
    heard = []
    while heard.count("response") < 8:
        heard.append(peer.hears_any().WhichOneof("message_type"))
    assert "heartbeat" in heard[heard.index("response") :]


# Silence


@pytest.fixture
def suspend(monkeypatch):
    """Make so many seconds pass on the clock that goes on while the machine sleeps."""
    slept = [0.0]
    now = clock.with_suspend
    monkeypatch.setattr(clock, "with_suspend", lambda: now() + sum(slept))
    for module in (deadlines, workers):
        monkeypatch.setattr(module, "_with_suspend", clock.with_suspend)
    return slept.append


def test_after_a_sleep_that_the_gateway_may_not_have_waited_out_there_is_a_new_connection(
    new_connector, gateway, suspend, caplog
) -> None:
    connector = new_connector(gateway.address, heartbeat_interval=0.05, liveness_timeout=90.0)
    connector.add_method("/echo.Echo/Say", lambda request: b"awake")
    connector.start(block=False)
    first = gateway.accept_ready("id-1")
    first.hears("heartbeat")
    suspend(91.0)
    first.hears_hang_up()
    second = gateway.accept_ready("id-2")
    assert second.hears("heartbeat").connection_id == "id-2"
    second.request()
    assert second.answer().payload == b"awake"
    assert "no heartbeat left this machine for 91 s" in caplog.text


def test_a_shorter_sleep_changes_nothing(new_connector, gateway, suspend) -> None:
    connector = new_connector(gateway.address, heartbeat_interval=0.05, liveness_timeout=90.0)
    connector.start(block=False)
    peer = gateway.accept_ready()
    peer.hears("heartbeat")
    suspend(60.0)
    for _ in range(3):
        peer.hears("heartbeat")
    assert connector.stats()["connections"] == 1


@pytest.mark.parametrize("woken_by", ["the worker", "the watch of deadlines"])
def test_what_a_caller_no_longer_waits_for_after_a_sleep_is_not_run(
    new_connector, gateway, suspend, monkeypatch, woken_by
) -> None:
    monkeypatch.setattr(deadlines, "_LONGEST_WAIT", 1e6 if woken_by == "the worker" else 0.01)
    ran, let_go = [], threading.Event()

    def handler(request) -> bytes:
        ran.append(request.request_id)
        assert let_go.wait(TIMEOUT)
        return b""

    connector = new_connector(gateway.address, max_workers=1)
    connector.add_method("/echo.Echo/Say", handler)
    connector.start(block=False)
    peer = gateway.accept_ready()
    peer.request("runs", timeout_seconds=0)
    peer.request("waits", timeout_seconds=50)
    eventually(lambda: ran == ["runs"] and connector.stats()["in_flight"] == 2)
    suspend(60.0)
    if woken_by == "the worker":
        let_go.set()
        answers = peer.answers(2)
    else:
        answers = peer.answers(1)
        let_go.set()
        answers.update(peer.answers(1))
    assert answers["runs"].status_code == 200
    assert answers["waits"].status_code == 504
    assert ran == ["runs"]


def test_a_heartbeat_that_is_due_leaves_as_soon_as_the_machine_wakes(
    new_connector, gateway, suspend
) -> None:
    connector = new_connector(gateway.address, heartbeat_interval=60.0, liveness_timeout=None)
    # How often it looks at the clock.
    with mock.patch("revconn.core.liveness._LONGEST_LOOK", 0.02):
        connector.start(block=False)
        peer = gateway.accept_ready()
        connector.wait_ready(TIMEOUT)

    def beats() -> bool:
        suspend(70.0)
        with contextlib.suppress(queue.Empty):
            return peer.hears("heartbeat", timeout=1.0).connection_id == "id-1"
        return False

    eventually(beats)


def test_without_a_liveness_timeout_no_sleep_is_too_long(new_connector, gateway, suspend) -> None:
    connector = new_connector(gateway.address, heartbeat_interval=0.05, liveness_timeout=None)
    connector.start(block=False)
    peer = gateway.accept_ready()
    peer.hears("heartbeat")
    suspend(1e6)
    peer.hears("heartbeat")
    peer.hears("heartbeat")
    assert connector.stats()["connections"] == 1


def test_a_gateway_that_takes_its_time_to_accept_a_connection_has_not_forgotten_it(
    new_connector, gateway, suspend
) -> None:
    connector = new_connector(
        gateway.address, heartbeat_interval=0.05, liveness_timeout=3.0, connect_timeout=10.0
    )
    connector.start(block=False)
    peer = gateway.accept()
    peer.hears("register")
    suspend(5.0)
    peer.connected()
    for _ in range(3):
        peer.hears("heartbeat")
    assert connector.stats()["connections"] == 1


def test_a_handshake_that_a_sleep_made_longer_than_it_may_be_is_given_up(
    new_connector, gateway, suspend, caplog
) -> None:
    caplog.set_level(logging.DEBUG, "revconn.runtime.link")
    connector = new_connector(gateway.address, liveness_timeout=None, connect_timeout=10.0)
    connector.start(block=False)
    peer = gateway.accept()
    peer.hears("register")
    suspend(11.0)
    peer.connected()
    peer.hears_hang_up()
    gateway.accept_ready("id-2")
    connector.wait_ready(TIMEOUT)
    assert "no CONNECTED within 10 s" in caplog.text
    assert connector.connection_id == "id-2"


def test_a_process_that_was_stopped_for_too_long_connects_anew(new_program, gateway) -> None:
    program = new_program(
        "connector.start()", gateway.address, heartbeat_interval=0.1, liveness_timeout=1.0
    )
    first = gateway.accept_ready("id-1")
    first.hears("heartbeat")
    program.signal(signal.SIGSTOP)
    stopped_at = time.monotonic()
    eventually(lambda: time.monotonic() - stopped_at > 1.2)  # real time: its clock is its own
    program.signal(signal.SIGCONT)
    first.hears_hang_up()
    assert gateway.accept_ready("id-2").hears("heartbeat").connection_id == "id-2"


def test_a_peer_that_takes_no_heartbeat_any_more_is_given_up(
    new_connector, gateway, proxy, caplog
) -> None:
    connector = new_connector(proxy.address, heartbeat_interval=0.1, liveness_timeout=0.5)
    let_go = threading.Event()
    connector.add_method("/echo.Echo/Say", lambda request: let_go.wait(TIMEOUT) and bytes(3 * MIB))
    connector.start(block=False)
    peer = gateway.accept_ready()
    peer.requests(*"abcdef", timeout_seconds=0)
    eventually(lambda: connector.stats()["accepted"] == 6)
    proxy.fault = Fault.STALL
    let_go.set()
    eventually(lambda: "no heartbeat left this machine" in caplog.text)
    proxy.reset_all()
    proxy.fault = Fault.NONE
    gateway.accept_ready("id-2")
    eventually(lambda: connector.connection_id == "id-2")


def test_a_peer_that_vanished_without_a_word_is_found_out_by_pings(
    new_connector, gateway, proxy
) -> None:
    connector = new_connector(
        proxy.address, keepalive_interval=0.2, keepalive_timeout=0.3, heartbeat_interval=0.2
    )
    connector.start(block=False)
    gateway.accept_ready("id-1")
    connector.wait_ready(TIMEOUT)
    proxy.fault = Fault.BLACK_HOLE
    eventually(lambda: connector.state is not State.READY)
    proxy.fault = Fault.REFUSE
    proxy.reset_all()  # what was opened meanwhile has lost some of what was said
    proxy.fault = Fault.NONE
    gateway.accept_ready("id-2")
    eventually(lambda: connector.connection_id == "id-2")


# Leftovers

COUNT_LEFTOVERS = """
import gc, os, types

def leftovers():
    gc.collect()
    descriptors = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    objects = gc.get_objects()
    iterators = [o for o in objects if isinstance(o, types.GeneratorType)]
    return {
        "threads": threading.active_count(),
        "descriptors": len(descriptors),
        "objects": sum(str(type(o).__module__).startswith("revconn.") for o in objects),
        "iterators": sum("revconn" in o.gi_code.co_filename for o in iterators),
    }

def wait_connections(count):
    while connector.stats()["connections"] < count or connector.state is not State.READY:
        time.sleep(0.01)

connector.start(block=False)
wait_connections(3)
before = leftovers()
say("counted")
wait_connections(33)
deadline = time.monotonic() + 10.0
# What each connection leaves behind is there thirty times; grpc takes one or two for itself.
while any(count > before[name] + 5 for name, count in leftovers().items()):
    if time.monotonic() > deadline:
        say("left behind:", before, leftovers())
        sys.exit(1)
    time.sleep(0.05)
say("clean")
connector.abort()
"""


AT_ONCE = {"initial": 1e-3, "maximum": 1e-3, "stable_after": 0.0}


@pytest.mark.costly
def test_thirty_reconnects_leave_nothing_behind(new_program, gateway) -> None:
    program = new_program(COUNT_LEFTOVERS, gateway.address, backoff=AT_ONCE)
    for _ in range(2):
        gateway.accept_ready().end()
    peer = gateway.accept_ready()
    program.hears("counted")
    for _ in range(30):
        peer.end()
        peer = gateway.accept_ready()
    program.hears("clean")
    assert program.wait() == 0
