from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn._proto.registry_pb2 import ForwardRequest
from revconn.core.deadline import (
    format_grpc_timeout,
    parse_grpc_timeout,
    request_deadline,
    shorten_timeouts,
)
from tests.support.texts import texts

NOW = 1000.0
UNIT_SECONDS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
HOUR = 3600.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("1H", 3600.0),
        ("2M", 120.0),
        ("30S", 30.0),
        ("5010m", 5.01),
        ("250u", 0.00025),
        ("99999999n", 0.099999999),
        ("0S", 0.0),
    ],
)
def test_every_unit_of_grpc_timeout_is_read(header: str, seconds: float) -> None:
    assert parse_grpc_timeout(header) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "header", ["", "S", "5", "5 S", "5s", "-5S", "+5S", "1.5S", "123456789m", "٥S", "²S", "5S "]
)
def test_what_is_no_grpc_timeout_is_refused_and_named(header: str) -> None:
    with pytest.raises(ValueError, match="not a grpc-timeout"):
        parse_grpc_timeout(header)


def test_a_refused_header_is_not_repeated_at_full_length() -> None:
    with pytest.raises(ValueError, match="not a grpc-timeout") as caught:
        parse_grpc_timeout("x" * 100_000)
    assert len(str(caught.value)) < 100


@given(st.floats(min_value=0, max_value=99_999_999 * HOUR))
def test_a_written_timeout_is_read_back_within_one_unit(seconds: float) -> None:
    header = format_grpc_timeout(seconds)
    assert len(header) <= 9
    assert parse_grpc_timeout(header) == pytest.approx(
        seconds, rel=1e-12, abs=UNIT_SECONDS[header[-1]]
    )


@given(st.floats(min_value=1e-3, max_value=HOUR))
def test_a_written_timeout_keeps_the_deadline_to_a_thousandth(seconds: float) -> None:
    assert parse_grpc_timeout(format_grpc_timeout(seconds)) == pytest.approx(seconds, rel=1e-3)


@pytest.mark.parametrize(
    ("seconds", "header"),
    [
        (-1.0, "0n"),
        (0.0, "0n"),
        (0.05, "50000000n"),
        (5.5, "5500000u"),
        (30.0, "30000000u"),
        (1000.0, "1000000m"),
        (200_000.0, "200000S"),
        (1e8, "1666666M"),
        (1e15, "99999999H"),
    ],
)
def test_a_timeout_is_written_in_the_finest_unit_that_fits(seconds: float, header: str) -> None:
    assert format_grpc_timeout(seconds) == header


def test_the_deadline_is_the_nearer_of_the_gateways_and_the_callers() -> None:
    assert request_deadline(30, {"grpc-timeout": "5010m"}, NOW) == pytest.approx(NOW + 5.01)
    assert request_deadline(30, {"grpc-timeout": "1H"}, NOW) == NOW + 30


def test_either_limit_alone_is_the_deadline() -> None:
    assert request_deadline(30, {}, NOW) == NOW + 30
    assert request_deadline(0, {"grpc-timeout": "2S"}, NOW) == NOW + 2


@pytest.mark.parametrize("timeout_seconds", [0, -1, -(2**31)])
def test_no_limit_means_no_deadline(timeout_seconds: int) -> None:
    assert request_deadline(timeout_seconds, {}, NOW) is None


def test_a_malformed_grpc_timeout_is_taken_as_absent() -> None:
    assert request_deadline(30, {"grpc-timeout": "soon"}, NOW) == NOW + 30
    assert request_deadline(0, {"grpc-timeout": "soon"}, NOW) is None


@given(st.integers(-(2**31), 2**31 - 1), texts())
def test_no_header_whatever_it_holds_makes_a_deadline_fail(timeout: int, header: str) -> None:
    deadline = request_deadline(timeout, {"grpc-timeout": header}, NOW)
    assert deadline is None or (math.isfinite(deadline) and deadline >= NOW)


@pytest.mark.parametrize(
    ("seconds", "header", "kept", "kept_header"),
    [
        (30, "5S", 29, "3500000u"),
        (1, "1S", 1, "0n"),
        (0, None, 0, None),
        (30, "soon", 29, "soon"),
    ],
)
def test_time_that_has_passed_is_taken_from_a_requests_timeouts(
    seconds: int, header: str | None, kept: int, kept_header: str | None
) -> None:
    headers = {} if header is None else {"grpc-timeout": header}
    request = ForwardRequest(timeout_seconds=seconds, headers=headers)
    shorten_timeouts(request, 1.5)
    assert request.timeout_seconds == kept
    assert dict(request.headers).get("grpc-timeout") == kept_header
