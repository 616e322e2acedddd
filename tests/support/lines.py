"""A line whose handshake is done."""

from __future__ import annotations

from typing import Any

from revconn.serving.line import Line

__all__ = ["let_answers_through"]


def let_answers_through(line: Line, *args: Any, **options: Any) -> None:
    """As the link does when its session is ready."""
    with line._replies.lock:
        line.let_answers_through(*args, **options)
    line._replies.log_refused()
