"""A user's connector by its name: what is found, and what is said when it is not."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from revconn import Connector
from revconn.cli.loading import CannotLoad, load_connector

APP = """\
from revconn import Connector

connector = Connector("localhost:1", api_key="key")

def make():
    return connector

class settings:
    connector = connector
"""


@pytest.fixture(autouse=True)
def directory(here: Path) -> Path:
    """The current directory, with a module ``app``."""
    (here / "app.py").write_text(APP)
    return here


def assert_refused(spec: str, *parts: str) -> None:
    """In one line that contains ``parts``."""
    with pytest.raises(CannotLoad) as caught:
        load_connector(spec)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("spec", ["app:connector", "app:make", "app:settings.connector"])
def test_a_connector_is_found_by_name_by_factory_and_inside_another_object(spec: str) -> None:
    assert isinstance(load_connector(spec), Connector)


def test_a_module_inside_a_package_is_found(directory: Path) -> None:
    (directory / "shop").mkdir()
    (directory / "shop" / "backend.py").write_text(APP)
    assert isinstance(load_connector("shop.backend:connector"), Connector)


@pytest.mark.parametrize(
    "spec", ["app", "app:", ":connector", "app/app.py:connector", "app:make()"]
)
def test_a_spec_that_is_none_is_refused(spec: str) -> None:
    assert_refused(spec, repr(spec), "write package.module:connector")


@pytest.mark.parametrize("module", ["nowhere", "nowhere.deeper", "app.deeper"])
def test_a_module_that_is_not_there_is_named(module: str, directory: Path) -> None:
    assert_refused(f"{module}:connector", "No module named", f"looked in {directory}")


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("x = 1\nimport nowhere\n", ("No module named 'nowhere'", "(broken.py, line 2)")),
        ("from app import nothing\n", ("ImportError: cannot import name 'nothing'",)),
        ("x = 1\nraise ValueError('no\\nway')\n", ("ValueError: no way (broken.py, line 2)",)),
        ("def f(:\n", ("SyntaxError", "broken.py, line 1")),
        ("raise SystemExit(0)\n", ("SystemExit", "(broken.py, line 1)")),
        (
            "from revconn import Connector\n\nc = Connector('http://x:1', api_key='k')\n",
            ("targets: ", "'http://x:1'", "(broken.py, line 3)"),
        ),
    ],
)
def test_an_error_inside_the_module_is_told_with_its_line(
    directory: Path, source: str, parts: tuple[str, ...]
) -> None:
    (directory / "broken.py").write_text(source)
    assert_refused("broken:connector", "cannot import broken: ", *parts)


def test_the_traceback_of_an_error_inside_the_module_is_logged_at_debug(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (directory / "broken.py").write_text("import nowhere\n")
    with caplog.at_level(logging.DEBUG, "revconn.cli"):
        assert_refused("broken:connector")
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert record.exc_info is not None


@pytest.mark.parametrize(
    ("variable", "value"), [("TARGET", "h:1,h:1"), ("TRANSPORT", "pigeon"), ("TLS_CERT", __file__)]
)
def test_an_option_of_the_environment_is_blamed_on_the_line_that_reads_it(
    directory: Path, variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {"TARGET": "h:1", "API_KEY": "key", variable: value}.items():
        monkeypatch.setenv(f"REVCONN_{name}", text)
    (directory / "broken.py").write_text(
        "from revconn import Connector\n\nconnector = Connector.from_env()\n"
    )
    assert_refused("broken:connector", "REVCONN_T", "(broken.py, line 3)")


def test_a_missing_attribute_is_named_with_the_connectors_that_are_there() -> None:
    assert_refused("app:conector", "app has no conector; it has the connector connector")
    assert_refused("app:settings.nothing", "app has no settings.nothing")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("thing = {}", "app2:thing is of type dict, neither a Connector nor a function"),
        ("thing = None", "app2:thing is None, neither a Connector nor a function"),
        ("def thing(): return None", "what app2:thing() returned is None, not a Connector"),
        ("def thing(): return 'x'", "what app2:thing() returned is of type str, not a Connector"),
        ("def thing(x): pass", "app2:thing() failed: TypeError: thing() missing 1 required"),
        ("def thing(): 1 / 0", "app2:thing() failed: ZeroDivisionError: division by zero (app2.py"),
        (
            "import revconn\ndef thing(): return revconn.Connector('h:1', api_key='')",
            "app2:thing() failed: api_key: is empty",
        ),
    ],
)
def test_what_is_no_connector_is_described(directory: Path, source: str, told: str) -> None:
    (directory / "app2.py").write_text(source + "\n")
    assert_refused("app2:thing", told)
