"""A session's calls to its own services through its gateway: the one proof that they reach it."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Collection, Iterable
from typing import Protocol

from revconn._proto.registry_pb2 import ForwardRequest, ForwardResponse
from revconn.core.liveness import PROBE_METHOD, Prober, Verdict
from revconn.core.protocol import Arrival
from revconn.core.status import is_success
from revconn.core.text import Mask, presentable
from revconn.logger import get_logger

__all__ = ["Probe", "Probed", "take_probes"]

logger = get_logger(__name__)

_NOTHING_HIDDEN = Mask("")
_NO_PROBES: list[ForwardRequest] = []


class Probed(Protocol):
    """What is probed. Each may be called from the receiving thread or the timer's."""

    def send_probe(self, request: ForwardRequest) -> None:
        """Send a request of our own, if the connection is one that still serves."""

    def probe_returned(self, service: str, round_trip: float) -> None:
        """A probe came back after so many seconds."""

    def probe_astray(self, service: str, reason: str | None) -> None:
        """The gateway has no route of a service: on a new connection either, if not ``None``."""

    def probe_refused(self, service: str, reason: str) -> None:
        """The gateway does not route calls of a service: there will be no others."""

    def retire(self, reason: str) -> None:
        """Requests do not come any more."""


class Probe:
    """Asks and answers; see :class:`~revconn.core.liveness.Prober` for the rules.

    ``_lock`` guards the prober; nothing is called under it.
    """

    def __init__(
        self,
        probed: Probed,
        services: Iterable[str],
        interval: float,
        patience: float,
        token: str,
        mask: Mask = _NOTHING_HIDDEN,
        astray: Collection[str] = (),
    ) -> None:
        self._mask = mask
        self._probed = probed
        self._patience = patience
        self._lock = threading.Lock()
        self._prober = Prober(services, interval, patience, token.encode(), astray)

    # The receiving thread

    def start(self) -> None:
        """The connection is established."""
        with self._lock:
            self._prober.start(time.monotonic())

    def take_in(self, requests: list[Arrival], probes: list[ForwardRequest]) -> None:
        """These requests came, and these probes, which are answered."""
        with self._lock:
            if requests:
                self._prober.heard()
            for probe in probes:
                self._prober.arrived(probe.request_id)

    def take_responses(self, responses: Iterable[ForwardResponse]) -> None:
        """See what the gateway made of the probe, and go on asking."""
        for response in responses:
            now = time.monotonic()
            with self._lock:
                service = self._prober.service
                verdict = self._prober.answered(response, now)
                round_trip = self._prober.round_trip
            silent = "answered by others" if is_success(response.status_code) else "no reason given"
            error = presentable(self._mask(response.error_message)) or silent
            reason = f"{verdict.value} ({service}): {response.status_code}, {error}"
            if verdict is Verdict.ALIVE:
                self._probed.probe_returned(service, round_trip)
            elif verdict is Verdict.UNABLE:
                self._probed.probe_refused(service, reason)
            elif verdict is Verdict.ASTRAY:
                self._probed.probe_astray(service, reason)
            elif verdict is Verdict.LOST:
                self._probed.probe_astray(service, None)
                self._probed.retire(reason)
                return
            else:
                logger.debug(
                    "a probe of %s came to nothing: %d, %s", service, response.status_code, error
                )
            self._ask_if_due(now)

    # The timer's thread

    def check(self, now: float, *, reading: bool) -> float | None:
        """Ask when it is time to, and give up a silent gateway; by when to look again.

        ``reading`` says whether this side takes in what the gateway sends.
        """
        with self._lock:
            if not reading:
                self._prober.excuse(now)
            lost = self._prober.is_lost(now)
            service = self._prober.service
        if lost:
            self._probed.retire(
                f"a call to itself through the gateway ({service}) was unanswered for"
                f" {self._patience:g} s: requests may not come any more"
            )
            return None
        self._ask_if_due(now)
        with self._lock:
            return self._prober.look_by()

    # Either

    def _ask_if_due(self, now: float) -> None:
        with self._lock:
            request = self._prober.ask(str(uuid.uuid4()), now) if self._prober.is_due(now) else None
        if request is not None:
            self._probed.send_probe(request)


def take_probes(requests: list[Arrival]) -> tuple[list[Arrival], list[ForwardRequest]]:
    """The requests that are for handlers, and any connector's probes among those that arrived."""
    for request, _ in requests:  # as a rule there are none, and this is all that happens
        if request.method_path.endswith(PROBE_METHOD):
            break
    else:
        return requests, _NO_PROBES
    others = [each for each in requests if not each[0].method_path.endswith(PROBE_METHOD)]
    return others, [each for each, _ in requests if each.method_path.endswith(PROBE_METHOD)]
