"""A socket: memory in proportion to what arrives, and all that is written, in its order."""

from __future__ import annotations

import contextlib
import socket as sockets
import ssl
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn.transport.tls import READ_BYTES, TLSFilter
from revconn.transport.wire import Wire
from tests.support.certificates import Authority


class Socket:
    """Has so many bytes for each read, and remembers how many were asked for."""

    def __init__(self, *arrived: int) -> None:
        self._arrived = list(arrived)
        self.asked: list[int] = []

    def recv(self, size: int) -> bytes:
        self.asked.append(size)
        return bytes(min(size, self._arrived.pop(0)))


def test_much_is_asked_for_only_while_much_arrives() -> None:
    socket = Socket(100, 1 << 20, 1 << 20, 100, 100)
    wire = Wire(socket)
    sizes = [len(wire.read()) for _ in range(5)]
    usual = socket.asked[0]
    assert usual < READ_BYTES
    assert socket.asked == [usual, usual, READ_BYTES, READ_BYTES, usual]
    assert sizes == [100, usual, READ_BYTES, 100, 100]


OUTPUT = [b"head", memoryview(bytes(range(256)) * 4_000), b"next", memoryview(b"x" * 700_000)]


@pytest.fixture
def ends() -> Iterator[tuple[sockets.socket, sockets.socket]]:
    near, far = sockets.socketpair()
    with near, far:
        yield near, far


def test_what_is_written_arrives_in_its_order(ends) -> None:
    near, far = ends
    wire, received = Wire(near), []
    reader = threading.Thread(target=lambda: received.append(read_all(far)))
    reader.start()
    wire.write([b"first"])
    wire.write_now(OUTPUT)  # more than the system takes at once
    assert wire.has_backlog
    wire.write(OUTPUT)
    wire.write([])
    assert not wire.has_backlog
    wire.write_now([b"last"])
    wire.close()
    reader.join()
    assert received == [b"first" + b"".join(OUTPUT) + b"".join(OUTPUT) + b"last"]


def test_a_backlog_grows_while_the_peer_reads_nothing_and_leaves_first(ends) -> None:
    near, far = ends
    wire = Wire(near)
    wire.write_now(OUTPUT)
    wire.write_now([b"one more"])
    reader_got: list[bytes] = []
    reader = threading.Thread(target=lambda: reader_got.append(read_all(far)))
    reader.start()
    wire.write([])
    wire.close()
    reader.join()
    assert reader_got == [b"".join(OUTPUT) + b"one more"]


@pytest.mark.parametrize("at_once", [1, 3, 700])
def test_a_system_that_takes_little_at_once_is_given_the_rest(at_once: int) -> None:
    taken: list[bytes] = []

    class Slow:
        def sendmsg(self, buffers: list[bytes]) -> int:
            taken.append(b"".join(buffers)[:at_once])
            return len(taken[-1])

    wire = Wire(Slow())
    wire.can_write_now = True  # as a socket of the system's
    wire.write([b"abc", b"", memoryview(b"defgh"), b"i"])
    assert b"".join(taken) == b"abcdefghi"


class Grudging:
    """Takes so many bytes of each write; ``None``: it would have to wait, if it may not."""

    def __init__(self, takes: list[int | None]) -> None:
        self._takes = takes
        self.taken = b""

    def _take(self, data: bytes, flags: int) -> int:
        size = self._takes.pop(0) if self._takes else len(data)
        if size is None and flags:
            raise BlockingIOError
        if not flags:
            size = max(1, size or 0)
        self.taken += data[:size]
        return min(size or 0, len(data))

    def send(self, data: bytes, flags: int) -> int:
        return self._take(data, flags)

    def sendmsg(self, buffers: list[bytes], ancillary: object = (), flags: int = 0) -> int:
        return self._take(b"".join(buffers), flags)

    def sendall(self, data: bytes) -> None:
        self.taken += data


@given(
    st.lists(st.one_of(st.none(), st.integers(0, 12)), max_size=8),
    st.lists(st.tuples(st.booleans(), st.lists(st.binary(max_size=5), max_size=4)), max_size=6),
)
def test_whatever_the_system_takes_at_once_all_leaves_in_its_order(takes, writes) -> None:
    wire = Wire(socket := Grudging(takes))
    wire.can_write_now = True
    for may_wait, output in writes:
        (wire.write if may_wait else wire.write_now)([memoryview(each) for each in output])
    if wire.has_backlog:
        wire.write([])
    assert socket.taken == b"".join(each for _, output in writes for each in output)
    assert not wire.has_backlog


def test_sockets_of_green_threads_are_given_all_at_once() -> None:
    """Theirs wait for the network in ``sendall`` alone."""
    taken: list[bytes] = []

    class Green:
        def sendall(self, data: bytes) -> None:
            taken.append(data)

    Wire(Green()).write([b"abc", memoryview(b"def")])
    assert taken == [b"abcdef"]


def read_all(far: sockets.socket) -> bytes:
    data = b""
    while piece := far.recv(1 << 20):
        data += piece
    return data


class Server:
    """The server's side of a TLS handshake, over a line that takes little, and then nothing."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._is_slow = False

    def handshake(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()

    def send(self, data: bytes) -> int:
        self._is_slow = not self._is_slow
        if not self._is_slow:
            raise sockets.timeout
        return self._incoming.write(data[:100])

    def recv(self, size: int) -> bytes:
        self.handshake()
        if not self._outgoing.pending:
            raise sockets.timeout
        return self._outgoing.read(size)


def test_a_handshake_loses_nothing_on_a_line_that_takes_little_at_a_time(
    authority: Authority,
) -> None:
    server = Server(authority.server_context())
    context = ssl.create_default_context(cadata=authority.pem.decode())
    tls, is_done = TLSFilter(context, "127.0.0.1"), False
    for _ in range(1000):
        with contextlib.suppress(sockets.timeout):
            is_done = is_done or tls.handshake(server)
    server.handshake()
    assert is_done
    assert server._tls.version() == tls._tls.version()
