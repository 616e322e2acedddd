"""What was printed and logged while a page ran, and whether it is what the page shows."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence

TIMEOUT = 60.0

_VARYING = [
    (re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} "), ""),
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "<id>"),
    (re.compile(r"\b\d+(\.\d+)? s\b"), "<n> s"),
    (re.compile(r"\b\d+ attempts?\b"), "<n> attempts"),
    (re.compile(r"(?<=127\.0\.0\.1:)\d+"), "<port>"),
]


class Transcript:
    """Lines as they come, from any thread. ``_grown`` guards them."""

    def __init__(self) -> None:
        self._grown = threading.Condition()
        self._lines: list[str] = []
        self._complete = False

    @property
    def text(self) -> str:
        with self._grown:
            return "".join(f"{line}\n" for line in self._lines)

    def add(self, line: str) -> None:
        with self._grown:
            self._lines.append(line)
            self._grown.notify_all()

    def complete(self) -> None:
        """Nothing more will come."""
        with self._grown:
            self._complete = True
            self._grown.notify_all()

    def expect(self, shown: Sequence[str], *, exactly: bool = False) -> None:
        """Wait until it begins with what is shown, or (``exactly``) until it is that and complete.

        ``…`` stands for anything in a line; alone on a line, for any number of lines. Times, ids,
        durations and ports need not be the same.
        """
        pattern = _pattern(shown)
        matches = pattern.fullmatch if exactly else pattern.match

        def settled() -> bool:
            return self._complete or (not exactly and matches(self._normal()) is not None)

        with self._grown:
            self._grown.wait_for(settled, TIMEOUT)
            found = matches(self._normal()) is not None and (self._complete or not exactly)
        assert found, f"shown:\n{_indent(shown)}\nseen:\n{_indent(self._lines)}"

    def expect_somewhere(self, shown: Sequence[str]) -> None:
        """Wait until the lines shown have come in this order, among others."""
        self.expect([part for line in shown for part in ("…", line)])

    def _normal(self) -> str:
        return "".join(f"{_normalise(line)}\n" for line in self._lines)


class TranscriptHandler(logging.Handler):
    """Adds log lines, in the format of the command line tools, without their tracebacks."""

    def __init__(self, transcript: Transcript) -> None:
        super().__init__(logging.INFO)
        self._transcript = transcript

    def emit(self, record: logging.LogRecord) -> None:
        self._transcript.add(f"{record.levelname} {record.name}: {record.getMessage()}")


def _pattern(shown: Sequence[str]) -> re.Pattern[str]:
    parts = []
    for line in shown:
        if line.strip() == "…":
            parts.append(r"(?:.*\n)*?")
        else:
            parts.append(re.escape(_normalise(line)).replace("…", ".*") + r"\n")
    return re.compile("".join(parts))


def _normalise(line: str) -> str:
    line = line.rstrip()
    for pattern, stand_in in _VARYING:
        line = pattern.sub(stand_in, line)
    return line


def _indent(lines: Sequence[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)
