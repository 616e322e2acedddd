"""A plan under any order of events: what never happens, and which transitions ever do."""

from __future__ import annotations

import math

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from revconn.exceptions import HandshakeError
from revconn.link.plan import Plan
from revconn.link.records import (
    TRANSITIONS,
    Decision,
    End,
    Judge,
    LookAtKey,
    Open,
    Phase,
    Retire,
    SayGoodbye,
    Shows,
    Wait,
)
from tests.link.plans import BROKEN, DONE, Traffic

LONGEST_WAIT = 60.0
GOODBYE_IN = 20.0
ERRORS = [BROKEN, HandshakeError("gw:1", "refused"), OSError("disk"), SystemExit(3)]


class TransitionCoverage:
    """Which transitions plans have taken."""

    def __init__(self) -> None:
        self.taken: set[tuple[Phase, Phase]] = set()

    @property
    def missing(self) -> set[tuple[str, str]]:
        declared = {(one, two) for one, others in TRANSITIONS.items() for two in others}
        return {(one.name, two.name) for one, two in declared - self.taken}


coverage = TransitionCoverage()


class CoveredPlan(Plan):
    def _enter(self, phase: Phase) -> None:
        coverage.taken.add((self.phase, phase))
        super()._enter(phase)


BEGINNINGS = [
    each.split(", ")
    for each in (
        "leave, open",
        "open, leave",
        "open, accept, stop",
        "open, refuse, leave, judge",
        "open, refuse, judge, request, leave, accept, let go",
        "open, refuse, judge, leave",
        "open, accept, go away, refuse, judge useless, go away, leave",
        "open, accept, wait, go away, leave",
        "open, accept, wait, go away, refuse, judge, leave, accept",
        "open, accept, wait, go away, refuse, leave, judge",
        "open, accept, wait, go away, refuse, judge useless, break, stop",
        "open, accept, request, wait, go away, accept, break the last, judge",
        "open, accept, request, wait, go away, accept, leave",
        "open, accept, request, wait, go away, accept, stop",
        "open, accept, request, break, judge, wait, accept, leave, wait, let go",
        "open, accept, request, leave, stop",
        "open, accept, request, leave, accept, stop",
        "open, accept, request, leave, accept, wait, let go, break the last",
        "open, accept, request, leave, accept, wait, break, break the last",
        "open, accept, request, leave, accept, wait, break, stop",
        "open, accept, request, leave, accept, wait, let go, answer, request, wait",
        "open, accept, request, leave, accept, wait, break, answer, request, wait",
        "open, accept, leave, accept, let go, let go",
    )
]


class LinkThread(RuleBasedStateMachine):
    """A link's thread with imagined sessions, which do whatever gateways and networks may do."""

    @initialize(
        watches_key=st.booleans(),
        patience=st.sampled_from([0.0, 30.0]),
        drains=st.booleans(),
        beginning=st.sampled_from(BEGINNINGS),
        steps=st.sampled_from([0, 2, 4, 6, 99, 99]),
    )
    def start(
        self, watches_key: bool, patience: float, drains: bool, beginning: list[str], steps: int
    ) -> None:
        self.now = 0.0
        self.traffic = Traffic()
        self.plan = CoveredPlan(
            0.0,
            stable_after=10.0,
            patience=patience,
            look_at_key_every=5.0 if watches_key else math.inf,
        )
        self.opening: dict[int, bool] = {}  # and whether each registers
        self.established: dict[int, bool] = {}
        self.told_goodbye: set[int] = set()
        self.retired: set[int] = set()
        self.left_at: float | None = None
        self.stopped = False
        self.end: End | None = None
        self.decision: Decision = Wait()
        self.drains = drains
        for act in beginning[:steps]:
            self.act(act)

    def act(self, what: str) -> None:
        """One step of a beginning: chance alone would seldom come so far."""
        is_judging = isinstance(self.decision, Judge)
        fits = what in ("leave", "stop") or is_judging == what.startswith("judge")
        if self.end is not None or not fits:
            return
        if what == "open":
            self.carry_out()
        elif what == "accept" and self.opening:
            self.accept(max(self.opening), self.drains)
        elif what == "refuse" and self.opening:
            self.end_session(max(self.opening), BROKEN)
        elif what == "break" and self.established:
            self.end_session(min(self.established), BROKEN)
        elif what == "break the last" and self.established:
            self.end_session(max(self.established), BROKEN)
        elif what == "let go" and self.told_goodbye & set(self.established):
            self.end_session(min(self.told_goodbye & set(self.established)), DONE, in_peace=True)
        elif what == "go away" and self.established:
            self.plan.going_away(max(self.established))
            self.carry_out()
        elif what == "request":
            self.request_came_or_was_answered(True)
        elif what == "answer":
            self.all_is_answered()
        elif what == "wait":
            self.time_passes(GOODBYE_IN)
        elif what == "leave" and self.left_at is None:
            self.leave()
        elif what == "stop":
            self.stop()
        elif what.startswith("judge"):
            self.plan.judged(None if what == "judge useless" else 1.0)
            self.carry_out()

    # What the link's thread does

    def carry_out(self) -> None:
        """Until there is nothing to do but to wait, or to judge."""
        for _ in range(100):
            if self.end is not None:
                return
            self.decision = self.plan.decide(self.now, self.traffic)
            self.check_news()
            self.check(self.decision)
            if isinstance(self.decision, (Wait, Judge, LookAtKey)):
                return
        raise AssertionError("it never rests")

    def check(self, decision: Decision) -> None:
        if isinstance(decision, Open):
            assert not self.stopped, "opened a session after stop()"
            assert not (decision.registers and self.left_at is not None)
            assert not any(self.opening.values()) or not decision.registers
            assert decision.session not in {**self.opening, **self.established}
            self.opening[decision.session] = decision.registers
        elif isinstance(decision, SayGoodbye):
            assert decision.sessions
            for number in decision.sessions:
                assert number in self.established
                assert number not in self.told_goodbye, "said goodbye twice"
                self.told_goodbye.add(number)
        elif isinstance(decision, Retire):
            assert decision.sessions
            for number in decision.sessions:
                assert number in self.opening or number in self.told_goodbye, "without a goodbye"
                self.retired.add(number)
        elif isinstance(decision, Wait):
            assert decision.until > self.now, "a wait for nothing"
            self.check_something_ends(decision)
        elif isinstance(decision, End):
            if decision.error is None:
                assert self.stopped or self.left_at is not None
            self.end = decision

    def check_something_ends(self, wait: Wait) -> None:
        bounded = wait.until < math.inf
        on_sessions = self.opening or self.established
        on_traffic = wait.for_traffic and not self.traffic.is_quiet()
        assert bounded or on_sessions or on_traffic, "nothing ends this wait"

    def check_news(self) -> None:
        news = [each for each in self.plan.take_news() if not isinstance(each, Shows)]
        if self.stopped:
            assert news == []

    # What happens

    @precondition(lambda self: self.end is None and self.opening)
    @rule(data=st.data(), drains=st.booleans())
    def accepted(self, data: st.DataObject, drains: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.opening)))
        self.accept(number, drains)

    def accept(self, number: int, drains: bool) -> None:
        self.established[number] = self.opening.pop(number)
        self.plan.accepted(number, self.now, connection_id=f"id-{number}", drains=drains)
        self.happened()

    @precondition(lambda self: self.end is None and (self.opening or self.established))
    @rule(data=st.data(), error=st.sampled_from(ERRORS))
    def ended(self, data: st.DataObject, error: BaseException) -> None:
        number = data.draw(st.sampled_from(sorted({**self.opening, **self.established})))
        in_peace = number in self.told_goodbye and data.draw(st.booleans())
        self.end_session(number, error, in_peace=in_peace)

    def end_session(self, number: int, error: BaseException, *, in_peace: bool = False) -> None:
        self.opening.pop(number, None)
        self.established.pop(number, None)
        self.plan.ended(number, None if in_peace else error, self.now)
        self.happened()

    @precondition(lambda self: self.end is None and self.established)
    @rule(data=st.data())
    def going_away(self, data: st.DataObject) -> None:
        self.plan.going_away(data.draw(st.sampled_from(sorted(self.established))))
        self.happened()

    @rule(came=st.booleans())
    @precondition(lambda self: self.end is None)
    def request_came_or_was_answered(self, came: bool) -> None:
        if came:
            self.traffic.unanswered.append(self.now)
        elif self.traffic.unanswered:
            self.traffic.unanswered.pop(0)
            self.traffic.flushed = False
        self.happened()

    @rule()
    @precondition(lambda self: self.end is None)
    def answers_left(self) -> None:
        self.traffic.flushed = True
        self.happened()

    @rule()
    @precondition(lambda self: self.end is None)
    def all_is_answered(self) -> None:
        self.traffic.unanswered, self.traffic.flushed = [], True
        self.happened()

    @precondition(lambda self: self.end is None and isinstance(self.decision, Judge))
    @rule(delay=st.sampled_from([None, 0.0, 1.0, LONGEST_WAIT]))
    def judged(self, delay: float | None) -> None:
        assert isinstance(self.decision, Judge)
        if self.decision.error is None and delay is None:
            delay = 1.0  # then there is nothing that could be useless
        self.plan.judged(delay)
        self.carry_out()

    @precondition(lambda self: self.end is None and isinstance(self.decision, LookAtKey))
    @rule(is_another=st.booleans())
    def key_was_looked_at(self, is_another: bool) -> None:
        if is_another:
            self.plan.another_key()
        self.carry_out()

    @rule(seconds=st.sampled_from([0.5, 2.0, 10.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.happened()

    @precondition(lambda self: self.end is None and self.left_at is None)
    @rule()
    def leave(self) -> None:
        self.left_at = self.now
        self.plan.leave(self.now + GOODBYE_IN, self.now)
        self.happened()

    @precondition(lambda self: self.end is None)
    @rule()
    def stop(self) -> None:
        self.stopped = True
        self.plan.stop()
        self.happened()

    def happened(self) -> None:
        """The link's thread notices, unless it is in a function of the user's."""
        self.check_news()
        if self.end is None and isinstance(self.decision, Wait):
            self.carry_out()

    # What always holds

    @invariant()
    def the_one_that_serves_is_established(self) -> None:
        serving = getattr(self, "plan", None) and self.plan.serving
        if serving is not None:
            assert serving.number in self.established

    @invariant()
    def it_is_ready_while_one_serves(self) -> None:
        if getattr(self, "plan", None) and self.plan.serving is not None:
            assert self.plan.shown is Phase.SERVING

    @invariant()
    def it_says_why_there_is_no_session(self) -> None:
        plan = getattr(self, "plan", None)
        if plan is not None and plan.phase is Phase.BACKING_OFF and plan.serving is None:
            assert self.left_at is not None or plan.outage.last_error is not None

    def teardown(self) -> None:
        """A link that is told to leave comes to an end once gateways let go of it."""
        if not hasattr(self, "plan") or self.end is not None:
            return
        if self.left_at is None:
            self.leave()
        self.traffic.unanswered, self.traffic.flushed = [], True
        for _ in range(50):
            if isinstance(self.decision, Judge):
                self.plan.judged(1.0)
            self.carry_out()
            if self.end is not None:
                return
            for number in sorted(self.told_goodbye & set(self.established)):
                del self.established[number]
                self.plan.ended(number, None, self.now)
            self.now += 2.0
        raise AssertionError(f"never done: {self.plan.phase}, {self.decision}")


TestAnyOrderOfEvents = LinkThread.TestCase


def test_every_transition_that_is_declared_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "taken", set())
    for beginning in BEGINNINGS:
        for drains in (False, True):
            LinkThread().start(False, 30.0, drains, beginning, len(beginning))
    assert sorted(coverage.missing) == []
