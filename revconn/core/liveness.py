"""Whether a connector is still known: the handshake's limit, heartbeats, silence, and probes.

It asks :meth:`due` when to look next, and calls :meth:`tick` then (sooner does no harm). All times
are seconds on the clock that goes on while the machine sleeps (:mod:`revconn.runtime.clock`): a
gateway goes on counting meanwhile, so heartbeats and silence must. It serves for probes too,
because time in which nobody looked does not count for them: an answer that came while this machine
slept still has to be read. A gateway's side (:mod:`revconn.core.gateway_side`) goes by the
monotonic clock: a gateway that slept heard nothing meanwhile, which is no fault of its connectors.

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
from typing import Callable, NamedTuple

from revconn._proto.registry_pb2 import ForwardRequest, ForwardResponse
from revconn.core.status import StatusCode, is_success, status_code

__all__ = [
    "PROBE_METHOD",
    "ConnectorLiveness",
    "Prober",
    "Tick",
    "Verdict",
]

_LONGEST_LOOK = 5.0  # seconds between two looks for a silence: a wait stands still in a suspend
_LATE = 1.0  # seconds; a look that came so much too late shows that nothing ran here

PROBE_METHOD = "/RevconnProbe"
"""How the path of any connector's probe ends, after the slash and the service."""

_RECHECK = 1.0  # seconds until a bad sign has to be there still
_COPIES = 3  # of a probe that stays unanswered, by turns to others: one replica may be stuck
_TRIES_PER_REPLICA = 8  # by chance one of so many misses us once in e**8
_MOST_ANONYMOUS = 16  # answers that do not say whose they are: then this service's turn is over
_MOST_REPLICAS = 1000
_TOKEN_LENGTH = 32
# Gateways do not say in a code that there is no route: the reference gateway has 500 for all of its
# failures, and words. The second is the embedded gateway's.
_NO_ROUTE = ("No reverse connection found", "no connector serves")
_REFERENCE_GATEWAYS_WORDS = {  # which come with status 500
    "Too many pending requests": StatusCode.RESOURCE_EXHAUSTED,
    "Request timeout": StatusCode.DEADLINE_EXCEEDED,
}
# Of an overloaded gateway's answers. Taken for "it does not route such calls" they once ended all
# probes of a connection that was merely busy.
_SAYS_NOTHING = frozenset(
    {StatusCode.RESOURCE_EXHAUSTED, StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED}
)


class Tick(NamedTuple):
    """What has become due at a connector.

    ``end`` says why the connection is of no use any more; then there is nothing else.
    """

    heartbeat: bool = False
    probe: ForwardRequest | None = None
    end: str = ""


class ConnectorLiveness:
    """A connector's side: it beats, and finds out that it may have been forgotten.

    A gateway forgets who is silent, says nothing of it, and takes later heartbeats as if all were
    well. So *any* gap between heartbeats that may have outlasted the gateway's patience ends the
    connection, also one that a late heartbeat has ended already.

    :param handshake_timeout: seconds from the registration to CONNECTED.
    :param heartbeat_interval: seconds.
    :param liveness_timeout: the longest silence, in seconds, that a gateway may not notice;
        ``None``: any.
    :param new_id: makes ids for probes, unique everywhere.
    :ivar prober: what calls this connector through its gateway, while that is of use.
    """

    def __init__(
        self,
        handshake_timeout: float,
        heartbeat_interval: float,
        liveness_timeout: float | None,
        new_id: Callable[[], str],
    ) -> None:
        self._handshake_timeout = handshake_timeout
        self._interval = heartbeat_interval
        self._timeout = liveness_timeout
        self._new_id = new_id
        self.prober: Prober | None = None
        self._handshake_by: float | None = None
        self._next_beat: float | None = None
        self._next_look = 0.0
        self._left_at = 0.0  # the last heartbeat
        self._longest_gap = 0.0

    # What happens to the connection

    def registered(self, now: float, prober: Prober | None) -> None:
        """The registration was said; ``prober`` is for the time after CONNECTED."""
        self.prober = prober
        self._handshake_by = now + self._handshake_timeout
        self._next_look = now + _LONGEST_LOOK

    def agree(self, heartbeat_interval: float, liveness_timeout: float | None) -> None:
        """The gateway has announced its limits."""
        self._interval = min(self._interval, heartbeat_interval)
        self._timeout = liveness_timeout

    def accept(self, now: float) -> str:
        """CONNECTED has come; if it came too late, why the connection is of no use."""
        if self._handshake_by is not None and now > self._handshake_by:  # nobody looked meanwhile
            return self._overdue()
        self._handshake_by = None
        # Silence counts from here. Before it was accepted there was nothing to forget, and a slow
        # handshake was once taken for a sleep: its own limit bounds that.
        self._left_at = self._next_look = now
        self._next_beat = now + self._interval
        if self.prober is not None:
            self.prober.start(now)
        return ""

    def heartbeat_left(self, at: float) -> None:
        """The last heartbeat was handed to the network at that instant.

        A heartbeat that waited while the machine slept leaves as soon as it wakes: the gap that
        it ends has to be remembered.
        """
        # "Handed to the network", not "queued": behind a network that takes nothing heartbeats
        # queue up on time, and the gateway hears none of them.
        if at > self._left_at:
            self._longest_gap = self.longest_silence(at)
            self._left_at = at

    def longest_silence(self, now: float) -> float:
        """The longest gap between two heartbeats, in seconds, and the one that lasts counts too."""
        return max(self._longest_gap, now - self._left_at)

    # Time

    def due(self, *, probing: bool) -> float | None:
        """When to call :meth:`tick`; ``None``: not before something happens."""
        if self._handshake_by is not None:
            return min(self._handshake_by, self._next_look)
        if self._next_beat is None:
            return None
        probe_by = self.prober.look_by() if probing and self.prober is not None else None
        due = min(self._next_beat, self._next_look)
        return due if probe_by is None else min(due, probe_by)

    def tick(self, now: float, *, reading: bool, probing: bool) -> Tick:
        """What is due by ``now``.

        :param reading: whether this side takes in what it is sent.
        :param probing: whether the gateway is to send requests here. After the goodbye it is not.
        """
        due = self.due(probing=probing)
        if due is None:
            return Tick()
        # No interval is so long that the end of a suspend goes unnoticed: whoever waits for
        # ``due`` waits on a clock that stood still meanwhile.
        self._next_look = now + min(_LONGEST_LOOK, self._interval)
        prober = self.prober if probing else None
        end = self._end(now, prober, late=now - due, reading=reading)
        if end:  # told once: what arrives until the stream has ended still counts
            self._handshake_by = self._next_beat = self.prober = None
            return Tick(end=end)
        # After the look for a silence: this heartbeat would hide the gap that it ends.
        return Tick(self._beat(now), self.next_probe(now) if probing else None)

    def next_probe(self, now: float) -> ForwardRequest | None:
        """The probe that is due, if one is; it is on its way from now on."""
        if self.prober is None or not self.prober.is_due(now):
            return None
        return self.prober.ask(self._new_id(), now)

    def _end(self, now: float, prober: Prober | None, *, late: float, reading: bool) -> str:
        if self._handshake_by is not None:
            return self._overdue() if now >= self._handshake_by else ""
        # The longest gap, not the last one: a gateway that dropped a route in an earlier one takes
        # later heartbeats as if all were well, and the route never comes back.
        silence = self.longest_silence(now)
        if self._timeout is not None and silence > self._timeout:
            return (
                f"no heartbeat left this machine for {silence:.0f} s: the gateway may have"
                " forgotten the connection"
            )
        if prober is not None:
            # A machine that slept, or was starved, has answers to read that came in time.
            if late > _LATE:
                prober.skip(late)
            if not reading:
                prober.excuse(now)
            if prober.is_lost(now):
                return (
                    f"a call to itself through the gateway ({prober.service}) was unanswered for"
                    f" {prober.patience:g} s: requests may not come any more"
                )
        return ""

    def _beat(self, now: float) -> bool:
        """Whether a heartbeat is due: a late one does not shift the next, a missed one is gone."""
        if self._next_beat is None or now < self._next_beat:
            return False
        missed = (now - self._next_beat) // self._interval
        self._next_beat += (missed + 1) * self._interval
        return True

    def _overdue(self) -> str:
        return f"no CONNECTED within {self._handshake_timeout:g} s"


class Verdict(Enum):
    """What an answer to a probe proves."""

    ALIVE = "requests reach this connection"
    UNKNOWN = "nothing yet"
    UNABLE = "the gateway does not route such calls"
    ASTRAY = "the gateway has no route of it, not on a new connection either"
    LOST = "the gateway no longer routes requests to this connection"


class _Route:
    """The way of one service's requests to this connection. The last four are of its turn."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.proven = False  # a probe of it has come back by this connection
        self.missed = 0  # turns in a row in which every probe went to other replicas
        self.begin_turn()

    def begin_turn(self) -> None:
        self.refused = 0  # so often in a row the gateway knew no route
        self.tries = 0  # that reached another replica
        self.anonymous = 0  # answers that do not say whose they are
        self.others: set[bytes] = set()  # the tokens of other replicas

    def returned(self) -> None:
        self.proven, self.missed = True, 0

    def reached_another(self, token: bytes) -> None:
        self.refused = 0
        self.tries += 1
        if len(self.others) < _MOST_REPLICAS:
            self.others.add(token)

    def missed_turn(self) -> bool:
        """Whether it was no chance: in two turns all went to others, and it had worked before."""
        self.missed += 1
        return self.proven and self.missed > 1

    def was_refused(self) -> bool:
        """Whether it was no coincidence: the gateway knew no route twice in a row."""
        self.refused += 1
        return self.refused > 1

    def was_answered(self) -> None:
        self.refused = 0

    def answered_anonymously(self) -> bool:
        """Whether that was so often that nobody may be there who knows what a probe is."""
        self.anonymous += 1
        return self.anonymous >= _MOST_ANONYMOUS and not self.has_replicas

    @property
    def has_replicas(self) -> bool:
        """Whether a probe of it reached a connector, this one or another."""
        return self.proven or bool(self.others)


class Prober:
    """One connection's probes: each service in its turn, and all of them at each interval.

    Whoever owns it guards it.

    :param services: what the connection registered.
    :param interval: seconds between two rounds.
    :param patience: seconds that a probe may stay unanswered.
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
        self.patience = patience
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
        """The service whose turn it is."""
        return self._turns[0].service if self._turns else ""

    def start(self, now: float) -> None:
        """The connection is established: the first round is due."""
        self._begin_round(now)

    # Asking

    def is_due(self, now: float) -> bool:
        """Whether to :meth:`ask` now."""
        return self._due is not None and now >= self._due

    def ask(self, request_id: str, now: float) -> ForwardRequest:
        """Make a probe, which is on its way from now on. The id is unique everywhere."""
        if not self._asked:
            self._patient_until = now + self.patience
            self._doubted = self._arrived = self._heard = False
        self._asked[request_id] = now
        self._due = now + self.patience / _COPIES if len(self._asked) < _COPIES else None
        return ForwardRequest(
            request_id=request_id,
            method_path=f"/{self.service}{PROBE_METHOD}",
            timeout_seconds=ceil(self.patience),
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
        """An answer has come. After ``LOST`` there are no probes any more."""
        verdict = self._judge(response, now)
        if verdict is Verdict.LOST:
            self._due = None
        return verdict

    def _judge(self, response: ForwardResponse, now: float) -> Verdict:
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
            route.returned()
            self._end_turn(now)
            return Verdict.ALIVE
        if len(token) == _TOKEN_LENGTH:
            return self._answered_by_other(route, token, now)
        return self._refused(route, response, now)

    def _answered_by_other(self, route: _Route, token: bytes, now: float) -> Verdict:
        route.reached_another(token)
        if route.anonymous or route.tries < _TRIES_PER_REPLICA * (len(route.others) + 1):
            return self._look_out(route, now)
        lost = route.missed_turn()
        self._end_turn(now)
        return Verdict.LOST if lost else Verdict.UNKNOWN

    def _refused(self, route: _Route, response: ForwardResponse, now: float) -> Verdict:
        words = response.error_message
        code = _REFERENCE_GATEWAYS_WORDS.get(words) or status_code(response.status_code)
        if words.startswith(_NO_ROUTE):
            if route.was_refused():
                return self._without_route(route, now)
            self._due = now + min(_RECHECK, self._interval)
            return Verdict.UNKNOWN
        route.was_answered()
        if code in _SAYS_NOTHING:
            self._end_turn(now)
            return Verdict.UNKNOWN
        if route.answered_anonymously():
            return self._drop(route, now)
        return self._look_out(route, now)

    def _without_route(self, route: _Route, now: float) -> Verdict:
        # Where the last connection was given up for the same service, and this one has not been
        # reached by it either, a third would be no better.
        if route.has_replicas or route.service not in self._astray:
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
        """Be patient anew: this side does not read at present, so no answer can come."""
        self._patient_until = now + self.patience
        self._doubted = False
        if self._asked and self._due is not None:
            self._due = now + self.patience / _COPIES

    def skip(self, seconds: float) -> None:
        """Leave out of account so many seconds, in which this machine did not run."""
        self._patient_until += seconds
        if self._asked:
            self._asked = {each: at + seconds for each, at in self._asked.items()}
            if self._due is not None:
                self._due += seconds

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
            self._patient_until = now + min(_RECHECK, self.patience)
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
        """Probe this service no more."""
        self._routes.remove(route)
        self._end_turn(now)
        return Verdict.UNABLE
