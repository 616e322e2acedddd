"""The event loop, and who is called when a socket is ready."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from revconn.gateway.loop import new_loop


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[asyncio.AbstractEventLoop]:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    loop = new_loop()
    yield loop
    loop.close()


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


def go_round(loop: asyncio.AbstractEventLoop) -> None:
    loop.call_soon(loop.stop)
    loop.run_forever()


def test_who_waits_to_read_or_to_write_is_called_until_it_waits_no_more(loop, ends) -> None:
    ours, theirs = ends
    done: list[str] = []
    loop.add_reader(ours.fileno(), done.append, "read")
    go_round(loop)
    assert done == []
    loop.add_writer(ours.fileno(), done.append, "write")
    theirs.send(b"x")
    go_round(loop)
    assert done == ["read", "write"]
    assert loop.remove_reader(ours.fileno())
    go_round(loop)
    assert done == ["read", "write", "write"]
    loop.add_reader(ours.fileno(), done.append, "again")
    assert loop.remove_writer(ours.fileno())
    go_round(loop)
    assert done[3:] == ["again"]
    assert loop.remove_reader(ours.fileno())
    go_round(loop)
    assert len(done) == 4


def test_who_waits_takes_the_place_of_who_waited_before(loop, ends) -> None:
    ours, theirs = ends
    done: list[str] = []
    loop.add_reader(ours.fileno(), done.append, "first")
    loop.add_reader(ours.fileno(), done.append, "second")
    theirs.send(b"x")
    go_round(loop)
    assert done == ["second"]


def test_nobody_is_there_to_be_removed_twice(loop, ends) -> None:
    ours, _ = ends
    assert not loop.remove_reader(ours.fileno())
    loop.add_reader(ours.fileno(), lambda: None)
    loop.remove_reader(ours.fileno())
    assert not loop.remove_reader(ours.fileno())
    assert not loop.remove_writer(ours.fileno())


@pytest.mark.parametrize("first", ["reader", "writer"])
def test_who_was_removed_by_who_was_called_before_is_not_called(loop, ends, first: str) -> None:
    ours, theirs = ends
    done: list[str] = []

    def remove_all() -> None:
        done.append("called")
        loop.remove_reader(ours.fileno())
        loop.remove_writer(ours.fileno())

    loop.add_reader(ours.fileno(), remove_all)
    if first == "reader":
        theirs.send(b"x")
    else:
        loop.remove_reader(ours.fileno())
    loop.add_writer(ours.fileno(), remove_all)
    for _ in range(3):
        go_round(loop)
    assert done == ["called"]


def test_a_peer_that_is_gone_is_told_to_who_waits_for_either(loop, ends) -> None:
    ours, theirs = ends
    done: list[str] = []
    theirs.close()
    loop.add_reader(ours.fileno(), done.append, "read")
    go_round(loop)
    loop.remove_reader(ours.fileno())
    loop.add_writer(ours.fileno(), done.append, "write")
    go_round(loop)
    assert done == ["read", "write"]


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError, GeneratorExit])
def test_one_that_fails_is_told_of_and_ends_nothing(loop, ends, error) -> None:
    ours, theirs = ends
    told: list[object] = []

    def fail() -> None:
        raise error

    loop.set_exception_handler(lambda _, context: told.append(context["exception"]))
    loop.add_reader(ours.fileno(), fail)
    theirs.send(b"x")
    for _ in range(2):
        go_round(loop)
    assert list(map(type, told)) == [error] * 2


def test_one_that_wants_the_program_to_end_ends_the_loop(loop, ends) -> None:
    ours, theirs = ends
    loop.add_reader(ours.fileno(), sys.exit, 3)
    theirs.send(b"x")
    with pytest.raises(SystemExit):
        loop.run_forever()


def test_who_waited_for_a_socket_that_was_closed_is_forgotten_like_any_other(loop, ends) -> None:
    ours, _ = ends
    descriptor = ours.fileno()
    loop.add_reader(descriptor, lambda: None)
    loop.add_writer(descriptor, lambda: None)
    ours.close()
    assert loop.remove_reader(descriptor)
    assert loop.remove_writer(descriptor)


def test_what_cannot_be_watched_is_refused(loop, ends) -> None:
    ours, _ = ends
    descriptor = ours.fileno()
    ours.close()
    with pytest.raises((OSError, ValueError)):
        loop.add_reader(descriptor, lambda: None)
    assert not loop.remove_reader(descriptor)


@pytest.mark.skipif(sys.platform != "linux", reason="it is asyncio's own elsewhere")
def test_what_many_sockets_lead_to_is_done_before_the_last_is_looked_at(loop) -> None:
    done: list[str] = []
    with ExitStack() as stack:
        for _ in range(200):
            ours, theirs = socket.socketpair()
            stack.enter_context(ours)
            stack.enter_context(theirs).send(b"x")
            loop.add_reader(
                ours.fileno(), lambda ours=ours: (ours.recv(1), loop.call_soon(done.append, "then"))
            )
        go_round(loop)
        assert 0 < len(done) < 200
        while len(done) < 200:
            go_round(loop)


def test_other_threads_wake_it_and_asyncios_own_sockets_work(loop) -> None:
    async def talk() -> bytes:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as caller:
            server.setblocking(False)
            caller.setblocking(False)
            accepted = loop.create_task(loop.sock_accept(server))
            await loop.sock_connect(caller, server.getsockname())
            called, _ = await accepted
            with called:
                await loop.sock_sendall(caller, b"said")
                said = await loop.sock_recv(called, 10)
                done: list[bytes] = []
                loop.add_reader(called.fileno(), lambda: done.append(called.recv(10)))
                await loop.sock_sendall(caller, b" more")
                while not done:
                    await asyncio.sleep(0)
                loop.remove_reader(called.fileno())
        return said + done[0]

    done = loop.create_future()
    waker = threading.Timer(0.01, loop.call_soon_threadsafe, (done.set_result, "woken"))
    waker.start()
    assert loop.run_until_complete(done) == "woken"
    assert loop.run_until_complete(talk()) == b"said more"
    waker.join()


def test_once_it_is_closed_nothing_keeps_it(loop) -> None:
    gc.disable()
    try:
        other = new_loop()
        kept = weakref.ref(other)
        other.close()
        del other
        assert kept() is None
    finally:
        gc.enable()


def test_after_its_end_nobody_is_there_to_be_removed(loop, ends) -> None:
    ours, _ = ends
    loop.add_reader(ours.fileno(), lambda: None)
    loop.add_writer(ours.fileno(), lambda: None)
    loop.close()
    assert not loop.remove_reader(ours.fileno())
    assert not loop.remove_writer(ours.fileno())
