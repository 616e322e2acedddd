"""What the demo shows: live on a terminal, plain lines anywhere else; at its end, figures."""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TextIO

__all__ = ["Screen", "Tally", "milliseconds", "percentile", "percentiles", "show_summary"]

_INDENT = "     "
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_SOURCES = {"gateway": "cyan", "connector": "yellow"}
# For a terminal or a file whose encoding has no such symbols: a locale of C, say. A
# UnicodeEncodeError would end the demo in the middle.
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
        # In a file or a CI log lines that replace one another would all be there.
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
        # Where nobody looks at columns a line stays whole, so that it can be searched for.
        for line in textwrap.wrap(message, room) if self._live else [message]:
            self.say(prefix + self.style(line, "dim"))

    def success(self, text: str) -> None:
        """Say that what a step was to show has worked."""
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
        # One that fills the width makes a terminal wrap, and "\r" would then replace its second
        # half alone. Colour codes take no room; a line that is cut loses its colour with them.
        plain = _ESCAPES.sub("", text)
        return text if len(plain) < self._width else plain[: self._width - 1]

    def _write(self, text: str) -> None:
        if self._ascii:
            text = text.translate(_ASCII).encode("ascii", "replace").decode("ascii")
        self._stream.write(text)
        # Line by line, and the live one has no end of line: nothing may wait in a buffer.
        self._stream.flush()


# Asked of the stream itself: LANG and PYTHONIOENCODING, a pipe or a file each change it.
def _has_symbols(stream: TextIO) -> bool:
    try:
        # All or none: half of a picture in ASCII would be out of shape.
        "".join(map(chr, _ASCII)).encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


_PICTURE = """\
    caller            gateway               connector           handler
┌────────────┐     ┌────────────┐         ┌────────────┐     ┌───────────┐
│ gRPC stub  │     │ port {port:<5} │◀──dials─│ opens      │     │           │
│            │ ──▶ │            │         │ no port    │ ──▶ │  hello()  │
│ pid {own:<7}│     │ pid {gateway:<7}│─calls──▶│ pid {connector:<7}│     │           │
└────────────┘     └────────────┘         └────────────┘     └───────────┘"""


@dataclass
class Tally:
    """What was counted and measured; times in seconds."""

    latencies: list[float] = field(default_factory=list)
    errors: int = 0
    heartbeats: int = 0
    failed_in_outage: int = 0
    time_to_return: float | None = None
    duration: float = 0.0


def show_summary(
    screen: Screen, tally: Tally, address: str, gateway_pid: int, connector_pid: int
) -> None:
    """The path of a call, and the figures."""
    screen.title("What you saw")
    picture = _PICTURE.format(
        port=address.rpartition(":")[2],
        own=os.getpid(),
        gateway=gateway_pid,
        connector=connector_pid,
    )
    for line in picture.splitlines():
        # Line by line: each is indented as a line of the current step.
        screen.say(line)
    screen.say("")
    made = len(tally.latencies)
    figures = [
        ("calls", f"{made:,} made, {made:,} answered; {percentiles(tally.latencies)}"),
        ("errors", f"{tally.errors} provoked, {tally.errors} returned with their exact status"),
        ("heartbeats", f"{tally.heartbeats} reached the gateway"),
    ]
    # Not where the gateway was left alone (--no-restart).
    if tally.time_to_return is not None:
        outage = (
            f"answered again {tally.time_to_return:.2f} s after the kill;"
            f" {tally.failed_in_outage} calls failed"
        )
        figures.append(("outage", outage))
    for name, value in figures:
        screen.say(f"{screen.style(f'{name:<12}', 'dim')} {value}")
    screen.say("")
    screen.success(f"all of it worked, in {tally.duration:.1f} s")


def milliseconds(seconds: float) -> str:
    """A duration for people."""
    return f"{seconds * 1000:.2f} ms"


def percentiles(latencies: Sequence[float]) -> str:
    """The median and the 99th percentile, for people."""
    median, highest = percentile(latencies, 50), percentile(latencies, 99)
    return f"p50 {milliseconds(median)}, p99 {milliseconds(highest)}"


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that ``percent`` per cent of them do not exceed."""
    # The nearest rank, a latency that was measured, and nothing between two of them.
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]
