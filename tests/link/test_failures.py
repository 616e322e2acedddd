"""Which refusal of a handshake makes another attempt useless."""

from __future__ import annotations

import pytest

from revconn.core.status import FINAL_CODES, Speaker, StatusCode
from revconn.exceptions import HandshakeError
from revconn.link.records import CONFIRMED_AFTER, Failures

UNAUTHENTICATED, UNIMPLEMENTED = StatusCode.UNAUTHENTICATED, StatusCode.UNIMPLEMENTED
INVALID_ARGUMENT, PERMISSION_DENIED = StatusCode.INVALID_ARGUMENT, StatusCode.PERMISSION_DENIED


class Target:
    """Where a gateway should be: how it answers is told to the failures in a row."""

    def __init__(self) -> None:
        self.failures = Failures(stable_after=10.0)

    def served(self) -> None:
        self.failures.count(0.0, accepted_at=0.0)

    def refuses_for_good(self, code: StatusCode | None, speaker: Speaker, now: float) -> bool:
        error = HandshakeError("gw:1", "refused", code, speaker=speaker)
        self.failures.judge_refusal(error, now)
        return error.is_final


@pytest.fixture
def target() -> Target:
    return Target()


def test_a_gateways_own_refusal_is_final_at_once_and_always(target: Target) -> None:
    assert target.refuses_for_good(UNAUTHENTICATED, Speaker.GATEWAY, 0.0)
    target.served()
    assert target.refuses_for_good(UNAUTHENTICATED, Speaker.GATEWAY, 1.0)


def test_what_may_be_a_gateways_is_final_until_the_target_has_served(target: Target) -> None:
    assert target.refuses_for_good(INVALID_ARGUMENT, Speaker.PERHAPS, 0.0)
    target.served()
    assert not target.refuses_for_good(INVALID_ARGUMENT, Speaker.PERHAPS, 1.0)
    assert not target.refuses_for_good(INVALID_ARGUMENT, Speaker.PERHAPS, 1e6)


def test_a_strangers_word_is_final_when_nothing_else_has_come_for_a_while(target: Target) -> None:
    assert not target.refuses_for_good(UNIMPLEMENTED, Speaker.STRANGER, 100.0)
    almost = 100.0 + CONFIRMED_AFTER - 1
    assert not target.refuses_for_good(PERMISSION_DENIED, Speaker.STRANGER, almost)
    assert target.refuses_for_good(UNIMPLEMENTED, Speaker.STRANGER, almost + 1)


def test_once_the_target_has_served_it_never_is(target: Target) -> None:
    target.served()
    for now in (0.0, CONFIRMED_AFTER, 1e9):
        assert not target.refuses_for_good(UNIMPLEMENTED, Speaker.STRANGER, now)


@pytest.mark.parametrize("otherwise", ["no status", "another code", "a gateway", "it served"])
def test_any_other_answer_begins_the_while_anew(target: Target, otherwise: str) -> None:
    target.refuses_for_good(UNIMPLEMENTED, Speaker.STRANGER, 0.0)
    if otherwise == "no status":
        assert not target.refuses_for_good(None, Speaker.STRANGER, 200.0)
    elif otherwise == "another code":
        assert not target.refuses_for_good(StatusCode.UNAVAILABLE, Speaker.STRANGER, 200.0)
    elif otherwise == "a gateway":
        target.refuses_for_good(INVALID_ARGUMENT, Speaker.PERHAPS, 200.0)
    else:
        target.served()
    assert not target.refuses_for_good(UNIMPLEMENTED, Speaker.STRANGER, CONFIRMED_AFTER)
    later = target.refuses_for_good(UNIMPLEMENTED, Speaker.STRANGER, 2 * CONFIRMED_AFTER)
    assert later is (otherwise != "it served")


@pytest.mark.parametrize("code", [code for code in StatusCode if code not in FINAL_CODES])
def test_no_other_code_is_ever_final(target: Target, code: StatusCode) -> None:
    assert not target.refuses_for_good(code, Speaker.GATEWAY, 0.0)
