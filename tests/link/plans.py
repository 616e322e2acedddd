"""A link's plan, played in passed-in time: what happens to it, and what it decides."""

from __future__ import annotations

from typing import Any

from revconn.exceptions import ConnectionLost
from revconn.link.plan import Plan
from revconn.link.records import Decision, Judge, News, Open, Shows, Wait

BROKEN = ConnectionLost("gw:1", "it broke")
DONE = ConnectionLost("gw:1", "the gateway ended the stream")
PATIENCE = 30.0
STABLE_AFTER = 10.0


class Traffic:
    """What is still to be answered, or to leave; nothing at first."""

    def __init__(self) -> None:
        self.unanswered: list[float] = []  # when each came
        self.flushed = True

    def is_quiet(self) -> bool:
        return not self.unanswered and self.flushed

    def is_answered(self, came_by: float) -> bool:
        return not any(came <= came_by for came in self.unanswered)

    def is_flushed(self) -> bool:
        return self.flushed


class Play:
    """One plan, its time, and its traffic."""

    def __init__(self, **options: Any) -> None:
        self.now = 1000.0
        self.traffic = Traffic()
        self.plan = Plan(
            self.now,
            **{
                "stable_after": STABLE_AFTER,
                "patience": PATIENCE,
                "look_at_key_every": float("inf"),
                **options,
            },
        )
        self._told: list[News] = []

    def after(self, seconds: float) -> Play:
        self.now += seconds
        return self

    def decides(self) -> Decision:
        decision = self.plan.decide(self.now, self.traffic)
        self._told += self.plan.take_news()
        return decision

    def told(self) -> list[News]:
        """What was there to be told since this was last asked, without states."""
        told, self._told = self._told + self.plan.take_news(), []
        return [news for news in told if not isinstance(news, Shows)]

    def accept(self, number: int, *, drains: bool = False) -> None:
        self.plan.accepted(number, self.now, connection_id=f"id-{number}", drains=drains)

    def end(self, number: int, error: BaseException = BROKEN, *, in_peace: bool = False) -> None:
        self.plan.ended(number, None if in_peace else error, self.now)

    def leave(self, goodbye_in: float = PATIENCE) -> None:
        self.plan.leave(self.now + goodbye_in, self.now)

    # What most plays begin with

    def open(self) -> int:
        decision = self.decides()
        assert isinstance(decision, Open), decision
        assert self.decides() == Wait(for_traffic=self.plan.is_leaving)
        return decision.session

    def serve(self, *, drains: bool = False) -> int:
        """The first session serves."""
        number = self.open()
        self.accept(number, drains=drains)
        self.decides()
        self.told()
        return number

    def replace(self, number: int) -> int:
        """A session goes away; the next one is being opened."""
        self.after(STABLE_AFTER).plan.going_away(number)
        return self.open()

    def back_off(self, seconds: float | None = 1.0) -> Judge:
        """What the plan wants judged is; then it decides again."""
        decision = self.decides()
        assert isinstance(decision, Judge), decision
        self.plan.judged(seconds)
        return decision
