"""What the documentation shows, for tests that run it: the files and commands of a page."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tests.docs.markdown import read_blocks

__all__ = ["Recipe"]

_DOCS = Path(__file__).resolve().parents[2] / "docs"
_FILE_NAME = re.compile(r"# (?P<name>[\w./]+\.py)\n")
_PORT = re.compile(r"\b8000\b")
_STARTS = re.compile(r"^(?:connector\.start\(|with connector:)", re.MULTILINE)


class Recipe:
    """A page, with a target and a key for the tests'."""

    def __init__(self, page: str, *, target: str, api_key: str) -> None:
        self._blocks = read_blocks(_DOCS / page)
        self._settings = {"127.0.0.1:50051": target, "demo-key": api_key}

    def write(self, name: str, directory: Path, handlers: str = "", *, number: int = 0) -> None:
        """Put a file of that name where it is needed; of several on the page the one numbered."""
        text = self._real(self._texts(name)[number])
        starts = _STARTS.search(text)
        at = starts.start() if starts else len(text)
        directory.joinpath(name).write_text(f"{text[:at]}{handlers}{text[at:]}")

    def command(self, program: str) -> list[str]:
        """The first command shown that runs ``program``, listening at any free port."""
        for block in self._blocks:
            if block.language == "console":
                for line in block.text.splitlines():
                    if line.startswith(f"$ {program} "):
                        words = shlex.split(line[2:], comments=True)
                        return [_PORT.sub("0", word) for word in words]
        raise LookupError(f"no command {program!r}")

    def cells(self, text: str) -> list[str]:
        """The blocks of Python that are no files and contain ``text``."""
        shown = [block.text for block in self._blocks if block.language == "python"]
        return [self._real(each) for each in shown if text in each and not _FILE_NAME.match(each)]

    def _real(self, text: str) -> str:
        for shown, real in self._settings.items():
            text = text.replace(shown, real)
        return text

    def _texts(self, name: str) -> list[str]:
        named = [(_FILE_NAME.match(block.text), block.text) for block in self._blocks]
        texts = [text for matched, text in named if matched and matched["name"] == name]
        if not texts:
            raise LookupError(f"no file {name!r}")
        return texts
