"""Whose word a refusal is."""

from __future__ import annotations

import pytest

from revconn.core.status import FINAL_CODES, Speaker, StatusCode
from revconn.http2.grpc import speaker

UNAUTHENTICATED, UNIMPLEMENTED = StatusCode.UNAUTHENTICATED, StatusCode.UNIMPLEMENTED
INVALID_ARGUMENT, PERMISSION_DENIED = StatusCode.INVALID_ARGUMENT, StatusCode.PERMISSION_DENIED
PLAIN = ("content-type", "date", "server")


@pytest.mark.parametrize("code", sorted(FINAL_CODES))
def test_who_announces_itself_is_the_gateway(code: StatusCode) -> None:
    assert speaker(code, "", (*PLAIN, "revconn-features")) is Speaker.GATEWAY


@pytest.mark.parametrize(
    ("code", "words", "opened", "expected"),
    [
        (UNAUTHENTICATED, "Invalid token", False, Speaker.GATEWAY),  # the reference gateway
        (UNAUTHENTICATED, "", True, Speaker.GATEWAY),
        (PERMISSION_DENIED, "", True, Speaker.GATEWAY),
        (UNAUTHENTICATED, "unknown key", False, Speaker.PERHAPS),
        (UNAUTHENTICATED, "Jwt is missing", False, Speaker.PERHAPS),
        (INVALID_ARGUMENT, "First message must be register", False, Speaker.PERHAPS),
        (INVALID_ARGUMENT, "", False, Speaker.PERHAPS),
        (UNAUTHENTICATED, "", False, Speaker.STRANGER),
        (PERMISSION_DENIED, "", False, Speaker.STRANGER),
        (PERMISSION_DENIED, "RBAC: access denied", False, Speaker.STRANGER),
        (UNIMPLEMENTED, "", False, Speaker.STRANGER),
        (UNIMPLEMENTED, "unknown service registry.RegistryService", False, Speaker.STRANGER),
        (UNIMPLEMENTED, "", True, Speaker.STRANGER),
    ],
)
def test_who_does_not_is_told_by_code_and_words(code, words, opened, expected) -> None:
    assert speaker(code, words, PLAIN, opened=opened) is expected
