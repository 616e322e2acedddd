from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn.core.metadata import (
    HEADER_BUDGET,
    MESSAGE_BUDGET,
    headers_from_metadata,
    metadata_from_headers,
    truncate_message,
)
from revconn.core.status import encode_message


def test_text_metadata_becomes_headers() -> None:
    assert headers_from_metadata([("a", "1"), ("b", "2")]) == {"a": "1", "b": "2"}


def test_values_of_a_repeated_key_are_joined() -> None:
    assert headers_from_metadata([("a", "1"), ("a", "2")]) == {"a": "1,2"}


def test_binary_metadata_is_written_as_on_the_wire() -> None:
    assert headers_from_metadata([("a-bin", b"\x00\xff")]) == {"a-bin": "AP8"}


def test_metadata_outside_ascii_is_dropped() -> None:
    assert headers_from_metadata([("a", "ü"), ("b", "2")]) == {"b": "2"}


def test_headers_become_metadata_with_names_in_lower_case() -> None:
    assert metadata_from_headers({"X-A": " 1 ", "b.c_d-e": "2"}) == (("x-a", "1"), ("b.c_d-e", "2"))


@pytest.mark.parametrize(
    "name",
    [
        ":status",
        "grpc-status",
        "grpc-message",
        "grpc-timeout",
        "Content-Type",
        "te",
        "user-agent",
        "connection",
        "",
        "a b",
        "a\n",
        "ü",
    ],
)
def test_reserved_and_illegal_names_are_left_out(name: str) -> None:
    assert metadata_from_headers({name: "1", "kept": "2"}) == (("kept", "2"),)


@pytest.mark.parametrize("value", ["a\nb", "ü", "\x00", "\x7f"])
def test_illegal_values_are_left_out(value: str) -> None:
    assert metadata_from_headers({"a": value, "kept": "2"}) == (("kept", "2"),)


@pytest.mark.parametrize("value", ["AP8", "AP8="])
def test_a_binary_header_is_decoded_padded_or_not(value: str) -> None:
    assert metadata_from_headers({"a-bin": value}) == (("a-bin", b"\x00\xff"),)


@pytest.mark.parametrize("value", ["A", "!!!!", "ü", "AP8\n"])
def test_a_binary_header_that_is_not_base64_is_left_out(value: str) -> None:
    assert metadata_from_headers({"a-bin": value}) == ()


def test_the_status_details_an_application_set_are_kept() -> None:
    headers = {"grpc-status-details-bin": "AAE"}
    assert metadata_from_headers(headers) == (("grpc-status-details-bin", b"\x00\x01"),)


@given(st.binary())
def test_binary_metadata_survives_the_trip(value: bytes) -> None:
    assert metadata_from_headers(headers_from_metadata([("a-bin", value)])) == (("a-bin", value),)


def test_headers_that_exceed_the_budget_are_left_out_and_smaller_ones_kept() -> None:
    headers = {"a": "1", "big": "x" * HEADER_BUDGET, "b": "2"}
    assert metadata_from_headers(headers) == (("a", "1"), ("b", "2"))


def test_a_short_message_is_kept_as_it_is() -> None:
    assert truncate_message("ü" * 10) == "ü" * 10


@given(st.text(alphabet="aü界%\n😀", min_size=200, max_size=MESSAGE_BUDGET * 2))
def test_a_long_message_is_cut_to_the_budget_at_a_whole_character(message: str) -> None:
    cut = truncate_message(message)
    assert len(encode_message(cut)) <= MESSAGE_BUDGET
    if cut != message:
        assert message.startswith(cut[:-3])
        assert cut.endswith("...")
        assert len(encode_message(cut)) > MESSAGE_BUDGET - len(encode_message("😀"))
