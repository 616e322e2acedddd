from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn._proto.registry_pb2 import ForwardRequest, MetadataEntry
from revconn.core.metadata import (
    application_metadata,
    bounded,
    encode_extension,
    headers_from_metadata,
    headers_size,
    invocation_metadata,
    metadata_from_entries,
    metadata_from_headers,
    metadata_size,
    require_metadata,
    truncate_message,
    usable_header_list,
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


def test_metadata_that_exceeds_its_half_of_a_header_list_is_left_out_and_smaller_kept() -> None:
    metadata = (("a", "1"), ("big", "x" * 4096), ("b-bin", b"2"))
    kept = bounded(metadata, 8192)
    assert kept == (("a", "1"), ("b-bin", b"2"))
    assert metadata_size(kept) == 2 * 32 + 2 + 8
    assert bounded(metadata, 16 << 10) == metadata


@pytest.mark.parametrize(
    ("stated", "usable"),
    [(None, 32 << 10), (100, 100), (8192, 8192), (16384, 8192), (40960, 20480)],
)
def test_a_header_list_is_used_as_far_as_grpc_takes_it_for_sure(
    stated: int | None, usable: int
) -> None:
    assert usable_header_list(stated) == usable


def test_a_short_message_is_kept_as_it_is() -> None:
    assert truncate_message("ü" * 10, 3072) == "ü" * 10


@given(st.text(alphabet="aü界%\n😀", min_size=200, max_size=6144))
def test_a_long_message_is_cut_to_its_room_at_a_whole_character(message: str) -> None:
    cut = truncate_message(message, 3072)
    assert len(encode_message(cut)) <= 3072
    if cut != message:
        assert message.startswith(cut[:-3])
        assert cut.endswith("...")
        assert len(encode_message(cut)) > 3072 - len(encode_message("😀"))


NAMES = st.sampled_from(["a", "b", "x-y", "a-bin", "z-bin"])
PAIRS = st.lists(
    NAMES.flatmap(
        lambda name: st.tuples(
            st.just(name),
            st.binary(max_size=200) if name.endswith("-bin") else st.text("ab ~", max_size=20),
        )
    ),
    max_size=6,
)


@given(PAIRS, st.text("ipv4:0123456789.", max_size=30))
def test_an_extension_is_what_protobuf_reads(pairs: list[Any], peer: str) -> None:
    request = ForwardRequest.FromString(encode_extension(tuple(pairs), peer.encode()))
    assert request.peer == peer
    assert len(request.metadata) == len(pairs)
    assert invocation_metadata({}, request.metadata) == tuple(pairs)
    stripped = [(k, v if isinstance(v, bytes) else v.strip(" ")) for k, v in pairs]
    assert list(metadata_from_entries(request.metadata)) == stripped


def test_a_servicer_is_given_headers_as_metadata_without_what_grpc_keeps_to_itself() -> None:
    headers = {
        ":path": "/a.B/C",
        "te": "trailers",
        "content-type": "application/grpc",
        "grpc-timeout": "1S",
        "user-agent": "me",
        "a": "1,2",
        "b-bin": "AP8,AQ==,!",
    }
    assert invocation_metadata(headers, ()) == (
        ("user-agent", "me"),
        ("a", "1,2"),
        ("b-bin", b"\x00\xff"),
        ("b-bin", b"\x01"),
    )


def test_an_applications_metadata_is_taken_as_grpcio_takes_it() -> None:
    given = [("a", b"1"), ("b-bin", "text"), ("c-bin", b"\0"), ("d", "2")]
    expected = (("a", "1"), ("b-bin", b"text"), ("c-bin", b"\0"), ("d", "2"))
    assert require_metadata(given) == expected


@pytest.mark.parametrize(
    "pair",
    [("A", "1"), ("a b", "1"), ("te", "1"), ("grpc-x", "1"), ("a", "ü"), ("a", "1\n"), ("", "")],
)
def test_metadata_that_cannot_be_carried_is_refused_by_its_name(pair: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="metadata '"):
        require_metadata([pair])


@pytest.mark.parametrize("pair", [(1, "1"), ("a", 1), ("a", None)])
def test_what_is_no_metadata_is_refused(pair: Any) -> None:
    with pytest.raises(TypeError, match="give pairs of str"):
        require_metadata([pair])


def test_entries_that_grpc_would_refuse_are_left_out() -> None:
    entries = [
        MetadataEntry(key="Te", value=b"1"),
        MetadataEntry(key="a", value=b"\xff"),
        MetadataEntry(key="Kept", value=b" 1 "),
    ]
    assert metadata_from_entries(entries) == (("kept", "1"),)


def test_a_calls_metadata_without_the_transports_own_is_the_applications() -> None:
    metadata = [
        ("te", "trailers"),
        ("a", "1"),
        ("grpc-timeout", "1S"),
        ("b-bin", b"\0"),
        ("a", "2"),
    ]
    assert application_metadata(metadata) == (("a", "1"), ("b-bin", b"\0"), ("a", "2"))


def test_headers_are_as_large_as_http_2_counts_them() -> None:
    assert headers_size({}) == 0
    assert headers_size({"a": "123", "bc": ""}) == 4 + 32 + 2 + 32
