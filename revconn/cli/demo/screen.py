"""What the demo shows: live on a terminal, plain lines anywhere else."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from typing import TextIO

__all__ = ["Screen"]

_INDENT = "     "
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_SOURCES = {"gateway": "cyan", "connector": "yellow"}
_ASCII = str.maketrans(
    {
        "✓": "+",
        "●": "o",
        "×": "x",
        "♥": "*",
        "█": "#",
        "░": ".",
        "│": "|",
        "─": "-",
        "┌": "+",
        "┐": "+",
        "└": "+",
        "┘": "+",
        "▶": ">",
        "◀": "<",
        "…": "...",
    }
)


class Screen:
    """Writes to one stream. For one thread to use."""

    def __init__(self, stream: TextIO, *, live: bool, colour: bool, width: int) -> None:
        self._stream = stream
        self._live = live
        self._colour = colour
        self._width = width
        self._ascii = not _has_symbols(stream)
        self._live_line = ""
        self._steps = 0

    @classmethod
    def on_stdout(cls) -> Screen:
        """The screen that fits stdout and the environment (``NO_COLOR``, ``TERM``)."""
        live = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        colour = live and not os.environ.get("NO_COLOR")
        width = shutil.get_terminal_size().columns or 80  # older Pythons say 0 where it is unknown
        return cls(sys.stdout, live=live, colour=colour, width=width)

    def style(self, text: str, *styles: str) -> str:
        """``text`` in colour, if this screen shows any."""
        if not self._colour:
            return text
        codes = ";".join(_STYLES[style] for style in styles)
        return f"\x1b[{codes}m{text}\x1b[0m"

    def title(self, text: str) -> None:
        """The first line."""
        self._write_line("")
        self._write_line(f"  {self.style(text, 'bold')}")

    def step(self, text: str) -> None:
        """The heading of the next step."""
        self._steps += 1
        self._write_line("")
        self._write_line(f"  {self.style(f'{self._steps}  {text}', 'bold')}")

    def say(self, text: str) -> None:
        """A line of the current step."""
        self._write_line((_INDENT + text).rstrip())

    def command(self, text: str) -> None:
        """A command that is run now."""
        self.say(self.style(f"$ {text}", "dim"))

    def log(self, source: str, message: str) -> None:
        """A log line of another process."""
        prefix = self.style(f"{source:<9} │ ", _SOURCES[source])
        room = max(20, self._width - len(_INDENT) - len("connector │ ") - 1)
        for line in textwrap.wrap(message, room) if self._live else [message]:
            self.say(prefix + self.style(line, "dim"))

    def success(self, text: str) -> None:
        """Something that was to be shown worked."""
        self.say(f"{self.style('✓', 'green')} {text}")

    def live(self, text: str) -> None:
        """A line that the next one replaces; nothing where lines cannot be replaced."""
        if self._live:
            self._live_line = self._fit(_INDENT + text)
            self._write(f"\r\x1b[K{self._live_line}")

    def end_live(self) -> None:
        """Take the live line away."""
        if self._live_line:
            self._live_line = ""
            self._write("\r\x1b[K")

    def _write_line(self, text: str) -> None:
        if self._live_line:
            self._write(f"\r\x1b[K{text}\n{self._live_line}")
        else:
            self._write(f"{text}\n")

    def _fit(self, text: str) -> str:
        plain = _ESCAPES.sub("", text)
        return text if len(plain) < self._width else plain[: self._width - 1]

    def _write(self, text: str) -> None:
        if self._ascii:
            text = text.translate(_ASCII).encode("ascii", "replace").decode("ascii")
        self._stream.write(text)
        self._stream.flush()


def _has_symbols(stream: TextIO) -> bool:
    try:
        "".join(map(chr, _ASCII)).encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
