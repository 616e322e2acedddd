from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn.core.status import ProtocolError
from revconn.http2.frames import ReceiveWindow, SendWindow
from revconn.http2.patience import Patience

LARGEST = (1 << 31) - 1
DEFAULT = 65_535
BURST = 10_000


# What the peer takes


def test_the_smaller_window_counts() -> None:
    window = SendWindow()
    assert window.opened == DEFAULT
    window.open(0, 1_000_000, sent=60_000)
    assert window.opened == DEFAULT
    window.open(1, 10_000, sent=60_000)
    assert window.opened == DEFAULT + 10_000


def test_smaller_settings_can_leave_less_open_than_was_sent() -> None:
    window = SendWindow()
    window.open(0, DEFAULT, sent=DEFAULT)
    window.resize(-DEFAULT, sent=DEFAULT)
    assert window.opened == 0
    window.open(1, DEFAULT + 1, sent=DEFAULT)
    assert window.opened == DEFAULT + 1


def test_an_update_of_nothing_is_refused() -> None:
    with pytest.raises(ProtocolError, match="WINDOW_UPDATE of 0 bytes"):
        SendWindow().open(1, 0, sent=0)


@pytest.mark.parametrize("stream_id", [0, 1])
def test_a_window_is_opened_no_further_than_http2_allows(stream_id: int) -> None:
    window = SendWindow()
    window.open(stream_id, LARGEST - DEFAULT, sent=0)
    window.open(stream_id, 1, sent=1)
    with pytest.raises(ProtocolError, match="too far"):
        window.open(stream_id, 1, sent=1)


# What we take


def test_the_window_is_given_back_once_half_of_it_is_used() -> None:
    window = ReceiveWindow(1000)
    assert window.half_used_at == 500
    assert window.give_back(499) == 0
    assert window.give_back(500) == 500
    assert window.half_used_at == 1000
    assert window.give_back(500) == 0


def test_it_is_time_to_give_back_once_half_of_the_window_is_used() -> None:
    window = ReceiveWindow(1000)
    window.look(499)
    assert not window.is_half_used
    window.look(500)
    assert window.is_half_used
    window.give_back(500)
    assert not window.is_half_used


def test_more_than_the_window_is_refused() -> None:
    window = ReceiveWindow(1000)
    window.look(1000)
    with pytest.raises(ProtocolError, match="more than the window allows"):
        window.look(1001)


@given(st.lists(st.integers(1, 300)))
def test_a_peer_that_keeps_within_what_was_given_is_never_refused(sizes: list[int]) -> None:
    window, peers_view, received = ReceiveWindow(1000), 1000, 0
    for size in sizes:
        size = min(size, peers_view)
        received += size
        window.look(received)
        assert window.is_half_used == (received >= window.half_used_at)
        peers_view += window.give_back(received) - size
        assert peers_view >= 500


# How much it may ask for


def test_a_burst_is_borne_and_a_flood_is_not() -> None:
    patience = Patience()
    patience.spend(BURST, now=0.0)
    with pytest.raises(ProtocolError, match="floods the connection"):
        patience.spend(1, now=0.0)


def test_patience_comes_back_with_time_up_to_its_limit() -> None:
    patience = Patience()
    patience.spend(BURST, now=0.0)
    patience.spend(1_000, now=1.0)
    patience.spend(0, now=3600.0)
    patience.spend(BURST, now=3600.0)
    with pytest.raises(ProtocolError):
        patience.spend(1, now=3600.0)


@pytest.mark.parametrize("reads", [1, 10])
def test_patience_comes_back_with_messages_in_however_many_reads(reads) -> None:
    patience = Patience()
    patience.spend(BURST, now=0.0)
    patience.earn(2 * BURST)
    for _ in range(reads):
        patience.spend(2 * BURST // reads, now=0.0)
    with pytest.raises(ProtocolError):
        patience.spend(1, now=0.0)


def test_years_of_messages_do_not_pay_for_a_flood() -> None:
    patience = Patience()
    patience.earn(1_000 * BURST)
    with pytest.raises(ProtocolError):
        patience.spend(11 * BURST, now=0.0)
