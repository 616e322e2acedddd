from __future__ import annotations

import base64
import html
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn.logger import Mask, encodable

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates too
KEY = "it's \\ a/sécret>?~"


@given(ANY_TEXT)
def test_any_text_becomes_such_as_utf8_can_hold_and_other_text_stays(text: str) -> None:
    encoded = encodable(text).encode()
    try:
        assert encoded == text.encode()
    except UnicodeEncodeError:
        assert b"\\u" in encoded


@pytest.mark.parametrize(
    "echo",
    [
        KEY,
        repr(KEY),
        ascii(KEY),
        repr(KEY.encode()),
        json.dumps(KEY),
        json.dumps(KEY, ensure_ascii=False),
        html.escape(KEY),
        quote(KEY),
        quote(KEY, safe=""),
        quote(KEY, safe="").lower(),
        quote_plus(KEY),
        KEY.encode().decode("latin-1"),
        base64.b64encode(KEY.encode()).decode(),
        base64.urlsafe_b64encode(KEY.encode()).decode(),
        KEY.encode().hex(),
    ],
)
def test_an_echo_is_hidden_however_it_is_written(echo: str) -> None:
    masked = Mask(KEY)(f"no such key: {echo}! ({echo})")
    assert masked.startswith("no such key: ")
    assert masked.count("***") == 2
    assert "cret" not in masked
    assert set(masked) <= set("no such key: ***! (***)b'\"=")


@pytest.mark.parametrize("cut", range(6, len(KEY)))
def test_what_is_left_of_an_echo_that_was_cut_is_hidden_too(cut: int) -> None:
    assert Mask(KEY)(f"no such key: {KEY[:cut]}") == "no such key: ***"


@pytest.mark.parametrize("secret", ["", "key", "token"])
def test_a_secret_that_is_part_of_ordinary_words_hides_nothing(secret: str) -> None:
    assert Mask(secret)("no keys, no token") == "no keys, no token"


@pytest.mark.parametrize("cut", [16, 17, 63])
def test_the_beginning_of_a_long_one_is_hidden_wherever_it_was_cut(cut: int) -> None:
    secret = "".join(chr(ord("0") + index % 64) for index in range(64))
    said = f"{secret[:cut]!r} is no id, nor is {secret[:cut]!r} a name, {secret!r} neither"
    assert Mask(secret)(said) == "'***' is no id, nor is '***' a name, '***' neither"
