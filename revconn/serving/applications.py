"""The ASGI applications of a connector, all together: their start, their failure, their end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from revconn.serving.asgi import ASGIHandler

__all__ = ["Applications"]

_SHUTDOWN_TIMEOUT = 10.0  # seconds that they have to end, all together


class Applications:
    """Starts and ends them. The connector's lock guards :meth:`add`; thread-safe after that."""

    def __init__(self) -> None:
        self._handlers: list[ASGIHandler] = []

    def add(self, handler: ASGIHandler) -> None:
        """One more, before the start."""
        self._handlers.append(handler)

    def start(self) -> None:
        """Have them start up, one after the other.

        Raises :class:`RevconnError` when one says it failed; then all have ended.
        """
        try:
            for handler in self._handlers:
                handler.start()
        except BaseException:  # Ctrl-C, too
            self.stop()
            raise

    def watch(self, on_failure: Callable[[BaseException], object]) -> None:
        """Have ``on_failure`` called when one of them cannot go on; now, if one cannot already."""
        for handler in self._handlers:
            handler.watch(on_failure)

    def begin_stop(self) -> None:
        """Have them shut down. Idempotent."""
        for handler in self._handlers:
            handler.begin_stop()

    def stop(self) -> None:
        """Have them shut down, and wait for that, though not for one that hangs."""
        self.begin_stop()
        deadline = time.monotonic() + _SHUTDOWN_TIMEOUT
        for handler in self._handlers:
            handler.wait(deadline)
