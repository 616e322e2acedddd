"""The demo from beginning to end: each step does something real and checks what came of it."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Sequence
from types import TracebackType

from revconn.cli.demo.calls import Probes, call_many
from revconn.cli.demo.greeter import Caller, Outcome
from revconn.cli.demo.processes import Child, DemoFailed, Watch, free_port
from revconn.cli.demo.screen import Screen, Tally, show_summary

__all__ = ["Demo"]

_GREETER = "revconn.cli.demo.greeter:connector"
_START_TIMEOUT = 30.0  # seconds: a cold start of Python and grpc on a busy machine
_HEARTBEAT_TIMEOUT = 10.0  # seconds, twenty times what the demo's connector waits
_RETURN_TIMEOUT = 30.0  # seconds from the kill until a call is answered again
_HEARTBEATS = 3
_PROBES_AFTER_RETURN = 10


class Demo:
    """Runs once, in one thread: ``with Demo(…) as demo: demo.run()``. Leaving ends everything."""

    def __init__(self, screen: Screen, *, requests: int, payload: int, restart: bool) -> None:
        self._screen = screen
        self._watch = Watch(screen)
        self._requests = requests
        self._padding = bytes(payload)
        self._restart = restart
        # Chosen here, not by the gateway: the second gateway has to listen where the first one did.
        self._address = f"127.0.0.1:{free_port()}"
        # A new one each time: nobody else on this machine can register while the demo runs.
        self._key = secrets.token_urlsafe(16)
        self._tally = Tally()
        self._cleanup = contextlib.ExitStack()
        # Undone in the opposite order: the processes first, the screen's live line last.
        self._cleanup.callback(screen.end_live)
        self._caller = self._cleanup.enter_context(contextlib.closing(Caller(self._address)))

    def __enter__(self) -> Demo:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._cleanup.close()

    def run(self) -> None:
        """Show everything. Raises :class:`DemoFailed` when something did not work."""
        started = time.monotonic()
        self._screen.title("revconn: a service that opens no port answers ordinary gRPC calls")
        self._screen.say("Three processes on this machine: a gateway; a connector, which dials out")
        self._screen.say("to it and runs the handlers; and this one, an ordinary gRPC client.")
        gateway = self._start_gateway()
        connector = self._start_connector()
        self._watch_heartbeats()
        self._call("An ordinary gRPC client calls the service through the gateway")
        self._provoke_errors()
        if self._restart:
            gateway = self._lose_gateway(gateway)
            self._call("The same client calls again, and the same connector process answers")
        self._leave(connector, gateway)
        self._tally.duration = time.monotonic() - started
        self._tally.heartbeats = len(self._watch.heartbeats)
        show_summary(self._screen, self._tally, self._address, gateway.pid, connector.pid)

    # The steps

    def _start_gateway(self) -> Child:
        self._screen.step("A gateway listens")
        gateway = self._launch_gateway()
        self._watch.wait_for(self._watch.listening, 1, _START_TIMEOUT, "the gateway did not listen")
        return gateway

    def _start_connector(self) -> Child:
        self._screen.step("A connector dials out to it and registers the service demo.Greeter")
        connector = self._launch(
            "connector",
            ["serve", _GREETER],
            # In the environment: command lines are seen by every user of the machine, and shown
            # here.
            {"REVCONN_TARGET": self._address, "REVCONN_API_KEY": self._key},
        )
        self._watch.wait_for(
            self._watch.registrations, 1, _START_TIMEOUT, "the connector did not register"
        )
        self._screen.success(f"registered, with the id {self._watch.registrations[-1]}")
        return connector

    def _watch_heartbeats(self) -> None:
        times = self._watch.heartbeats
        hearts = self._screen.style(" ♥", "red")
        for count in range(1, _HEARTBEATS + 1):
            self._watch.wait_for(
                times, count, _HEARTBEAT_TIMEOUT, "the next heartbeat did not reach the gateway"
            )
            self._screen.live(f"heartbeats{hearts * count}")
        self._screen.end_live()
        apart = (times[-1] - times[0]) / (len(times) - 1)
        shown = hearts * len(times)
        self._screen.success(f"heartbeats reach the gateway, {apart:.1f} s apart {shown}")

    def _call(self, title: str) -> None:
        self._screen.step(title)
        self._tally.latencies += call_many(
            self._caller,
            self._watch,
            self._screen,
            requests=self._requests,
            padding=self._padding,
        )

    def _provoke_errors(self) -> None:
        self._screen.step("Errors come back with the status they were given")
        self._expect("INVALID_ARGUMENT", 'Hello(name="")', self._caller.hello(""))
        self._expect("UNIMPLEMENTED", "Goodbye(…)", self._caller.goodbye("world"))
        self._screen.success("both with the exact status")

    def _expect(self, status: str, call: str, outcome: Outcome) -> None:
        self._screen.say(f"{call:<15} ──▶  {outcome.status}: {outcome.message}")
        if outcome.status != status:
            raise DemoFailed(f"{call} was to fail with {status}, not with {outcome.status}")
        self._tally.errors += 1

    def _lose_gateway(self, gateway: Child) -> Child:
        self._screen.step("The gateway is killed and started again; the connector is left alone")
        self._screen.command(f"kill -KILL {gateway.pid}")
        # SIGKILL: it says no goodbye, and the connector has to find out by itself.
        gateway.kill()
        killed_at = time.monotonic()
        probes = Probes(self._caller, self._watch, self._screen)
        # While nobody listens: one call at least is seen to fail.
        probes.more(1)
        successor = self._launch_gateway()
        outcome = probes.until_answered(_RETURN_TIMEOUT)
        self._tally.time_to_return = time.monotonic() - killed_at
        self._tally.failed_in_outage = probes.failed
        self._watch.wait_for(
            self._watch.registrations, 2, _RETURN_TIMEOUT, "the connector did not register again"
        )
        # It is no chance hit: the calls behind it are answered as well.
        probes.more(_PROBES_AFTER_RETURN)
        self._screen.end_live()
        self._screen.say(probes.timeline)
        new_id = outcome.reply.connection_id
        # The gateway gives an id to each connection: an old one would mean that nothing was lost.
        if new_id == self._watch.registrations[0]:
            raise DemoFailed(f"the connector came back with its old id, {new_id}")
        self._screen.success(
            f"back after {self._tally.time_to_return:.2f} s; the new id is {new_id}"
        )
        return successor

    def _leave(self, connector: Child, gateway: Child) -> None:
        self._screen.step("Both are asked to leave (SIGTERM)")
        # The connector first: its goodbye goes to a gateway that is still there.
        for child in (connector, gateway):
            code = child.end()
            self._watch.look()
            if code != 0:
                raise DemoFailed(f"the {child.name} left with exit code {code}, not 0")
        self._screen.success("both finished what they had accepted, and left")

    # Processes

    def _launch_gateway(self) -> Child:
        # Heartbeats are logged at DEBUG, and the story counts them.
        arguments = ["gateway", "--address", self._address, "--log-level", "debug"]
        return self._launch("gateway", arguments, {"REVCONN_API_KEYS": self._key})

    def _launch(self, name: str, arguments: Sequence[str], environment: dict[str, str]) -> Child:
        child = Child(name, arguments, environment, self._watch.said)
        self._cleanup.callback(child.end)
        self._screen.command(f"{child.command}  # pid {child.pid}")
        return child
