"""What the other processes say: shown, and waited for."""

from __future__ import annotations

import queue
import re
import time
from typing import Callable

from revconn.cli.demo.processes import Said
from revconn.cli.demo.screen import Screen
from revconn.cli.logs import LogLine

__all__ = ["DemoFailed", "Watch"]

_LISTENING = re.compile(r"gateway listening on \S+")
_REGISTERED = re.compile(r"connection (?P<id>\S+) from \S+ registered demo\.Greeter")
_HEARTBEAT = re.compile(r"connection \S+: heartbeat")


class DemoFailed(Exception):
    """Something that the demo was to show did not work; the message is the reason."""


class Watch:
    """Takes in the children's log lines, in the one thread that also writes to the screen.

    Shows those of level INFO and above, and raises :class:`DemoFailed` as soon as a child has
    ended that was not asked to.

    ``gateways_listening``: how many times a gateway said that it listens.
    ``registrations``: the ids of the connections that registered with it, in order.
    ``heartbeats``: how many of them reached it.
    """

    def __init__(self, screen: Screen) -> None:
        self.said: queue.SimpleQueue[Said] = queue.SimpleQueue()
        self.gateways_listening = 0
        self.registrations: list[str] = []
        self.heartbeats = 0
        self._screen = screen

    def look(self, seconds: float = 0.0) -> None:
        """Take in what was said, and what is being said in the next ``seconds``."""
        deadline = time.monotonic() + seconds
        while self._take(deadline):
            pass

    def wait_until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until something said has made ``condition`` true; ``what`` names the failure."""
        deadline = time.monotonic() + seconds
        while not condition():
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
        registered = _REGISTERED.fullmatch(line.message)
        if registered is not None:
            self.registrations.append(registered["id"])
        elif _HEARTBEAT.fullmatch(line.message):
            self.heartbeats += 1
        elif _LISTENING.fullmatch(line.message):
            self.gateways_listening += 1
        if line.level != "DEBUG":
            self._screen.log(name, line.message)
