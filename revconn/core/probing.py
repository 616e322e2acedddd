"""Whether requests for each service still reach one connection: what to ask, and what it proves.

A probe is a call of a method that no service has, of a service that this connection registered. A
connector answers it itself, with the token of the connection that it came by; so an answer with our
own token proves the route. Gateways give the connections of a service their turn, so it may reach
another replica: its answer proves that the gateway routes the service, and nothing of this
connection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from enum import Enum
from math import ceil

from revconn._proto.registry_pb2 import ForwardRequest, ForwardResponse
from revconn.core.status import StatusCode, is_success, status_code

__all__ = ["PROBE_METHOD", "Prober", "Verdict"]

PROBE_METHOD = "/RevconnProbe"
"""How the path of any connector's probe ends, after the slash and the service."""

_RECHECK = 1.0
_COPIES = 3  # of a probe that stays unanswered, by turns to others: one replica may be stuck
_TRIES_PER_REPLICA = 8  # by chance one of so many misses us once in e**8
_MOST_ANONYMOUS = 16  # answers that do not say whose they are: then this service's turn is over
_MOST_REPLICAS = 1000
_TOKEN_LENGTH = 32
_NO_ROUTE = ("No reverse connection found", "no connector serves")
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
    ASTRAY = "the gateway has no route of it, not on a new connection either"
    LOST = "the gateway no longer routes requests to this connection"


class _Route:
    """One service's way here. The last four are of its present turn."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.proven = False  # a probe of it has come back by this connection
        self.missed = 0  # turns in a row in which every probe went to other replicas
        self.begin_turn()

    def begin_turn(self) -> None:
        self.refused = 0
        self.tries = 0
        self.anonymous = 0
        self.others: set[bytes] = set()


class Prober:
    """One connection's probes: each service in its turn, and all of them at each interval.

    Times are seconds on any one clock. Whoever owns it guards it.

    :param services: what the connection registered.
    :param interval: between two rounds.
    :param patience: how long a probe may stay unanswered.
    :param token: of this connection; unique everywhere, 32 letters and digits.
    :param astray: services for whose sake the last connection was given up. Unless this one is
        reached by such a service it is not given up for it: that would not help.
    """

    def __init__(
        self,
        services: Iterable[str],
        interval: float,
        patience: float,
        token: bytes,
        astray: Collection[str] = (),
    ) -> None:
        self.token = token
        self._routes = [_Route(service) for service in services]
        self._astray = frozenset(astray)
        self._turns: deque[_Route] = deque()
        self._interval = interval
        self._patience = patience
        self._due: float | None = None
        self._next_round = 0.0
        self._asked: dict[str, float] = {}  # copies of the probe that is on its way, and since when
        self._patient_until = 0.0
        self._doubted = False
        self._arrived = False  # it came to us, and has our answer
        self._heard = False  # anything else came since it was asked
        self.round_trip = 0.0

    @property
    def service(self) -> str:
        """Whose turn it is."""
        return self._turns[0].service if self._turns else ""

    def start(self, now: float) -> None:
        """The connection is established: the first round is due."""
        self._begin_round(now)

    # Asking

    def is_due(self, now: float) -> bool:
        """Whether to :meth:`ask` now."""
        return self._due is not None and now >= self._due

    def ask(self, request_id: str, now: float) -> ForwardRequest:
        """A probe, which is on its way from now on. The id is unique everywhere."""
        if not self._asked:
            self._patient_until = now + self._patience
            self._doubted = self._arrived = self._heard = False
        self._asked[request_id] = now
        self._due = now + self._patience / _COPIES if len(self._asked) < _COPIES else None
        return ForwardRequest(
            request_id=request_id,
            method_path=f"/{self.service}{PROBE_METHOD}",
            timeout_seconds=ceil(self._patience),
        )

    def look_by(self) -> float | None:
        """The next instant at which there may be something to do."""
        patient_until = self._patient_until if self._asked else None
        return min((each for each in (self._due, patient_until) if each is not None), default=None)

    # What comes

    def arrived(self, request_id: str) -> None:
        """A probe came by this connection, and is answered."""
        if request_id in self._asked:
            self._arrived = True

    def heard(self) -> None:
        """Something else came: the gateway works, whatever became of a probe."""
        self._heard = True

    def answered(self, response: ForwardResponse, now: float) -> Verdict:
        """An answer has come."""
        asked_at = self._asked.get(response.request_id)
        if asked_at is None:  # to a copy of one that is settled
            self._heard = True
            return Verdict.UNKNOWN
        self._asked.clear()
        self._due = now
        route = self._turns[0]
        token = response.payload[-_TOKEN_LENGTH:] if is_success(response.status_code) else b""
        if token == self.token:
            self.round_trip = now - asked_at
            route.proven = True
            route.missed = 0
            self._end_turn(now)
            return Verdict.ALIVE
        if len(token) == _TOKEN_LENGTH:
            return self._answered_by_other(route, token, now)
        return self._refused(route, response, now)

    def _answered_by_other(self, route: _Route, token: bytes, now: float) -> Verdict:
        route.refused = 0
        route.tries += 1
        if len(route.others) < _MOST_REPLICAS:
            route.others.add(token)
        if route.anonymous or route.tries < _TRIES_PER_REPLICA * (len(route.others) + 1):
            return self._look_out(route, now)
        route.missed += 1
        lost = route.proven and route.missed > 1
        self._end_turn(now)
        return Verdict.LOST if lost else Verdict.UNKNOWN

    def _refused(self, route: _Route, response: ForwardResponse, now: float) -> Verdict:
        words = response.error_message
        code = _REFERENCE_GATEWAYS_WORDS.get(words) or status_code(response.status_code)
        if words.startswith(_NO_ROUTE):
            route.refused += 1
            if route.refused > 1:
                return self._without_route(route, now)
            self._due = now + min(_RECHECK, self._interval)
            return Verdict.UNKNOWN
        route.refused = 0
        if code in _SAYS_NOTHING:
            self._end_turn(now)
            return Verdict.UNKNOWN
        route.anonymous += 1
        if route.anonymous >= _MOST_ANONYMOUS and not (route.proven or route.others):
            return self._drop(route, now)
        return self._look_out(route, now)

    def _without_route(self, route: _Route, now: float) -> Verdict:
        if route.proven or route.others or route.service not in self._astray:
            return Verdict.LOST
        self._end_turn(now)
        return Verdict.ASTRAY

    def _look_out(self, route: _Route, now: float) -> Verdict:
        """Ask again at once, unless there are answers that do not say how many replicas there are.

        Those prove nothing, however often it is asked.
        """
        if route.anonymous and route.tries + route.anonymous >= _MOST_ANONYMOUS:
            self._end_turn(now)
        return Verdict.UNKNOWN

    # Time

    def excuse(self, now: float) -> None:
        """No answer can come at present: this side does not read."""
        self._patient_until = now + self._patience
        self._doubted = False
        if self._asked and self._due is not None:
            self._due = now + self._patience / _COPIES

    def is_lost(self, now: float) -> bool:
        """Whether a probe has been unanswered for too long, and was so at the last look already.

        In between a thread that was kept from running has had time to take in the answer. One
        that did not come to us is excused if anything else came: a replica may be stuck.
        """
        if not self._asked or now < self._patient_until:
            return False
        if self._heard and not self._arrived:
            self._asked.clear()
            self._end_turn(now)
            return False
        lost = self._doubted
        if not lost:
            self._doubted = True
            self._patient_until = now + min(_RECHECK, self._patience)
        return lost

    # Turns

    def _begin_round(self, when: float) -> None:
        self._next_round = when + self._interval
        self._turns.extend(self._routes)
        self._due = when if self._turns else None

    def _end_turn(self, now: float) -> None:
        self._turns.popleft().begin_turn()
        if self._turns:
            self._due = now
        else:
            self._begin_round(max(now, self._next_round))

    def _drop(self, route: _Route, now: float) -> Verdict:
        """Probe it no more."""
        self._routes.remove(route)
        self._end_turn(now)
        return Verdict.UNABLE
