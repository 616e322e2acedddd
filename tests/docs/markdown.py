"""The fenced blocks of a page, and what is to become of each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

RUN = ("python", "pycon", "console", "log")
PICTURES = ("text",)
OPAQUE_DIRECTIVES = ("{eval-rst}", "{toctree}")

_NOT_RUN = re.compile(r"<!-- not run: (?P<reason>.+?) -->\s*")


@dataclass(frozen=True)
class Block:
    """A fenced block; ``line`` is its first one's number, ``not_run`` why it stays unexecuted."""

    language: str
    text: str
    line: int
    not_run: str | None = None


class BadPage(Exception):
    """A page holds something that would silently not be executed."""


def read_blocks(page: Path) -> list[Block]:
    """All blocks of a page, in order. Raises :class:`BadPage`."""
    try:
        return list(_blocks(page.read_text(encoding="utf-8"), 0))
    except BadPage as error:
        raise BadPage(f"{page.name}, {error}") from None


def _blocks(text: str, offset: int) -> Iterator[Block]:
    reason = None
    for token in MarkdownIt("commonmark").parse(text):
        line = offset + token.map[0] + 2 if token.map else 0
        if token.type == "code_block":
            raise BadPage(f"line {line - 1}: an indented block of code; fence it")
        if token.type == "fence" and token.info in OPAQUE_DIRECTIVES:
            pass
        elif token.type == "fence" and token.info.startswith("{"):
            yield from _blocks(token.content, line - 1)
        elif token.type == "fence":
            yield _block(token.info, token.content, line, reason)
        if token.type != "html_block":
            reason = None
        elif matched := _NOT_RUN.fullmatch(token.content):
            reason = matched["reason"]


def _block(language: str, text: str, line: int, not_run: str | None) -> Block:
    if language not in RUN + PICTURES and not_run is None:
        raise BadPage(
            f"line {line - 1}: nobody executes {language or 'a block without a language'};"
            " say why in a comment before it: <!-- not run: … -->"
        )
    return Block(language, text, line, not_run)
