"""The demo's other processes: the commands that a user would run, and what they say.

What they say is shown, and waited for.
"""

from __future__ import annotations

import os
import queue
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from revconn.cli.demo.screen import Screen
from revconn.cli.logs import LogLine
from revconn.runtime.threads import Mailbox
from revconn.settings.environment import PREFIX

__all__ = ["Child", "DemoFailed", "Said", "Watch", "free_port"]

_END_TIMEOUT = 10.0  # seconds from SIGTERM until one that does not end is killed
_KILL_TIMEOUT = 5.0  # seconds that the system may take to end one
_READER_TIMEOUT = 5.0  # seconds to read what one that has ended had still written

# Of the log lines that operators see, too: the demo believes nothing else.
_LISTENING = re.compile(r"gateway listening on (?P<address>\S+)")
_REGISTERED = re.compile(r"connection (?P<id>\S+) from \S+ registered demo\.Greeter")
_HEARTBEAT = re.compile(r"connection \S+: heartbeat")


def _without_ours(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without ``REVCONN_`` variables: they are for the user's own processes."""
    return {name: value for name, value in environ.items() if not name.startswith(PREFIX)}


class Said(NamedTuple):
    """A line that a child wrote; ``None`` when it has ended."""

    child: Child
    line: str | None


class Child:
    """A ``revconn`` command in a process of its own; every line it writes goes into ``said``.

    For one thread to use; :meth:`end` and :meth:`kill` are idempotent and bounded.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        environment: dict[str, str],
        said: Mailbox[Said],
    ) -> None:
        self.name = name
        self.command = " ".join(("revconn", *arguments))
        self.expected_to_end = False
        self._last_lines: deque[str] = deque(maxlen=5)
        self._said = said
        # As a user would type it, with the Python that runs the demo: "revconn" may not be on the
        # PATH, or be another version's. With stderr in stdout, lines keep their order.
        self._process = subprocess.Popen(  # noqa: S603 - our own commands
            [sys.executable, "-m", "revconn", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # All of it stays on this machine, whatever proxy the environment names.
            env={**_without_ours(os.environ), "no_grpc_proxy": "127.0.0.1", **environment},
            encoding="utf-8",
            errors="replace",
        )
        # A thread for each: a pipe that nobody reads fills up, and the process would stop there.
        self._reader = threading.Thread(target=self._read, name=f"revconn-demo-{name}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._last_lines.append(line.rstrip())
                self._said.put(Said(self, line.rstrip()))
        # Behind its last line: an end is noticed after all that led to it was shown.
        self._said.put(Said(self, None))

    def end(self) -> int:
        """Ask it to end (SIGTERM), kill it if it does not; its exit code."""
        # First: its end may be noticed before this thread comes to anything else.
        self.expected_to_end = True
        try:
            self._process.terminate()
            self._process.wait(_END_TIMEOUT)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # Of one that has ended already this does nothing but collect the exit code; and
            # whatever interrupts the wait, no process is left behind.
            code = self.kill()
        return code

    def kill(self) -> int:
        """Kill it (SIGKILL) and reap it; its exit code."""
        self.expected_to_end = True
        self._process.kill()
        code = self._process.wait(_KILL_TIMEOUT)
        self._reader.join(_READER_TIMEOUT)
        return code

    def obituary(self) -> str:
        """With which exit code it ended, and its last words."""
        code = self._process.wait(_KILL_TIMEOUT)
        last_words = self._last_lines[-1] if self._last_lines else "it said nothing"
        return f"the {self.name} process ended with exit code {code}: {last_words}"


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
        self.said: Mailbox[Said] = Mailbox()
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
        # At once, and with its last words: waiting for what it was to say would end in a time limit
        # that explains nothing.
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


def free_port() -> int:
    """A port on 127.0.0.1 that nothing listens on.

    Below the range that systems take ports of outgoing connections from: it is needed twice, and
    one of those may have taken it in between.
    """
    for port in random.sample(range(10_000, 32_768), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port on 127.0.0.1 between 10,000 and 32,768")
