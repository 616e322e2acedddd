from __future__ import annotations

import datetime
import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Callable

import pytest

from revconn.cli.logs import LogLine, set_up_logging

logger = logging.getLogger("revconn.test")


@pytest.fixture
def set_up() -> Iterator[Callable[..., None]]:
    """``set_up_logging``, in a process where nobody has set it up yet."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def set_up(*arguments: str) -> None:
        root.handlers.clear()
        set_up_logging(*arguments)

    yield set_up
    root.handlers[:] = handlers
    root.setLevel(level)


def test_text_can_be_taken_apart_again(set_up, capsys) -> None:
    set_up("info")
    logger.info("a line: %s", "of text")
    logger.debug("not this one")
    (line,) = capsys.readouterr().err.splitlines()
    assert LogLine.parse(line) == LogLine("INFO", "revconn.test", "a line: of text")
    assert LogLine.parse("anything else") is None


def test_json_has_the_standard_fields_and_what_was_given_beside_them(set_up, capsys) -> None:
    set_up("info", "json")
    before = datetime.datetime.now(datetime.timezone.utc)
    logger.warning("on\none %s", "line ü", extra={"age": 1.5, "services": ("a.A",), "odd": {1}})
    (line,) = capsys.readouterr().err.splitlines()
    said = json.loads(line)
    assert abs(datetime.datetime.fromisoformat(said.pop("time")) - before).total_seconds() < 60
    assert said == {
        "level": "WARNING",
        "logger": "revconn.test",
        "message": "on\none line ü",
        "age": 1.5,
        "services": ["a.A"],
        "odd": "{1}",
    }


def test_a_line_that_quotes_foreign_text_is_whole_on_a_terminal_of_few_characters(
    set_up, monkeypatch
) -> None:
    shown = io.BytesIO()
    # As Python opens stderr, whatever the terminal can show.
    stream = io.TextIOWrapper(shown, "cp850", errors="backslashreplace", write_through=True)
    monkeypatch.setattr(sys, "stderr", stream)
    set_up("info", "json")
    logger.warning("it said %r", "ü … \udcff 界")
    assert json.loads(shown.getvalue())["message"] == "it said 'ü … \\udcff 界'"


def test_json_holds_the_traceback(set_up, capsys) -> None:
    set_up("info", "json")
    try:
        int("none")
    except ValueError:
        logger.exception("it failed")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["exception"].endswith("literal for int() with base 10: 'none'")


def test_json_holds_the_stack_of_a_record_that_has_one(set_up, capsys) -> None:
    set_up("info", "json")
    logger.warning("here", stack_info=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert "test_json_holds_the_stack" in json.loads(line)["stack"]
