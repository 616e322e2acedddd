"""A host's addresses: looked up anew for each attempt, and each tried in its turn."""

from __future__ import annotations

import queue
import socket
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Callable

from revconn.core.addresses import Address, AddressOrder
from revconn.runtime.threads import guarded_thread

__all__ = ["Addresses"]

_POLL = 0.1


class Addresses:
    """The addresses of one host and port.

    The order belongs to whoever looks the name up. Failures, which any thread may tell of, wait in
    a deque until then: a link may open a stream while another of its streams ends.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._order = AddressOrder()
        self._failures: deque[Address] = deque()
        self.count = 0  # at the last look; plain, set by whoever looks

    def find(self, cancelled: Callable[[], bool]) -> list[Address]:
        """Those of now, in the order to try them.

        ``cancelled`` is asked several times a second. Raises :class:`OSError`.
        """
        found = _resolve(self._host, self._port, cancelled)
        with suppress(IndexError):
            while True:
                self._order.failed(self._failures.popleft())
        arranged = self._order.arrange(found)
        self.count = len(arranged)
        return arranged

    def failed(self, addresses: Iterable[Address]) -> None:
        """An attempt, or a connection, came to a bad end there; to the last one last."""
        self._failures.extend(addresses)


def _resolve(host: str, port: int, cancelled: Callable[[], bool]) -> list[Address]:
    """In a thread of its own: nothing can interrupt a resolver."""
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def resolve() -> None:
        try:
            results.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except BaseException as error:  # noqa: BLE001 - UnicodeError, say: not a name at all
            results.put(error)

    guarded_thread(f"revconn-resolver-{host}", resolve).start()
    while True:
        try:
            found = results.get(timeout=_POLL)
        except queue.Empty:
            if cancelled():
                raise OSError(f"{host} did not resolve in time") from None
            continue
        if isinstance(found, BaseException):
            reason = getattr(found, "strerror", None) or str(found)
            raise OSError(f"{host} does not resolve: {reason}") from None
        return [(family, address) for family, _, _, _, address in found]
