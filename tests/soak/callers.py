"""Callers: gRPC clients that ask, wait for as long as they said, and take down what came of it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import grpc
import grpc.aio

from tests.soak.ledger import Ledger
from tests.soak.service import METHOD, answer, patience, question

__all__ = ["MOST_AT_ONCE", "Callers", "Outcomes"]

MOST_AT_ONCE = 2000
_PAUSE = 0.5  # before a call that nobody could take is made again
_OVERDUE = 1.5  # seconds after which the network is left in peace, for what has an answer to arrive
_EARLY = 0.01  # seconds by which clocks may disagree


class Outcomes:
    """What became of calls. ``problems`` holds whatever must never be."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.slowest_answer = 0.0
        self.most_time_left = 0.0  # of answers that were computed and did not arrive

    def answered(self, number: int, payload: bytes, elapsed: float, ledger: Ledger) -> None:
        self.counts["answered"] += 1
        self.slowest_answer = max(self.slowest_answer, elapsed)
        if payload != answer(number):
            self.problems.append(f"call {number}: the wrong answer, {payload[:50]!r}…")
        if ledger.runs(number) != 1:
            self.problems.append(f"call {number}: answered, and run {ledger.runs(number)} times")

    def expired(self, number: int, due: float, ledger: Ledger) -> None:
        self.counts["expired"] += 1
        early = due - time.monotonic()
        if early > _EARLY:
            self.problems.append(f"call {number}: DEADLINE_EXCEEDED {early:.3f} s too early")
        if ledger.runs(number) > 1:
            self.problems.append(f"call {number}: run {ledger.runs(number)} times")
        computed_at = ledger.finished_at(number)
        if computed_at is None:
            self.counts["expired before the handler had an answer"] += 1
        else:
            self.counts["expired after the handler had an answer"] += 1
            self.most_time_left = max(self.most_time_left, due - computed_at)

    def failed(self, number: int, due: float, error: grpc.aio.AioRpcError) -> None:
        self.counts[error.code().name] += 1
        self.problems.append(
            f"call {number}: {error.code().name}: {error.details()},"
            f" {due - time.monotonic():.3f} s before its deadline"
        )


class Callers:
    """Callers that come at a steady pace, whatever became of those before.

    A call that nobody could take is made again until its deadline.
    """

    def __init__(self, address: str, ledger: Ledger, outcomes: Outcomes, per_second: float) -> None:
        self._address = address
        self._per_second = per_second
        self._ledger = ledger
        self._outcomes = outcomes
        self._waiting: set[int] = set()

    def ask(self, numbers: range) -> None:
        """Make all these calls, and wait until each has come to an end."""
        asyncio.run(self._ask_all(numbers))

    def has_overdue(self) -> bool:
        """Whether an answer was computed a while ago and is still waited for. Thread-safe."""
        before = time.monotonic() - _OVERDUE
        computed = map(self._ledger.finished_at, list(self._waiting))  # a copy, made in one step
        return any(at is not None and at < before for at in computed)

    async def _ask_all(self, numbers: range) -> None:
        options = [("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(self._address, options=options) as channel:
            call = channel.unary_unary(METHOD)
            room = asyncio.Semaphore(MOST_AT_ONCE)
            due = time.monotonic()
            callers = []
            for number in numbers:
                await room.acquire()
                callers.append(asyncio.ensure_future(self._ask(call, number)))
                callers[-1].add_done_callback(lambda _: room.release())
                due = max(due + 1 / self._per_second, time.monotonic())  # none are made up for
                await asyncio.sleep(due - time.monotonic())
            await asyncio.gather(*callers)

    async def _ask(self, call, number: int) -> None:
        self._waiting.add(number)
        try:
            await self._ask_until_answered(call, number)
        finally:
            self._waiting.discard(number)

    async def _ask_until_answered(self, call, number: int) -> None:
        began = time.monotonic()
        due = began + patience(number)
        while True:
            try:
                payload = await call(question(number), timeout=max(0.0, due - time.monotonic()))
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    return self._outcomes.expired(number, due, self._ledger)
                if error.code() is not grpc.StatusCode.UNAVAILABLE or self._ledger.runs(number):
                    return self._outcomes.failed(number, due, error)
            else:
                elapsed = time.monotonic() - began
                return self._outcomes.answered(number, payload, elapsed, self._ledger)
            self._outcomes.counts["made again: nobody could take it"] += 1
            await asyncio.sleep(_PAUSE)
