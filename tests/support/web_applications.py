"""Web applications of a few lines."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, Callable

__all__ = ["Body", "http", "wsgi"]


class Body:
    """An iterable with a close(), of which it counts the calls."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self.closed = 0
        self.was_closed = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        return self._parts

    def close(self) -> None:
        self.closed += 1
        self.was_closed.set()


def wsgi(make: Callable[[dict[str, Any]], Any], *headers: tuple[str, str]) -> Any:
    """An application that answers with the body which ``make`` makes."""

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", list(headers))
        return make(environ)

    return app


def http(app: Any) -> Any:
    """An ASGI application that has no lifespan."""

    async def whole(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await app(scope, receive, send)

    return whole
