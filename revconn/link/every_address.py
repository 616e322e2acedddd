"""A link to each address of one name: which there are to be, and the thread that sees to it."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Callable, NamedTuple, Union

from revconn.core.status import Speaker, StatusCode
from revconn.exceptions import HandshakeError, RevconnError
from revconn.link.link import Judging, Link, combine
from revconn.link.records import Failed, Outage, Wait, log_news
from revconn.logger import Reminder, get_logger
from revconn.runtime.state import LinkStatus, State
from revconn.runtime.threads import guarded_thread, own_thread
from revconn.settings.options import Options
from revconn.settings.target import Target
from revconn.transport.dial import Address, network_words, resolve

__all__ = ["AddressPlan", "EveryAddress", "GiveUp", "Leave", "LookUp", "Member", "Stage"]

logger = get_logger(__name__)

# In seconds, like all times here.
_INTERVAL = 30.0  # between two look-ups: what names of gateways live for in a DNS, most often
_JITTER = 0.2  # of that, more or less: connectors that started together do not ask together
_LINGER = 5.0  # between the goodbye and the end of the time: what is on its way is answered
_FLUSH_WAIT = 1.0  # for the last answers to arrive: an abort could overtake them


class Stage(Enum):
    """How far the leave of one address's link has come."""

    PRESENT = "present"  # the name has it
    MISSED = "missed"  # the name has it no more: the links that came since are to be ready first
    LEAVING = "leaving"  # it was told to leave
    GIVEN_UP = "given up"  # the time was up: what was unanswered was answered with 503
    ABORTED = "aborted"


@dataclass(eq=False)
class Member:
    """An address that has a link, and until when its stage lasts (monotonic)."""

    ip: str
    stage: Stage = Stage.PRESENT
    until: float = math.inf


class LookUp(NamedTuple):
    """Look the name up, and say what came of it."""


class Leave(NamedTuple):
    """Tell the link to leave, by its ``until`` at the latest."""

    member: Member


class GiveUp(NamedTuple):
    """Answer 503 to what is unanswered there."""

    member: Member


class Abort(NamedTuple):
    """End the link."""

    member: Member


Decision = Union[LookUp, Leave, GiveUp, Abort, Wait]


class AddressPlan:
    """Which addresses of one name are to have links, and when it is looked up. Pure.

    A link that is to go stays until those that appeared are ready; ``patience`` seconds, if one of
    the others is. Where none is, one that serves stays: the name may be wrong, and it is not.

    :param patience: seconds for the links of new addresses to be ready.
    :param drain_timeout: seconds for a link that leaves.
    :param draw: an even distribution between two bounds.
    """

    def __init__(
        self,
        now: float,
        *,
        patience: float,
        drain_timeout: float,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.members: list[Member] = []
        self.due = now  # the next look-up
        self._patience = patience
        self._drain_timeout = drain_timeout
        self._draw = draw

    def found(self, ips: Iterable[str], now: float) -> list[Member]:
        """The name has these addresses now, at least one: those that have no link yet."""
        found = dict.fromkeys(ips)
        for member in self.members:
            if member.stage is Stage.MISSED and member.ip in found:
                member.stage, member.until = Stage.PRESENT, math.inf
            elif member.stage is Stage.PRESENT and member.ip not in found:
                member.stage, member.until = Stage.MISSED, now + self._patience
        # One that is told to leave already is left: its address has a new link.
        present = {member.ip for member in self._in(Stage.PRESENT)}
        appeared = [Member(ip) for ip in found if ip not in present]
        self.members += appeared
        self._look_up_later(now)
        return appeared

    def failed(self, now: float, retry_in: float | None = None) -> None:
        """A look-up failed: the next is in so many seconds (``None``: as if it had not)."""
        if retry_in is None:
            self._look_up_later(now)
        else:
            self.due = now + retry_in

    def over(self, member: Member) -> None:
        """Its link has left, or never began."""
        self.members.remove(member)

    def decide(self, now: float, state_of: Callable[[Member], State]) -> Decision:
        """What is to be done now, by what each link is doing."""
        others = [state_of(member) for member in self._in(Stage.PRESENT)]
        for member in self._in(Stage.MISSED):
            if self._may_leave(member, now, others, state_of):
                member.stage, member.until = Stage.LEAVING, now + self._drain_timeout
                return Leave(member)
        for member in self.members:
            if now >= member.until:
                if member.stage is Stage.LEAVING:
                    member.stage, member.until = Stage.GIVEN_UP, now + _FLUSH_WAIT
                    return GiveUp(member)
                if member.stage is Stage.GIVEN_UP:
                    member.stage, member.until = Stage.ABORTED, math.inf
                    return Abort(member)
        if now >= self.due:
            return LookUp()
        # What is past is waited for no longer, but for a link to become ready, or not.
        untils = (member.until for member in self.members if member.until > now)
        return Wait(min(self.due, *untils, math.inf))

    @staticmethod
    def _may_leave(
        member: Member, now: float, others: list[State], state_of: Callable[[Member], State]
    ) -> bool:
        if State.READY not in others:
            return now >= member.until and state_of(member) is not State.READY
        # CLOSED: given up. Nobody waits for that one, nor for a dead one for longer than this.
        settled = all(state in (State.READY, State.CLOSED) for state in others)
        return settled or now >= member.until

    def _in(self, stage: Stage) -> list[Member]:
        return [member for member in self.members if member.stage is stage]

    def _look_up_later(self, now: float) -> None:
        self.due = now + self._draw(_INTERVAL * (1 - _JITTER), _INTERVAL * (1 + _JITTER))


class EveryAddress:
    """The links to all addresses of one target's name. To the supervisor it is as one link.

    A thread of its own looks the name up, and is the only one that makes links and has them leave.
    It ends last, when all of them have: because they were told to, or because all gave up.

    ``_lock`` guards ``_ending``, ``_over``, ``_failure``, ``_gone`` and changes of ``_links``,
    which is replaced as a whole, and read without. Under it nothing is called but what reads a
    link's counters. The plan belongs to the thread.

    :param make_link: makes a link, which is not started, to the target at one address.
    :param on_change: called without the lock, in any thread: the state may be another.
    :param on_end: called as the thread is about to end: with an error, or because it was told to.
    :param look_up: as :func:`~revconn.transport.dial.resolve`.
    """

    def __init__(
        self,
        target: Target,
        options: Options,
        make_link: Callable[..., Link],
        *,
        on_change: Callable[[], object],
        on_end: Callable[[Any, BaseException | None], object],
        look_up: Callable[[str, int, Callable[[], bool]], list[Address]] = resolve,
    ) -> None:
        self.target = target
        self._make_link = make_link
        self._on_change = on_change
        self._on_end = on_end
        self._look_up = look_up
        self._patience = options.connect_timeout
        self._judging = Judging(options)
        now = time.monotonic()
        self._plan = AddressPlan(
            now, patience=options.connect_timeout, drain_timeout=options.drain_timeout
        )
        self._outage = Outage(now)  # of the name, until it was found for the first time
        self._reminder = Reminder()  # of failures after that
        self._shown = State.IDLE  # before there is a link
        self._lock = threading.Lock()
        self._links: dict[Member, Link] = {}
        self._over: set[Link] = set()  # whose threads are about to end
        self._failure: BaseException | None = None  # of the first that gave up
        self._gone: dict[str, int] = {}  # the counters of links that have left
        self._ending = False
        self._news = threading.Event()  # something that the thread has to look at
        self._thread = guarded_thread(f"revconn-addresses-{target}", self._run)

    # Any thread

    @property
    def state(self) -> State:
        """What the links are doing together."""
        links = self._links
        state = combine(link.state for link in links.values()) if links else State.IDLE
        # Where there is none, or the first one is about to begin, the look-up is all that happens.
        return self._shown if state is State.IDLE else state

    @property
    def statuses(self) -> tuple[LinkStatus, ...]:
        """What each link is doing; before there is one, what the look-up of the name is doing."""
        links = self._links
        if links:
            return tuple(status for link in links.values() for status in link.statuses)
        wait = self._plan.due - time.monotonic() if self._shown is State.BACKING_OFF else None
        return (
            LinkStatus(
                target=str(self.target),
                state=self._shown,
                connection_id=None,
                last_error=self._outage.last_error,
                next_attempt_in=None if wait is None else max(0.0, wait),
            ),
        )

    @property
    def probe_round_trip(self) -> float | None:
        """Seconds that the slowest link's last probe took; ``None`` before the first came back."""
        trips = [link.probe_round_trip for link in self._links.values()]
        return max((seconds for seconds in trips if seconds is not None), default=None)

    @property
    def is_running(self) -> bool:
        """Whether a link's thread still runs, or the one that sees to them."""
        return self._thread.is_alive()

    def stats(self) -> dict[str, int]:
        """Counters since the start, of all links that there were."""
        with self._lock:
            totals = dict(self._gone)
            for link in self._links.values():
                _add(totals, link.stats())
        return totals

    def unsent(self) -> dict[tuple[str, object], int]:
        """The streams with something to send, by target, with how many batches have been begun."""
        links = self._links.values()
        return {stream: batches for link in links for stream, batches in link.unsent().items()}

    def wait_flushed(self, timeout: float) -> bool:
        """Wait, at most ``timeout`` seconds, until every queued answer has left."""
        deadline = time.monotonic() + timeout
        links = self._links.values()
        return all(link.wait_flushed(max(0.0, deadline - time.monotonic())) for link in links)

    def start(self) -> None:
        """Start the thread. Raises :class:`RuntimeError` where there is none to be had."""
        self._thread.start()

    def leave(self, deadline: float) -> None:
        """Have every link take leave, as :meth:`Link.leave`; no others come."""
        for link in self._end():
            link.leave(deadline)

    def abort(self) -> None:
        """End every link at once. Idempotent."""
        for link in self._end():
            link.abort()

    def forsake(self) -> None:
        """In a forked child: open nothing more. Takes no lock: its owner may be gone."""
        self._ending = True
        for link in self._links.values():
            link.forsake()

    def _end(self) -> Iterable[Link]:
        """From here on there is no other link: those that there are."""
        with self._lock:
            self._ending = True
            links = self._links.values()
        self._news.set()
        return links

    def _link_changed(self) -> None:
        self._on_change()
        self._news.set()

    def _link_ended(self, link: Link, error: BaseException | None) -> None:
        """A link's thread is about to end."""
        if error is not None:
            unforeseen = not isinstance(error, RevconnError)
            logger.error(
                "gave up %s: %s", link.target, error, exc_info=error if unforeseen else None
            )
        with self._lock:
            self._over.add(link)
            self._failure = self._failure or error
        self._news.set()

    # The thread

    def _run(self) -> None:
        with own_thread():
            error: BaseException | None = None
            try:
                error = self._follow()
                self._show(State.CLOSED)
            except BaseException as failure:  # noqa: BLE001 - it is raised from start() and wait()
                error = failure
                for link in self._end():  # nobody else would see to them
                    link.abort()
            finally:
                self._on_end(self, error)

    def _follow(self) -> BaseException | None:
        """Do what the plan decides until all links are over; what that ended with, if an error."""
        while True:
            self._news.clear()  # before the look: what comes after it is looked at next
            self._part_from_those_that_left()
            with self._lock:
                links, ending = self._links, self._ending
                are_over = self._over.issuperset(links.values())
                failure = None if ending else self._failure
            if are_over and (ending or links):
                return failure
            if ending:  # told to end: whoever told them has set a time for it
                self._news.wait()
                continue
            decision = self._plan.decide(time.monotonic(), self._state_of)
            if isinstance(decision, LookUp):
                error = self._find()
                if error is not None:
                    return error
            else:
                self._carry_out(decision)

    def _state_of(self, member: Member) -> State:
        return self._links[member].state

    def _carry_out(self, decision: Decision) -> None:
        if isinstance(decision, Wait):
            self._news.wait(min(decision.until - time.monotonic(), threading.TIMEOUT_MAX))
        elif isinstance(decision, Leave):
            link = self._links[decision.member]
            logger.info("%s: the name has this address no more: leaving", link.target)
            link.leave(decision.member.until - _LINGER)
        elif isinstance(decision, GiveUp):
            self._links[decision.member].give_up()
        elif isinstance(decision, Abort):
            self._links[decision.member].abort()

    def _find(self) -> BaseException | None:
        """Look the name up, and open links to addresses that are new; an error ends all."""
        if not self._links:
            self._show(State.CONNECTING)
        try:
            self._meet(self._ips())
        except (OSError, RuntimeError) as error:  # the second: no thread to be had
            return None if self._ending else self._not_found(error)
        self._reminder.rest(time.monotonic())
        return None

    def _ips(self) -> list[str]:
        """The addresses that the name has now. Raises :class:`OSError`."""
        give_up_at = time.monotonic() + self._patience
        host, port = self.target.host, self.target.port
        assert port is not None
        # Asked several times a second: a resolver that hangs holds nobody up.
        found = self._look_up(host, port, lambda: self._ending or time.monotonic() >= give_up_at)
        if not found:
            raise OSError(f"{host} has no address")
        return list(dict.fromkeys(_ip(*address) for _, address in found))

    def _meet(self, ips: list[str]) -> None:
        """Open links to those addresses that have none. Raises :class:`RuntimeError`."""
        appeared = self._plan.found(ips, time.monotonic())
        if not self._links:
            count = len(ips)
            logger.info("%s has %d address%s", self.target, count, "es" if count > 1 else "")
        else:
            for member in appeared:
                where = self.target.at(member.ip)
                logger.info("%s: the name has this address now: connecting", where)
        try:
            for member in appeared:
                self._begin(member)
        finally:
            for member in appeared:
                if member not in self._links:  # the next look-up finds it once more
                    self._plan.over(member)

    def _not_found(self, error: Exception) -> BaseException | None:
        """Why there is no other attempt; ``None``: there is."""
        words = network_words(error) if isinstance(error, OSError) else str(error)
        now = time.monotonic()
        if self._links:
            self._plan.failed(now)
            if self._reminder.is_due(now):
                logger.warning(
                    "%s: looking the name up again failed: %s; the links that there are stay",
                    self.target,
                    words,
                )
            return None
        code = StatusCode.UNAVAILABLE
        lost = HandshakeError(
            str(self.target),
            f"{code.name}: cannot connect: {words}",
            code,
            speaker=Speaker.STRANGER,
        )
        worth_a_line = self._outage.failed(lost, now)
        delay = self._judging.delay(lost, self._outage.attempts)
        if delay is None:
            return lost
        log_news(self.target, Failed(lost, self._outage, worth_a_line, delay, now))
        self._plan.failed(now, delay)
        self._show(State.BACKING_OFF)
        return None

    def _begin(self, member: Member) -> None:
        """Open a link to an address, unless all are to end. Raises :class:`RuntimeError`."""
        link = self._make_link(
            self.target.at(member.ip), on_change=self._link_changed, on_end=self._link_ended
        )
        with self._lock:
            if not self._ending:  # whoever ends all finds it from here on, started or not
                self._links = {**self._links, member: link}
        try:
            if member in self._links:
                link.start()
        except RuntimeError:
            with self._lock:
                self._links = {m: each for m, each in self._links.items() if m is not member}
            raise
        finally:
            if member not in self._links:
                link.forget()

    def _part_from_those_that_left(self) -> None:
        with self._lock:
            if self._ending:  # those that there were are shown to the end
                return
            left = {
                member: link
                for member, link in self._links.items()
                if link in self._over and member.stage is not Stage.PRESENT
            }
            self._links = {m: link for m, link in self._links.items() if m not in left}
            self._over.difference_update(left.values())
            for link in left.values():
                _add(self._gone, link.stats())
        for member, link in left.items():
            self._plan.over(member)
            link.forget()
            logger.info("%s: left", link.target)

    def _show(self, state: State) -> None:
        self._shown = state
        self._on_change()


def _add(totals: dict[str, int], counters: dict[str, int]) -> None:
    for name, count in counters.items():
        totals[name] = totals.get(name, 0) + count


def _ip(host: str, _port: int, _flow: int = 0, scope: int = 0) -> str:
    return f"{host.partition('%')[0]}%{scope}" if scope else host
