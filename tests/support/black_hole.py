"""An address that a connection to neither opens nor fails."""

from __future__ import annotations

import errno
import selectors
import socket

__all__ = ["BlackHole"]


class BlackHole:
    """A listener that accepts nothing and whose queue is full: the system drops what comes."""

    def __init__(self) -> None:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0)
        self.port = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._queued: list[socket.socket] = []
        while self._connects():
            pass

    def _connects(self) -> bool:
        sock = socket.socket()
        sock.setblocking(False)
        assert sock.connect_ex(("127.0.0.1", self.port)) in (0, errno.EINPROGRESS)
        self._queued.append(sock)
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_WRITE)
            return bool(selector.select(0.2))

    def close(self) -> None:
        for sock in self._queued:
            sock.close()
        self._listener.close()

    def __enter__(self) -> BlackHole:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
