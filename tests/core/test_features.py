from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn.core.features import CANCEL, CHUNKS, SUPPORTED, Announcement
from tests.support.texts import texts

NAMES = st.frozensets(st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True), max_size=20)


def test_an_announcement_is_written_as_the_protocol_says() -> None:
    announcement = Announcement(
        frozenset({CHUNKS, CANCEL}), heartbeat_timeout=120.0, max_message_bytes=4194304
    )
    assert announcement.metadata() == (
        ("revconn-features", "cancel,chunks"),
        ("revconn-heartbeat-timeout", "120"),
        ("revconn-max-message-bytes", "4194304"),
    )


def test_who_has_nothing_to_say_sends_nothing() -> None:
    assert Announcement().metadata() == ()


def test_metadata_that_says_nothing_announces_nothing() -> None:
    said = [("user-agent", "grpc-go/1.60"), ("revconn-features-bin", b"chunks")]
    assert Announcement.from_metadata(said) == Announcement()


@given(
    NAMES,
    st.none() | st.floats(0.001, 1e6).map(lambda seconds: float(f"{seconds:g}")),
    st.none() | st.integers(1, 2**31),
)
def test_what_is_written_is_read_back(features, timeout, size) -> None:
    announcement = Announcement(features, timeout, size)
    assert Announcement.from_metadata(announcement.metadata()) == announcement


@pytest.mark.parametrize(
    "value", ["chunks,drain", " chunks , drain ", "Chunks,DRAIN", ",chunks,,drain,", "drain,chunks"]
)
def test_a_list_is_read_however_it_is_spaced(value) -> None:
    read = Announcement.from_metadata([("revconn-features", value)])
    assert read.features == {"chunks", "drain"}


def test_a_feature_of_tomorrow_is_kept_and_not_in_force() -> None:
    read = Announcement.from_metadata([("revconn-features", "telepathy,cancel")])
    assert read.features == {"telepathy", "cancel"}
    assert read.features & SUPPORTED == {"cancel"}


@pytest.mark.parametrize("value", ["", "soon", "-1", "0", "nan", "inf", "1e999", "120 s"])
def test_a_heartbeat_timeout_that_is_none_was_not_stated(value) -> None:
    read = Announcement.from_metadata([("revconn-heartbeat-timeout", value)])
    assert read.heartbeat_timeout is None


@pytest.mark.parametrize("value", ["", "4MB", "-1", "0", "1.5", "٣", "9" * 5000])
def test_a_message_size_that_is_none_was_not_stated(value) -> None:
    read = Announcement.from_metadata([("revconn-max-message-bytes", value)])
    assert read.max_message_bytes is None


@given(texts(), texts(), texts())
def test_no_metadata_is_an_error(features, timeout, size) -> None:
    Announcement.from_metadata(
        [
            ("revconn-features", features),
            ("revconn-heartbeat-timeout", timeout),
            ("revconn-max-message-bytes", size),
        ]
    )
