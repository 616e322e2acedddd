"""A TCP proxy between a connector and a gateway that breaks the connection as it is told."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from enum import Enum
from types import TracebackType
from typing import Any, Callable

from revconn.settings.checks import require_attribute

__all__ = ["Fault", "FaultProxy"]

_CHUNK = 1 << 16
_JOIN_TIMEOUT = 5.0
# SO_LINGER of no seconds: close() throws away what was not sent, and says RST.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Fault(Enum):
    """What a :class:`FaultProxy` does to connections, and to what travels on them."""

    NONE = "forward everything"
    STALL = "accept, read nothing, write nothing"
    BLACK_HOLE = "read everything, pass on nothing, and never close: the peer is gone silently"
    REFUSE = "reset every new connection; leave the others alone"


class FaultProxy:
    """A TCP proxy, in threads of its own, for connectors to dial in place of their gateway.

    It listens on a free port of 127.0.0.1 from the moment it is made, until :meth:`close` or the
    end of a ``with`` block. Every method may be called from any thread.

    :param port: the port of 127.0.0.1 to forward to.
    :param fault: what happens from the beginning.
    """

    def __init__(self, port: int, *, fault: Fault = Fault.NONE) -> None:
        self._upstream = ("127.0.0.1", port)
        self._changed = threading.Condition()  # of the lock that guards everything
        self._fault = fault
        self._delay = 0.0
        self._closed = False
        self._sockets: set[socket.socket] = set()
        self._pairs: dict[socket.socket, socket.socket] = {}  # downstream: upstream
        self._abandoned: set[socket.socket] = set()  # those of _sockets with no other side
        self._connections = 0
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    def __setattr__(self, name: str, value: object) -> None:
        require_attribute(FaultProxy, self, name)
        super().__setattr__(name, value)

    @property
    def port(self) -> int:
        """The port to be dialled."""
        return self._port

    @property
    def address(self) -> str:
        """``host:port`` to be dialled."""
        return f"127.0.0.1:{self._port}"

    # What a test does

    @property
    def fault(self) -> Fault:
        """What happens now; set it at any time."""
        return self._fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        with self._changed:
            self._fault = fault
            self._changed.notify_all()

    def slow_down(self, seconds: float) -> None:
        """Hold back every 64 KiB, or what there is, for so long, in both directions; 0 ends it."""
        with self._changed:
            self._delay = seconds
            self._changed.notify_all()

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
        """Wait until so many connections were made, all told; else :class:`TimeoutError`."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._connections >= count, timeout):
                raise TimeoutError(f"{self._connections} connections, not {count}")

    def reset_all(self) -> None:
        """Break every connection with an RST on either side, as a killed process does."""
        self._close_all(reset=True)

    def cut_all(self) -> None:
        """Close every connection with a FIN, in the middle of whatever was being said."""
        self._close_all(reset=False)

    def half_open_all(self) -> None:
        """Break every connection on the gateway's side, and never tell the connector."""
        with self._changed:
            lost = list(self._pairs.values())
            self._abandoned.update(self._pairs)
            self._pairs.clear()
        self._drop(*lost, reset=True)

    def close(self) -> None:
        """Close every connection and stop listening. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        # shutdown() first, which wakes accept(): close() alone leaves it waiting on Linux.
        _shut(self._listener)
        self.cut_all()
        for thread in list(self._threads):
            thread.join(_JOIN_TIMEOUT)
            if thread.is_alive():
                raise RuntimeError(f"{thread.name} still runs after {_JOIN_TIMEOUT:g} seconds")

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<FaultProxy {self.address} to {self._upstream[1]} {self._fault.name}>"

    # Its threads

    def _start(self, body: Callable[..., None], *args: Any) -> None:
        name = f"revconn-fault-proxy-{body.__name__.lstrip('_')}"
        thread = threading.Thread(target=body, args=args, name=name, daemon=True)
        with self._changed:
            # Those of past connections are let go of: a test may make thousands.
            self._threads = [other for other in self._threads if other.is_alive()]
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
            # Only now: a connection that was stalled from its beginning has no other side yet, and
            # may be led to another port meanwhile.
            upstream = socket.create_connection(self._upstream)
        except OSError:
            self._drop(downstream, reset=True)
            return
        with self._changed:
            # It may have been broken while this connected.
            alive = downstream in self._sockets
            if alive:
                self._sockets.add(upstream)
                self._pairs[downstream] = upstream
        if not alive:
            _shut(upstream)
            return
        # One thread for each direction, of which this one is the second.
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
            elif not data or (
                not self._pass_on(data, source, sink) and source not in self._abandoned
            ):
                break
        self._drop(source)
        # A half-open side stays open until the peer there ends it: it must not be told.
        if sink not in self._abandoned:
            self._drop(sink)

    def _pass_on(self, data: bytes, source: socket.socket, sink: socket.socket) -> bool:
        with self._changed:
            delay = self._delay
            if delay:
                self._changed.wait_for(lambda: self._closed or self._delay != delay, delay)
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
            # Each is closed once, by whoever takes it out of the set: a number that was closed may
            # be another file's a moment later.
            mine = [each for each in doomed if each in self._sockets]
            for each in mine:
                self._sockets.discard(each)
                self._pairs.pop(each, None)
                self._abandoned.discard(each)
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
