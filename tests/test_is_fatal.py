from __future__ import annotations

import pytest

from revconn import is_fatal
from revconn.core.status import StatusCode
from revconn.exceptions import AuthenticationError, ConnectionLost, HandshakeError, remedy

FATAL = {
    StatusCode.UNAUTHENTICATED,
    StatusCode.PERMISSION_DENIED,
    StatusCode.INVALID_ARGUMENT,
    StatusCode.UNIMPLEMENTED,
}


@pytest.mark.parametrize("code", [*StatusCode, None])
def test_a_handshake_is_given_up_only_for_what_another_attempt_cannot_change(
    code: StatusCode | None,
) -> None:
    assert is_fatal(HandshakeError("gateway:443", "refused", code)) == (code in FATAL)


@pytest.mark.parametrize("code", [*StatusCode, None])
def test_no_code_is_fatal_to_a_connection_that_worked(code: StatusCode | None) -> None:
    assert not is_fatal(ConnectionLost("gateway:443", "lost", code))


def test_a_refused_key_is_fatal() -> None:
    assert is_fatal(AuthenticationError("gateway:443", "no", StatusCode.UNAUTHENTICATED))


def test_another_exception_is_not_judged_fatal() -> None:
    assert not is_fatal(OSError("no route"))


@pytest.mark.parametrize("code", [*StatusCode, None])
def test_exactly_the_fatal_codes_have_a_remedy(code: StatusCode | None) -> None:
    assert (remedy(code) is not None) == (code in FATAL)
