"""A lone answer is written by the thread that has it, next to the sender."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from hyperframe.frame import SettingsFrame

from revconn.core.sending import answer
from tests.support.http2_client import Client
from tests.support.scripted_http2 import Http2Peer
from tests.support.threads import TIMEOUT, in_thread
from tests.support.waiting import eventually


class SlowWire:
    """A wire whose ``write_now`` takes until ``go_on`` is set, as on a green thread's socket."""

    def __init__(self, wire) -> None:
        self._wire = wire
        self.writing, self.go_on = threading.Event(), threading.Event()
        self.released_while_writing = False

    def __getattr__(self, name: str):
        return getattr(self._wire, name)

    def write_now(self, output) -> None:
        self.writing.set()
        assert self.go_on.wait(TIMEOUT)
        self.writing.clear()
        self._wire.write_now(output)

    def release(self) -> None:
        self.released_while_writing = self.writing.is_set()
        self._wire.release()


@pytest.fixture
def peer(client: Client, server) -> Http2Peer:
    peer = server.accept_stream()
    peer.ping()
    eventually(lambda: client.stream._sending_since is None)
    return peer


@pytest.fixture
def slow(client: Client, peer: Http2Peer) -> Iterator[SlowWire]:
    wire = client.stream._wire = SlowWire(client.stream._wire)
    yield wire
    wire.go_on.set()


def test_a_lone_answer_arrives_behind_those_before_it(client: Client, peer: Http2Peer) -> None:
    client.send(b"a1")
    assert peer.hears_message() == b"a1"
    eventually(lambda: client.stream.send_now([b"a2"]))
    assert peer.hears_message() == b"a2"


def test_one_that_the_peer_has_no_room_for_has_left_when_the_sender_has_sent_the_rest(
    client: Client, server, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = server.accept_stream({SettingsFrame.INITIAL_WINDOW_SIZE: 3})
    peer.ping()
    eventually(lambda: client.stream._sending_since is None)
    monkeypatch.setattr(client.line, "_send_now", client.stream.send_now)
    client.replies.answer([answer(b"answer", None)])
    peer.ping()
    assert not client.replies.wait_flushed(0)
    peer.open_window(100)
    assert peer.hears_message() == b"answer"
    assert client.replies.wait_flushed(TIMEOUT)
    assert client.unsent() == [b"answer"], "it left a moment ago, and is in doubt once"


def test_the_socket_is_not_given_back_while_an_answer_is_written_to_it(
    client: Client, slow: SlowWire
) -> None:
    """Its number could be another socket's by then."""
    writer = in_thread(client.stream.send_now, [b"answer"])
    assert slow.writing.wait(TIMEOUT)
    client.line.close()
    client.stream.close()
    joiner = in_thread(client.stream.join, TIMEOUT)
    eventually(lambda: not client.stream._sender.is_alive())
    eventually(lambda: client.stream._wire is None)
    slow.go_on.set()
    joiner.result(TIMEOUT)
    writer.result(TIMEOUT)
    assert not slow.released_while_writing


def test_afterwards_nothing_is_written(client: Client, peer: Http2Peer) -> None:
    client.close()
    assert client.stream.send_now([b"answer"]) is False


def test_a_sender_that_got_stuck_behind_it_is_noticed(client: Client, slow: SlowWire) -> None:
    writer = in_thread(client.stream.send_now, [b"answer"])
    assert slow.writing.wait(TIMEOUT)
    stuck, go_on = threading.Event(), threading.Event()

    def write(output) -> None:
        stuck.set()
        assert go_on.wait(TIMEOUT)

    slow._wire.write = write  # the sender's
    client.line.put_control(b"heartbeat")
    eventually(lambda: client.line._sign_taken)
    slow.go_on.set()
    assert writer.result(TIMEOUT) is True
    assert stuck.wait(TIMEOUT)
    client.stream.check(time.monotonic() + 40.0)
    go_on.set()
    assert "the gateway has read nothing" in client.end().details
