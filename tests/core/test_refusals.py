"""Whose word a refusal is, and when another attempt is useless."""

from __future__ import annotations

import pytest

from revconn.core.refusals import CONFIRMED_AFTER, FINAL_CODES, Refusals, Speaker, speaker
from revconn.core.status import StatusCode

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


def test_a_gateways_own_refusal_is_final_at_once_and_always() -> None:
    refusals = Refusals()
    assert refusals.is_final(UNAUTHENTICATED, Speaker.GATEWAY, 0.0)
    refusals.accepted()
    assert refusals.is_final(UNAUTHENTICATED, Speaker.GATEWAY, 1.0)


def test_what_may_be_a_gateways_is_final_until_the_target_has_served() -> None:
    refusals = Refusals()
    assert refusals.is_final(INVALID_ARGUMENT, Speaker.PERHAPS, 0.0)
    refusals.accepted()
    assert not refusals.is_final(INVALID_ARGUMENT, Speaker.PERHAPS, 1.0)
    assert not refusals.is_final(INVALID_ARGUMENT, Speaker.PERHAPS, 1e6)


def test_a_strangers_word_is_final_when_nothing_else_has_come_for_a_while() -> None:
    refusals = Refusals()
    assert not refusals.is_final(UNIMPLEMENTED, Speaker.STRANGER, 100.0)
    almost = 100.0 + CONFIRMED_AFTER - 1
    assert not refusals.is_final(PERMISSION_DENIED, Speaker.STRANGER, almost)
    assert refusals.is_final(UNIMPLEMENTED, Speaker.STRANGER, almost + 1)


def test_once_the_target_has_served_it_never_is() -> None:
    refusals = Refusals()
    refusals.accepted()
    for now in (0.0, CONFIRMED_AFTER, 1e9):
        assert not refusals.is_final(UNIMPLEMENTED, Speaker.STRANGER, now)


@pytest.mark.parametrize("otherwise", ["a failure", "another code", "a gateway"])
def test_any_other_answer_begins_the_while_anew(otherwise: str) -> None:
    refusals = Refusals()
    refusals.is_final(UNIMPLEMENTED, Speaker.STRANGER, 0.0)
    if otherwise == "a failure":
        refusals.failed_otherwise()
    elif otherwise == "another code":
        assert not refusals.is_final(StatusCode.UNAVAILABLE, Speaker.STRANGER, 200.0)
    else:
        refusals.is_final(INVALID_ARGUMENT, Speaker.PERHAPS, 200.0)
    assert not refusals.is_final(UNIMPLEMENTED, Speaker.STRANGER, CONFIRMED_AFTER)
    assert refusals.is_final(UNIMPLEMENTED, Speaker.STRANGER, 2 * CONFIRMED_AFTER)


@pytest.mark.parametrize("code", [code for code in StatusCode if code not in FINAL_CODES])
def test_no_other_code_is_ever_final(code: StatusCode) -> None:
    assert not Refusals().is_final(code, Speaker.GATEWAY, 0.0)
