"""A connected socket, bare or under TLS: one thread reads it, one writes it."""

from __future__ import annotations

import _socket
import os
import select
import socket
import ssl
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from revconn.http2.connection import Buffer
from revconn.transport.tls import explain

__all__ = ["TLSWire", "Wire", "open_socket"]

READ_BYTES = 256 << 10
_USUAL_READ_BYTES = 32 << 10  # larger blocks of memory come from the system anew each time
_DONT_WAIT = getattr(socket, "MSG_DONTWAIT", 0)


class Wire:
    """A plain socket. Reads and writes block; :meth:`close` from any thread wakes both.

    One thread reads and one writes at a time: whoever calls sees to that. ``has_backlog`` says
    whether :meth:`write_now` has left something for :meth:`write`.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        # Not on Windows; and the sockets of green threads, which are of a class of their own, wait
        # all the same.
        self.can_write_now = bool(_DONT_WAIT) and isinstance(sock, _socket.socket)
        self._backlog = b""
        self.has_backlog = False
        self._read_bytes = _USUAL_READ_BYTES
        self._poll: Any = None  # made when it is needed; the reading thread's

    def read(self) -> bytes:
        """What has arrived, much at once while there is much; empty at the end.

        Raises :class:`OSError`.
        """
        # A lone request is read into a block that the allocator keeps; asked for 256 KiB each time,
        # it would have the system map fresh memory for a hundred bytes.
        data = self._socket.recv(self._read_bytes)
        self._read_bytes = READ_BYTES if len(data) >= _USUAL_READ_BYTES else _USUAL_READ_BYTES
        return data

    def await_data(self, seconds: float) -> bool:
        """Whether there is something to read, at the latest after so many seconds.

        False at once where the system, or what green threads made of it, has no way to tell.
        """
        # Not select(), which knows no descriptor above 1,023.
        if self._poll is None:
            if not hasattr(select, "poll"):
                return False
            self._poll = select.poll()
            self._poll.register(self._socket, select.POLLIN)
        return bool(self._poll.poll(seconds * 1000))

    def write(self, output: Sequence[Buffer]) -> None:
        """Hand all of ``output``, behind the backlog, to the network. Raises :class:`OSError`."""
        rest = list(output)
        if self.has_backlog:
            rest.insert(0, self._backlog)
            self._backlog = b""
            self.has_backlog = False
        if len(rest) == 1 or not self.can_write_now:
            self._socket.sendall(rest[0] if len(rest) == 1 else b"".join(rest))
            return
        # Joining 1 MiB to write it takes longer than the system takes to gather and send it.
        while rest:
            rest = _rest_of(rest, self._socket.sendmsg(rest))

    def write_now(self, output: Sequence[Buffer]) -> None:
        """Hand ``output`` to the network without waiting; what it does not take is the backlog.

        Raises :class:`OSError`. Only if ``can_write_now``.
        """
        if len(output) != 1 or self.has_backlog:
            self._gather_now([self._backlog, *output] if self.has_backlog else output)
            return
        data = output[0]
        try:
            sent = self._socket.send(data, _DONT_WAIT)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._backlog = bytes(data[sent:])
            self.has_backlog = True

    def _gather_now(self, output: Sequence[Buffer]) -> None:
        try:
            sent = self._socket.sendmsg(output, (), _DONT_WAIT)
        except BlockingIOError:
            sent = 0
        self._backlog = b"".join(_rest_of(output, sent))
        self.has_backlog = bool(self._backlog)

    def close(self) -> None:
        """End both directions at once. Idempotent."""
        # Not close(), which leaves a thread that is in recv() or send() there for ever, and its
        # descriptor to the next file that anybody opens.
        with suppress(OSError):  # the peer may have been faster
            self._socket.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Give back the descriptor, once no thread uses it any more."""
        self._socket.close()


def _rest_of(output: Sequence[Buffer], sent: int) -> list[Buffer]:
    """What is left of it when so many bytes have gone."""
    for index, buffer in enumerate(output):
        if sent < len(buffer):
            return [memoryview(buffer)[sent:], *output[index + 1 :]]
        sent -= len(buffer)
    return []


class TLSWire(Wire):
    """TLS in memory, so that reading and writing need no common lock around the socket.

    OpenSSL's objects are not safe to read and write at once: ``_lock`` guards ``_tls`` and its
    two buffers, and no I/O happens under it.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_name: str) -> None:
        super().__init__(sock)
        self._lock = threading.Lock()
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        self._flight = b""  # of the handshake's own bytes: what is to be sent yet
        # Memory that is used again: allocating it anew takes longer than decrypting.
        self._decrypted = memoryview(bytearray(READ_BYTES))

    @property
    def alpn(self) -> str | None:
        """The protocol that was agreed on."""
        return self._tls.selected_alpn_protocol()

    def handshake(self) -> bool:
        """One round of the handshake; true when it is done. Raises :class:`OSError`.

        Called before any other thread knows the wire.
        """
        try:
            self._tls.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            done = False
        finally:
            # Also when it failed: the alert tells the peer why.
            self._flight += self._outgoing.read()
            # Not sendall(): the socket's timeout is short, and what it had not sent would be lost.
            while self._flight:
                self._flight = self._flight[self._socket.send(self._flight) :]
        if not done:
            self._feed(super().read())
        return done

    def read(self) -> bytes:
        """What has arrived, decrypted."""
        while True:
            with self._lock:
                data = self._decrypt()
            if data is not None:
                return data
            received = super().read()  # with no lock: it may wait for hours, and others write
            with self._lock:
                self._feed(received)

    def await_data(self, seconds: float) -> bool:
        """Whether there is something to read: it may have been received, and not decrypted yet."""
        with self._lock:
            has_come = bool(self._tls.pending() or self._incoming.pending)
        return has_come or super().await_data(seconds)

    def write(self, output: Sequence[Buffer]) -> None:
        """Hand all of ``output``, and the backlog, to the network. Raises :class:`OSError`."""
        super().write(self._encrypt(output))

    def write_now(self, output: Sequence[Buffer]) -> None:
        """Hand ``output`` to the network without waiting."""
        super().write_now(self._encrypt(output))

    def _encrypt(self, output: Sequence[Buffer]) -> list[Buffer]:
        # As one, since each piece that OpenSSL is given becomes a record, however small it is.
        data = output[0] if len(output) == 1 else b"".join(output)
        with self._lock:
            rest = memoryview(data)
            while rest:
                rest = rest[self._tls.write(rest) :]
            encrypted = self._outgoing.read()
        return [encrypted] if encrypted else []

    def _decrypt(self) -> bytes | None:
        """What can be decrypted now; ``None`` when more has to arrive first."""
        # A TLS record holds 16 KiB at most: as many as have arrived come out at once, so that the
        # engine is not called for each.
        size = 0
        try:
            while size < READ_BYTES:
                record: Any = self._tls.read(READ_BYTES, self._decrypted[size:])  # its size
                size += record
                if not record or not (self._tls.pending() or self._incoming.pending):
                    break
        except ssl.SSLWantReadError:
            if not size:
                return None
        except ssl.SSLEOFError:
            pass  # the peer closed without TLS's own goodbye: HTTP/2 does not need it
        except ssl.SSLError as error:
            raise OSError(explain(error)) from None
        return bytes(self._decrypted[:size])

    def _feed(self, received: bytes) -> None:
        if received:
            self._incoming.write(received)
        else:
            self._incoming.write_eof()


# Whoever dials adds to it. A child looks through it after a fork, where no other thread is.
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def open_socket(family: int) -> socket.socket:
    """A stream socket that stays the parent's when the process forks."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    _sockets.add(sock)
    return sock


def _let_go() -> None:
    """In a forked child: put a dead end in the place of each connection.

    The child's copies would keep a connection up after the parent died, and a gateway would go on
    sending requests that nobody answers. Closing them would not do: green threads go on in the
    child with the number of the descriptor, which may be another file's by then.
    """
    descriptors = [sock.fileno() for sock in _sockets if sock.fileno() >= 0]
    if not descriptors:
        return
    dead_end, other_end = os.pipe()
    os.close(other_end)
    for descriptor in descriptors:
        os.dup2(dead_end, descriptor, inheritable=False)
    os.close(dead_end)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
