"""The demo's screen: live on a terminal, plain lines anywhere else."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from revconn.cli.demo.screen import Screen, Tally, show_summary


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def make_screen(**options: Any) -> tuple[Screen, Terminal]:
    stream = Terminal()
    return Screen(stream, **{"live": True, "colour": False, "width": 40, **options}), stream


def test_without_a_terminal_there_are_only_plain_lines() -> None:
    screen, stream = make_screen(live=False)
    screen.step("A step")
    screen.live("42 %")
    screen.log("gateway", "a long line stays one line, so that grep finds what it looks for")
    screen.end_live()
    assert stream.getvalue() == (
        "\n  1  A step\n"
        "     gateway   │ a long line stays one line, so that grep finds what it looks for\n"
    )


def test_a_line_is_written_above_the_live_one() -> None:
    screen, stream = make_screen()
    screen.live("1 %")
    screen.say("news")
    screen.live("2 %")
    screen.end_live()
    screen.say("done")
    assert stream.getvalue() == (
        "\r\x1b[K     1 %"  # shown
        "\r\x1b[K     news\n     1 %"  # pushed down
        "\r\x1b[K     2 %"  # replaced
        "\r\x1b[K"  # taken away
        "     done\n"
    )


def test_a_live_line_never_fills_the_terminals_width() -> None:
    screen, stream = make_screen(width=20, colour=True)
    screen.live(screen.style("x" * 50, "green"))
    assert stream.getvalue() == "\r\x1b[K" + "     " + "x" * 14


def test_a_log_line_is_wrapped_to_the_terminals_width() -> None:
    screen, stream = make_screen(width=50)
    screen.log("gateway", "word " * 20)
    lines = stream.getvalue().splitlines()
    assert len(lines) > 1
    assert all(line.startswith("     gateway   │ word") for line in lines)
    assert all(len(line) < 50 for line in lines)


def test_an_encoding_without_the_symbols_gets_ascii_ones() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    screen = Screen(stream, live=False, colour=False, width=80)
    screen.success("… ●×♥ ──▶ é")
    assert raw.getvalue() == b"     + ... ox* --> ?\n"


@pytest.mark.parametrize(
    ("environment", "live", "coloured"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True, True),  # empty means unset: no-color.org
        ({"TERM": "dumb"}, False, False),
        ({}, False, False),
    ],
)
def test_terminal_and_environment_choose_the_screen(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], live: bool, coloured: bool
) -> None:
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    screen = Screen.on_stdout()
    assert (screen.style("x", "red") != "x") is coloured
    screen.live("x")
    assert (stream.getvalue() != "") is live


def test_the_picture_stays_in_shape_with_the_longest_numbers() -> None:
    screen, stream = make_screen(live=False)
    tally = Tally(latencies=[0.001])
    show_summary(screen, tally, "127.0.0.1:65535", 4_194_304, 4_194_304)
    boxes = [line for line in stream.getvalue().splitlines() if line.endswith(("┐", "│", "┘"))]
    assert len(boxes) == 5
    assert len({len(line) for line in boxes}) == 1
    assert max(map(len, boxes)) < 80
