"""Code that is changed while it serves: one connector serves, with the new code alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable

import pytest

from tests.embedding.conftest import EmbeddingGateway
from tests.support.apps import TIMEOUT, App
from tests.support.recipes import Recipe
from tests.support.waiting import eventually

StartApp = Callable[..., App]
Recipes = Callable[[str], Recipe]
COUNT = "/orders.Orders/Count"


def assert_a_change_is_served(gateway: EmbeddingGateway, file: Path, old: str, new: str) -> None:
    """By one connector, before and after it."""
    assert gateway.call(COUNT) == old
    (before,) = gateway.serving
    file.write_text(file.read_text().replace(f'b"{old}"', f'b"{new}"'))

    def has_reloaded() -> bool:
        os.utime(file)  # one that has not looked at it before would see no change
        return before not in gateway.serving

    eventually(has_reloaded, TIMEOUT)
    gateway.wait_serving(1)
    assert {gateway.call(COUNT) for _ in range(4)} == {new}
    assert gateway.connections == 1


def test_flask(
    start_app: StartApp, gateway: EmbeddingGateway, recipe: Recipes, tmp_path: Path
) -> None:
    page = recipe("howto/embed.md")
    page.write("app.py", tmp_path)
    app = start_app([*page.command("flask"), "--debug"])
    app.hears("Debugger PIN")  # by now both processes have imported it
    gateway.wait_connections(1, app)
    assert_a_change_is_served(gateway, tmp_path / "app.py", "42", "43")
    app.stop()
    gateway.wait_connections(0, app)


def test_django(
    start_app: StartApp, gateway: EmbeddingGateway, recipe: Recipes, tmp_path: Path
) -> None:
    page = recipe("howto/embed.md")
    for name in ("settings.py", "orders.py", "wsgi.py"):
        page.write(name, tmp_path)
    command = [word for word in page.command("python -m django") if word != "--noreload"]
    app = start_app(command, DJANGO_SETTINGS_MODULE="settings", PYTHONUNBUFFERED="1")
    gateway.wait_connections(1, app)
    assert_a_change_is_served(gateway, tmp_path / "orders.py", "43", "44")
    app.stop()
    gateway.wait_connections(0, app)


def test_a_notebooks_cell_that_is_run_again(
    gateway: EmbeddingGateway, recipe: Recipes, caplog: pytest.LogCaptureFixture
) -> None:
    cell, replacing = recipe("howto/embed.md").cells("/notes.Notes/Answer")
    notebook: dict[str, Any] = {}
    for _ in range(2):
        exec(cell, notebook)
        notebook["connector"].wait_ready(TIMEOUT)
        assert gateway.call("/notes.Notes/Answer") == "41"
        gateway.wait_connections(1)
    exec(replacing, notebook)
    assert gateway.call("/notes.Notes/Answer") == "42"
    notebook["connector"].stop()
    assert "another connector" not in caplog.text
