"""Programs that embed a connector, in a process of their own."""

from __future__ import annotations

import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import textwrap
import threading
from typing import Any

import pytest

__all__ = ["Program"]

_PATIENCE = 60.0
_ROOT = pathlib.Path(__file__).resolve().parents[2]

_PRELUDE = """
import json, logging, os, signal, sys, threading, time
from revconn import Backoff, Connector, State

# A line at once, and without sys.stdout: its lock may be held as the program forks, by the thread
# that says a state, and a child whose exit flushes it would be aborted.
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

# Python runs signal handlers in the main thread, where an Event's lock may be held.
heard_sigusr1 = []
signal.signal(signal.SIGUSR1, lambda *_: heard_sigusr1.append(True))

def wait_for_sigusr1():
    while not heard_sigusr1:
        time.sleep(0.01)

target, options = json.loads(sys.argv[1])
options["backoff"] = Backoff(**options["backoff"])
connector = Connector(target, api_key="key", services=["echo.Echo"], **options)
connector.on_state_change(lambda state: say(state.name))
"""


class Program:
    """Runs ``body`` with a ``connector`` that prints its states.

    The body may ``say(…)`` a line, and ``wait_for_sigusr1()``.
    """

    def __init__(self, body: str, target: str | list[str], **options: Any) -> None:
        options.setdefault("backoff", {"initial": 0.01, "maximum": 0.05, "stable_after": 0.0})
        source = _PRELUDE + textwrap.dedent(body)
        self._process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-c", source, json.dumps([target, options])],
            cwd=_ROOT,
            start_new_session=True,  # with children that it forks
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read_output, name="program-stdout"),
            threading.Thread(target=self._read_errors, name="program-stderr"),
        ]
        for reader in self._readers:
            reader.start()

    def hears(self, line: str, timeout: float = _PATIENCE) -> None:
        """Wait for a line on stdout; others before it are passed over."""
        heard = []
        while not heard or heard[-1] != line:
            try:
                heard.append(self._lines.get(timeout=timeout))
            except queue.Empty:
                pytest.fail(f"{heard} and not {line!r}, but:\n{self._stacks()}")
            assert heard[-1] is not None, f"{heard} and not {line!r}; stderr: {self.stderr}"

    def _stacks(self) -> str:
        """What hangs: where its threads are, and those of its children."""
        os.killpg(self._process.pid, signal.SIGABRT)
        self.wait()
        return self.stderr

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, timeout: float = _PATIENCE) -> int:
        """The exit status, once it has ended."""
        try:
            return self._process.wait(timeout)
        finally:
            self._join_readers()

    @property
    def stderr(self) -> str:
        """What it wrote there, all of it once it has ended."""
        return "".join(self._errors)

    def close(self) -> None:
        """Kill it if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._join_readers()

    def _join_readers(self) -> None:
        if self._process.poll() is not None:
            for reader in self._readers:
                reader.join()
            self._process.stdout.close()
            self._process.stderr.close()

    def _read_output(self) -> None:
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def _read_errors(self) -> None:
        for line in self._process.stderr:
            self._errors.append(line)
