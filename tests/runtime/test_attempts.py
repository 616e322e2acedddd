"""Which failures are worth another attempt, and how many."""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace
from typing import Callable

import pytest

from revconn import Backoff
from revconn.exceptions import AuthenticationError, ConnectionLost, HandshakeError
from revconn.runtime.attempts import Attempts
from revconn.runtime.failures import is_fatal

LOST = ConnectionLost("gw:1", "it broke")


def attempts(is_fatal: Callable[[Exception], bool] = is_fatal, **backoff: float) -> Attempts:
    return Attempts(SimpleNamespace(backoff=Backoff(**backoff), is_fatal=is_fatal))


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    return 1000.0


def test_a_row_of_failures_is_exhausted_after_max_attempts() -> None:
    row = attempts(max_attempts=2)
    row.failed(None)
    assert not row.exhausted
    assert not row.repeated
    row.failed(None)
    assert row.exhausted
    assert row.repeated


def test_without_max_attempts_it_never_is() -> None:
    row = attempts()
    for _ in range(1000):
        row.failed(None)
    assert not row.exhausted


def test_waits_grow_with_the_row() -> None:
    row = attempts(initial=1.0, maximum=64.0, multiplier=4.0)
    longest = []
    for _ in range(5):
        row.failed(None)
        longest.append(max(row.delay() for _ in range(1000)))
    assert longest == pytest.approx([1, 4, 16, 64, 64], rel=0.1)


@pytest.mark.parametrize(("lasted", "repeated"), [(9.0, True), (10.0, False)])
def test_a_session_that_lasted_begins_another_row(now, lasted: float, repeated: bool) -> None:
    row = attempts(stable_after=10.0)
    row.failed(None)
    assert not row.was_ready
    row.failed(now - lasted)
    assert row.was_ready
    assert row.repeated is repeated


@pytest.mark.parametrize(
    ("error", "is_worth_another"),
    [(LOST, True), (HandshakeError("gw:1", "late"), True), (OSError("disk"), False)],
)
def test_only_failures_of_a_connection_pass(error: Exception, is_worth_another: bool) -> None:
    assert attempts().is_worth_another(error) is is_worth_another


def test_what_is_fatal_is_for_the_user_to_say() -> None:
    row = attempts(lambda error: isinstance(error, AuthenticationError))
    assert row.is_worth_another(LOST)
    assert not row.is_worth_another(AuthenticationError("gw:1", "refused"))


@pytest.mark.parametrize("failure", [KeyError, GeneratorExit])
def test_a_failure_is_worth_another_attempt_if_is_fatal_fails(failure, caplog) -> None:
    def is_fatal(error: Exception) -> bool:
        raise failure("unforeseen")

    assert attempts(is_fatal).is_worth_another(LOST)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("revconn.runtime.link", logging.ERROR)
    assert record.getMessage() == "is_fatal failed; gw:1: it broke is taken for retryable"
    assert record.exc_info[0] is failure
