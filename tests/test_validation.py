from __future__ import annotations

import math
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn.exceptions import ConfigurationError
from revconn.settings.checks import (
    require_api_key,
    require_count,
    require_number,
    require_seconds,
    require_service_name,
)
from tests.support.texts import texts

NO_NUMBERS = [None, "5", "", b"5", True, math.nan, math.inf, -math.inf, [5], 1j, 10**400]


@given(st.floats(min_value=1e-9, max_value=2_000_000) | st.integers(1, 2_000_000))
def test_seconds_come_back_as_a_float(seconds: float) -> None:
    checked = require_seconds("connect_timeout", seconds)
    assert isinstance(checked, float)
    assert checked == seconds


@pytest.mark.parametrize("value", [*NO_NUMBERS, 0, 0.0, -1, -1e-9, 2_000_001, 1e300], ids=repr)
def test_what_is_no_duration_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        require_seconds("connect_timeout", value)
    assert caught.value.name == "connect_timeout"
    assert "connect_timeout: not a duration" in str(caught.value)
    assert "give seconds as a number, more than 0 and at most 2,000,000" in str(caught.value)
    assert value is None or f"(got {value!r:.200})" in str(caught.value)


def test_zero_seconds_are_allowed_only_where_they_make_sense() -> None:
    assert require_seconds("timeout", 0, zero=True) == 0.0
    with pytest.raises(ConfigurationError, match="0 or more"):
        require_seconds("timeout", -1, zero=True)


@pytest.mark.parametrize("value", [*NO_NUMBERS, 0.99, 10.01], ids=repr)
def test_a_number_out_of_its_bounds_is_refused(value: object) -> None:
    assert require_number("multiplier", 1, at_least=1, at_most=10) == 1.0
    assert require_number("multiplier", 10, at_least=1, at_most=10) == 10.0
    with pytest.raises(ConfigurationError, match="multiplier: .* give a number from 1 to 10"):
        require_number("multiplier", value, at_least=1, at_most=10)


@pytest.mark.parametrize("value", [None, "1", True, 1.0, 0, -1], ids=repr)
def test_what_is_no_count_is_refused(value: object) -> None:
    assert require_count("max_workers", 1) == 1
    with pytest.raises(ConfigurationError, match="max_workers: not a count") as caught:
        require_count("max_workers", value)
    assert caught.value.remedy == "give a whole number, 1 or more"


@pytest.mark.parametrize("name", ["Echo", "echo.Echo", "a.b_c.D1", "_private.Service"])
def test_a_service_name_is_dotted_identifiers(name: str) -> None:
    assert require_service_name("services", name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "echo.", ".Echo", "echo..Echo", "/echo.Echo", "echo/Echo", "1echo", "echo-2.Echo",
     "echo.Echo\n", "écho.Echo", "echo Echo", None, 5, b"echo.Echo"],
    ids=repr,
)  # fmt: skip
def test_what_is_no_service_name_is_refused(name: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        require_service_name("services", name)
    assert caught.value.name == "services"
    assert caught.value.value is name
    assert "write package.Service" in caught.value.remedy


# Keys


@pytest.mark.parametrize(
    "key", ["k", "correct horse battery staple", " padded ", "schlüssel", "🔑"]
)
def test_a_printable_key_is_used_as_it_is(key: str) -> None:
    assert require_api_key(key) == key


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("", "is empty"),
        ("  \n", "is empty"),
        ("SECRET\n", "holds a line break"),
        ("SECRET\r\n", "holds a line break"),
        ("SEC\nRET", "holds a line break"),
        ("SECRET\x00", "cannot be printed"),
        ("\ufeffSECRET", "cannot be printed"),
        ("SECRET\udcff", "cannot be printed"),
        (b"SECRET", "is bytes, not text"),
        (["SECRET"], "is list, not text"),
        (None, "is NoneType, not text"),
    ],
    ids=repr,
)
def test_a_key_that_cannot_be_sent_is_refused_and_never_shown(key: object, problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        require_api_key(key)
    error = caught.value
    assert problem in str(error)
    assert error.name == "api_key"
    assert error.remedy
    told = [
        str(error),
        repr(error),
        repr(vars(error)),
        *traceback.format_exception_only(type(error), error),
    ]
    assert not any("SECRET" in text for text in told)


@given(texts())
def test_every_key_that_is_accepted_can_be_encoded(key: str) -> None:
    try:
        require_api_key(key)
    except ConfigurationError:
        return
    assert key.encode().decode() == key
