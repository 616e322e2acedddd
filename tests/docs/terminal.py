"""The commands of a console block, run for real.

$ export NAME=value              holds for the rest of the page
$ command                        has to end, with exit code 0 and exactly the output shown
$ command  # terminal 2          goes on until the page ends, which presses Ctrl-C; then its
                                 exit code is 0, or as shown: # terminal 2, exit code 1
^C                               presses Ctrl-C; the output after it is shown below
$ echo $?                        the exit code of the command before it, which may then fail
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.docs.transcript import TIMEOUT, Transcript

_OWN_TERMINAL = re.compile(r"\s# (?P<name>terminal \d)(?:, exit code (?P<code>\d+))?$")
_INTERRUPT = "^C"


@dataclass
class Command:
    """A command as typed, and the output shown below it."""

    typed: str
    shown: list[str] = field(default_factory=list)

    @property
    def terminal(self) -> str | None:
        """The terminal of its own where it goes on; ``None`` when it has to end."""
        named = _OWN_TERMINAL.search(self.typed)
        return None if named is None else named["name"]


def read_commands(text: str) -> list[Command]:
    """The commands of a console block."""
    commands: list[Command] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            commands.append(Command(line[2:]))
        elif commands and commands[-1].typed.endswith("\\"):
            commands[-1].typed = commands[-1].typed[:-1] + line.strip()
        else:
            assert commands, f"a console block begins with a command: $ …, not {line!r}"
            commands[-1].shown.append(line)
    return commands


class Terminal:
    """Runs commands in ``directory``; everything they say goes to ``transcript`` too."""

    def __init__(self, directory: Path, transcript: Transcript) -> None:
        self._directory = directory
        self._transcript = transcript
        scripts = sysconfig.get_path("scripts")
        self._environment = {
            **os.environ,
            "HOME": str(directory),
            "PATH": os.pathsep.join([scripts, os.environ["PATH"]]),
            "PYTHONUNBUFFERED": "1",
            "PYTHONIOENCODING": "utf-8",
        }
        self._started: list[_Process] = []
        self._going_on: dict[str, _Process] = {}
        self._exit_code = 0

    def run(self, commands: list[Command]) -> None:
        """Run the commands of one block."""
        for command, following in zip(commands, [*commands[1:], None]):
            may_fail = following is not None and following.typed == "echo $?"
            self._run(command, may_fail)

    def _run(self, command: Command, may_fail: bool) -> None:
        if command.typed.startswith("export "):
            for assignment in shlex.split(command.typed)[1:]:
                name, _, value = assignment.partition("=")
                self._environment[name] = value
            return
        if command.terminal in self._going_on:
            self._end(command.terminal)
        typed = command.typed.replace("$?", str(self._exit_code))
        process = _Process(typed, self._directory, self._environment, self._transcript)
        self._started.append(process)
        if command.terminal is not None:
            self._going_on[command.terminal] = process
            process.output.expect(command.shown)
            return
        if _INTERRUPT in command.shown:
            before = command.shown.index(_INTERRUPT)
            process.output.expect(command.shown[:before])
            process.interrupt()
            command.shown.pop(before)
        self._exit_code = process.wait()
        process.output.expect(command.shown, exactly=True)
        assert may_fail or self._exit_code == 0, f"{typed}: exit code {self._exit_code}"

    def _end(self, terminal: str) -> None:
        process = self._going_on.pop(terminal)
        process.interrupt()
        code = process.wait()
        shown = _OWN_TERMINAL.search(process.typed)
        assert code == int(shown["code"] or 0), f"{process.typed}: exit code {code} after Ctrl-C"

    def close(self) -> None:
        """Press Ctrl-C in every terminal, the one that was used last first."""
        for terminal in reversed(list(self._going_on)):
            self._end(terminal)

    def kill(self) -> None:
        """Leave nothing behind, whatever happened."""
        for process in self._started:
            process.kill()


class _Process:
    def __init__(
        self, typed: str, directory: Path, environment: dict[str, str], transcript: Transcript
    ) -> None:
        self.typed = typed
        self.output = Transcript()
        self._transcript = transcript
        with _interruptible():
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {typed}"],
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
            )
        self._reader = threading.Thread(target=self._read, name=f"reader of {typed}")
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            for line in stdout:
                self.output.add(line.rstrip("\n"))
                self._transcript.add(line.rstrip("\n"))
        self.output.complete()

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def wait(self) -> int:
        try:
            code = self._process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.typed} goes on; it said:\n{self.output.text}") from None
        self._reader.join(TIMEOUT)
        return code

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join(TIMEOUT)


@contextmanager
def _interruptible() -> Iterator[None]:
    """What is started inside hears Ctrl-C. Main thread only.

    A shell has what it starts in the background ignore it, tests too, and that is inherited:
    ``flask run`` would go on for ever.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
