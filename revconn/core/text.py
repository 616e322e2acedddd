"""A peer's words, made fit for a log."""

from __future__ import annotations

__all__ = ["presentable"]

_LONGEST_DETAILS = 1000


def presentable(text: str) -> str:
    """``text`` as part of one line: shortened, control characters replaced by spaces."""
    text = text[:_LONGEST_DETAILS]
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)
