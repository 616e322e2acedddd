"""Programs and libraries that only some tests need."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from typing import NoReturn

import pytest

__all__ = ["needs", "needs_program", "search_path"]


def needs(distribution: str) -> None:
    """Skip the test without ``distribution``; where EMBEDDING=required, fail it instead."""
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        remedy = "pip install 'revconn[embedding,uwsgi]'"
        _do_without(f"{distribution} is not installed: {remedy}", "EMBEDDING")


def needs_program(program: str, package: str) -> None:
    """Skip the test without ``program``; where FRONT_PROXIES=required, fail it instead."""
    if shutil.which(program, path=search_path()) is None:
        remedy = f"apt-get install {package}"
        _do_without(f"{program} is not installed: {remedy}", "FRONT_PROXIES")


def search_path() -> str:
    """Where programs are looked for: servers are often where only root looks."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])


def _do_without(reason: str, variable: str) -> NoReturn:
    if os.environ.get(variable) == "required":
        pytest.fail(reason)
    pytest.skip(reason)
