"""Connectors that die, hang, rave or never read: the others go on as if nothing were."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from revconn.testing import Fault, FaultProxy
from tests.support.apps import App
from tests.support.commands import Command
from tests.support.giving_back import SAID
from tests.support.waiting import eventually

# Latency is compared: nothing else may run meanwhile.
pytestmark = pytest.mark.alone

ROOT = Path(__file__).resolve().parents[2]
CALLS = 300
ROUNDS = 8
# Undisturbed, it is 2 to 4 ms on two cores. Fifty answers in one go, as a raving connector sends
# them, hold up the gateway for 2 to 5 ms more.
UNREMARKABLE = 0.01
TIMEOUT = 60.0
CARRIED = 80  # megabytes, by the calls to troubled connectors in a round of them
# Bytes: what it holds after a round differs by a tenth of that. Payloads that stay would be 80 MB,
# the two hundred connections of a round 10 MB, if they stayed open.
KEPT = 4_000_000
_SAID = re.compile(r"connection (?P<id>[0-9a-f-]{36}):? (?P<what>.*)")
GATEWAY = (sys.executable, "-m", "tests.support.giving_back")


class Scene:
    """A gateway, a healthy connector and its caller; and trouble, when it is called for."""

    def __init__(self) -> None:
        options = ("--address=127.0.0.1:0", "--heartbeat-timeout=2", "--log-level=info")
        self.gateway = Command("gateway", *options, cwd=ROOT, program=GATEWAY)
        self.address = self.gateway.wait_for_line("gateway listening on").split()[-1]
        self._apps: list[App] = []
        self.trouble("healthy")
        self._channel = grpc.insecure_channel(self.address)
        self._say = self._channel.unary_unary("/echo.Echo/Say")
        self._trouble = self._channel.unary_unary("/trouble.Trouble/Say")

    def trouble(self, kind: str, address: str = "") -> App:
        """Start a program of trouble.py."""
        (app,) = self.troubles((kind, address))
        return app

    def troubles(self, *kinds: tuple[str, str]) -> list[App]:
        """Start several at once, each with the address that it is to call."""
        started = []
        for kind, address in kinds:
            command = [sys.executable, "-m", "tests.gateway.trouble", kind, address or self.address]
            started.append(App(command, ROOT))
        self._apps += started
        for app in started:
            app.hears("ready")
        return started

    def p99(self) -> float:
        """The 99th percentile of the time that a call to the healthy connector takes."""
        durations = []
        for _ in range(CALLS):
            started = time.perf_counter()
            assert self._say(b"x", timeout=TIMEOUT) == b"x"
            durations.append(time.perf_counter() - started)
        return sorted(durations)[int(0.99 * CALLS)]

    def call_trouble(self, payload: bytes, count: int) -> None:
        """Make calls that nobody will answer."""
        calls = [self._trouble.future(payload, timeout=1.0) for _ in range(count)]
        for call in calls:
            assert call.code() is not grpc.StatusCode.OK

    def is_alone_with_the_healthy_one(self) -> bool:
        return len(self.lines(" registered ")) - 1 == len(self.lines(" ended: "))

    def lines(self, text: str) -> list[str]:
        return [line for line in self.gateway.lines if text in line]

    def resident(self) -> int:
        """Bytes of memory that the gateway holds."""
        said = len(self.lines(SAID))
        self.gateway.signal(signal.SIGUSR1)
        eventually(lambda: len(self.lines(SAID)) > said, TIMEOUT)
        status = Path(f"/proc/{self.gateway.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024

    def close(self) -> None:
        self._channel.close()
        for app in self._apps:
            app.kill()
        with self.gateway:
            pass


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.close()


def assert_others_are_undisturbed(scene: Scene, disturb) -> None:
    """Measured in turns: what is slow for other reasons is not slow in every round."""
    seen = []
    for _ in range(ROUNDS):
        quiet = scene.p99()
        end = disturb()
        disturbed = scene.p99()
        end()
        seen.append((quiet, disturbed))
        if disturbed <= max(2 * quiet, UNREMARKABLE):
            return
    pytest.fail(f"p99 without and with trouble, in seconds: {seen}")


def assert_said_once(scene: Scene) -> None:
    """The log has each event of a connection once, and nothing more of it."""
    said = [_SAID.search(line) for line in scene.gateway.lines]
    events = Counter((each["id"], each["what"]) for each in said if each)
    assert set(events.values()) <= {1}, events
    per_connection = Counter(connection for connection, _ in events)
    # registered, ignored or expired, is leaving, ended
    assert max(per_connection.values()) <= 4, events


def do_nothing() -> None: ...


def test_a_killed_connector(scene: Scene) -> None:
    def kill():
        scene.trouble("idle").kill()
        return do_nothing

    assert_others_are_undisturbed(scene, kill)
    eventually(lambda: scene.lines(" ended: "), TIMEOUT)
    assert_said_once(scene)


def test_a_frozen_connector(scene: Scene) -> None:
    def freeze():
        app = scene.trouble("idle")
        app.signal(signal.SIGSTOP)
        scene.call_trouble(b"x" * 1000, 20)
        return do_nothing

    assert_others_are_undisturbed(scene, freeze)
    eventually(lambda: scene.lines(" expired: no heartbeat for 2 seconds"), TIMEOUT)
    assert_said_once(scene)


def test_a_connector_behind_a_network_that_is_gone(scene: Scene) -> None:
    with FaultProxy(int(scene.address.rpartition(":")[2])) as proxy:

        def cut_off():
            proxy.fault = Fault.NONE
            app = scene.trouble("idle", proxy.address)
            proxy.fault = Fault.BLACK_HOLE
            scene.call_trouble(b"x" * 1000, 20)
            return app.kill

        assert_others_are_undisturbed(scene, cut_off)
        eventually(lambda: scene.lines(" expired: no heartbeat for 2 seconds"), TIMEOUT)
    assert_said_once(scene)


def test_a_connector_that_never_reads(scene: Scene) -> None:
    def call_in_vain():
        app = scene.trouble("deaf")
        scene.call_trouble(b"x" * 1_000_000, 50)
        return app.kill

    assert_others_are_undisturbed(scene, call_in_vain)
    eventually(lambda: scene.lines(" ended: "), TIMEOUT)
    assert_said_once(scene)


RAVING = {
    "garbage": " ended: bytes that are no ConnectionMessage",
    "unasked": " ignored an answer to what nobody asked",
    "reconnecting": " ended: ",
}


@pytest.mark.parametrize(("kind", "said"), RAVING.items(), ids=RAVING)
def test_a_connector_that_raves(scene: Scene, kind: str, said: str) -> None:
    assert_others_are_undisturbed(scene, lambda: scene.trouble(kind).kill)
    eventually(lambda: scene.lines(said), TIMEOUT)
    assert_said_once(scene)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_returns_to_where_it_was(scene: Scene) -> None:
    def trouble() -> int:
        """Every kind of it at once."""
        with FaultProxy(int(scene.address.rpartition(":")[2])) as proxy:
            cut_off = ("idle", proxy.address)
            kinds = ("idle", "idle", "deaf", "garbage", "unasked", "reconnecting")
            apps = scene.troubles(cut_off, *((kind, "") for kind in kinds))
            proxy.fault = Fault.BLACK_HOLE
            apps[1].signal(signal.SIGSTOP)
            scene.call_trouble(b"x" * 1_000_000, CARRIED)
            for app in apps:
                app.kill()
            eventually(scene.is_alone_with_the_healthy_one, TIMEOUT)
        return scene.resident()

    before = trouble()  # what it needs once: code, caches, the buffers of the healthy one
    assert trouble() < before + KEPT
