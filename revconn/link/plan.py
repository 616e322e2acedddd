"""Which sessions one link is to have: connect, replace, hand over, back off, leave, give up.

Pure: the link tells what happens, and its thread asks :meth:`Plan.decide` what to do next. Time
comes in as an argument, what is still to be answered as :class:`Traffic`, the drawn waits and the
user's ``is_fatal`` by :meth:`Plan.judged`. The link's lock guards a plan.

What the link's thread is about, and what ends that::

    IDLE          the thread has not begun; it does                       -> CONNECTING
    CONNECTING    a session is being opened, in the place of others maybe
                    CONNECTED came                                        -> HANDING_OVER
                    the session ended first, or there was no key to show  -> FAILED
    HANDING_OVER  the older sessions are told goodbye, each in a calm moment, and read to their end
                    they are over, or were retired after drain_timeout    -> SERVING
                    the new session ended (an older one may serve on)     -> FAILED
    SERVING       one session serves
                    it ended                                              -> FAILED
                    GOAWAY, or another key: it is to be replaced          -> CONNECTING
                    the same, it did not last and is not the first        -> FAILED
    FAILED        the thread judges whether to try again, and after how many seconds
                    yes                                                   -> BACKING_OFF
                    no, but a session serves that is kept until it ends   -> SERVING
                    no: gives up                                          -> CLOSED
    BACKING_OFF   the wait is over, or leave() came                       -> CONNECTING

    In any of these, after leave():
                    one serves that registers, at one that does not drain -> STANDING_IN
                    another one serves                                    -> PARTING
                    none serves, and all is answered and has left         -> CLOSED
    STANDING_IN   a session that registers nothing is opened, for the answers after the goodbye
                    CONNECTED came, or it took too long                   -> PARTING
    PARTING       waits for a calm moment to say goodbye
                    it has come, or goodbye_by where that is no loss      -> SAID_GOODBYE
    SAID_GOODBYE  reads what is on its way, until the gateway ends each stream
                    they are over, and there is a stand-in                -> SETTLING
    SETTLING      the stand-in takes what is still to be answered
                    all is answered and has left                          -> FINISHING
    FINISHING     the stand-in was told goodbye; the gateway has a moment to end it
    From the last three, when there is nothing to wait for any more:
                    all ended in peace, or nothing is left to deliver     -> CLOSED
                    a stream broke with answers left for another one      -> FAILED
                    the gateway let go, and older answers are left        -> CONNECTING

    CLOSED        final; stop() leads here from everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from revconn.link.records import (
    LEAVING,
    TRANSITIONS,
    AnotherKey,
    Calm,
    Connected,
    Decision,
    End,
    Failed,
    Failures,
    GaveUpReplacing,
    Judge,
    Life,
    LookAtKey,
    Lost,
    News,
    Open,
    Outage,
    Phase,
    Retire,
    SayGoodbye,
    ServesOn,
    Shows,
    Traffic,
    Wait,
)

__all__ = ["Plan"]

_STAND_IN_WAIT = 2.0  # for CONNECTED on it, before the goodbye is said without it
_GOODBYE_WAIT = 2.0  # at least, for the gateway to end a stream that was told goodbye

_ATTENDING = {Phase.CONNECTING, Phase.HANDING_OVER, Phase.SERVING}  # to the current session


@dataclass(eq=False)
class _Session:
    """What the plan knows of one session, by its number."""

    number: int
    registers: bool
    life: Life = Life.OPENING
    connection_id: str = ""
    drains: bool = False
    accepted_at: float | None = None
    going_away: bool = False
    error: BaseException | None = None  # why it is over; if it is, and there is none: in peace

    def accept(self, now: float, connection_id: str, drains: bool) -> None:
        self.life = Life.ACCEPTED
        self.accepted_at, self.connection_id, self.drains = now, connection_id, drains

    def go_away(self) -> None:
        self.going_away = True

    def take_leave(self) -> None:
        self.life = Life.TOLD_GOODBYE

    def end(self, error: BaseException | None) -> None:
        self.life, self.error = Life.OVER, error


class Plan:
    """Decides what one link does, until it was told to end or gives up.

    The public attributes are for reading, without the link's lock too.

    :param stable_after: seconds that a session has to serve for failures to count afresh.
    :param patience: seconds that a session which is replaced has for its last answers.
    :param look_at_key_every: seconds between looks at the key; infinite: it is not watched.
    """

    def __init__(
        self, now: float, *, stable_after: float, patience: float, look_at_key_every: float
    ) -> None:
        self._patience = patience
        self._look_at_key_every = look_at_key_every
        self.phase = Phase.IDLE
        self.shown = Phase.IDLE  # IDLE, CONNECTING, SERVING, BACKING_OFF or CLOSED
        self.serving: _Session | None = None
        self.connections = 0  # so many sessions have served
        self.next_attempt: float | None = None  # when it is due (monotonic)
        self.is_leaving = False
        self.is_stopping = False
        self._news: list[News] = []
        self._sessions: dict[int, _Session] = {}  # those that are not over, the newest last
        self._opened = 0
        self._current = _Session(0, registers=False)  # that the thread is concerned with
        self._kept: _Session | None = None  # no other can be had in its place
        self._last_break = -math.inf  # when a session ended otherwise than in peace
        self.outage: Outage | None = Outage(now)  # since there has been no session that serves
        self._failures = Failures(stable_after)
        self._error: BaseException | None = None  # that FAILED is about
        self._delay: float | None = None  # until the next attempt, by the last judgement
        self._look_at_key = math.inf
        self._others: list[_Session] = []  # the replaced ones; when leaving, all
        self._calm: Calm | None = None  # before the next of them is told goodbye
        self._patience_ends = math.inf
        self._until: float | None = None  # the end of what is waited for now, once that has begun
        self._goodbye_by = math.inf
        self._was_calm = False  # as goodbye was said to all
        self._stand_in: _Session | None = None
        self._steps = {
            Phase.IDLE: lambda _now, _traffic: self._connect(),
            Phase.CONNECTING: self._await_accepted,
            Phase.HANDING_OVER: self._hand_over,
            Phase.SERVING: self._serve,
            Phase.FAILED: self._fail,
            Phase.BACKING_OFF: self._back_off,
            Phase.STANDING_IN: self._await_stand_in,
            Phase.PARTING: self._part,
            Phase.SAID_GOODBYE: self._read_to_the_end,
            Phase.SETTLING: self._settle,
            Phase.FINISHING: self._finish,
        }

    def take_news(self) -> list[News]:
        """The news that nobody has told yet, in their order."""
        news, self._news = self._news, []
        return news

    # Events

    def accepted(self, number: int, now: float, *, connection_id: str, drains: bool) -> None:
        """The gateway said CONNECTED: the session serves, or stands in for one that is left."""
        session = self._sessions[number]
        # Here and now, not when the link's thread comes to it: that may be in the user's api_key
        # or is_fatal, and requests come by this session meanwhile.
        session.accept(now, connection_id, drains)
        predecessor = self.serving
        # After stop() the session is retired already: CONNECTED crossed that on its way.
        if self.is_stopping or (self.is_leaving and predecessor is not None):
            return
        self.serving = session
        self.connections += 1
        replaced = None if predecessor is None else predecessor.connection_id
        outage, self.outage = self.outage, None
        self._news.append(Connected(number, connection_id, self.connections, replaced, outage, now))
        self._show(Phase.SERVING)

    def going_away(self, number: int) -> None:
        """The gateway wants another session in the place of this one."""
        self._sessions[number].go_away()

    def ended(self, number: int, error: BaseException | None, now: float) -> None:
        """A session is over; no ``error``: the gateway, told goodbye, ended it as settled."""
        session = self._sessions.pop(number)
        session.end(error)
        if error is not None:
            # Its gateway does not wait for the answers to what came by it. Calm has to.
            self._last_break = now
        if self.serving is not session:
            return
        # One that it had replaced may be there yet, and was not told goodbye.
        older = (each for each in self._established() if each.registers and each.number < number)
        self.serving = next((each for each in older if each.life is Life.ACCEPTED), None)
        if error is None or self.is_leaving or self.is_stopping:
            return
        if self.serving is not None:
            self._news.append(ServesOn(session.connection_id, error, self.serving.connection_id))
        elif session is not self._current or self.phase in (Phase.FAILED, Phase.BACKING_OFF):
            # Another one is being opened, or waited for, anyway. Else the loss is told with what
            # becomes of it: if is_fatal says that it is useless, "connecting again" is no truth.
            self._lose(error, now)
            self._show(Phase.BACKING_OFF if self.phase is Phase.BACKING_OFF else Phase.CONNECTING)

    def another_key(self) -> None:
        """The key that was shown is not the one to show any more: replace the session."""
        if not (self.is_leaving or self.is_stopping):
            self._news.append(AnotherKey())
            self._current.go_away()
            self._kept = None

    def judged(self, delay: float | None) -> None:
        """The answer to :class:`Judge`: try again after so many seconds; ``None``: do not."""
        self._delay = delay

    def leave(self, goodbye_by: float, now: float) -> None:
        """Take leave of the gateway; say goodbye by then (monotonic), unless that loses answers."""
        self.is_leaving, self._goodbye_by = True, goodbye_by
        if self.phase is Phase.BACKING_OFF:
            self.next_attempt = now  # at once: what is left has its deadlines

    def stop(self) -> None:
        """End at once. A forked child calls this without the lock: its owner may be gone."""
        self.is_stopping = True

    def closed(self) -> None:
        """All sessions have ended, and the link's thread is about to."""
        self._show(Phase.CLOSED)

    # Decisions

    def decide(self, now: float, traffic: Traffic) -> Decision:
        """What the link's thread is to do now. Not to be asked again after :class:`End`."""
        while (decision := self._decide(now, traffic)) is None:
            pass
        return decision

    def _decide(self, now: float, traffic: Traffic) -> Decision | None:
        """Take one step; ``None``: the phase that it led to decides."""
        # First of all, in every phase: whatever the thread was woken by, or came back from, it
        # opens nothing more after stop(), and nothing that registers after leave().
        if self.is_stopping:
            return self._end(None)
        if self.is_leaving and self.phase not in LEAVING:
            if self.serving is not None:
                return self._begin_to_leave(self.serving)
            if traffic.is_quiet():
                return self._end(None)
        if self._current.life is Life.OVER and self.phase in _ATTENDING:
            return self._judge_loss(now)
        return self._steps[self.phase](now, traffic)

    def _enter(self, phase: Phase) -> None:
        assert phase in TRANSITIONS[self.phase], (self.phase, phase)
        self.phase = phase
        if phase is not Phase.BACKING_OFF:
            self.next_attempt = None

    def _show(self, phase: Phase) -> None:
        connects = phase in (Phase.CONNECTING, Phase.BACKING_OFF)
        self.shown = Phase.SERVING if connects and self.serving is not None else phase
        self._news.append(Shows())

    def _end(self, error: BaseException | None) -> End:
        self._enter(Phase.CLOSED)
        return End(error)

    def _connect(self) -> Decision:
        self._enter(Phase.CONNECTING)
        self._show(Phase.CONNECTING)
        self._current = self._new_session(registers=not self.is_leaving)
        return Open(self._current.number, self._current.registers, self._failures.in_a_row)

    def _new_session(self, *, registers: bool) -> _Session:
        self._opened += 1
        self._sessions[self._opened] = _Session(self._opened, registers=registers)
        return self._sessions[self._opened]

    def _await_accepted(self, now: float, _traffic: Traffic) -> Decision | None:
        if self._current.life is Life.OPENING:
            return Wait(for_traffic=self.is_leaving)
        # Not only the one before: a successor may have ended before it had parted from its own.
        self._others = [each for each in self._established() if each is not self._current]
        self._patience_ends = now + self._patience
        self._calm = self._until = None
        self._enter(Phase.HANDING_OVER)
        return None

    def _established(self) -> list[_Session]:
        return [each for each in self._sessions.values() if each.life is not Life.OPENING]

    def _hand_over(self, now: float, traffic: Traffic) -> Decision | None:
        for other in self._others:
            if other.life is Life.ACCEPTED:  # the others have heard their goodbye
                calm = self._is_calm(other, now, traffic, self._patience_ends)
                if isinstance(calm, Wait):
                    return calm
                other.take_leave()
                return SayGoodbye((other.number,), last=calm)
        if self._until is None:
            # Patience is for the answers. What is on its way takes a moment after the goodbye.
            self._until = max(now + _GOODBYE_WAIT, self._patience_ends)
        left = _numbers(self._others)
        if left and now < self._until:
            return Wait(self._until)
        self._serve_from(now)
        return Retire(left, "another connection has taken its place") if left else None

    def _is_calm(self, session: _Session, now: float, traffic: Traffic, by: float) -> bool | Wait:
        """Whether goodbye is said now with nothing lost, or at ``by`` all the same; else a wait."""
        if session.life is Life.OVER:
            return False  # what it brought may be unanswered, and nobody will ask for it there
        if traffic.is_quiet() or (session.drains and self.connections == 1):
            return True  # in the second case the gateway waits for all that ever came from it
        if self._calm is None or self._calm.session != session.number:
            assert session.accepted_at is not None
            came_by = max(session.accepted_at, self._last_break) if session.drains else now
            self._calm = Calm(session.number, session.drains, session.registers, now, came_by)
        calm = self._calm.has_come(now, traffic, by)
        return Wait(self._calm.until, for_traffic=True) if calm is None else calm

    def _serve_from(self, now: float) -> None:
        self._enter(Phase.SERVING)
        self._look_at_key = now + self._look_at_key_every

    def _serve(self, now: float, _traffic: Traffic) -> Decision | None:
        if self._current.going_away and self._current is not self._kept:
            self._failures.count(now, self._current.accepted_at)
            if self._failures.in_a_row == 1:  # at once: most often a restart that was planned
                return self._connect()
            return self._judge(None)  # it did not last: the next one may have to be replaced too
        if now >= self._look_at_key:
            self._look_at_key = now + self._look_at_key_every
            return LookAtKey()
        return Wait(self._look_at_key)

    # Failures

    def _judge_loss(self, now: float) -> Decision:
        """The current session is over."""
        self._failures.count(now, self._current.accepted_at)
        self._failures.judge_refusal(self._current.error, now)
        return self._judge(self._current.error)

    def _judge(self, error: BaseException | None) -> Decision:
        self._error = error
        self._enter(Phase.FAILED)
        return Judge(error, self._failures.in_a_row)

    def _fail(self, now: float, _traffic: Traffic) -> Decision | None:
        if self._delay is None:
            return self._give_up(now)
        if self._error is not None:
            self._tell_of(self._error, self._delay, now)
        self.next_attempt = now + self._delay
        self._enter(Phase.BACKING_OFF)
        self._show(Phase.BACKING_OFF)
        return None

    def _give_up(self, now: float) -> Decision | None:
        # SystemExit, from a function of the user's, is an order and no failure to connect.
        if self.serving is None or not isinstance(self._error, Exception):
            return self._end(self._error)
        self._current = self._kept = self.serving
        self._news.append(GaveUpReplacing(self._current.connection_id, self._error))
        self._serve_from(now)
        return None

    def _tell_of(self, error: BaseException, wait: float, now: float) -> None:
        if self._current.accepted_at is not None:
            self._lose(error, now)
            return
        outage = self.outage
        worth_a_line = outage is not None and outage.failed(error, now)
        self._news.append(Failed(error, outage, worth_a_line, wait, now))

    def _lose(self, error: BaseException, now: float) -> None:
        """Tell the loss, and begin an outage, unless a session serves or there is one already."""
        if self.outage is None and self.serving is None:
            self.outage = Outage(now, error)
            self._news.append(Lost(error))

    def _back_off(self, now: float, _traffic: Traffic) -> Decision:
        assert self.next_attempt is not None
        if now < self.next_attempt:
            return Wait(self.next_attempt, for_traffic=self.is_leaving)
        return self._connect()

    # Leaving

    def _begin_to_leave(self, serving: _Session) -> Decision | None:
        """Part from all, and lose nothing of what the gateway has sent, or sends until it knows."""
        # Those would register at a gateway that is about to be left.
        opening = _numbers(e for e in self._sessions.values() if e.life is Life.OPENING)
        self._current, self._others = serving, self._established()
        self._stand_in = self._until = self._calm = None
        self._enter(Phase.STANDING_IN if self._needs_stand_in() else Phase.PARTING)
        return Retire(opening, "stopped") if opening else None

    def _needs_stand_in(self) -> bool:
        """Whether a gateway reads no answers where it was told goodbye, but elsewhere."""
        return any(each.registers and not each.drains for each in self._others)

    def _has_stand_in(self) -> bool:
        return self._stand_in is not None and self._stand_in.life is Life.ACCEPTED

    def _await_stand_in(self, now: float, _traffic: Traffic) -> Decision | None:
        if self._stand_in is None:
            self._stand_in = self._new_session(registers=False)
            return Open(self._stand_in.number, registers=False, failures=0)
        if self._until is None:
            self._until = now + _STAND_IN_WAIT
        # Where the key is refused by now, or the gateway is gone, the goodbye cannot wait for it.
        is_opening = self._stand_in.life is Life.OPENING
        if is_opening and self._current.life is not Life.OVER and now < self._until:
            return Wait(self._until)
        self._enter(Phase.PARTING)
        return None

    def _part(self, now: float, traffic: Traffic) -> Decision | None:
        """Say goodbye in a calm moment, or in time for what is on its way, where others come."""
        # Without the stand-in that it takes the goodbye loses all that is unanswered: it waits for
        # a moment in which nothing is, and then at least for what was when the time was up.
        is_loss = self._needs_stand_in() and not self._has_stand_in()
        if is_loss and now < self._goodbye_by and self._current.life is not Life.OVER:
            is_quiet = traffic.is_quiet()
            calm: bool | Wait = is_quiet or Wait(self._goodbye_by, for_traffic=True)
        else:
            deadline = self._goodbye_by if self._current.registers and not is_loss else math.inf
            calm = self._is_calm(self._current, now, traffic, deadline)
        if isinstance(calm, Wait):
            return calm
        self._was_calm = calm
        self._enter(Phase.SAID_GOODBYE)
        untold = [each for each in self._others if each.life is Life.ACCEPTED]
        for each in untold:
            each.take_leave()
        # On one of several there are answers to requests of another one, which its gateway does
        # not wait for: those that may not have arrived go out again elsewhere.
        last = calm and len(self._others) == 1
        return SayGoodbye(_numbers(untold), last) if untold else None

    def _read_to_the_end(self, now: float, traffic: Traffic) -> Decision | None:
        if _numbers(self._others):
            return Wait()  # however long: who called leave() calls stop() when the time is up
        if not self._has_stand_in():
            return self._conclude(now, traffic)
        self._enter(Phase.SETTLING)
        return None

    def _settle(self, now: float, traffic: Traffic) -> Decision | None:
        """Let the stand-in take what is to be answered: another stream may have broken off."""
        assert self._stand_in is not None
        if self._stand_in.life is Life.OVER:
            return self._conclude(now, traffic)
        if not traffic.is_quiet():
            return Wait(for_traffic=True)
        self._stand_in.take_leave()
        self._until = now + _GOODBYE_WAIT
        self._enter(Phase.FINISHING)
        return SayGoodbye((self._stand_in.number,), last=True)

    def _finish(self, now: float, traffic: Traffic) -> Decision | None:
        assert self._stand_in is not None
        assert self._until is not None
        if self._stand_in.life is not Life.OVER and now < self._until:
            return Wait(self._until)
        return self._conclude(now, traffic)

    def _conclude(self, now: float, traffic: Traffic) -> Decision:
        """Look what the sessions that are over left: it goes out on one that registers nothing."""
        in_peace = all(each.error is None for each in self._others)
        if (self._was_calm and in_peace) or traffic.is_quiet():
            return self._end(None)
        left = self._current
        if left.error is not None:
            self._failures.count(now, left.accepted_at)
            self._lose(left.error, now)
        elif left.registers:  # the gateway is there, and was not to blame
            return self._connect()
        return self._judge(None)


def _numbers(sessions: Iterable[_Session]) -> tuple[int, ...]:
    """The numbers of those sessions that are not over."""
    return tuple(each.number for each in sessions if each.life is not Life.OVER)
