"""What names resolve to, as a test has it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["Names"]

_INVENTED = ".example.com"
_TIMEOUT = 60.0


class Names(dict[str, list[str]]):
    """The addresses of names under example.com while inside; others are the system's to resolve.

    :ivar asked: for what, each time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self._may_answer = threading.Event()
        self._may_answer.set()
        self._real = socket.getaddrinfo

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """While inside, whoever asks gets no answer."""
        self._may_answer.clear()
        try:
            yield
        finally:
            self._may_answer.set()

    def _resolve(self, host: Any, port: Any, *args: Any, **options: Any) -> list[Any]:
        if not str(host).endswith(_INVENTED):
            return self._real(host, port, *args, **options)
        self.asked.append(host)
        assert self._may_answer.wait(_TIMEOUT)
        found = self.get(host)
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET6, 1, 6, "", (ip, port, 0, 0))
            if ":" in ip
            else (socket.AF_INET, 1, 6, "", (ip, port))
            for ip in found
        ]

    def __enter__(self) -> Names:
        socket.getaddrinfo = self._resolve
        return self

    def __exit__(self, *exc_info: object) -> None:
        socket.getaddrinfo = self._real
