from __future__ import annotations

import hmac

import pytest

from revconn.exceptions import ConfigurationError
from revconn.gateway import keys as keys_module
from revconn.gateway.keys import ApiKeys


def test_a_single_key_may_be_given_as_it_is() -> None:
    assert ApiKeys("secret").identify("secret") == 0


def test_each_of_several_keys_is_told_apart() -> None:
    keys = ApiKeys(iter(["one", "two"]))
    assert (keys.identify("one"), keys.identify("two")) == (0, 1)


@pytest.mark.parametrize("offered", ["", "secre", "secret ", "SECRET", "sécret", "x" * 10_000])
def test_any_other_key_is_refused(offered: str) -> None:
    assert ApiKeys(["secret", "other"]).identify(offered) is None


def test_a_key_outside_ascii_is_compared_byte_by_byte() -> None:
    assert ApiKeys("schlüssel").identify("schlüssel") == 0


def test_every_key_is_compared_in_constant_time_even_after_a_match(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared = []

    class Recorder:
        @staticmethod
        def compare_digest(left: bytes, right: bytes) -> bool:
            compared.append(left)
            return hmac.compare_digest(left, right)

    monkeypatch.setattr(keys_module, "hmac", Recorder)
    assert ApiKeys(["one", "two", "three"]).identify("one") == 0
    assert compared == [b"one", b"two", b"three"]


@pytest.mark.parametrize("keys", ["", " ", "a\nb", "key\r", [], [""], ["key", "a\n"], [7], 7, None])
def test_keys_that_cannot_be_shown_are_refused_at_construction(keys: object) -> None:
    with pytest.raises(ConfigurationError, match="api_keys"):
        ApiKeys(keys)  # type: ignore[arg-type]


def test_a_key_is_never_shown() -> None:
    assert "secret" not in repr(ApiKeys("secret"))
    with pytest.raises(ConfigurationError) as refused:
        ApiKeys("secret\n")
    assert "secret" not in str(refused.value)
