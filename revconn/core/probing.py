"""When a connector calls itself through its gateway, and what the outcome proves."""

from __future__ import annotations

from enum import Enum
from math import ceil

from revconn._proto.registry_pb2 import ForwardRequest, ForwardResponse
from revconn.core.status import StatusCode, is_success, status_code

__all__ = ["Prober", "Verdict"]

_RECHECK = 1.0
_REFERENCE_GATEWAYS_WORDS = {  # which come with status 500
    "Too many pending requests": StatusCode.RESOURCE_EXHAUSTED,
    "Request timeout": StatusCode.DEADLINE_EXCEEDED,
}
_SAYS_NOTHING = frozenset(
    {StatusCode.RESOURCE_EXHAUSTED, StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED}
)


class Verdict(Enum):
    """What an answer to a probe proves."""

    ALIVE = "requests reach this connection"
    UNKNOWN = "nothing yet"
    UNABLE = "the gateway does not route such calls"
    LOST = "the gateway no longer routes requests to this connection"


class Prober:
    """One connection's probes: at most one at a time, of a service that it alone registers.

    Times are seconds on any one clock. Whoever owns it guards it.

    :param interval: between two probes.
    :param patience: how long one may stay unanswered.
    :param name: unique everywhere; letters and digits.
    """

    def __init__(self, interval: float, patience: float, name: str) -> None:
        self.service = f"revconn.probe.p{name}"
        self._path = f"/{self.service}/Probe"
        self._interval = interval
        self._patience = patience
        self._due: float | None = None
        self._asked_at: float | None = None
        self._patient_until = 0.0
        self._doubted = False
        self._proven = False
        self._refused = False
        self.round_trip = 0.0

    def start(self, now: float) -> None:
        """The connection is established: the first probe is due."""
        self._due = now

    def is_own(self, request: ForwardRequest) -> bool:
        """Whether a request that arrived is a probe."""
        return request.method_path.strip("/") == self._path[1:]

    def is_due(self, now: float) -> bool:
        """Whether to :meth:`ask` now."""
        return self._due is not None and self._asked_at is None and now >= self._due

    def ask(self, request_id: str, now: float) -> ForwardRequest:
        """A probe, which is on its way from now on. The id is unique everywhere."""
        self._asked_at = now
        self._patient_until = now + self._patience
        self._doubted = False
        self._due = now + self._interval
        return ForwardRequest(
            request_id=request_id, method_path=self._path, timeout_seconds=ceil(self._patience)
        )

    def answered(self, response: ForwardResponse, now: float) -> Verdict:
        """The answer has come."""
        asked_at, self._asked_at = self._asked_at, None
        if is_success(response.status_code):
            self.round_trip = now - (now if asked_at is None else asked_at)
            self._proven = True
            self._refused = False
            return Verdict.ALIVE
        words = response.error_message
        code = _REFERENCE_GATEWAYS_WORDS.get(words) or status_code(response.status_code)
        if code is StatusCode.RESOURCE_EXHAUSTED or (not self._proven and code in _SAYS_NOTHING):
            return Verdict.UNKNOWN
        if not self._proven:
            self._due = None
            return Verdict.UNABLE
        if self._refused:
            return Verdict.LOST
        self._refused = True
        self._due = now + min(_RECHECK, self._interval)
        return Verdict.UNKNOWN

    def excuse(self, now: float) -> None:
        """No answer can come at present: this side does not read."""
        self._patient_until = now + self._patience
        self._doubted = False

    def is_lost(self, now: float) -> bool:
        """Whether a probe has been unanswered for too long, and was so at the last look already.

        In between a thread that was kept from running has had time to take in the answer.
        """
        if self._asked_at is None or now < self._patient_until:
            return False
        lost = self._doubted
        if not lost:
            self._doubted = True
            self._patient_until = now + min(_RECHECK, self._patience)
        return lost

    def look_by(self) -> float | None:
        """The next instant at which there may be something to do."""
        return self._due if self._asked_at is None else self._patient_until
