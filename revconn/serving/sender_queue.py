"""What the thread that sends on one stream takes, and where it sleeps."""

from __future__ import annotations

import queue
import threading

from revconn.core.rope import Data
from revconn.runtime import clock

__all__ = ["SenderQueue"]


class SenderQueue:
    """Control messages: the registration, heartbeats, the goodbye. All else goes behind them.

    Guarded by ``lock``; ``control_left_at`` (:func:`~revconn.runtime.clock.with_suspend`) may be
    read without. The sender sleeps on a queue, and not on a condition: waking it costs one call,
    and it is woken exactly once, by whoever finds ``parked`` true.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._control: list[Data] = []
        self._sign_waits = False
        self._sign_taken = False
        self._closed = False
        self.parked = False
        self._nudged = False
        # It has one entry at most, put by whoever turns ``parked`` off: so a call is never lost
        # between the look at what waits, under the lock, and the sleep, without it.
        self._calls: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.batches = 0  # begun so far
        self.control_left_at: float | None = None

    def put_control(self, message: bytes, *, is_sign_of_life: bool = True) -> None:
        """Send ``message`` before every answer that waits.

        ``is_sign_of_life`` says that the gateway takes it for one: when that left is remembered.
        """
        with self._lock:
            if not self._closed:  # else nobody would take it
                self._control.append(message)
                self._sign_waits |= is_sign_of_life
                self.unpark()

    def take(self) -> list[Data] | None:
        """The next batch for the sender thread, empty when nudged; ``None`` once closed."""
        batch: list[Data] | None
        with self._lock:
            self._rest()
        while True:
            with self._lock:
                batch = None if self._closed else self._next_batch()
                if batch is None or batch or self._nudged:
                    self._go()
                    self.batches += 1
                    break
                self.parked = True
            self._calls.get()
        self._after_taking()
        return batch

    def wait(self) -> bool:
        """Block until nudged; false once closed. Takes nothing: what was taken is still here."""
        while True:
            with self._lock:
                if self._closed or self._nudged:
                    self._go()
                    return not self._closed
                self.parked = True
            self._calls.get()

    def nudge(self) -> None:
        """Make :meth:`take` or :meth:`wait` return."""
        with self._lock:
            self.wake()

    # Each of these requires holding the lock

    def wake(self) -> None:
        """Make :meth:`take` or :meth:`wait` return."""
        self._nudged = True
        self.unpark()

    def unpark(self) -> None:
        """Have the sender look for what to send, if it sleeps."""
        assert self._lock.locked()
        if self.parked:
            self.parked = False
            self._calls.put(None)

    def _rest(self) -> None:
        """The sender came back: what it took the time before was handed to the network."""
        if self._sign_taken:
            self.control_left_at = clock.with_suspend()
            self._sign_taken = False

    def _next_batch(self) -> list[Data]:
        """What waits, oldest first; nothing if the sender has to wait for more."""
        batch, self._control = self._control, []
        self._sign_taken, self._sign_waits = self._sign_waits, False
        return batch

    def _go(self) -> None:
        """The sender leaves :meth:`take` or :meth:`wait`, with what it took if it did."""
        self._nudged = False

    # Without it

    def _after_taking(self) -> None:
        """The sender leaves :meth:`take`, and holds no lock."""
