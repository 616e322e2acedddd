"""Faults: what a test may let go wrong."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import Any, Callable

from revconn.core.status import StatusCode
from revconn.settings.checks import require_count, require_number, require_seconds
from revconn.testing.fault_proxy import FaultProxy
from revconn.testing.faulty_gateway import FaultyGateway, RequestFaults

__all__ = ["Faults"]

_LARGEST = 1 << 30  # bytes


class Faults:
    """What can go wrong between the connectors of a :class:`TestGateway` and the gateway.

    Callers are not affected. Some faults happen once, at once. Others wait for the next requests.
    :meth:`delay` and :meth:`refuse` last: to the end of the ``with`` block that they are used in,
    or else until the gateway is closed. Raises :class:`ConfigurationError` for arguments that
    cannot be used. Every method may be called from any thread.
    """

    def __init__(self, gateway: FaultyGateway, proxy: FaultProxy, requests: RequestFaults) -> None:
        self._gateway = gateway
        self._proxy = proxy
        self._requests = requests
        self._lost: frozenset[str] = frozenset()

    def drop(self) -> None:
        """Break every connection, as a process that is killed does: both sides see a reset."""
        self._lose()
        self._proxy.reset_all()

    def half_open(self) -> None:
        """Break every connection for the gateway alone, as when its machine loses power.

        The connector hears nothing more, whatever it says, until it finds out by itself: by
        HTTP/2 keepalive (``keepalive_interval`` and ``keepalive_timeout``), say; or, if it was not
        READY yet, when its ``connect_timeout`` is over. New connections work.
        """
        self._lose()
        self._proxy.half_open_all()

    def forget(self) -> None:
        """Forget every connection and say nothing, as the protocol's reference gateway may.

        The streams stay open and everything on them is acknowledged, but no request will come.
        """
        self._lose()
        self._gateway.forget_all()

    def delay(self, seconds: float) -> AbstractContextManager[object]:
        """Hold back whatever is said, in both directions, for so many seconds.

        More than 64 KiB at a time are held back for as long again. 0 ends it.
        """
        # At once, not on entering a with block: used without one the delay simply lasts.
        self._proxy.slow_down(require_seconds("seconds", seconds, zero=True))
        return _at_exit(self._proxy.slow_down, 0.0)

    def refuse(
        self,
        code: StatusCode = StatusCode.UNAVAILABLE,
        message: str = "refused by the test",
    ) -> AbstractContextManager[object]:
        """Refuse every connector that registers, with this status; those that serve go on.

        With ``UNAVAILABLE`` it tries again, with ``UNAUTHENTICATED`` it gives up: see the
        connector's ``is_fatal``.
        """
        self._requests.refuse(StatusCode(code), message)
        return _at_exit(self._requests.admit_again)

    def duplicate(self, count: int = 1) -> None:
        """Send each of the next ``count`` requests twice, with the same id."""
        self._requests.duplicate(require_count("count", count))

    def reorder(self, count: int = 2) -> None:
        """Hold the next ``count`` requests until all are there, then send the last one first."""
        self._requests.reorder(require_count("count", count))

    def oversize(self, size: int) -> None:
        """Make the next request a message of ``size`` bytes or a little more, 1 GiB at most.

        What the handler gets is the same. A connector takes 256 MiB; at a larger message it
        ends the stream and comes back. It is made in memory, several times over.
        """
        self._requests.oversize(int(require_number("size", size, at_least=1, at_most=_LARGEST)))

    @property
    def lost(self) -> frozenset[str]:
        """The ids of connections that were dropped, half-opened or forgotten."""
        return self._lost

    def _lose(self) -> None:
        # Noted before it happens: from then on they do not count as connected, although the gateway
        # may not have noticed.
        self._lost |= {connection.connection_id for connection in self._gateway.connections()}


def _at_exit(undo: Callable[..., None], *args: Any) -> AbstractContextManager[object]:
    stack = ExitStack()
    stack.callback(undo, *args)
    return stack
