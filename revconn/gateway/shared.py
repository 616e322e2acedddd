"""What a gateway was made with, and what the calls and streams of one run of it have in common."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field

from revconn.gateway.backends import Backends
from revconn.gateway.budgets import Budget
from revconn.gateway.calls import Calls
from revconn.gateway.events import Events
from revconn.gateway.holding import UnreadAnswers
from revconn.gateway.keys import ApiKeys
from revconn.gateway.limits import Counters, Limits
from revconn.gateway.outbound import Outbound
from revconn.gateway.refusals import Refused, over_limit
from revconn.gateway.report import Journal
from revconn.gateway.rerouting import Rerouting
from revconn.gateway.routes import Registry
from revconn.gateway.rpcs import Rpc
from revconn.gateway.tenants import Tenants
from revconn.gateway.tls import ServerTLS

__all__ = ["Hooks", "Settings", "Shared", "stats_of"]


class Hooks:
    """What :mod:`revconn.testing` replaces in order to make a gateway misbehave.

    Called on the gateway's thread.
    """

    def admit(self) -> None:
        """A connector has shown a key that is accepted. Raises :class:`Refused` to refuse it."""

    def new_outbound(self, limits: Limits) -> Outbound:
        """The queue of messages to a connector that has been admitted."""
        return Outbound(limits)


@dataclass(frozen=True)
class Settings:
    """What a gateway was made with; see :class:`revconn.gateway.Gateway`.

    ``keys`` are the one part that may change while it runs, and the one state that a restart finds
    as it was.
    """

    keys: ApiKeys
    limits: Limits
    host: str = "127.0.0.1"
    port: int = 0
    path: str | None = None  # of a Unix socket, in place of both
    tls: ServerTLS | ssl.SSLContext | None = None
    heartbeat_timeout: float = 120.0
    request_timeout: float = 30.0
    reconnect_grace: float = 2.0
    dial_backends: bool = True
    dial_private: bool = False
    idle_timeout: float | None = 300.0
    max_connection_age: float | None = None
    max_connection_age_grace: float = 30.0
    http: Mapping[str, str] = field(default_factory=dict)  # the service that answers each host
    http_send_timeout: float | None = 60.0
    hooks: Hooks | None = None


class Shared:
    """The state of one run of a gateway. The thread whose loop serves builds it, and owns it."""

    def __init__(self, settings: Settings) -> None:
        keys, limits = settings.keys, settings.limits
        self.keys = keys
        self.limits = limits
        self.heartbeat_timeout = settings.heartbeat_timeout
        self.request_timeout = settings.request_timeout
        self.hooks = settings.hooks or Hooks()
        # New for every run: a stop ended all connections and settled all calls, and counts are from
        # the last start on. Only the keys stay.
        self.counters = Counters()
        self.journal = Journal(keys)
        tenants = Tenants(self.journal)
        self.registry = Registry(settings.reconnect_grace, tenants=tenants)
        # What has shown no key yet: who has one, has it at hand.
        self.handshakes: Budget[Rpc] = Budget(
            limits.max_connections, self._turn_away, newest_first=True
        )
        self.answers = UnreadAnswers(limits, self.counters)
        self.backends = Backends(
            keys,
            limits,
            self.counters,
            self.journal,
            tenants,
            dials=settings.dial_backends,
            dials_private=settings.dial_private,
        )
        self.calls = Calls(self.registry, self.backends, limits, self.counters)
        # The table of calls knows nothing of what comes and goes: rerouting listens to registry and
        # backends, and moves calls through the table's own methods.
        self.rerouting = Rerouting(self.calls, self.registry, self.backends, self.counters)
        self.events = Events(keys, limits, self.counters)

    def _turn_away(self, rpc: Rpc) -> None:
        rpc.turn_away(self.too_many_handshakes())

    def too_many_handshakes(self) -> Refused:
        """Why a stream is refused that has not registered."""
        problem = f"{self.handshakes.used:,} connections have not registered"
        return over_limit(self.counters, "max_connections", problem)

    def too_much_metadata(self, size: int) -> Refused:
        """Why a call is refused whose headers count so many bytes."""
        problem = f"{size:,} bytes of metadata exceed {self.limits.max_metadata_bytes:,}"
        return over_limit(self.counters, "max_metadata_bytes", problem)


def stats_of(shared: Shared | None) -> dict[str, int]:
    """What a run counted since its start, and how much there is now; zeros before the first run.

    Safe from any thread.
    """
    if shared is None:
        return {"connections": 0, "pending": 0} | Counters().snapshot()
    # Lengths and numbers, each read in one step: exact enough for monitoring, and without a lock
    # that the gateway's thread would have to take for every call.
    now = {"connections": len(shared.registry.connections), "pending": len(shared.calls)}
    return now | shared.counters.snapshot()
