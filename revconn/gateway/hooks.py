"""Where tests reach into a gateway."""

from __future__ import annotations

from revconn.gateway.limits import Limits
from revconn.gateway.outbound import Outbound

__all__ = ["Hooks"]


class Hooks:
    """What :mod:`revconn.testing` replaces in order to make a gateway misbehave.

    Called on the gateway's thread.
    """

    def admit(self) -> None:
        """A connector has shown a key that is accepted. Raises :class:`Refused` to refuse it."""

    def new_outbound(self, limits: Limits) -> Outbound:
        """What takes the messages for a connector that has been admitted."""
        return Outbound(limits)
