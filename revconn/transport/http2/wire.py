"""A connected socket, bare or under TLS: one thread reads it, one writes it."""

from __future__ import annotations

import socket
import ssl
import threading
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Any

from revconn.core.addresses import Address
from revconn.transport.http2.tls import explain

__all__ = ["CAN_WRITE_NOW", "PlainWire", "TLSWire", "Wire"]

READ_BYTES = 256 << 10
_USUAL_READ_BYTES = 32 << 10  # larger blocks of memory come from the system anew each time
_DONT_WAIT = getattr(socket, "MSG_DONTWAIT", 0)
CAN_WRITE_NOW = bool(_DONT_WAIT)  # not on Windows


class Wire(ABC):
    """Blocking reads and writes; :meth:`close` from any thread wakes both.

    One thread reads and one writes at a time: whoever calls sees to that. ``address`` is where it
    leads, for who made it to remember.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.address: Address | None = None
        self._backlog = b""
        self._read_bytes = _USUAL_READ_BYTES

    @property
    def has_backlog(self) -> bool:
        """Whether :meth:`write_now` has left something for :meth:`write`."""
        return bool(self._backlog)

    @abstractmethod
    def read(self) -> bytes:
        """What has arrived; empty at the end. Raises :class:`OSError`."""

    @abstractmethod
    def _outgoing_form(self, data: bytes) -> bytes:
        """What ``data`` looks like on the wire. Raises :class:`OSError`."""

    def write(self, data: bytes) -> None:
        """Hand all of ``data``, and the backlog, to the network. Raises :class:`OSError`."""
        backlog, self._backlog = self._backlog, b""
        self._socket.sendall(backlog + self._outgoing_form(data))

    def write_now(self, data: bytes) -> None:
        """Hand ``data`` to the network without waiting; what it does not take is the backlog.

        Raises :class:`OSError`. Only where :data:`CAN_WRITE_NOW`.
        """
        outgoing = self._backlog + self._outgoing_form(data)
        try:
            sent = self._socket.send(outgoing, _DONT_WAIT)
        except BlockingIOError:
            sent = 0
        self._backlog = outgoing[sent:]

    def _receive(self) -> bytes:
        """What has arrived, as it is on the wire: much at once while there is much."""
        data = self._socket.recv(self._read_bytes)
        self._read_bytes = READ_BYTES if len(data) >= _USUAL_READ_BYTES else _USUAL_READ_BYTES
        return data

    def close(self) -> None:
        """End both directions at once. Idempotent."""
        with suppress(OSError):  # the peer may have been faster
            self._socket.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Give back the descriptor, once no thread uses it any more."""
        self._socket.close()


class PlainWire(Wire):
    """Nothing between us and the socket."""

    def read(self) -> bytes:
        """What has arrived."""
        return self._receive()

    def _outgoing_form(self, data: bytes) -> bytes:
        return data


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
            encrypted = self._outgoing.read()
            if encrypted:
                self._socket.sendall(encrypted)
        if not done:
            self._feed(self._receive())
        return done

    def read(self) -> bytes:
        """What has arrived, decrypted."""
        while True:
            with self._lock:
                data = self._decrypt()
            if data is not None:
                return data
            received = self._receive()
            with self._lock:
                self._feed(received)

    def _outgoing_form(self, data: bytes) -> bytes:
        """``data``, encrypted."""
        with self._lock:
            rest = memoryview(data)
            while rest:
                rest = rest[self._tls.write(rest) :]
            return self._outgoing.read()

    def _decrypt(self) -> bytes | None:
        """What can be decrypted now; ``None`` when more has to arrive first."""
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
