"""When to try again to connect, after how long, and when to give up."""

from __future__ import annotations

import time

from revconn.config import Options
from revconn.core.refusals import Refusals
from revconn.exceptions import ConnectionLost, HandshakeError
from revconn.runtime import journal

__all__ = ["Attempts"]


class Attempts:
    """Failures to connect, or to stay connected, in a row. Owned by the link's thread.

    ``was_ready`` says whether the session that failed last had been accepted.
    """

    def __init__(self, options: Options) -> None:
        self._backoff = options.backoff
        self._is_fatal = options.is_fatal
        self._failures = 0
        self._refusals = Refusals()
        self.was_ready = False

    def failed(self, ready_since: float | None) -> None:
        """One more, of a session that was accepted then (monotonic) or, ``None``, was not."""
        self.was_ready = ready_since is not None
        lasted = 0.0 if ready_since is None else time.monotonic() - ready_since
        if self.was_ready:
            self._refusals.accepted()
        if self.was_ready and lasted >= self._backoff.stable_after:
            self._failures = 0
        self._failures += 1

    @property
    def failures(self) -> int:
        """How many there are in the row."""
        return self._failures

    @property
    def repeated(self) -> bool:
        """Whether the last failure was not the first of the row."""
        return self._failures > 1

    @property
    def exhausted(self) -> bool:
        """Whether these are as many as there may be in a row."""
        most = self._backoff.max_attempts
        return most is not None and self._failures >= most

    def delay(self) -> float:
        """How many seconds to wait before the next; drawn anew each time."""
        return self._backoff.delay(self._failures)

    def is_worth_another(self, error: BaseException) -> bool:
        """Whether the failure is one of those that pass."""
        if not isinstance(error, ConnectionLost):
            return False
        if isinstance(error, HandshakeError):
            self._judge(error)
        try:
            return not self._is_fatal(error)
        except SystemExit:
            raise
        except BaseException:  # noqa: BLE001 - it is the user's
            journal.is_fatal_failed(error)
            return True

    def _judge(self, error: HandshakeError) -> None:
        """Say of a refusal whether it is final, for :func:`revconn.is_fatal` to go by."""
        if error.code is None:
            self._refusals.failed_otherwise()
        else:
            now = time.monotonic()
            error.is_final = self._refusals.is_final(error.code, error.speaker, now)
