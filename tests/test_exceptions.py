from __future__ import annotations

import copy
import pickle

import pytest

import revconn
from revconn import exceptions
from revconn.core.status import StatusCode
from revconn.exceptions import (
    AuthenticationError,
    CallError,
    ConfigurationError,
    ConnectionLost,
    HandshakeError,
    MessageTooLarge,
    Overloaded,
    ProtocolError,
    RequestError,
    RevconnError,
)

ERRORS = [name for name in exceptions.__all__ if isinstance(getattr(exceptions, name), type)]


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_derives_from_revconn_error_and_is_public(name: str) -> None:
    error = getattr(exceptions, name)
    assert issubclass(error, RevconnError)
    assert getattr(revconn, name) is error


def test_a_refused_key_is_a_handshake_error_which_is_a_lost_connection() -> None:
    assert issubclass(AuthenticationError, HandshakeError)
    assert issubclass(HandshakeError, ConnectionLost)


def test_a_configuration_error_names_argument_problem_value_and_remedy() -> None:
    error = ConfigurationError("connect_timeout", -1, "not a duration", "give seconds")
    assert str(error) == "connect_timeout: not a duration (got -1); give seconds"
    assert (error.name, error.value) == ("connect_timeout", -1)
    assert (error.problem, error.remedy) == ("not a duration", "give seconds")
    assert isinstance(error, ValueError)


def test_a_configuration_error_does_not_repeat_an_endless_value() -> None:
    error = ConfigurationError("targets", "x" * 100_000, "not host:port", "write host:port")
    assert len(str(error)) < 300


def test_a_lost_connection_says_where_and_why() -> None:
    error = ConnectionLost("gateway:443", "reset", StatusCode.UNAVAILABLE)
    assert str(error) == "gateway:443: reset"
    assert (error.target, error.reason, error.code) == ("gateway:443", "reset", 14)


def test_a_protocol_error_says_what_was_received() -> None:
    assert str(ProtocolError("no id")) == "no id"
    assert str(ProtocolError("garbage", "3 bytes")) == "garbage (received 3 bytes)"


def test_sizes_and_limits_are_attributes_and_readable() -> None:
    too_large = MessageTooLarge(5_000_000, 4_194_304)
    assert (
        str(too_large) == "message of 5,000,000 bytes is larger than the limit of 4,194,304 bytes"
    )
    assert (too_large.size, too_large.limit) == (5_000_000, 4_194_304)
    assert str(Overloaded(1000)) == "1,000 requests are in flight, which is the limit"


def test_a_call_error_has_a_grpc_code_of_its_own_or_of_its_status() -> None:
    assert CallError(404, "gone").code is StatusCode.NOT_FOUND
    assert CallError(404, "gone", StatusCode.UNIMPLEMENTED).code is StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("given", "status", "code"),
    [
        (404, 404, StatusCode.NOT_FOUND),
        (418, 418, StatusCode.UNKNOWN),
        (599, 599, StatusCode.UNKNOWN),
        (StatusCode.NOT_FOUND, 404, StatusCode.NOT_FOUND),
        (12, 501, StatusCode.UNIMPLEMENTED),
        (StatusCode.DATA_LOSS, 500, StatusCode.DATA_LOSS),
    ],
)
def test_a_request_error_takes_either_kind_of_status_and_knows_both(
    given: int, status: int, code: StatusCode
) -> None:
    error = RequestError(given, "why")
    assert (error.status, error.code, error.message) == (status, code, "why")
    assert str(error) == f"{int(given)}: why"


@pytest.mark.parametrize("status", [0, StatusCode.OK, 17, 200, 302, 399, 600, -1])
def test_a_request_error_refuses_a_status_that_is_no_failure(status: int) -> None:
    with pytest.raises(ValueError, match="is not a failure"):
        RequestError(status)


@pytest.mark.parametrize("status", ["404", None, (5, "not found")])
def test_a_request_error_refuses_a_status_that_is_no_number(status: object) -> None:
    with pytest.raises(TypeError, match="is no number; use an HTTP status or a revconn.StatusCode"):
        RequestError(status)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error",
    [
        RevconnError("stopped"),
        ProtocolError("garbage", "3 bytes"),
        ConfigurationError("connect_timeout", -1, "not a duration", "give seconds"),
        ConnectionLost("gateway:443", "reset", StatusCode.UNAVAILABLE),
        HandshakeError("gateway:443", "no answer"),
        AuthenticationError("gateway:443", "Invalid token"),
        RequestError(404, "none"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("copied", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_an_error_of_another_process_is_the_same_here(error: RevconnError, copied) -> None:
    same = copied(error)
    assert type(same) is type(error)
    assert str(same) == str(error)
    assert vars(same) == vars(error)
