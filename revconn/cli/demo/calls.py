"""Calls through the gateway: many with their latency, and probes while it is away."""

from __future__ import annotations

import time

from revconn.cli.demo.greeter import Caller, Outcome
from revconn.cli.demo.processes import DemoFailed, Watch
from revconn.cli.demo.screen import Screen, milliseconds, percentiles

__all__ = ["Probes", "call_many"]

_NAME = "world"
_REDRAW_INTERVAL = 0.05
_LATEST = 1000  # calls that the live figures are taken from
_BAR_WIDTH = 24
_PROBE_INTERVAL = 0.05
_PROBES_SHOWN = 48


def call_many(
    caller: Caller, watch: Watch, screen: Screen, *, requests: int, padding: bytes
) -> list[float]:
    """Call so many times, one after the other; the latencies. Every reply is checked."""
    latencies: list[float] = []
    started = drawn = time.monotonic()
    for number in range(1, requests + 1):
        # One after the other: the figures are latencies, and a queue's waiting time is none of
        # them.
        outcome = caller.hello(_NAME, padding)
        # Between calls, by this very thread: what the others say is shown where it was said.
        watch.look()
        _check(outcome, padding, watch.registrations[-1])
        latencies.append(outcome.latency)
        if number == 1:
            took = milliseconds(outcome.latency)
            screen.say(f'Hello(name="{_NAME}")  ──▶  "{outcome.reply.greeting}"  {took}')
        now = time.monotonic()
        # A terminal takes longer to draw a line than a call takes to be answered.
        if now - drawn >= _REDRAW_INTERVAL:
            drawn = now
            screen.live(_progress(screen, number, requests, latencies[-_LATEST:], watch))
    screen.end_live()
    rate = requests / (time.monotonic() - started)
    screen.success(f"{requests:,} calls, all answered: {percentiles(latencies)}, {rate:,.0f}/s")
    return latencies


def _check(outcome: Outcome, padding: bytes, connection_id: str) -> None:
    if not outcome.ok:
        raise DemoFailed(f"a call failed: {outcome.status}: {outcome.message}")
    reply = outcome.reply
    if reply.greeting != f"Hello, {_NAME}!" or reply.padding != padding:
        raise DemoFailed(f"a reply is not what the handler returned: {reply.greeting!r}")
    # Proof that the call went through the gateway, on the very connection that it logged.
    if reply.connection_id != connection_id:
        raise DemoFailed(
            f"a call was answered on connection {reply.connection_id}, not on {connection_id}"
        )


def _progress(
    screen: Screen, made: int, requests: int, latencies: list[float], watch: Watch
) -> str:
    filled = _BAR_WIDTH * made // requests
    bar = screen.style("█" * filled, "green") + screen.style("░" * (_BAR_WIDTH - filled), "dim")
    heartbeats = f"{screen.style('♥', 'red')} {len(watch.heartbeats)}"
    return f"{bar} {made:,}/{requests:,}  {percentiles(latencies)}  {heartbeats}"


class Probes:
    """Calls at a steady pace while nobody knows whether they will be answered."""

    def __init__(self, caller: Caller, watch: Watch, screen: Screen) -> None:
        self._caller = caller
        self._watch = watch
        self._screen = screen
        self._marks = ""
        self.failed = 0

    def until_answered(self, seconds: float) -> Outcome:
        """Call until a call is answered; that one. Raises :class:`DemoFailed` if none is."""
        deadline = time.monotonic() + seconds
        while True:
            outcome = self._call()
            if outcome.ok:
                return outcome
            if time.monotonic() > deadline:
                raise DemoFailed(
                    f"no call was answered within {seconds:g} seconds after the gateway was"
                    f" killed; the last one failed: {outcome.status}: {outcome.message}"
                )

    def more(self, count: int) -> None:
        """Call so many times more."""
        for _ in range(count):
            self._call()

    def _call(self) -> Outcome:
        # Whatever comes of it: during the outage a call is to fail, and that is shown.
        outcome = self._caller.hello(_NAME)
        self._watch.look(_PROBE_INTERVAL)
        self.failed += not outcome.ok
        # Kept whole, though only the latest fit on a line: a cut is to be seen as one.
        self._marks += "●" if outcome.ok else "×"
        self._screen.live(self.timeline)
        return outcome

    @property
    def timeline(self) -> str:
        """A mark for each of the latest calls."""
        latest = self._marks[-_PROBES_SHOWN:]
        cut = "…" if len(latest) < len(self._marks) else ""
        failed = self._screen.style("×", "red")
        answered = self._screen.style("●", "green")
        marks = "".join(failed if mark == "×" else answered for mark in latest)
        return f"calls  {cut}{marks}"
