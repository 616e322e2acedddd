"""What the commands that run on say: as text, or as JSON for machines."""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import re
import sys
from typing import NamedTuple

__all__ = ["LogLine", "add_log_format", "add_log_level", "announce", "set_up_logging"]

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# As _FORMAT writes it: the demo takes apart what the other commands say.
_LINE = re.compile(r"\S+ \S+ (?P<level>[A-Z]+) (?P<logger>[\w.]+): (?P<message>.*)")


def add_log_level(parser: argparse._ActionsContainer) -> None:
    """The option ``--log-level``."""
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="the least important log lines to show, on stderr (default: info)",
    )


def add_log_format(parser: argparse._ActionsContainer) -> None:
    """The option ``--log-format``."""
    parser.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="text for people, or one JSON object on each line (default: text)",
    )


def set_up_logging(level: str, log_format: str = "text") -> None:
    """Send log lines from ``level`` on to stderr."""
    # stderr, always: stdout belongs to what is announced, and to the application.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JSONFormatter() if log_format == "json" else logging.Formatter(_FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def announce(message: str, logger: str, log_format: str, **facts: str) -> None:
    """Say on stdout what whoever started the command waits for; as JSON, with its facts."""
    if log_format == "json":
        # Not by logging: it is no matter of levels or handlers whether it is said.
        record = logging.LogRecord(logger, logging.INFO, "", 0, message, None, None)
        vars(record).update(facts)
        message = _JSONFormatter().format(record)
    print(message, flush=True)


class _JSONFormatter(logging.Formatter):
    """One object on a line: what every record has, and what was given as its ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
        line = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update((name, value) for name, value in vars(record).items() if name not in _STANDARD)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps(line, default=str)


# What every record has. The last two are set when it is formatted, and by Python 3.12.
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "taskName"}


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
