"""Which handlers run now, in which threads, and what they are doing there."""

from __future__ import annotations

import sys
import traceback
from collections import deque
from typing import NamedTuple

from revconn.messages import Request
from revconn.serving.handlers import Answering

__all__ = ["LONG", "Run", "Runs", "handler_stack"]

LONG = 0.5
"""Seconds; a shorter run is forgotten when it ends."""

_REMEMBERED = 100
_DEEPEST = 30


class Run(NamedTuple):
    """A request that is in its handler, since when (``time.monotonic()``)."""

    request: Request
    since: float


class Runs:
    """The runs of now, by thread, and the long ones that ended last, each with its end.

    Each thread writes its own entry of ``running``, and adding to a dict or a deque is atomic: no
    lock. Threads do so themselves, before and after each handler: two calls of methods would cost
    as much as the rest of a small request's way to its handler.
    """

    def __init__(self) -> None:
        self.running: dict[int, tuple[Request, float]] = {}
        self._ended: deque[tuple[Run, float]] = deque(maxlen=_REMEMBERED)

    def remember(self, request: Request, since: float, now: float) -> None:
        """A run of more than :data:`LONG` seconds has ended."""
        self._ended.append((Run(request, since), now))

    def now(self) -> dict[int, Run]:
        """What runs now, by the identifiers of threads."""
        return {thread: Run(*run) for thread, run in self.running.copy().items()}

    def during(self, start: float, end: float) -> list[Request]:
        """What ran for long between ``start`` and ``end``."""
        runs = [(run, end) for run in self.now().values()]
        runs += self._ended.copy()
        return [
            run.request for run, ended in runs if min(ended, end) - max(run.since, start) >= LONG
        ]


def handler_stack(thread: int) -> str | None:
    """What a handler is doing in ``thread``, as a traceback shows it: code, and no values.

    ``None`` when no handler runs there, nor where the interpreter does not know the thread (a green
    one).
    """
    frames = []
    frame = sys._current_frames().get(thread)
    while frame is not None:
        frames.append((frame, frame.f_lineno))
        if frame.f_code is Answering.answer.__code__:  # beneath it all is the library's
            stack = traceback.StackSummary.extract(reversed(frames), limit=-_DEEPEST)
            return "Stack (most recent call last):\n" + "".join(stack.format()).rstrip()
        frame = frame.f_back
    return None
