"""What the other processes say: shown, and waited for."""

from __future__ import annotations

import queue
import re
import time
from collections.abc import Sequence

from revconn.cli.demo.processes import Said
from revconn.cli.demo.screen import Screen
from revconn.cli.logs import LogLine

__all__ = ["DemoFailed", "Watch"]

_LISTENING = re.compile(r"gateway listening on (?P<address>\S+)")
_REGISTERED = re.compile(r"connection (?P<id>\S+) from \S+ registered demo\.Greeter")
_HEARTBEAT = re.compile(r"connection \S+: heartbeat")


class DemoFailed(Exception):
    """Something that the demo was to show did not work; the message is the reason."""


class Watch:
    """Takes in the children's log lines, in the one thread that also writes to the screen.

    Shows those of level INFO and above, and raises :class:`DemoFailed` as soon as a child has
    ended that was not asked to.

    ``listening``: the addresses that gateways said they listen on, in order.
    ``registrations``: the ids of the connections that registered with it, in order.
    ``heartbeats``: when (monotonic seconds) each heartbeat was reported to have reached it.
    """

    def __init__(self, screen: Screen) -> None:
        self.said: queue.SimpleQueue[Said] = queue.SimpleQueue()
        self.listening: list[str] = []
        self.registrations: list[str] = []
        self.heartbeats: list[float] = []
        self._screen = screen

    def look(self, seconds: float = 0.0) -> None:
        """Take in what was said, and what is being said in the next ``seconds``."""
        deadline = time.monotonic() + seconds
        while self._take(deadline):
            pass

    def wait_for(self, things: Sequence[object], count: int, seconds: float, what: str) -> None:
        """Wait until so many of ``things`` (one of the lists above) are there.

        Raises :class:`DemoFailed`, saying ``what``, when they are not in time.
        """
        deadline = time.monotonic() + seconds
        while len(things) < count:
            if not self._take(deadline):
                raise DemoFailed(f"{what} within {seconds:g} seconds")

    def _take(self, deadline: float) -> bool:
        """Take in one line; false when none came in time."""
        try:
            said = self.said.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return False
        if said.line is not None:
            self._read(said.child.name, LogLine.parse(said.line))
        elif not said.child.expected_to_end:
            raise DemoFailed(said.child.obituary())
        return True

    def _read(self, name: str, line: LogLine | None) -> None:
        if line is None:
            return
        if matched := _LISTENING.fullmatch(line.message):
            self.listening.append(matched["address"])
        elif matched := _REGISTERED.fullmatch(line.message):
            self.registrations.append(matched["id"])
        elif _HEARTBEAT.fullmatch(line.message):
            self.heartbeats.append(time.monotonic())
        if line.level != "DEBUG":
            self._screen.log(name, line.message)
