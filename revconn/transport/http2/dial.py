"""Opening a connection: names resolved, addresses raced, TLS agreed on."""

from __future__ import annotations

import os
import queue
import selectors
import socket
import threading
import time
from contextlib import suppress
from typing import Any, Callable

from revconn.config import TLS
from revconn.core.status import StatusCode
from revconn.proxy import Proxy
from revconn.target import Target
from revconn.transport.base import StreamEnded
from revconn.transport.http2.tls import client_context, explain
from revconn.transport.http2.tunnel import tunnel
from revconn.transport.http2.wire import PlainWire, TLSWire, Wire

__all__ = ["Dialer"]

_HEAD_START = 0.25
_POLL = 0.1

_Address = tuple[int, Any]


class Dialer:
    """Connects to one target. Each call is on its own: names and certificates are read afresh."""

    def __init__(
        self, target: Target, tls: TLS | None, proxy: Proxy | None, user_timeout: float
    ) -> None:
        self._target = target
        self._tls = tls
        self._proxy = proxy
        self._user_timeout = user_timeout

    def dial(self, cancelled: Callable[[], bool]) -> Wire:
        """A connected wire. Raises :class:`StreamEnded` (UNAVAILABLE) with the reason.

        ``cancelled`` is asked several times a second; it bounds the whole.
        """
        try:
            sock = self._connect(cancelled)
        except OSError as error:
            raise _unavailable(f"cannot connect: {error.strerror or error}") from None
        try:
            self._tune(sock)
            sock.settimeout(_POLL)
            wire = self._agree(sock, cancelled)
            sock.settimeout(None)
        except BaseException:
            sock.close()
            raise
        return wire

    def _connect(self, cancelled: Callable[[], bool]) -> socket.socket:
        host, port = self._target.host, self._target.port
        if port is None:
            return _race([(socket.AF_UNIX, self._target.unix_path)], cancelled)
        if self._proxy is not None:
            host, port = self._proxy.host, self._proxy.port
        return _race(_interleave(_resolve(host, port, cancelled)), cancelled)

    def _agree(self, sock: socket.socket, cancelled: Callable[[], bool]) -> Wire:
        if self._proxy is not None:
            try:
                tunnel(sock, self._proxy, self._target, cancelled)
            except OSError as error:
                raise _unavailable(str(error)) from None
        if self._tls is None:
            return PlainWire(sock)
        try:
            wire = TLSWire(
                sock, client_context(self._tls), self._tls.server_name or self._target.host
            )
            _shake_hands(wire, cancelled)
        except (OSError, ValueError) as error:
            raise _unavailable(explain(error)) from None
        if wire.alpn != "h2":
            raise _unavailable("the gateway speaks TLS, but not HTTP/2 (it chose no ALPN h2)")
        return wire

    def _tune(self, sock: socket.socket) -> None:
        if sock.family == getattr(socket, "AF_UNIX", None):
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        user_timeout = getattr(socket, "TCP_USER_TIMEOUT", None)
        if user_timeout is not None:
            milliseconds = int(self._user_timeout * 1000)
            sock.setsockopt(socket.IPPROTO_TCP, user_timeout, milliseconds)


def _shake_hands(wire: TLSWire, cancelled: Callable[[], bool]) -> None:
    while True:
        try:
            if wire.handshake():
                return
        except socket.timeout:
            if cancelled():
                raise _unavailable("no answer to the TLS handshake") from None


def _unavailable(reason: str) -> StreamEnded:
    return StreamEnded(StatusCode.UNAVAILABLE, reason)


def _resolve(host: str, port: int, cancelled: Callable[[], bool]) -> list[_Address]:
    """The host's addresses. In a thread of its own: nothing can interrupt a resolver."""
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def resolve() -> None:
        try:
            results.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            results.put(error)

    threading.Thread(target=resolve, name=f"revconn-resolver-{host}", daemon=True).start()
    while True:
        try:
            found = results.get(timeout=_POLL)
        except queue.Empty:
            if cancelled():
                raise OSError(f"{host} did not resolve in time") from None
            continue
        if isinstance(found, OSError):
            raise OSError(f"{host} does not resolve: {found.strerror}") from None
        return [(family, address) for family, _, _, _, address in found]


def _interleave(addresses: list[_Address]) -> list[_Address]:
    """IPv6 and IPv4 in turn (RFC 8305), the resolver's favourite first."""
    first = [a for a in addresses if a[0] == addresses[0][0]]
    others = [a for a in addresses if a[0] != addresses[0][0]]
    mixed = []
    while first or others:
        mixed += first[:1] + others[:1]
        first, others = first[1:], others[1:]
    return mixed


def _race(addresses: list[_Address], cancelled: Callable[[], bool]) -> socket.socket:
    """The first connection that opens; the next address starts after a short head start."""
    waiting = list(addresses)
    running: set[socket.socket] = set()
    last_error = OSError("no address")
    next_start = 0.0
    try:
        while waiting or running:
            if cancelled():
                raise OSError("no answer in time")
            if waiting and (not running or time.monotonic() >= next_start):
                family, address = waiting.pop(0)
                try:
                    running.add(_begin(family, address))
                except OSError as error:
                    last_error = error
                next_start = time.monotonic() + _HEAD_START
            for sock in _settled(running):
                running.discard(sock)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code == 0:
                    return sock
                sock.close()
                last_error = OSError(code, os.strerror(code))
        raise last_error
    finally:
        for sock in running:
            sock.close()


def _begin(family: int, address: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        with suppress(BlockingIOError):
            sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _settled(running: set[socket.socket]) -> list[socket.socket]:
    """Whose attempt has ended, well or badly; waits a moment for one."""
    with selectors.DefaultSelector() as selector:
        for sock in running:
            selector.register(sock, selectors.EVENT_WRITE, sock)
        return [key.data for key, _ in selector.select(_POLL)]
