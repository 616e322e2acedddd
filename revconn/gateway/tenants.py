"""Which API keys serve which service: that two of them serve one is worth a line in the log.

Calls of such a service go to either, and whoever holds the other key reads them. Where keys have no
patterns that keep them apart, this line is how their owner learns of it. It belongs to the
gateway's thread.
"""

from __future__ import annotations

from collections.abc import Sequence

from revconn.gateway.report import Journal

__all__ = ["Tenants"]


class Tenants:
    """Counts, for each service, the connections and backends of each key that serve it."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        # Counted, and not found in the rings of those who serve: there may be thousands in one, all
        # of which come back at once after a restart.
        self._serving: dict[str, dict[int, int]] = {}

    def serve(self, key: int, services: Sequence[str]) -> None:
        """Whoever showed the key of that number serves these services, too, from now on."""
        shared: dict[int, list[str]] = {}
        for service in services:
            keys = self._serving.setdefault(service, {})
            if key not in keys:
                for other in keys:
                    shared.setdefault(other, []).append(service)
            keys[key] = keys.get(key, 0) + 1
        for other, names in shared.items():
            self._journal.shared(names, other, key)

    def leave(self, key: int, services: Sequence[str]) -> None:
        """One that showed that key, and served these services, does not any more."""
        for service in services:
            keys = self._serving[service]
            keys[key] -= 1
            if not keys[key]:
                del keys[key]
            if not keys:
                del self._serving[service]
