"""What tests of the commands get."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, an empty one; what is imported there is forgotten again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if any(place.startswith(str(tmp_path)) for place in places_of(sys.modules[name])):
            del sys.modules[name]


def places_of(module: ModuleType) -> list[str]:
    """Where it came from; a directory without ``__init__.py`` has no file."""
    return [getattr(module, "__file__", None) or "", *getattr(module, "__path__", ())]
