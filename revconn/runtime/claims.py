"""Who of this process serves what, and where: two connectors with one service are one too many."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Optional

from revconn.logger import get_logger
from revconn.target import Target

__all__ = ["Claims"]

logger = get_logger(__name__)

_Place = tuple[str, Optional[int]]  # one for every spelling of a target


class Claims:
    """Which services are registered at which gateways, and by which connectors each.

    ``_lock`` guards all state. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._claims: dict[object, set[tuple[_Place, str]]] = {}  # by their owners

    def claim(self, owner: object, targets: Iterable[Target], services: Iterable[str]) -> None:
        """A connector starts to serve. Warns, a line for each gateway, of what another one serves.

        Most often that is the same program, run once more in one process: a notebook's cell, or an
        application that a reloader's parent process has imported too.
        """
        targets, services = tuple(targets), tuple(services)
        with self._lock:
            taken: set[tuple[_Place, str]] = set().union(*self._claims.values())
            self._claims[owner] = {(each.place, name) for each in targets for name in services}
        for target in targets:
            shared = [name for name in services if (target.place, name) in taken]
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
            self._claims.pop(owner, None)

    def forsake(self) -> None:
        """In a forked child: nothing is served here. Takes no lock: its owner may be gone."""
        self._lock = threading.Lock()
        self._claims = {}
