"""A TCP proxy between a connector and a gateway that breaks the connection as told."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from enum import Enum

_CHUNK = 1 << 16
_JOIN_TIMEOUT = 5.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Fault(Enum):
    """What happens to connections, and to what travels on them."""

    NONE = "forward everything"
    STALL = "accept, read nothing, write nothing"
    BLACK_HOLE = "read everything, pass on nothing, and never close: the peer is gone silently"
    REFUSE = "reset every new connection; leave the others alone"


class FaultProxy:
    """Listens on loopback and forwards to ``port``. ``fault`` may be set at any time.

    ``_lock`` guards everything; ``_changed`` is its condition.
    """

    def __init__(self, port: int, *, fault: Fault = Fault.NONE) -> None:
        self._upstream = ("127.0.0.1", port)
        self._changed = threading.Condition()
        self._fault = fault
        self._delay = 0.0
        self._closed = False
        self._sockets: set[socket.socket] = set()
        self._connections = 0
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._start(self._accept)

    # What a test does

    @property
    def fault(self) -> Fault:
        return self._fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        with self._changed:
            self._fault = fault
            self._changed.notify_all()

    def slow_down(self, seconds: float) -> None:
        """Hold back every chunk of bytes, in both directions, for so long."""
        with self._changed:
            self._delay = seconds

    def forward_to(self, port: int) -> None:
        """Lead new connections to another port."""
        with self._changed:
            self._upstream = ("127.0.0.1", port)

    @property
    def connections(self) -> int:
        """How many connections were made so far."""
        with self._changed:
            return self._connections

    def wait_connections(self, count: int, timeout: float = 10.0) -> None:
        """Wait until so many connections were made, all told."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._connections >= count, timeout):
                raise TimeoutError(f"{self._connections} connections, not {count}")

    def reset_all(self) -> None:
        """Break every connection with an RST on either side, as a killed process does."""
        self._close_all(reset=True)

    def cut_all(self) -> None:
        """Close every connection with a FIN, in the middle of whatever was being said."""
        self._close_all(reset=False)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        _shut(self._listener)
        self.cut_all()
        for thread in list(self._threads):
            thread.join(_JOIN_TIMEOUT)
            assert not thread.is_alive(), f"{thread.name} still runs"

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # Its threads

    def _start(self, body, *args) -> None:
        thread = threading.Thread(
            target=body, args=args, name=f"fault-proxy-{body.__name__}", daemon=True
        )
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                downstream, _ = self._listener.accept()
            except OSError:
                return  # closed
            with self._changed:
                if self._closed:
                    _shut(downstream)
                    return
                self._connections += 1
                self._changed.notify_all()
                self._sockets.add(downstream)
                refused = self._fault is Fault.REFUSE
            if refused:
                self._drop(downstream, reset=True)
            else:
                self._start(self._join, downstream)

    def _join(self, downstream: socket.socket) -> None:
        """Connect upstream and pump both ways."""
        if not self._wait_while_stalled(downstream):
            return
        try:
            upstream = socket.create_connection(self._upstream)
        except OSError:
            self._drop(downstream, reset=True)
            return
        with self._changed:
            alive = downstream in self._sockets
            if alive:
                self._sockets.add(upstream)
        if not alive:
            _shut(upstream)
            return
        self._start(self._pump, downstream, upstream)
        self._pump(upstream, downstream)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        while self._wait_while_stalled(source):
            try:
                data = source.recv(_CHUNK)
            except OSError:
                data = b""
            if self._fault is Fault.BLACK_HOLE:
                if not data:
                    return  # and the other side is never told
                continue
            if not data or not self._pass_on(data, source, sink):
                break
        self._drop(source, sink)

    def _pass_on(self, data: bytes, source: socket.socket, sink: socket.socket) -> bool:
        with self._changed:
            if self._delay:
                self._changed.wait_for(lambda: self._closed, self._delay)
        if not self._wait_while_stalled(source):
            return False
        try:
            sink.sendall(data)
        except OSError:
            return False
        return True

    def _wait_while_stalled(self, connection: socket.socket) -> bool:
        """False when the connection was closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._fault is not Fault.STALL or connection not in self._sockets
            )
            return connection in self._sockets

    def _close_all(self, *, reset: bool) -> None:
        with self._changed:
            doomed = list(self._sockets)
        self._drop(*doomed, reset=reset)

    def _drop(self, *doomed: socket.socket, reset: bool = False) -> None:
        with self._changed:
            mine = [each for each in doomed if each in self._sockets]
            self._sockets.difference_update(mine)
            self._changed.notify_all()
        for each in mine:
            if reset:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                # shutdown() would say FIN first; without it, close() wakes nobody who reads.
                _close_under_readers(each)
            else:
                _shut(each)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # not connected (any more)
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def _close_under_readers(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RD)  # wakes a reader, and sends nothing
    connection.close()
