"""What the calls and streams of one gateway have in common."""

from __future__ import annotations

from revconn.gateway.absences import Absences
from revconn.gateway.backends import Backends
from revconn.gateway.calls import Calls
from revconn.gateway.events import Events
from revconn.gateway.keys import ApiKeys
from revconn.gateway.limits import Counters, Limits
from revconn.gateway.report import Journal
from revconn.gateway.rerouting import Rerouting
from revconn.gateway.routes import Outbound, Registry
from revconn.gateway.tls import Arrivals

__all__ = ["Hooks", "Shared"]


class Shared:
    """The state of a running gateway. It belongs to the thread whose loop serves.

    Durations are in seconds; see :class:`revconn.gateway.Gateway`.
    """

    def __init__(
        self,
        keys: ApiKeys,
        limits: Limits,
        *,
        heartbeat_timeout: float = 120.0,
        request_timeout: float = 30.0,
        reconnect_grace: float = 2.0,
        dial_backends: bool = True,
        hooks: Hooks | None = None,
    ) -> None:
        self.keys = keys
        self.limits = limits
        self.heartbeat_timeout = heartbeat_timeout
        self.request_timeout = request_timeout
        self.hooks = hooks or Hooks()
        self.counters = Counters()
        self.registry = Registry()
        self.arrivals = Arrivals()
        self.journal = Journal(keys)
        self.backends = Backends(keys, limits, self.counters, self.journal, dials=dial_backends)
        self.absences = Absences(reconnect_grace, limits, self.counters)
        self.calls = Calls(self.registry, self.backends, self.absences, limits, self.counters)
        self.rerouting = Rerouting(
            self.calls, self.registry, self.backends, self.absences, self.counters
        )
        self.events = Events(limits, self.counters)

    def stats(self) -> dict[str, int]:
        """What was counted since the start, and how much there is now. Safe from any thread."""
        now = {"connections": len(self.registry.connections), "pending": len(self.calls)}
        return now | self.counters.snapshot()


class Hooks:
    """What :mod:`revconn.testing` replaces in order to make a gateway misbehave.

    Called on the gateway's thread.
    """

    def admit(self) -> None:
        """A connector has shown a key that is accepted. Raises :class:`Refused` to refuse it."""

    def new_outbound(self, limits: Limits) -> Outbound:
        """What takes the messages for a connector that has been admitted."""
        return Outbound(limits)
