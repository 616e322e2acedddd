"""``revconn`` commands as processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from tests.support.waiting import eventually

TIMEOUT = 60.0

# Isolated: only what is installed is importable, not the directory of the tests.
_REVCONN = (sys.executable, "-I", "-m", "revconn")


def run_command(
    *arguments: str, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*_REVCONN, *arguments],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT,
    )


class Command:
    """A command that runs on; what it writes, to stdout or stderr, can be waited for."""

    def __init__(
        self,
        *arguments: str,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        program: tuple[str, ...] = _REVCONN,
    ) -> None:
        self._process = subprocess.Popen(
            [*program, *arguments],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        self.pid = self._process.pid
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def output(self) -> str:
        """What it has written so far."""
        return "\n".join(self.lines)

    def _read(self) -> None:
        with self._process.stdout as stream:
            for line in stream:
                self.lines.append(line.rstrip("\n"))

    def wait_for_line(self, text: str) -> str:
        """The first line that contains ``text``, once there is one."""

        def look() -> str | None:
            found = next((line for line in self.lines if text in line), None)
            ended = self._process.poll() is not None and not self._reader.is_alive()
            assert found or not ended, f"ended without saying {text!r}:\n{self.output}"
            return found

        return eventually(look, TIMEOUT)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """Its exit code, once it has ended by itself."""
        code = self._process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        return code

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self.wait()
