"""The socket of one connection, plain or with TLS: one thread reads it, and one writes."""

from __future__ import annotations

import _socket
import select
import socket
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from revconn.http2.connection import Buffer
from revconn.transport.tls import READ_BYTES, TLSFilter

__all__ = ["TLSWire", "Wire"]

_USUAL_READ_BYTES = 32 << 10  # larger blocks of memory come from the system anew each time
_LARGEST_KEPT = 4 << 20  # bytes
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
        size = len(data)
        self._read_bytes = READ_BYTES if size >= _USUAL_READ_BYTES else _USUAL_READ_BYTES
        if size >= READ_BYTES:
            _keep_large_blocks()
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


@cache
def _keep_large_blocks() -> None:
    """Once: have the allocator keep the memory of large messages for the next ones.

    glibc gives back to the system what is free in a thread beyond twice the largest block that was
    ever mapped and freed: this is one, which nobody has touched. Without it each worker's buffers
    come back page by page, which took a third of the CPU of a request of 1 MiB.
    """
    bytes(_LARGEST_KEPT)


def _rest_of(output: Sequence[Buffer], sent: int) -> list[Buffer]:
    """What is left of it when so many bytes have gone."""
    for index, buffer in enumerate(output):
        if sent < len(buffer):
            return [memoryview(buffer)[sent:], *output[index + 1 :]]
        sent -= len(buffer)
    return []


class TLSWire(Wire):
    """A socket on which all is encrypted."""

    def __init__(self, sock: socket.socket, tls: TLSFilter) -> None:
        super().__init__(sock)
        self._tls = tls

    def read(self) -> bytes:
        """What has arrived, decrypted."""
        while (data := self._tls.decrypt()) is None:
            self._tls.feed(super().read())
        return data

    def await_data(self, seconds: float) -> bool:
        """Whether there is something to read: it may have been received, and not decrypted yet."""
        return self._tls.has_data() or super().await_data(seconds)

    def write(self, output: Sequence[Buffer]) -> None:
        """Hand all of ``output``, and the backlog, to the network. Raises :class:`OSError`."""
        super().write(self._tls.encrypt(output))

    def write_now(self, output: Sequence[Buffer]) -> None:
        """Hand ``output`` to the network without waiting."""
        super().write_now(self._tls.encrypt(output))
