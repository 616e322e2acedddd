"""What becomes of the gateway's sockets when peers, or the system, do not do as they should."""

from __future__ import annotations

import asyncio
import errno
import struct
from collections.abc import Iterator
from typing import Any

import hpack
import pytest
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from hyperframe.frame import (
    DataFrame,
    HeadersFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from revconn._proto.registry_pb2 import ConnectionMessage, ConnectionRegister
from revconn.gateway import listening
from revconn.gateway.keys import ApiKeys
from revconn.gateway.limits import Limits
from revconn.gateway.peers import Peer
from revconn.gateway.serving import Serving
from revconn.gateway.shared import Settings
from revconn.http2.frames import PREFACE
from revconn.http2.grpc import request_headers
from tests.support.quick_loop import QuickLoop, QuickSocket
from tests.support.scripted_http2 import message

ESTABLISH = "/registry.RegistryService/EstablishConnection"
REGISTER = "/registry.RegistryService/Register"
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
REFLECT = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
CREDIT = 16 << 20  # bytes


@pytest.fixture
def loop() -> Iterator[QuickLoop]:
    made = QuickLoop()
    yield made
    made.close()


@pytest.fixture
def serving(loop: QuickLoop) -> Serving:
    async def make() -> Serving:
        limits = Limits(max_receiving_bytes=CREDIT)
        return Serving(Settings(ApiKeys("key"), limits, dial_backends=False))

    return loop.run_until_complete(make())


class Knocking:
    """A socket that listens; what is accepted of it, in this order."""

    def __init__(self, *accepted: QuickSocket | int) -> None:
        self.accepted = list(accepted)
        self.tries = 0

    def fileno(self) -> int:
        return 9

    def accept(self) -> tuple[QuickSocket, None]:
        self.tries += 1
        if not self.accepted:
            raise BlockingIOError
        each = self.accepted.pop(0)
        if isinstance(each, int):
            raise OSError(each, "no")
        return each, None


def connect(serving: Serving, loop: QuickLoop, number: int = 100, **settings: int) -> QuickSocket:
    """A peer that has said its SETTINGS."""
    sock = QuickSocket(number, loop)
    serving.listener._take_in(sock)  # type: ignore[arg-type]
    frame = SettingsFrame(0, {getattr(SettingsFrame, name): settings[name] for name in settings})
    sock.sent = PREFACE + frame.serialize()
    turn(loop, sock)
    return sock


def call(path: str, stream_id: int, *flags: str, method: str = "POST") -> bytes:
    headers = [(b":method", method.encode()), *request_headers("http", "gateway", path, {})[1:]]
    block = hpack.Encoder().encode(headers)
    return HeadersFrame(stream_id, block, flags=["END_HEADERS", *flags]).serialize()


def register(stream_id: int) -> bytes:
    said = ConnectionMessage(register=ConnectionRegister(api_key="key", services=["echo.Echo"]))
    return (
        call(ESTABLISH, stream_id)
        + DataFrame(stream_id, message(said.SerializeToString())).serialize()
    )


def turn(loop: QuickLoop, *socks: QuickSocket) -> None:
    """As long as there is something to do, and no time passes."""

    async def go() -> None:
        for _ in range(100):
            for sock in socks:
                sock.serve()
            await asyncio.sleep(0)

    loop.run_until_complete(go())


def wait(loop: QuickLoop, seconds: float) -> None:
    loop.run_until_complete(asyncio.sleep(seconds))


# Peers that do not read


def test_who_does_not_read_the_last_words_is_closed_all_the_same(
    serving: Serving, loop: QuickLoop
) -> None:
    sock = connect(serving, loop)
    sock.reads = len(sock.heard)
    sock.sent = call("/nobody.Serves/It", 1) + b"\0\0\1\6\0\0\0\0\0x"  # a broken PING
    turn(loop, sock)
    assert not sock.is_closed
    wait(loop, 6.0)
    assert sock.is_closed
    assert not serving.listener._peers


def test_what_is_no_call_does_not_wait_for_a_window_for_ever(
    serving: Serving, loop: QuickLoop
) -> None:
    sock = connect(serving, loop, INITIAL_WINDOW_SIZE=0)
    sock.sent = call("/", 1, "END_STREAM", method="GET")
    turn(loop, sock)
    (peer,) = serving.listener._peers
    assert len(peer.endpoint.streams) == 1
    wait(loop, 11.0)
    assert not peer.endpoint.streams


def test_who_reads_as_fast_as_is_written_has_not_one_turn_for_itself(
    serving: Serving, loop: QuickLoop
) -> None:
    sock = connect(serving, loop, INITIAL_WINDOW_SIZE=(1 << 31) - 1)
    (peer,) = serving.listener._peers
    window = b"\0\0\4\x08\0\0\0\0\0" + struct.pack(">I", 1 << 30)
    sock.sent = window + call(ESTABLISH, 1)
    turn(loop, sock)
    stream = peer.endpoint.streams[1]
    stream.open(b"\x88")
    before, heard = len(sock.heard), []
    stream.send([bytes(8 << 20)])

    async def go() -> None:
        for _ in range(200):
            await asyncio.sleep(0)
            heard.append(len(sock.heard))

    loop.run_until_complete(go())
    assert heard[-1] - before > 8 << 20
    assert max(b - a for a, b in zip([before, *heard], heard)) < (1 << 20) + (16 << 10)


# Answers that are not read


def test_an_answer_that_waits_makes_room_for_one_of_who_has_far_less(
    serving: Serving, loop: QuickLoop
) -> None:
    answers = serving.shared.answers
    answers._budget.most = 100_000
    greedy, modest = (
        connect(serving, loop, number, INITIAL_WINDOW_SIZE=0) for number in (102, 105)
    )
    greedy_peer, modest_peer = serving.listener._peers
    for sock, ids in ((greedy, (1, 3, 5)), (modest, (1,))):
        sock.sent = b"".join(call(ESTABLISH, stream_id) for stream_id in ids)
    turn(loop, greedy, modest)
    for peer in (greedy_peer, modest_peer):
        for stream in tuple(peer.endpoint.streams.values()):
            stream.open(b"\x88")
            stream.send([bytes(30_000)])
            answers.add(stream, 1e9)
    turn(loop, greedy, modest)
    assert [stream.unsent_bytes > 0 for stream in greedy_peer.endpoint.streams.values()] == [
        True,
        True,
    ]
    assert modest_peer.endpoint.streams[1].unsent_bytes
    assert len(answers._deadlines) == 3
    assert serving.shared.counters.refused["max_unread_bytes"] == 1


# What is written, and not read


def test_what_one_that_reads_nothing_holds_is_bounded_and_the_rest_is_counted(
    serving: Serving, loop: QuickLoop
) -> None:
    answers = serving.shared.answers
    sock = connect(serving, loop, INITIAL_WINDOW_SIZE=(1 << 31) - 1)
    (peer,) = serving.listener._peers
    sock.reads = len(sock.heard)
    window = b"\0\0\4\x08\0\0\0\0\0" + struct.pack(">I", 1 << 30)
    ids = range(1, 81, 2)
    sock.sent = window + b"".join(call(ESTABLISH, stream_id) for stream_id in ids)
    turn(loop, sock)
    for stream_id in ids:
        stream = peer.endpoint.streams[stream_id]
        stream.respond(b"\x88", bytes(300_000), b"\x88")
        if stream.unsent_bytes:
            answers.add(stream, 1e9)
        turn(loop, sock)
    written = peer.behind_bytes + peer.endpoint.out_bytes
    assert 1 << 20 < written < (2 << 20) + (64 << 10)
    assert answers._budget.used >= 40 * 300_000 - written
    answers.expire(2e9)
    assert not peer.endpoint.streams
    assert not answers._budget.used
    assert peer.behind_bytes + peer.endpoint.out_bytes < (2 << 20) + (64 << 10)


def test_what_was_written_and_is_not_read_goes_with_its_connection(
    serving: Serving, loop: QuickLoop
) -> None:
    sock = connect(serving, loop)
    (peer,) = serving.listener._peers
    sock.reads = len(sock.heard)
    sock.sent = call("/nobody.Serves/It", 1)
    turn(loop, sock)
    assert peer.behind_bytes
    assert not peer.endpoint.streams
    serving.listener.look(peer.idle_since + 301.0)
    wait(loop, 6.0)
    assert sock.is_closed


# Failures


def test_a_bug_ends_the_connection_that_met_it_and_is_logged(
    serving: Serving, loop: QuickLoop, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    sock, other = connect(serving, loop), connect(serving, loop, 101)
    (peer, _) = serving.listener._peers

    def fail(_: bytes) -> bytes:
        raise ZeroDivisionError

    monkeypatch.setattr(type(peer.endpoint), "receive", lambda _, data: fail(data))
    sock.sent = b"x"
    turn(loop, sock)
    assert sock.is_closed
    assert not other.is_closed
    assert "a bug in the gateway" in caplog.text
    caplog.clear()


@pytest.mark.parametrize("at", ["setsockopt", "add_reader"])
def test_a_socket_that_cannot_be_used_is_closed_and_counts_for_nothing(
    serving: Serving, loop: QuickLoop, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EINVAL, "no")

    sock = QuickSocket(100, loop)
    monkeypatch.setattr(sock if at == "setsockopt" else loop, at, fail)
    serving.listener._take_in(sock)  # type: ignore[arg-type]
    turn(loop)
    assert sock.is_closed
    assert not serving.listener._peers
    assert not serving.listener._networks


# Where there is no room


def test_without_descriptors_it_accepts_nothing_for_a_while_and_then_as_many_as_before(
    serving: Serving, loop: QuickLoop
) -> None:
    before = serving.listener._most
    knocking = Knocking(errno.EMFILE, QuickSocket(100, loop))
    loop.add_reader(9, serving.listener._accept, knocking)
    loop.readers[9]()
    assert 9 not in loop.readers  # else it would be asked again at once, and in vain
    wait(loop, 1.0)
    loop.readers[9]()
    assert len(serving.listener._peers) == 1
    assert serving.listener._most == before


def test_without_descriptors_idle_connections_are_closed(serving: Serving, loop: QuickLoop) -> None:
    idle = connect(serving, loop)
    knocking = Knocking(errno.EMFILE, QuickSocket(101, loop))
    loop.add_reader(9, serving.listener._accept, knocking)
    loop.readers[9]()
    assert idle.is_closed
    loop.readers[9]()
    assert len(serving.listener._peers) == 1


def test_a_connection_that_failed_before_it_was_accepted_is_none_of_the_next_ones(
    serving: Serving, loop: QuickLoop
) -> None:
    serving.listener._accept(Knocking(errno.EPROTO, QuickSocket(100, loop)))  # type: ignore[arg-type]
    assert len(serving.listener._peers) == 1


def test_where_all_are_busy_room_is_looked_for_once_in_a_turn(
    serving: Serving, loop: QuickLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener, looked = serving.listener, []
    make_room = listener._make_room
    monkeypatch.setattr(listener, "_make_room", lambda: looked.append(make_room()) or looked[-1])
    monkeypatch.setattr(listener, "_most", 1)
    sock = connect(serving, loop)
    sock.sent = call(REGISTER, 1)
    turn(loop, sock)
    monkeypatch.setattr(Peer, "carries_calls", True)
    knocking = Knocking(*(QuickSocket(200 + number, loop) for number in range(20)))
    listener._accept(knocking)  # type: ignore[arg-type]
    assert knocking.tries == listening._FEW_AT_ONCE
    assert looked == [0]


def test_where_nobody_is_idle_who_carries_no_call_makes_room_the_oldest_first(
    serving: Serving, loop: QuickLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving.listener, "_most", 5)
    monkeypatch.setattr(listening, "_MADE_ROOM_FOR", 1)
    socks = [connect(serving, loop, number) for number in (102, 105, 108, 111, 114)]
    busy, calling, useful, silent, later = socks
    busy.sent = register(1)
    turn(loop, busy)
    calling.sent = (
        call("/echo.Echo/Say", 1) + DataFrame(1, message(b""), flags=["END_STREAM"]).serialize()
    )
    useful.sent = call("/nobody.Serves/This", 1, "END_STREAM") + call(ESTABLISH, 3)
    for sock in (silent, later):
        sock.sent = call(ESTABLISH, 1)
    turn(loop, *socks)
    serving.listener._accept(Knocking(QuickSocket(117, loop)))  # type: ignore[arg-type]
    turn(loop)
    assert [sock.is_closed for sock in socks] == [False, False, False, True, False]
    assert len(serving.listener._peers) == 5


def test_idle_connections_of_the_host_that_has_most_make_room_first(
    serving: Serving, loop: QuickLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving.listener, "_most", 3)
    monkeypatch.setattr(listening, "_MADE_ROOM_FOR", 1)
    hosts = {100: "192.0.2.1", 101: "192.0.2.2", 102: "192.0.2.2", 103: "192.0.2.3"}
    monkeypatch.setattr(listening, "address_of", lambda sock: f"ipv4:{hosts[sock.fileno()]}:1")
    oldest, crowd, _ = (connect(serving, loop, number) for number in (100, 101, 102))
    serving.listener._accept(Knocking(QuickSocket(103, loop)))  # type: ignore[arg-type]
    turn(loop)
    assert crowd.is_closed
    assert not oldest.is_closed


# What has shown no key


@pytest.mark.parametrize("path", [ESTABLISH, REGISTER, CHECK, WATCH, REFLECT, "/echo.Echo/Say"])
def test_streams_that_wait_leave_room_for_those_of_others_however_they_come(
    serving: Serving, loop: QuickLoop, path: str
) -> None:
    shared = serving.shared
    busy = connect(serving, loop)
    busy.sent = register(1)  # which serves echo.Echo
    turn(loop, busy)
    introspection = serving._introspection
    assert introspection is not None
    budgets = (shared.handshakes, serving._callers._budget, introspection._watching,
               introspection._reflections._budget, introspection._waiting)  # fmt: skip
    for budget in budgets:
        budget.most = 100
    # One after the other, each as much as it can have: they would halve what is left, and the
    # eighth would leave nothing.
    for number in range(20):
        greedy = connect(serving, loop, 200 + number)
        for stream_id in range(1, 201, 2):
            greedy.sent += call(path, stream_id)
        turn(loop, greedy)
    assert max(budget.used for budget in budgets) == 100
    genuine = connect(serving, loop, 300)
    genuine.sent = call(path, 1)
    turn(loop, genuine)
    *_, peer = serving.listener._peers
    assert len(peer.endpoint.streams) == 1
    assert not genuine.is_closed
    assert max(budget.used for budget in budgets) == 100
    assert not busy.is_closed


# Credit


def test_who_has_its_share_of_credit_does_not_hold_up_those_behind_it(
    serving: Serving, loop: QuickLoop
) -> None:
    greedy, modest = connect(serving, loop), connect(serving, loop, 101)
    listener = serving.listener
    _, modest_peer = listener._peers
    large = struct.pack(">BI", 0, 4 << 20) + bytes(100)
    ids = [1 + 2 * number for number in range(25)]
    for stream_id in ids:
        greedy.sent += call(REGISTER, stream_id) + DataFrame(stream_id, large).serialize()
    turn(loop, greedy)
    assert len(listener.receiving._wanting) > 18  # all but three of its messages
    small = struct.pack(">BI", 0, 2 << 20) + bytes(100)
    modest.sent = call(REGISTER, 1) + DataFrame(1, small).serialize()
    turn(loop, modest)
    stream = modest_peer.endpoint.streams[1]
    assert list(listener.receiving._wanting)[-1] is stream
    listener.receiving._credit._callers.most += 2 << 20
    listener.receiving._credit.most += 2 << 20
    for stream_id in ids[-2:]:
        greedy.sent += RstStreamFrame(stream_id, 8).serialize()
    turn(loop, greedy)
    assert stream not in listener.receiving._wanting
    assert len(listener.receiving._wanting) > 16


def test_a_stream_that_ends_while_it_waits_for_credit_is_forgotten(
    serving: Serving, loop: QuickLoop
) -> None:
    listener = serving.listener
    sock = connect(serving, loop)
    credit = listener.receiving._credit._callers
    credit.take(("somebody",), "something", credit.most - (1 << 20))  # type: ignore[arg-type]
    begun = struct.pack(">BI", 0, 3 << 20)
    sock.sent = call(REGISTER, 1) + DataFrame(1, begun).serialize()
    turn(loop, sock)
    assert len(listener.receiving._wanting) == 1
    sock.sent = RstStreamFrame(1, 8).serialize()
    turn(loop, sock)
    assert not listener.receiving._wanting
    assert credit.used == credit.most - (1 << 20)


def begin(stream_id: int, size: int, path: str = REGISTER) -> bytes:
    """A call whose message of that size has only begun."""
    data = DataFrame(stream_id, struct.pack(">BI", 0, size) + bytes(100))
    return call(path, stream_id) + data.serialize()


def test_who_has_waited_for_credit_gets_it_from_who_has_far_more_and_no_more_than_it_needs(
    serving: Serving, loop: QuickLoop
) -> None:
    receiving = serving.listener.receiving
    greedy, honest, modest = (connect(serving, loop, number) for number in (102, 105, 108))
    greedy_peer, honest_peer, modest_peer = serving.listener._peers
    # Of the credit of 12 MiB; the last ones wait.
    greedy.sent = b"".join(begin(1 + 2 * number, 1 << 20) for number in range(14))
    turn(loop, greedy)
    honest.sent = begin(1, 4 << 20)
    modest.sent = begin(1, 2 << 20)
    turn(loop, honest, modest)
    stream = modest_peer.endpoint.streams[1]
    assert {stream, *honest_peer.endpoint.streams.values()} < set(receiving._wanting)
    wait(loop, 4.9)
    receiving.relieve_line()
    assert stream in receiving._wanting  # what is on its way may be whole in a moment
    wait(loop, 0.2)
    receiving.relieve_line()
    turn(loop, greedy)
    assert not {stream, *honest_peer.endpoint.streams.values()} & set(receiving._wanting)
    lost = 14 - len(greedy_peer.endpoint.streams)
    assert 6 <= lost <= 8  # of 1 MiB each, less what goes into windows


def test_a_message_that_has_begun_makes_room_where_its_connection_has_most_of_them(
    serving: Serving, loop: QuickLoop
) -> None:
    # Windows for 32 of them.
    greedy, modest = connect(serving, loop, 102), connect(serving, loop, 105)
    greedy_peer, modest_peer = serving.listener._peers
    for number in range(40):
        greedy.sent += begin(1 + 2 * number, 130_000)
    turn(loop, greedy)
    full = len(greedy_peer.endpoint.streams)
    assert 30 <= full < 40
    modest.sent = begin(1, 130_000)
    turn(loop, modest, greedy)
    assert len(modest_peer.endpoint.streams) == 1
    assert len(greedy_peer.endpoint.streams) == full - 1
    assert 3 not in greedy_peer.endpoint.streams or 1 not in greedy_peer.endpoint.streams


def test_messages_of_connectors_leave_half_to_callers_and_are_never_taken_back(
    serving: Serving, loop: QuickLoop
) -> None:
    receiving = serving.listener.receiving
    caller, connector, other = (connect(serving, loop, number) for number in (102, 105, 108))
    caller_peer, connector_peer, other_peer = serving.listener._peers
    caller.sent = b"".join(begin(1 + 2 * number, 130_000) for number in range(40))
    connector.sent = b"".join(register(1 + 2 * number) for number in range(18))
    other.sent = register(1)
    turn(loop, caller, connector, other)
    before = len(caller_peer.endpoint.streams)
    begun = struct.pack(">BI", 0, 1 << 20) + bytes(100)
    for number in range(18):
        connector.sent += DataFrame(1 + 2 * number, begun).serialize()
    small = struct.pack(">BI", 0, 300_000) + bytes(100)
    other.sent = DataFrame(1, small).serialize()
    turn(loop, connector, other, caller)
    windows = receiving._windows
    assert windows._callers.used <= windows.most // 2
    assert 0.4 * before <= len(caller_peer.endpoint.streams) < 0.6 * before
    # One may have 16 times what is left, and loses the streams for which it has no room itself.
    assert len(connector_peer.endpoint.streams) == 15
    assert len(other_peer.endpoint.streams) == 1
    assert 15 << 20 < windows._connectors.used < CREDIT
    caller.sent = begin(101, 130_000)
    turn(loop, caller)
    assert len(connector_peer.endpoint.streams) == 15


# The gateway's own services


def test_a_question_about_health_that_is_never_asked_ends(
    serving: Serving, loop: QuickLoop
) -> None:
    sock = connect(serving, loop)
    sock.sent = call(CHECK, 1) + call(WATCH, 3)
    turn(loop, sock)
    (peer,) = serving.listener._peers
    assert len(peer.endpoint.streams) == 2
    wait(loop, 11.0)
    turn(loop, sock)
    assert not peer.endpoint.streams
    assert b"no request came within 10 seconds" in sock.heard
    assert serving.shared.counters.refused["handshake_timeout"] == 2
    assert serving._introspection._watching.used == 0


def test_a_question_about_health_that_was_answered_does_not_end_again(
    serving: Serving, loop: QuickLoop
) -> None:
    sock = connect(serving, loop)
    asked = DataFrame(1, message(b""), flags=["END_STREAM"])
    sock.sent = call(WATCH, 1) + asked.serialize()
    turn(loop, sock)
    wait(loop, 11.0)
    (peer,) = serving.listener._peers
    assert len(peer.endpoint.streams) == 1


def test_many_questions_at_once_are_not_all_answered_before_the_first_answers_are_read(
    serving: Serving, loop: QuickLoop
) -> None:
    sock = connect(serving, loop)
    question = ServerReflectionRequest(file_containing_symbol="grpc.health.v1.Health")
    asked = DataFrame(1, message(question.SerializeToString()) * 400)
    sock.sent = call(REFLECT, 1) + asked.serialize()
    turn(loop, sock)
    assert b"the answers are not being read" in sock.heard
    (peer,) = serving.listener._peers
    assert not peer.endpoint.streams


def test_an_answer_about_health_does_not_wait_for_a_window_for_ever(
    serving: Serving, loop: QuickLoop
) -> None:
    sock = connect(serving, loop, INITIAL_WINDOW_SIZE=0)
    asked = DataFrame(1, message(b""), flags=["END_STREAM"])
    sock.sent = call(CHECK, 1) + asked.serialize()
    turn(loop, sock)
    (peer,) = serving.listener._peers
    assert len(peer.endpoint.streams) == 1
    assert serving.shared.answers._budget.used > 0
    wait(loop, 31.0)
    serving.listener.expire_answers()
    assert not peer.endpoint.streams
    assert serving.shared.answers._budget.used == 0


def test_who_watches_and_did_not_read_is_told_the_news_once_it_has(
    serving: Serving, loop: QuickLoop
) -> None:
    sock = connect(serving, loop, INITIAL_WINDOW_SIZE=0)
    asked = DataFrame(1, message(b""), flags=["END_STREAM"])
    sock.sent = call(WATCH, 1) + asked.serialize()
    turn(loop, sock)
    assert serving._introspection is not None
    serving._introspection.leave()
    turn(loop, sock)
    sock.sent = WindowUpdateFrame(1, 1_000).serialize()
    turn(loop, sock)
    assert sock.heard.index(message(b"\x08\x01")) < sock.heard.index(message(b"\x08\x02"))
