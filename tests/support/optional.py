"""Programs and libraries that only some tests need."""

from __future__ import annotations

import importlib.metadata
import os

import pytest

__all__ = ["needs"]


def needs(distribution: str) -> None:
    """Skip the test without ``distribution``; where EMBEDDING=required, fail it instead."""
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        reason = f"{distribution} is not installed: pip install 'revconn[embedding,uwsgi]'"
        if os.environ.get("EMBEDDING") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
