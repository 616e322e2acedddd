from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn.core.connection import CANCEL, CHUNKS, OFFER, SUPPORTED, Announcement, Terms
from tests.support.texts import texts

OWN = Terms(heartbeat_interval=30.0, liveness_timeout=90.0, max_message_bytes=4 << 20)
HEADERS = ["revconn-features", "revconn-heartbeat-timeout", "revconn-max-message-bytes"]
NAMES = st.frozensets(st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True), max_size=20)


def met_with(**headers: str) -> Terms:
    return OWN.met_with(
        (f"revconn-{name.replace('_', '-')}", value) for name, value in headers.items()
    )


# What is announced


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


# What becomes of a connector's own settings


def test_a_connector_offers_what_it_supports() -> None:
    assert OFFER == (("revconn-features", "cancel,chunks,drain,metadata,streams"),)


def test_with_a_gateway_that_announces_nothing_one_s_own_terms_hold_and_nothing_is_in_force() -> (
    None
):
    assert OWN.met_with([("content-type", "application/grpc"), ("x-bin", b"\xff")]) == OWN
    assert OWN.features == frozenset()


def test_a_feature_is_in_force_when_both_know_it() -> None:
    assert met_with(features="drain, telepathy,cancel").features == {"drain", "cancel"}


def test_heartbeats_come_three_times_within_the_gateways_patience() -> None:
    terms = met_with(heartbeat_timeout="60")
    assert terms.heartbeat_interval == 20.0
    assert terms.liveness_timeout == 45.0
    assert terms.notes == (
        "heartbeat_interval 20 s, not 30, liveness_timeout 45 s, not 90:"
        " the gateway forgets a connection after 60 s",
    )


def test_only_what_is_looser_gives_way() -> None:
    terms = met_with(heartbeat_timeout="100")
    assert (terms.heartbeat_interval, terms.liveness_timeout) == (30.0, 75.0)
    assert len(terms.notes) == 1
    assert met_with(heartbeat_timeout="120", max_message_bytes=str(4 << 20)) == OWN


def test_a_connector_that_does_not_look_for_silence_still_does_not() -> None:
    own = Terms(30.0, None, 4 << 20)
    terms = own.met_with([("revconn-heartbeat-timeout", "60")])
    assert (terms.heartbeat_interval, terms.liveness_timeout) == (20.0, None)


def test_a_smaller_limit_of_the_gateways_holds() -> None:
    terms = met_with(max_message_bytes="1048576")
    assert terms.max_message_bytes == 1 << 20
    assert terms.notes == (
        "max_message_bytes 1,048,576, not 4,194,304: the gateway takes nothing larger",
    )


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("heartbeat_timeout", "soon"),
        ("heartbeat_timeout", "nan"),
        ("heartbeat_timeout", "0.09"),
        ("max_message_bytes", "4MB"),
        ("max_message_bytes", "1023"),
        ("max_message_bytes", "x\n" * 1000),
    ],
)
def test_what_cannot_be_is_ignored_and_noted_in_one_line(header, value) -> None:
    terms = met_with(**{header: value, "features": "cancel"})
    (note,) = terms.notes
    assert note.startswith(f"ignored the gateway's revconn-{header.replace('_', '-')}: ")
    assert "\n" not in note
    assert len(note) < 150
    assert terms == Terms(30.0, 90.0, 4 << 20, frozenset({"cancel"}), (note,))


@given(
    st.lists(st.tuples(st.sampled_from(HEADERS), texts() | st.floats().map(str) | st.binary())),
    st.floats(1.0, 1e6),
    st.none() | st.floats(1.0, 1e6),
)
def test_whatever_is_announced_makes_terms_stricter_and_keeps_them_usable(
    metadata, interval, patience
) -> None:
    own = Terms(interval, None if patience is None else interval + patience, 4 << 20)
    terms = own.met_with(metadata)
    assert 0.03 < terms.heartbeat_interval <= own.heartbeat_interval
    assert 1024 <= terms.max_message_bytes <= own.max_message_bytes
    assert (terms.liveness_timeout is None) == (own.liveness_timeout is None)
    if terms.liveness_timeout is not None:
        assert terms.heartbeat_interval < terms.liveness_timeout <= own.liveness_timeout
