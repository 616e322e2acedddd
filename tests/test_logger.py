"""A log call of ours costs at most its line, whatever is attached to logging."""

from __future__ import annotations

import ast
import logging
import pathlib
import sys
import threading
from collections.abc import Iterator
from typing import Any, Callable

import pytest

import revconn
from revconn.logger import get_logger

NAME = "revconn.test_logger"
RAISED = [RuntimeError("outside of request context"), SystemExit(1), GeneratorExit()]


@pytest.fixture
def standard() -> Iterator[logging.Logger]:
    """The standard logger beneath, and its state put back."""
    logger = logging.getLogger(NAME)
    factory = logging.getLogRecordFactory()
    yield logger
    logging.setLogRecordFactory(factory)
    logger.filters.clear()
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)


def fails(error: BaseException) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fail


def filtered(logger: logging.Logger, error: BaseException) -> None:
    logger.addFilter(fails(error))


def handled(logger: logging.Logger, error: BaseException) -> None:
    handler = logging.Handler()
    handler.emit = fails(error)  # type: ignore[method-assign]
    logger.addHandler(handler)


def made(logger: logging.Logger, error: BaseException) -> None:
    logging.setLogRecordFactory(fails(error))


@pytest.mark.parametrize("attach", [filtered, handled, made])
@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_what_is_attached_to_logging_raises_into_no_call(
    standard: logging.Logger,
    attach: Callable[[logging.Logger, BaseException], None],
    error: BaseException,
    capsys: pytest.CaptureFixture[str],
) -> None:
    standard.setLevel(logging.DEBUG)
    attach(standard, error)
    logger = get_logger(NAME)
    calls: list[Callable[[], None]] = [
        lambda: logger.debug("%d", 1),
        lambda: logger.info("%d", 2),
        lambda: logger.warning("%d", 3),
        lambda: logger.error("%d", 4),
        lambda: logger.exception("%d", 5),
        lambda: logger.log(logging.INFO, "%d", 6),
        lambda: logger.warning_with_stack("Stack", "%d", 7),
    ]
    for call in calls:
        call()
    told = capsys.readouterr().err.splitlines()
    assert len(told) == len(calls)
    assert all(line.startswith(f"{NAME}: lost a log line: {type(error).__name__}") for line in told)
    assert all(__file__ in line for line in told)


def test_a_lost_line_is_not_told_of_where_logging_tells_of_nothing(
    standard: logging.Logger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    filtered(standard, RuntimeError())
    monkeypatch.setattr(logging, "raiseExceptions", False)
    get_logger(NAME).error("lost")
    assert capsys.readouterr().err == ""


def test_a_process_without_stderr_loses_its_lines_too(
    standard: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    filtered(standard, RuntimeError())
    monkeypatch.setattr(sys, "stderr", None)
    get_logger(NAME).error("lost")


def test_ctrl_c_in_the_main_thread_is_not_swallowed(
    standard: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    filtered(standard, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        get_logger(NAME).error("interrupted")
    standard.filters.clear()
    filtered(standard, RuntimeError())

    class Interrupted:
        write = fails(KeyboardInterrupt())

    monkeypatch.setattr(sys, "stderr", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        get_logger(NAME).error("interrupted while telling of it")


def test_a_keyboard_interrupt_elsewhere_is_swallowed(standard: logging.Logger) -> None:
    filtered(standard, KeyboardInterrupt())
    survived = threading.Event()

    def log() -> None:
        get_logger(NAME).error("no interrupt")
        survived.set()

    thread = threading.Thread(target=log)
    thread.start()
    thread.join()
    assert survived.is_set()


def test_a_logger_class_that_raises_enables_nothing(
    standard: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standard, "isEnabledFor", fails(RuntimeError()))
    assert get_logger(NAME).isEnabledFor(logging.ERROR) is False


def test_a_record_names_the_caller_and_has_what_it_was_given(
    standard: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    standard.setLevel(logging.DEBUG)
    logger = get_logger(NAME)
    logger.debug("a")
    logger.info("b %s", 1, extra={"connection_id": "c-1"})
    logger.warning("c")
    logger.error("d")
    logger.log(logging.WARNING, "e")
    logger.warning_with_stack("Stack of another", "f %s", 2)
    try:
        int("the cause")
    except ValueError:
        logger.exception("g")
    assert {(r.pathname, r.funcName, r.name) for r in caplog.records} == {
        (__file__, "test_a_record_names_the_caller_and_has_what_it_was_given", NAME)
    }
    levels = [(r.getMessage(), r.levelname) for r in caplog.records]
    expected = "a DEBUG, b 1 INFO, c WARNING, d ERROR, e WARNING, f 2 WARNING, g ERROR"
    assert ", ".join(f"{m} {level}" for m, level in levels) == expected
    assert vars(caplog.records[1])["connection_id"] == "c-1"
    assert caplog.records[5].stack_info == "Stack of another"
    assert "the cause" in str(caplog.records[6].exc_info)


def test_a_disabled_level_costs_no_record(standard: logging.Logger) -> None:
    standard.setLevel(logging.ERROR)
    logging.setLogRecordFactory(fails(AssertionError("a record was made")))
    logger = get_logger(NAME)
    assert not logger.isEnabledFor(logging.WARNING)
    logger.warning("nothing")
    logger.warning_with_stack(None, "nothing")


def test_no_module_has_a_logger_that_raises() -> None:
    root = pathlib.Path(revconn.__file__).parent
    direct = [
        f"{path.relative_to(root)}:{node.lineno}"
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("logging.getLogger", "getLogger")
    ]
    assert {place.partition(":")[0] for place in direct} == {"logger.py"}


# What applications have in their logging's configuration. A line's logger stays, whatever file the
# line moves to.
_NAMES = {
    "revconn.cli.fleet",
    "revconn.cli.gateway",
    "revconn.cli.loading",
    "revconn.cli.serve",
    "revconn.connector",
    "revconn.core.connection",
    "revconn.core.connector_side",
    "revconn.core.gateway_side",
    "revconn.environment",
    "revconn.gateway.arrivals",
    "revconn.gateway.connectors",
    "revconn.gateway.dialling",
    "revconn.gateway.journal",
    "revconn.gateway.proxy",
    "revconn.gateway.server",
    "revconn.gateway.serving",
    "revconn.gateway.thread",
    "revconn.gateway.tls",
    "revconn.guard",
    "revconn.link.session",
    "revconn.observing.watchdog",
    "revconn.runtime.claims",
    "revconn.runtime.link",
    "revconn.runtime.signals",
    "revconn.runtime.supervisor",
    "revconn.serving.calls",
    "revconn.serving.handlers",
    "revconn.serving.inline",
    "revconn.serving.replies",
    "revconn.serving.workers",
    "revconn.transport.grpcio",
    "revconn.transport.http2",
    "revconn.validation",
}


def test_loggers_keep_their_names() -> None:
    assert _names() >= _NAMES


def _names() -> set[str]:
    """What ``get_logger`` is called with anywhere."""
    root = pathlib.Path(revconn.__file__).parent.parent
    names: set[str] = set()
    for path in root.glob("revconn/**/*.py"):
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "get_logger":
                name = ast.unparse(node.args[0])
                names.add(module if name == "__name__" else name.strip("'"))
    return names
