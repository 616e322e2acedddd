"""grpc-java's interop client and tests, in a process that runs one after the other."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

from tests.interop.building import BUILD
from tests.support.apps import TIMEOUT

__all__ = ["GrpcJava"]

COMMAND = (
    "java",
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    "-cp",
    f"{BUILD}/java-grpc-interop/classes:{BUILD}/java-grpc-interop/libraries/*",
    "interop.Runner",
)


class GrpcJava:
    """Starts when it is first asked, and again after it has ended or said nothing for too long."""

    def __init__(
        self, directory: Path, command: tuple[str, ...] = COMMAND, timeout: float = TIMEOUT
    ) -> None:
        self._log = directory / "grpc-java.log"
        self._command = command
        self._timeout = timeout
        self._process: subprocess.Popen[str] | None = None

    def ask(self, *words: str) -> Any:
        """What was wrong, as ``interop.Runner`` says it."""
        process = self._running()
        patience = threading.Timer(self._timeout, process.kill)
        patience.start()
        try:
            process.stdin.write(f"{' '.join(words)}\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            patience.cancel()
        if not answer.endswith("\n"):
            self.kill()
            said = self._log.read_text(encoding="utf-8", errors="replace")
            raise AssertionError(f"{process.args} did not answer {words}:\n{said}")
        return json.loads(answer)

    def kill(self) -> None:
        """End it, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            with self._log.open("w") as log:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    encoding="utf-8",
                    errors="replace",
                )
        return self._process
