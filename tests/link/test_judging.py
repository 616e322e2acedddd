"""Which failures are worth another attempt, after how long, and how long that one may take."""

from __future__ import annotations

import logging
from typing import Any, Callable

import pytest

from revconn import Backoff
from revconn.exceptions import AuthenticationError, ConnectionLost, HandshakeError
from revconn.link.link import Judging, attempt_timeout
from tests.support.options import make_options

LOST = ConnectionLost("gw:1", "it broke")


@pytest.fixture
def judge() -> Callable[..., float | None]:
    """``judge(error, failures, **options)``: seconds to wait; ``None``: give up."""

    def judge(error: BaseException | None, failures: int = 1, **options: Any) -> float | None:
        return Judging(make_options(**options)).delay(error, failures)

    return judge


def test_after_max_attempts_in_a_row_there_is_no_other(judge) -> None:
    backoff = Backoff(max_attempts=3)
    assert judge(LOST, 2, backoff=backoff) is not None
    assert judge(LOST, 3, backoff=backoff) is None


def test_without_max_attempts_there_always_is(judge) -> None:
    assert judge(LOST, 1000) is not None


def test_what_is_no_failure_is_only_waited_for(judge) -> None:
    assert judge(None, 3, backoff=Backoff(max_attempts=3), is_fatal=lambda error: True) is not None


def test_waits_grow_with_the_row_and_are_drawn_anew(judge) -> None:
    backoff = Backoff(initial=1.0, maximum=64.0, multiplier=4.0)
    longest = [max(judge(LOST, n, backoff=backoff) for _ in range(200)) for n in range(1, 6)]
    assert longest == pytest.approx([1, 4, 16, 64, 64], rel=0.2)


@pytest.mark.parametrize(
    ("error", "passes"),
    [(LOST, True), (HandshakeError("gw:1", "late"), True), (OSError("disk"), False)],
)
def test_only_failures_of_a_connection_pass(judge, error: Exception, passes: bool) -> None:
    assert (judge(error) is not None) is passes


def test_what_is_fatal_is_for_the_user_to_say(judge) -> None:
    def is_fatal(error: Exception) -> bool:
        return isinstance(error, AuthenticationError)

    assert judge(LOST, is_fatal=is_fatal) is not None
    assert judge(AuthenticationError("gw:1", "refused"), is_fatal=is_fatal) is None


@pytest.mark.parametrize("failure", [KeyError, GeneratorExit])
def test_a_failure_is_worth_another_attempt_if_is_fatal_fails(judge, failure, caplog) -> None:
    def is_fatal(error: Exception) -> bool:
        raise failure("unforeseen")

    assert judge(LOST, is_fatal=is_fatal) is not None
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("revconn.runtime.link", logging.ERROR)
    assert record.getMessage() == "is_fatal failed; gw:1: it broke is taken for retryable"
    assert record.exc_info[0] is failure


def test_an_is_fatal_that_wants_to_exit_may(judge) -> None:
    def is_fatal(error: Exception) -> bool:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        judge(LOST, is_fatal=is_fatal)


# How long the next one may take


@pytest.mark.parametrize(
    ("failures", "addresses", "seconds"),
    [
        (0, 0, 20.0),
        (9, 1, 20.0),
        (0, 2, 5.0),
        (1, 2, 5.0),
        (2, 2, 10.0),
        (3, 2, 10.0),
        (4, 2, 20.0),
        (10**9, 2, 20.0),
        (4, 5, 5.0),
    ],
)
def test_with_others_to_try_an_attempt_is_shorter_at_first(failures, addresses, seconds) -> None:
    assert attempt_timeout(20.0, failures, addresses) == seconds


def test_it_is_never_longer_than_it_may_be() -> None:
    assert attempt_timeout(2.0, 0, addresses=2) == 2.0
