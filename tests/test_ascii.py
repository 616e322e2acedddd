"""What the library writes itself is ASCII: any terminal, log file and locale can take it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import revconn

PACKAGE = Path(revconn.__file__).parent
DRAWINGS = PACKAGE / "cli" / "demo"  # its screen has plain characters for each


def texts(tree: ast.AST) -> Iterator[ast.Constant]:
    """Every text in the code that is not documentation."""
    documentation = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and id(node) not in documentation:
            yield node


def test_no_text_in_the_code_needs_more_than_ascii() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if DRAWINGS not in path.parents]
    assert files
    assert not [
        f"{path.relative_to(PACKAGE)}:{text.lineno}: {text.value!a}"
        for path in files
        for text in texts(ast.parse(path.read_text(encoding="utf-8")))
        if not text.value.isascii()
    ]


@pytest.mark.parametrize("code", ["raise ValueError('…')", "x = f'{y}…'"])
def test_the_search_finds_texts_and_parts_of_texts(code: str) -> None:
    assert any(not text.value.isascii() for text in texts(ast.parse(f"'''Docs: …'''\n{code}")))
