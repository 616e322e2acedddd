"""Gateway: arguments, starting, stopping, threads."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import weakref

import grpc
import pytest
import trustme

from revconn.exceptions import ConfigurationError
from revconn.gateway import Gateway
from revconn.gateway import gateway as facade
from revconn.gateway import thread as gateway_thread
from revconn.gateway.limits import Limits
from tests.support.scripted_connector import ScriptedConnector
from tests.support.waiting import eventually


def occupied_port() -> tuple[socket.socket, int]:
    taken = socket.create_server(("127.0.0.1", 0))
    return taken, taken.getsockname()[1]


# Arguments


@pytest.mark.parametrize(
    "address",
    ["", "localhost", ":50051", "50051", "a:b", "a:65536", "a b:1", "http://a:1", "::1:50", None],
)
def test_an_address_that_is_none_is_refused(address) -> None:
    with pytest.raises(ConfigurationError, match="address: not an address to listen on"):
        Gateway(address, api_keys="key")


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "30", None, True])
@pytest.mark.parametrize(
    "name",
    ["heartbeat_timeout", "request_timeout", *(limit.name for limit in dataclasses.fields(Limits))],
)
def test_a_limit_that_is_none_is_refused_by_name(name, value) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name}"):
        Gateway(api_keys="key", **{name: value})


def test_a_message_size_that_grpc_cannot_count_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="max_message_bytes: more than gRPC can count"):
        Gateway(api_keys="key", max_message_bytes=2**31)


def test_metadata_too_small_for_grpc_itself_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="max_metadata_bytes: less than gRPC itself needs"):
        Gateway(api_keys="key", max_metadata_bytes=100)


def test_the_keys_are_checked_at_construction_and_never_shown() -> None:
    with pytest.raises(ConfigurationError, match="api_keys"):
        Gateway(api_keys="hunter2\n")
    assert "hunter2" not in repr(Gateway(api_keys="hunter2"))


@pytest.mark.parametrize("tls", [True, "cert.pem", b""])
def test_tls_that_is_none_is_refused(tls) -> None:
    with pytest.raises(ConfigurationError, match="give ServerTLS.*, an ssl.SSLContext, or None"):
        Gateway(api_keys="key", tls=tls)


# Starting


def test_the_address_has_the_real_port_once_started() -> None:
    gateway = Gateway(api_keys="key")
    assert gateway.address == "127.0.0.1:0"
    assert repr(gateway) == "<Gateway 127.0.0.1:0 stopped>"
    with gateway:
        host, port = gateway.address.split(":")
        assert host == "127.0.0.1"
        socket.create_connection((host, int(port)), timeout=60).close()
        assert repr(gateway) == f"<Gateway {gateway.address} running>"


def test_ipv6_works_too() -> None:
    with Gateway("[::1]:0", api_keys="key") as gateway:
        assert gateway.address.startswith("[::1]:")
        port = int(gateway.address.rpartition(":")[2])
        socket.create_connection(("::1", port), timeout=60).close()


def test_a_port_that_is_taken_is_an_error_that_says_so() -> None:
    taken, port = occupied_port()
    gateway = Gateway(f"127.0.0.1:{port}", api_keys="key")
    with taken, pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}: the port is"):
        gateway.start()
    assert repr(gateway).endswith("stopped>")
    with gateway:  # the port is free now
        assert gateway.address == f"127.0.0.1:{port}"


def test_a_second_gateway_cannot_share_the_port_of_the_first(gateway) -> None:
    with pytest.raises(OSError, match="cannot listen"):
        Gateway(gateway.address, api_keys="key").start()


def test_starting_twice_is_an_error_and_harmless(gateway, connect) -> None:
    with pytest.raises(RuntimeError, match="running already"):
        gateway.start()
    connect(gateway)


def test_whatever_else_makes_starting_fail_is_raised(monkeypatch) -> None:
    async def fail(_serving):
        raise MemoryError("no room")

    monkeypatch.setattr("revconn.gateway.serving.Serving.start", fail)
    with pytest.raises(MemoryError, match="no room"):
        Gateway(api_keys="key").start()


def test_a_thread_that_cannot_even_make_its_loop_says_so(monkeypatch) -> None:
    def fail() -> None:
        raise OSError("Too many open files")

    monkeypatch.setattr(gateway_thread, "new_loop", fail)
    with pytest.raises(OSError, match="Too many open files"):
        Gateway(api_keys="key").start()


def test_a_thread_that_cannot_be_had_is_not_waited_for(monkeypatch) -> None:
    class NoMore(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    gateway = Gateway(api_keys="key")
    before = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(gateway_thread.threading, "Thread", NoMore)
        with pytest.raises(RuntimeError, match="new thread"):
            gateway.start()
    assert time.monotonic() - before < 20  # a start that hangs is given 30
    with gateway:
        assert repr(gateway).endswith("running>")


def test_a_gateway_that_is_about_to_start_can_be_waited_for(monkeypatch) -> None:
    gateway = Gateway(api_keys="key")

    class Slow(threading.Thread):
        def start(self) -> None:
            if self.name == "revconn-gateway":
                with pytest.raises(TimeoutError, match="still running after 0.01 s"):
                    gateway.wait(timeout=0.01)
            super().start()

    with monkeypatch.context() as patch:
        patch.setattr(gateway_thread.threading, "Thread", Slow)
        gateway.start()
    with pytest.raises(TimeoutError):
        gateway.wait(timeout=0.01)
    gateway.stop()
    gateway.wait()


def test_an_interrupted_start_leaves_nothing_running(monkeypatch) -> None:
    class Interrupted(facade.GatewayThread):
        def start(self) -> str:
            super().start()
            raise KeyboardInterrupt

    monkeypatch.setattr(facade, "GatewayThread", Interrupted)
    gateway = Gateway(api_keys="key")
    with pytest.raises(KeyboardInterrupt):
        gateway.start()
    assert repr(gateway).endswith("stopped>")


def test_tls_serves_connectors_and_callers(resources) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2"])
    authority.issue_cert("localhost").configure_cert(context)
    with Gateway("localhost:0", api_keys="key", tls=context) as gateway:
        trusted = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        channel = resources.enter_context(grpc.secure_channel(gateway.address, trusted))
        with pytest.raises(grpc.RpcError, match="no connector serves echo.Echo"):
            channel.unary_unary("/echo.Echo/Say")(b"", timeout=60)


# Stopping


def refuses(attempt: grpc.Future) -> bool:
    return attempt.code() is grpc.StatusCode.UNAVAILABLE


def test_stopping_ends_streams_and_says_why(gateway, connect) -> None:
    connector = connect(gateway, "echo.Echo")
    gateway.stop()
    assert connector.ended() == (grpc.StatusCode.UNAVAILABLE, "the gateway is stopping")
    assert gateway.connections() == ()


def test_calls_under_way_are_answered_within_the_grace(gateway, connect, call) -> None:
    connector = connect(gateway, "echo.Echo")
    pending = call(gateway, "/echo.Echo/Say")
    request = connector.receive_request()
    stopper = threading.Thread(target=gateway.stop, kwargs={"grace": 20.0})
    stopper.start()
    eventually(lambda: refuses(call(gateway, "/echo.Echo/Say", timeout=0.5)))
    connector.respond(request.request_id, b"\x0a")
    assert pending.result() == b"\x0a"
    stopper.join(10)
    assert not stopper.is_alive()
    assert connector.ended()[0] is grpc.StatusCode.UNAVAILABLE


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs pthread_kill")
def test_a_signal_that_another_thread_got_is_heeded_while_it_stops(gateway, connect, call) -> None:
    connector = connect(gateway, "echo.Echo")
    pending = call(gateway, "/echo.Echo/Say")
    connector.receive_request()
    before = signal.signal(signal.SIGUSR1, lambda *_: gateway.stop(grace=0.0))
    another = threading.Thread(
        target=lambda: (
            eventually(lambda: refuses(call(gateway, "/echo.Echo/Say", timeout=5))),
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1),
        )
    )
    another.start()
    try:
        gateway.stop(grace=60.0)
    finally:
        signal.signal(signal.SIGUSR1, before)
    another.join()
    assert pending.code() is grpc.StatusCode.UNAVAILABLE
    assert "the gateway is stopping" in pending.details()


@pytest.mark.parametrize("grace", [0.0, 0.1])
def test_calls_that_outlast_the_grace_fail(gateway, connect, call, grace) -> None:
    connector = connect(gateway, "echo.Echo")
    pending = call(gateway, "/echo.Echo/Say")
    connector.receive_request()
    before = time.monotonic()
    gateway.stop(grace)
    assert time.monotonic() - before < 30
    assert pending.code() is grpc.StatusCode.UNAVAILABLE
    assert "the gateway is stopping" in pending.details()


@pytest.mark.parametrize("grace", [-1, float("nan"), "1"])
def test_a_grace_that_is_none_is_refused_and_stops_nothing(gateway, grace) -> None:
    with pytest.raises(ConfigurationError, match="grace"):
        gateway.stop(grace)
    assert repr(gateway).endswith("running>")


def test_stopping_is_idempotent_and_possible_before_starting() -> None:
    gateway = Gateway(api_keys="key")
    gateway.stop()
    gateway.start()
    gateway.stop()
    gateway.stop()
    assert gateway.connections() == ()


def test_any_number_of_threads_may_stop_it_at_once(gateway) -> None:
    stoppers = [threading.Thread(target=gateway.stop) for _ in range(8)]
    for stopper in stoppers:
        stopper.start()
    for stopper in stoppers:
        stopper.join(20)
    assert not any(stopper.is_alive() for stopper in stoppers)
    assert repr(gateway).endswith("stopped>")


def test_stopping_from_its_own_thread_returns_and_takes_effect(gateway, connect) -> None:
    class StopWhenSomebodyRegisters(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            gateway.stop()
            returned.set()

    returned = threading.Event()
    log = logging.getLogger("revconn.gateway.journal")
    handler = StopWhenSomebodyRegisters()
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    try:
        connector = connect(gateway)
        assert returned.wait(10)
        assert connector.ended()[0] is grpc.StatusCode.UNAVAILABLE
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    gateway.stop()


def test_a_stopped_gateway_may_be_started_again(gateway, connect) -> None:
    connect(gateway, "echo.Echo")
    gateway.stop()
    gateway.start()
    assert gateway.connections() == ()
    connect(gateway, "echo.Echo")
    assert len(gateway.connections()) == 1


def test_a_thread_that_cannot_be_stopped_is_reported_and_kept(gateway, monkeypatch, caplog) -> None:
    monkeypatch.setattr(gateway_thread, "_STOP_MARGIN", 0.0)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        release.wait(10)

    gateway._thread._loop.call_soon_threadsafe(hold)
    assert held.wait(10)
    gateway.stop(grace=0.0)
    assert "has not ended" in caplog.text
    assert repr(gateway).endswith("running>")
    caplog.clear()
    release.set()
    monkeypatch.undo()
    gateway.stop()
    assert repr(gateway).endswith("stopped>")


def test_a_gateway_that_dies_says_so_and_can_be_stopped(gateway, caplog) -> None:
    running = gateway._thread

    def die() -> None:
        running._stop_requested.set_exception(MemoryError("no room"))

    running._loop.call_soon_threadsafe(die)
    eventually(lambda: "the gateway failed" in caplog.text)
    assert "no room" in caplog.text
    caplog.clear()
    gateway.stop()
    assert repr(gateway).endswith("stopped>")


# Threads


def test_its_thread_is_named_and_none_is_left_behind(connect, call, dial) -> None:
    gc.collect()
    eventually(lambda: not threads_of_gateways())  # what was collected just now
    gc.disable()
    try:
        with Gateway(api_keys="key") as gateway:
            assert "revconn-gateway" in [thread.name for thread in threading.enumerate()]
            connector = connect(gateway, "echo.Echo")
            answered, failed = (call(gateway, f"/echo.Echo/{name}") for name in "ab")
            for _ in range(2):
                request = connector.receive_request()
                status = 200 if request.method_path.endswith("a") else 500
                connector.respond(request.request_id, status_code=status)
            assert answered.result() == b""
            assert failed.code() is grpc.StatusCode.INTERNAL
            stranger = dial(gateway)
            stranger.half_close()
            stranger.ended()
            connector.close()
            stranger.close()
        eventually(lambda: not threads_of_gateways())  # without waiting for the garbage collector
    finally:
        gc.enable()


def test_a_start_that_failed_leaves_no_thread_behind_either() -> None:
    taken, port = occupied_port()
    gc.disable()
    try:
        with taken, pytest.raises(OSError, match="cannot listen"):
            Gateway(f"127.0.0.1:{port}", api_keys="key").start()
        eventually(lambda: not threads_of_gateways())
    finally:
        gc.enable()


def threads_of_gateways() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "revconn-gateway"]


def test_a_stopped_gateway_is_not_kept_alive() -> None:
    gateway = Gateway(api_keys="key").start()
    gateway.stop()
    kept = weakref.ref(gateway)
    del gateway
    gc.collect()
    assert kept() is None


def test_two_gateways_in_one_process_do_not_disturb_each_other(run_gateway, connect, call) -> None:
    first, second = run_gateway(), run_gateway()
    for gateway in (first, second) * 20:
        connector = connect(gateway, "echo.Echo")
        pending = call(gateway, "/echo.Echo/Say")
        connector.respond(connector.receive_request().request_id, b"\x0a")
        assert pending.result() == b"\x0a"
        connector.disconnect()
        connector.ended()


def test_the_loop_reports_errors_without_an_exception_too(caplog) -> None:
    loop = asyncio.new_event_loop()
    try:
        gateway_thread._report_loop_error(loop, {"message": "something else"})
        assert "something else" in caplog.text
    finally:
        loop.close()
    caplog.clear()


def test_a_program_that_forgets_to_stop_it_still_ends_in_order() -> None:
    program = (
        "from revconn.gateway import Gateway\n"
        "gateway = Gateway(api_keys='key').start()\n"
        "print(gateway.address, flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        with ScriptedConnector(process.stdout.readline().strip()) as connector:
            connector.register("echo.Echo")
            _, errors = process.communicate("\n", timeout=60)
            assert connector.ended() == (grpc.StatusCode.UNAVAILABLE, "the gateway is stopping")
    assert (process.returncode, errors) == (0, "")


def test_what_a_gateway_has_not_cannot_be_assigned() -> None:
    gateway = Gateway()
    with pytest.raises(AttributeError, match="'max_pendings'; max_pending is an option"):
        gateway.max_pendings = 1


@pytest.mark.parametrize("value", ["no", 0, None])
def test_dialling_backends_is_switched_by_true_and_false_alone(value) -> None:
    with pytest.raises(ConfigurationError, match="^dial_backends: neither True nor False"):
        Gateway(dial_backends=value)
