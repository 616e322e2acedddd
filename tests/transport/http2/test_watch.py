"""What Stream.check finds: peers that say nothing, and peers that read nothing."""

from __future__ import annotations

import time

import pytest
from hyperframe.frame import DataFrame, PingFrame, WindowUpdateFrame

from revconn.core.status import StatusCode
from tests.support.http2_client import Client
from tests.support.waiting import eventually

MIB = 1 << 20


@pytest.fixture
def quiet(new_client, server):
    """A client that pings after 100 seconds, and its peer."""
    client = new_client(server.address, keepalive_interval=100.0, keepalive_timeout=20.0)
    client.open()
    peer = server.accept_stream()
    peer.ping()
    return client, peer


def look(client: Client, now: float) -> float | None:
    """Check, at a time yet to come, when the sender has written what it had."""
    eventually(lambda: client.stream._sending_since is None)
    return client.stream.check(now)


def held_back_since(client: Client) -> float:
    """When the sender was held back; it takes a message first, then looks at its clock."""
    return eventually(lambda: client.stream._engine.unsent and client.stream._sending_since)


def test_a_quiet_peer_is_pinged_after_the_interval_and_not_before(quiet) -> None:
    client, peer = quiet
    heard_at = client.stream._heard_at
    look(client, heard_at + 99.0)
    client.send(b"marker")
    frame = peer.hears_frame()
    while not isinstance(frame, (PingFrame, DataFrame)):
        frame = peer.hears_frame()
    assert isinstance(frame, DataFrame)
    look(client, heard_at + 100.0)
    assert peer.hears(PingFrame).opaque_data == b"revconn\0"


def test_a_ping_goes_out_once_until_it_is_answered(quiet) -> None:
    client, peer = quiet
    heard_at = client.stream._heard_at
    look(client, heard_at + 100.0)
    assert peer.hears(PingFrame).opaque_data == b"revconn\0"
    look(client, heard_at + 105.0)
    look(client, heard_at + 119.0)
    client.send(b"marker")
    assert isinstance(peer.hears_frame(), DataFrame)


def test_a_ping_without_an_answer_ends_the_stream(quiet) -> None:
    client, peer = quiet
    heard_at = client.stream._heard_at
    look(client, heard_at + 100.0)
    peer.hears(PingFrame)
    look(client, heard_at + 119.9)
    assert not client.stream._is_closed()
    look(client, heard_at + 120.0)
    ended = client.end()
    assert ended.code is StatusCode.UNAVAILABLE
    assert ended.details == "no answer to a ping within 20 s"


def test_it_is_looked_at_again_when_a_ping_or_its_answer_is_due(quiet) -> None:
    client, _ = quiet
    heard_at = client.stream._heard_at
    assert look(client, heard_at + 99.0) == heard_at + 100.0
    assert look(client, heard_at + 110.0) == heard_at + 130.0
    assert look(client, heard_at + 120.0) == heard_at + 130.0
    assert look(client, heard_at + 130.0) is None
    assert client.stream._is_closed()


def test_with_pings_more_frequent_than_their_timeout_the_next_is_due_an_interval_after_an_answer(
    new_client, server
) -> None:
    client = new_client(server.address, keepalive_interval=5.0, keepalive_timeout=20.0)
    client.open()
    server.accept_stream().ping()
    heard_at = client.stream._heard_at
    assert look(client, heard_at + 5.0) == heard_at + 10.0
    assert look(client, heard_at + 18.0) == heard_at + 23.0
    assert look(client, heard_at + 22.0) == heard_at + 25.0


def test_a_peer_that_takes_nothing_is_looked_at_again_when_it_is_to_be_given_up(
    new_client, server
) -> None:
    client = new_client(server.address, keepalive_interval=None)
    client.open()
    server.accept_stream({4: 0}).ping()
    assert look(client, time.monotonic()) is None
    client.send(b"held back")
    since = held_back_since(client)
    assert client.stream.check(since + 1.0) == since + 30.0
    assert client.stream.check(since + 30.0) is None


def test_whatever_the_peer_says_answers_the_ping(quiet) -> None:
    client, peer = quiet
    # As if 200 quiet seconds had passed.
    client.stream._heard_at -= 200.0
    now = time.monotonic()
    look(client, now)
    ping = peer.hears(PingFrame)
    peer.say(PingFrame(0, opaque_data=ping.opaque_data, flags=["ACK"]))
    eventually(lambda: client.stream._heard_at > now)
    look(client, now + 21.0)
    assert not client.stream._is_closed()
    look(client, client.stream._heard_at + 100.0)
    peer.hears(PingFrame)


def test_without_an_interval_nobody_is_pinged(client, server) -> None:
    peer = server.accept_stream()
    peer.ping()
    look(client, client.stream._heard_at + 1e9)
    client.send(b"marker")
    assert peer.hears_message() == b"marker"


def test_a_peer_that_never_opens_its_window_is_given_up(new_client, server) -> None:
    client = new_client(server.address)
    client.open()
    peer = server.accept_stream({4: 0})
    peer.ping()
    client.send(b"held back")
    since = held_back_since(client)
    client.stream.check(since + 29.0)
    # What else it says does not count: it takes nothing.
    peer.send(b"a request")
    peer.ping()
    client.receive()
    client.stream.check(since + 29.5)
    assert not client.stream._is_closed()
    client.stream.check(since + 30.0)
    ended = client.end()
    assert ended.code is StatusCode.UNAVAILABLE
    assert ended.details == "the gateway has read nothing for 30 s"
    assert client.unsent() == [b"held back"]


def test_a_peer_that_opens_its_window_little_by_little_is_not(new_client, server) -> None:
    client = new_client(server.address)
    client.open()
    peer = server.accept_stream({4: 10})
    peer.ping()
    client.send(b"x" * 100)
    peer.hears(DataFrame)
    since = client.stream._sending_since
    for _ in range(3):
        before = client.stream._sending_since
        peer.open_window(10)
        assert len(peer.hears(DataFrame).data) == 10
        eventually(lambda before=before: client.stream._sending_since > before)
    assert client.stream._sending_since > since
    client.stream.check(client.stream._sending_since + 29.0)
    assert not client.stream._is_closed()


def test_a_peer_that_reads_nothing_off_the_network_is_given_up(new_client, server) -> None:
    client = new_client(server.address)
    client.open()
    peer = server.accept_stream({4: 1 << 30})
    peer.say(WindowUpdateFrame(0, window_increment=1 << 30))
    peer.ping()
    client.send(bytes(32 * MIB))  # one message, some of which is unsent to the end
    # The network's own buffers are full when nothing has moved for a while.
    stuck = held_back_since(client)
    client.stream.check(stuck + 40.0)
    if not client.stream._failures:
        client.stream.check(client.stream._sending_since + 40.0)
    assert "the gateway has read nothing for" in client.end().details


def test_a_sender_with_nothing_to_send_is_never_stuck(client, server) -> None:
    peer = server.accept_stream()
    client.send(b"hello")
    assert peer.hears_message() == b"hello"
    look(client, time.monotonic() + 1e6)
    assert not client.stream._is_closed()
