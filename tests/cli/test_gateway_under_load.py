"""``revconn gateway`` is told to stop while callers do not cease to call."""

from __future__ import annotations

import itertools
import signal
import threading
import time

import grpc
import pytest

from revconn import Backoff, Connector
from tests.support.commands import Command
from tests.support.threads import in_thread
from tests.support.waiting import eventually

CALLERS = 8


class Load:
    """Callers on channels of their own; each goes on until told to, or until a call fails."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.answers: list[tuple[bytes, bytes]] = []
        self.failures: list[tuple[grpc.StatusCode, str]] = []
        self._numbers = itertools.count()
        self._callers = [in_thread(self._call_on) for _ in range(CALLERS)]

    def _call_on(self) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self._address, options=options) as channel:
            call = channel.unary_unary("/echo.Echo/Say")
            while True:
                payload = str(next(self._numbers)).encode()
                try:
                    self.answers.append((payload, call(payload, timeout=30)))
                except grpc.RpcError as error:
                    self.failures.append((error.code(), error.details()))
                    return

    def wait_for_end(self) -> None:
        for caller in self._callers:
            caller.result(30)


@pytest.mark.parametrize("transport", ["http2", "grpcio"])
def test_no_call_that_a_connector_was_given_is_lost(tmp_path, transport) -> None:
    arguments = ("gateway", "--address", "127.0.0.1:0", "--api-key", "key", "--log-level", "error")
    with Command(*arguments, cwd=tmp_path) as command:
        address = command.wait_for_line("gateway listening on ").split()[-1]
        backoff = Backoff(initial=0.05, maximum=0.05)
        connector = Connector(address, api_key="key", transport=transport, backoff=backoff)
        handled: list[bytes] = []
        lock = threading.Lock()

        @connector.method("/echo.Echo/Say")
        def say(request):
            time.sleep(0.02)  # so that calls are in flight at every instant
            with lock:
                handled.append(request.payload)
            return b"answer to " + request.payload

        connector.start(block=False)
        try:
            connector.wait_ready(timeout=10)
            load = Load(address)
            eventually(lambda: len(load.answers) > 10 * CALLERS)
            command.signal(signal.SIGTERM)
            assert command.wait() == 0
            load.wait_for_end()
        finally:
            connector.abort()
    assert all(answer == b"answer to " + payload for payload, answer in load.answers)
    assert sorted(handled) == sorted(payload for payload, _ in load.answers)
    # Each last call: the gateway refuses it, or has told the caller before to go elsewhere,
    # where nobody listens any more. Whichever is the faster.
    assert {code for code, _ in load.failures} == {grpc.StatusCode.UNAVAILABLE}
    assert len(load.failures) == CALLERS
    assert command.lines[1:] == []
