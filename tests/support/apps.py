"""Applications that embed a connector: started for real, each in a process group of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.waiting import eventually

__all__ = ["TIMEOUT", "App"]

TIMEOUT = 60.0


class App:
    """Runs a command; what it and its children write can be waited for. Ends them all."""

    def __init__(
        self, command: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, name="app-reader")
        self._reader.start()

    def _read(self) -> None:
        with self._process.stdout as stream:
            for line in stream:
                self.lines.append(line.rstrip("\n"))

    @property
    def output(self) -> str:
        """What was written so far."""
        return "\n".join(self.lines)

    def hears(self, text: str, count: int = 1) -> list[str]:
        """The first ``count`` lines that contain ``text``, once there are so many."""

        def look() -> list[str]:
            over = self._process.poll() is not None and not self._reader.is_alive()
            found = [line for line in self.lines if text in line]
            assert len(found) >= count or not over, f"ended, no {text!r} x {count}:\n{self.output}"
            return found[:count] if len(found) >= count else []

        try:
            return eventually(look, TIMEOUT)
        except AssertionError as error:
            raise AssertionError(f"no {text!r} x {count} in:\n{self.output}") from error

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the first process alone."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """The exit code, once it has ended by itself with all its children."""
        try:
            code = self._process.wait(TIMEOUT)
            eventually(self._is_gone, TIMEOUT)
        except (AssertionError, subprocess.TimeoutExpired):
            raise AssertionError(f"processes are left:\n{self.output}") from None
        self._reader.join(TIMEOUT)
        return code

    def stop(self) -> None:
        """Ask it to end, as a service manager does; it has to leave nothing behind."""
        self.signal(signal.SIGTERM)
        self.wait()

    def kill(self) -> None:
        """End every process of it at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(TIMEOUT)

    def _is_gone(self) -> bool:
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return True
        return False
