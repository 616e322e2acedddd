"""Faults of the network, about one a second, in an order that a seed decides."""

from __future__ import annotations

import random
import threading
from collections import Counter
from typing import Callable

from revconn.testing import Fault, FaultProxy

__all__ = ["FaultSchedule"]

_JOIN_TIMEOUT = 10.0


class FaultSchedule:
    """Breaks what goes through a proxy, in a thread of its own, from :meth:`start` to :meth:`end`.

    Nothing more breaks while ``is_overdue`` says so. ``counts`` says how often it did what.
    """

    def __init__(self, proxy: FaultProxy, seed: int, is_overdue: Callable[[], bool]) -> None:
        self._proxy = proxy
        self._is_overdue = is_overdue
        self._random = random.Random(seed)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fault-schedule")
        self.counts: Counter[str] = Counter()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def end(self) -> None:
        """Leave the network in peace."""
        self._ending.set()
        self._thread.join(_JOIN_TIMEOUT)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        kinds: list[Callable[[], None]] = [
            self._reset,
            self._cut,
            self._half_open,
            self._stall,
            self._vanish,
            self._refuse,
            self._slow_down,
        ]
        while not self._ending.wait(self._random.uniform(0.2, 1.4)):
            # A machine that is busy with other things takes a second to connect again: one fault
            # after the other would keep answers out for as long as their callers wait.
            while self._is_overdue() and not self._ending.wait(0.1):
                pass
            kind = self._random.choice(kinds)
            self.counts[kind.__name__.lstrip("_")] += 1
            kind()
            self._proxy.slow_down(0.0)
            self._proxy.fault = Fault.NONE

    def _last(self, longest: float) -> None:
        self._ending.wait(self._random.uniform(0.1, longest))

    def _reset(self) -> None:
        """Both sides get an RST."""
        self._proxy.reset_all()

    def _cut(self) -> None:
        """Both sides get a FIN, in the middle of a message."""
        self._proxy.cut_all()

    def _half_open(self) -> None:
        """The gateway gets an RST; the connector has to find out by itself."""
        self._proxy.half_open_all()

    def _stall(self) -> None:
        """Nothing moves for a while: shorter or longer than keepalive waits."""
        self._proxy.fault = Fault.STALL
        self._last(1.2)

    def _vanish(self) -> None:
        """All that is said is lost, and neither side is told until much later."""
        self._proxy.fault = Fault.BLACK_HOLE
        self._last(1.2)
        self._proxy.reset_all()

    def _refuse(self) -> None:
        """The gateway cannot be reached."""
        self._proxy.fault = Fault.REFUSE
        self._proxy.reset_all()
        self._last(0.5)

    def _slow_down(self) -> None:
        """Whatever is said takes its time."""
        self._proxy.slow_down(self._random.uniform(0.01, 0.1))
        self._last(1.2)
