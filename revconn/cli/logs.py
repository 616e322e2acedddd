"""Log lines of the commands that run on: stderr, one format."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from typing import NamedTuple

__all__ = ["LogLine", "add_log_level", "set_up_logging"]

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_LINE = re.compile(r"\S+ \S+ (?P<level>[A-Z]+) (?P<logger>[\w.]+): (?P<message>.*)")


def add_log_level(parser: argparse.ArgumentParser) -> None:
    """The option ``--log-level``."""
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="the least important log lines to show, on stderr (default: info)",
    )


def set_up_logging(level: str) -> None:
    """Send log lines from ``level`` on to stderr."""
    logging.basicConfig(level=level.upper(), format=_FORMAT, stream=sys.stderr)
    logging.getLogger("hpack").setLevel(logging.INFO)  # it would log every byte of every header


class LogLine(NamedTuple):
    """A line in our format, taken apart."""

    level: str
    logger: str
    message: str

    @classmethod
    def parse(cls, line: str) -> LogLine | None:
        """``None`` for a line in any other format."""
        matched = _LINE.fullmatch(line)
        return None if matched is None else cls(**matched.groupdict())
