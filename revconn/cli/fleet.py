"""Several processes serving one connector: started, watched, replaced, drained by a parent.

The parent runs one thread and no connector. Each child is a ``revconn serve`` of its own, tied to
the parent by two pipes: over one it says that it is ready, and its end says that the child is
gone; the end of the other tells the child that the parent is.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from revconn.logger import get_logger
from revconn.runtime.signals import Repeats
from revconn.settings.options import Backoff

__all__ = ["Fleet"]

logger = get_logger(__name__)

_KILL_AFTER = 10.0  # seconds from the second signal until a child that is still there is killed
_REFUSED, _MISCONFIGURED = 1, 2  # exit codes of `revconn serve`
_BACKOFF = Backoff(initial=0.5, maximum=30.0)


@dataclass
class _Child:
    """A serving process.

    ``reports`` is the descriptor on which it says that it is ready; the end of ``lifeline`` tells
    it that the parent is gone.
    """

    process: subprocess.Popen[bytes]
    reports: int
    lifeline: int
    ready: bool = False
    leaving: bool = False

    def become_ready(self) -> None:
        """The process said that it serves."""
        self.ready = True

    def leave(self) -> None:
        """Tell it to drain and end, unless it was told: it would take that for the second time."""
        if not self.leaving:
            self.leaving = True
            self.process.send_signal(signal.SIGTERM)

    def leave_at_once(self) -> None:
        """Tell it to end without draining."""
        # Another signal than the SIGTERM that it may have had a moment ago, which it would take for
        # a repeat and go on draining.
        self.leaving = True
        self.process.send_signal(signal.SIGINT)

    def bury(self) -> int:
        """The process has ended: close the pipes to it; its exit code."""
        os.close(self.reports)
        os.close(self.lifeline)
        return self.process.wait()


@dataclass
class _Slot:
    """A place for one serving process; while it is being replaced a second one starts in it.

    ``failures``: how many ended by themselves since one was last ready. ``start_at``: when
    (monotonic seconds) another is to be started in the place of one that ended by itself.
    """

    number: int
    child: _Child | None = None
    successor: _Child | None = None
    failures: int = 0
    start_at: float | None = None

    def take(self, child: _Child) -> None:
        """The place is filled."""
        self.child = child
        self.start_at = None

    def replace_by(self, successor: _Child | None) -> None:
        """``successor`` starts beside the child; ``None``: it did not become ready."""
        self.successor = successor

    def become_ready(self) -> None:
        """A process serves here: failures are counted from zero again."""
        self.failures = 0

    def lose_child(self) -> None:
        """The child is gone: its successor, if it has one, has the place."""
        self.child, self.successor = self.successor, None

    def back_off(self, now: float) -> None:
        """Another process is to be started, later each time."""
        self.failures += 1
        self.start_at = now + _BACKOFF.delay(self.failures)

    def give_up(self) -> None:
        """No other process is to be started."""
        self.start_at = None


class Fleet:
    """Owned by the main thread of the parent."""

    def __init__(self, command: Sequence[str], processes: int) -> None:
        self._command = list(command)
        self._slots = [_Slot(number) for number in range(1, processes + 1)]
        self._to_replace: list[_Slot] = []
        self._selector = selectors.DefaultSelector()
        self._signals = 0
        self._repeats = Repeats()
        self._last_signal = signal.SIGTERM
        self._kill_at: float | None = None
        self._exit_code = 0

    def run(self) -> int:
        """Serve until told to stop, or until the children cannot; the exit code."""
        with _SignalPipe() as pipe:
            # Signals, reports and ends of children all arrive as bytes on descriptors: the one
            # thread waits for all of them at once, and no handler of a signal runs in the middle of
            # anything.
            self._selector.register(pipe, selectors.EVENT_READ, None)
            for slot in self._slots:
                slot.take(self._start(slot))
            while self._living() or not self._stopping:
                for key, _ in self._selector.select(self._until_next_event()):
                    if key.data is None:
                        for number in os.read(key.fd, 64):
                            self._receive_signal(number)
                    else:
                        self._receive_report(*key.data)
                self._act_on_time()
        self._selector.close()
        if self._signals > 1:
            return 128 + self._last_signal
        return self._exit_code

    @property
    def _stopping(self) -> bool:
        return self._signals > 0

    def _living(self) -> list[_Child]:
        both = [child for slot in self._slots for child in (slot.child, slot.successor)]
        return [child for child in both if child is not None]

    # Signals

    def _receive_signal(self, number: int) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGHUP:
            if not self._stopping:
                logger.info("%s: replacing %d processes in turn", name, len(self._slots))
                # A second SIGHUP begins afresh: those replaced already run the code of the first.
                self._to_replace = list(self._slots)
            return
        # Process groups, coreutils' timeout and supervisors deliver a signal twice.
        if self._repeats.is_one(number):
            return
        self._last_signal = signal.Signals(number)
        if self._signals == 1:
            logger.warning("%s again: leaving at once", name)
            self._kill_at = time.monotonic() + _KILL_AFTER
        else:
            logger.info("%s: draining %d processes", name, len(self._living()))
        self._stop(self._signals + 1)

    def _stop(self, signals: int = 1) -> None:
        """Have all children drain; if they were told so before, leave at once."""
        self._signals = signals
        for child in self._living():
            if signals > 1:
                child.leave_at_once()
            else:
                child.leave()

    # Children

    def _start(self, slot: _Slot) -> _Child:
        reports, report_end = os.pipe()
        lifeline_end, lifeline = os.pipe()
        try:
            process = subprocess.Popen(  # noqa: S603 - ourselves
                [*self._command, f"--parent={report_end},{lifeline_end}"],
                pass_fds=(report_end, lifeline_end),
                start_new_session=True,  # Ctrl-C in a terminal is the parent's to pass on
            )
        finally:
            # The child has copies. While ours of its reports is open, its end goes unnoticed.
            os.close(report_end)
            os.close(lifeline_end)
        child = _Child(process, reports, lifeline)
        self._selector.register(reports, selectors.EVENT_READ, (slot, child))
        logger.info("process %d: started as %d", slot.number, process.pid)
        return child

    def _receive_report(self, slot: _Slot, child: _Child) -> None:
        if os.read(child.reports, 64):
            child.become_ready()
            slot.become_ready()
            # The new process serves: the old one may finish what it has, and go. It says so again
            # whenever it comes back to its gateway, while the old one may still be draining.
            if child is slot.successor and slot.child is not None:
                slot.child.leave()
            return
        self._selector.unregister(child.reports)
        self._ended(slot, child, child.bury())

    def _ended(self, slot: _Slot, child: _Child, code: int) -> None:
        logger.log(
            logging.INFO if child.leaving else logging.WARNING,
            "process %d: %d ended with %d",
            slot.number,
            child.process.pid,
            code,
        )
        if child is slot.successor:
            logger.error("its replacement did not become ready: the old process serves on")
            slot.replace_by(None)
            self._to_replace.clear()  # a reload that fails goes no further
            return
        slot.lose_child()
        if slot.child is None and not self._stopping:
            self._make_good(slot, child, code)

    def _make_good(self, slot: _Slot, lost: _Child, code: int) -> None:
        """A process ended by itself: start another, unless that would only end the same way."""
        # A key that is refused, or a connector that cannot be loaded, is the same the next time.
        if not lost.ready and code in (_REFUSED, _MISCONFIGURED):
            self._exit_code = code
            self._stop()
            return
        slot.back_off(time.monotonic())

    # Replacing

    def _replace_next(self) -> None:
        # One at a time: there is never more than one process above the number that was asked for.
        while self._to_replace and not any(slot.successor for slot in self._slots):
            slot = self._to_replace.pop(0)
            if slot.child is not None:
                slot.replace_by(self._start(slot))

    # Time

    def _until_next_event(self) -> float | None:
        instants = [slot.start_at for slot in self._slots if slot.start_at is not None]
        if self._kill_at is not None:
            instants.append(self._kill_at)
        return max(0.0, min(instants) - time.monotonic()) if instants else None

    def _act_on_time(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            if slot.start_at is not None and (self._stopping or slot.start_at <= now):
                slot.give_up()
                if not self._stopping:
                    slot.take(self._start(slot))
        if self._kill_at is not None and self._kill_at <= now:
            self._kill_at = None
            for child in self._living():
                child.process.kill()
        if not self._stopping:
            self._replace_next()


class _SignalPipe:
    """A descriptor that the numbers of arriving signals can be read from."""

    def __enter__(self) -> int:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._previous_fd = signal.set_wakeup_fd(self._writing)
        self._previous = {
            number: signal.signal(number, lambda number, frame: None)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        return self._reading

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        os.close(self._reading)
        os.close(self._writing)
