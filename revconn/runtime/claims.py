"""Who of this process serves what, and where: two connectors with one service are one too many."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from revconn.logger import get_logger

__all__ = ["Claims"]

logger = get_logger(__name__)


class Claims:
    """Which services are registered at which gateways, each by the connector that was last to.

    ``_lock`` guards all state. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owners: dict[tuple[str, str], object] = {}

    def claim(self, owner: object, targets: Iterable[str], services: Iterable[str]) -> None:
        """A connector starts to serve. Warns, a line for each gateway, of what another one serves.

        Most often that is the same program, run once more in one process: a notebook's cell, or an
        application that a reloader's parent process has imported too.
        """
        services = tuple(services)
        for target in targets:
            with self._lock:
                shared = [name for name in services if (target, name) in self._owners]
                self._owners.update(((target, name), owner) for name in services)
            if shared:
                logger.warning(
                    "another connector of this process serves %s at %s already, and the gateway"
                    " lets both take turns: stop() the older one first, or give it the new handlers"
                    " with add_method(..., replace=True)",
                    ", ".join(shared),
                    target,
                )

    def release(self, owner: object) -> None:
        """A connector serves no more, or is about to end. Idempotent."""
        with self._lock:
            for key in [key for key, each in self._owners.items() if each is owner]:
                del self._owners[key]

    def forsake(self) -> None:
        """In a forked child: nothing is served here. Takes no lock: its owner may be gone."""
        self._lock = threading.Lock()
        self._owners = {}
