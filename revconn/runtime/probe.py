"""A session's calls to itself through its gateway: the one proof that requests reach it."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterable
from typing import Protocol

from revconn import clock
from revconn._proto.registry_pb2 import ForwardRequest, ForwardResponse
from revconn.core.answers import encode_response
from revconn.core.outbound import Answer
from revconn.core.probing import Prober, Verdict
from revconn.core.protocol import Arrival
from revconn.core.text import Mask, presentable
from revconn.logger import get_logger

__all__ = ["Probe", "Probed"]

logger = get_logger(__name__)

_NOTHING_HIDDEN = Mask("")


class Probed(Protocol):
    """What is probed. Each may be called from the receiving thread or the timer's."""

    def send_probe(self, request: ForwardRequest) -> None:
        """Send a request of our own, if the connection is one that still serves."""

    def answer_probe(self, answer: Answer) -> None:
        """Send an answer as those of handlers are sent."""

    def probe_returned(self, round_trip: float) -> None:
        """A probe came back after so many seconds."""

    def probe_refused(self, reason: str) -> None:
        """The gateway does not route such calls: there will be no others."""

    def retire(self, reason: str) -> None:
        """Requests do not come any more."""


class Probe:
    """Asks and answers; see :class:`~revconn.core.probing.Prober` for the rules.

    ``_lock`` guards the prober; nothing is called under it.
    """

    def __init__(
        self, probed: Probed, interval: float, patience: float, mask: Mask = _NOTHING_HIDDEN
    ) -> None:
        self._mask = mask
        self._probed = probed
        self._patience = patience
        self._lock = threading.Lock()
        self._prober = Prober(interval, patience, uuid.uuid4().hex)

    @property
    def service(self) -> str:
        """The service to register for this session alone."""
        return self._prober.service

    # The receiving thread

    def start(self) -> None:
        """The connection is established."""
        with self._lock:
            self._prober.start(time.monotonic())

    def take_requests(self, requests: list[Arrival]) -> list[Arrival]:
        """Answer the probes among the requests that arrived; the others are returned."""
        others = []
        for arrival in requests:
            request, _ = arrival
            if self._prober.is_own(request):
                deadline = clock.with_suspend() + self._patience
                answer = Answer(encode_response(request.request_id, b""), deadline)
                self._probed.answer_probe(answer)
            else:
                others.append(arrival)
        return others

    def take_responses(self, responses: Iterable[ForwardResponse]) -> None:
        """See what the gateway made of the probe."""
        for response in responses:
            with self._lock:
                verdict = self._prober.answered(response, time.monotonic())
                round_trip = self._prober.round_trip
            error = presentable(self._mask(response.error_message)) or "no reason given"
            reason = f"{verdict.value}: {response.status_code}, {error}"
            if verdict is Verdict.ALIVE:
                self._probed.probe_returned(round_trip)
            elif verdict is Verdict.UNABLE:
                self._probed.probe_refused(reason)
            elif verdict is Verdict.LOST:
                self._probed.retire(reason)
            else:
                logger.debug("a probe came to nothing: %d, %s", response.status_code, error)

    # The timer's thread

    def check(self, now: float, *, reading: bool) -> float | None:
        """Ask when it is time to, and give up a silent gateway; by when to look again.

        ``reading`` says whether this side takes in what the gateway sends.
        """
        with self._lock:
            if not reading:
                self._prober.excuse(now)
            request = self._prober.ask(str(uuid.uuid4()), now) if self._prober.is_due(now) else None
            lost = self._prober.is_lost(now)
            look_by = self._prober.look_by()
        if request is not None:
            self._probed.send_probe(request)
        if lost:
            self._probed.retire(
                f"a call to itself through the gateway was unanswered for {self._patience:g} s:"
                " requests may not come any more"
            )
        return look_by
