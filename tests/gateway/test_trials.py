"""How long a call goes by the limits of unary ones, where nobody says whether it streams."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Callable

import pytest

from revconn.core.rope import Data
from revconn.core.status import StatusCode
from revconn.gateway.client_calls import Answer, ClientCall, Lost, UnaryAsker
from revconn.gateway.trials import Trial
from tests.support.quick_loop import QuickLoop

TIMEOUT = 30.0


@pytest.fixture
def loop() -> Iterator[QuickLoop]:
    loop = QuickLoop()
    yield loop
    loop.close()


# By the request

Say = Callable[[Trial], None]


def _nothing(trial: Trial) -> None:
    """It is open, and nothing is said."""


def _one_message(trial: Trial) -> None:
    trial.take(1, ended=False)


def _one_and_the_end(trial: Trial) -> None:
    trial.take(1, ended=False)
    trial.take(0, ended=True)


def _two_messages(trial: Trial) -> None:
    trial.take(1, ended=False)
    trial.take(1, ended=True)


def _the_end_alone(trial: Trial) -> None:
    trial.take(0, ended=True)


def _the_beginning_of_an_answer(trial: Trial) -> None:
    _one_and_the_end(trial)
    trial.end()


@pytest.mark.parametrize(
    ("say", "is_bounded"),
    [
        (_nothing, False),
        (_one_message, False),
        (_one_and_the_end, True),
        (_two_messages, False),
        (_the_end_alone, False),
        (_the_beginning_of_an_answer, False),
    ],
    ids=lambda each: each.__name__ if callable(each) else "",
)
def test_only_what_may_be_unary_has_the_time_of_a_unary_call(
    loop: QuickLoop, say: Say, is_bounded: bool
) -> None:
    failed: list[float] = []

    async def go() -> None:
        began = loop.time()
        trial = Trial(began + TIMEOUT, lambda: failed.append(loop.time() - began))
        say(trial)
        await asyncio.sleep(10 * TIMEOUT)

    loop.run_until_complete(go())
    assert [round(each) for each in failed] == ([TIMEOUT] if is_bounded else [])


# By the answer


class _Call(ClientCall):
    """The call of an asker's, of which messages come in part or whole."""

    def __init__(self) -> None:
        self._is_mid_message = False

    @property
    def is_mid_message(self) -> bool:
        return self._is_mid_message

    def come_in_part(self, *, is_there: bool) -> None:
        self._is_mid_message = is_there


def outcome_of(
    loop: QuickLoop, answer: Callable[[UnaryAsker, _Call], None], *, may_stream: bool = True
) -> tuple[Answer | Lost | None, float]:
    """What it is taken for, and after how many seconds."""

    async def go() -> tuple[Answer | Lost | None, float]:
        began = loop.time()
        asker = UnaryAsker(b"", began + TIMEOUT, 0.02, may_stream=may_stream)
        call = asker.call = _Call()
        answer(asker, call)
        outcome = await asker.answer
        return outcome, loop.time() - began

    return loop.run_until_complete(go())


def begin(asker: UnaryAsker, *messages: Data) -> None:
    asker.take_initial((("a", "1"),))
    if messages:
        asker.take([*messages])


def test_a_message_and_its_end_are_a_unary_answer(loop: QuickLoop) -> None:
    def answer(asker: UnaryAsker, call: _Call) -> None:
        begin(asker, b"x")
        asker.end(Answer(StatusCode.OK, "", trailing=(("b", "2"),)))

    expected = Answer(StatusCode.OK, "", b"x", (("a", "1"),), (("b", "2"),))
    assert outcome_of(loop, answer) == (expected, 0.0)


@pytest.mark.parametrize("messages", [[], [b"x"]])
def test_what_begins_and_does_not_end_streams(loop: QuickLoop, messages: list[bytes]) -> None:
    outcome, seconds = outcome_of(loop, lambda asker, _call: begin(asker, *messages))
    assert outcome is None
    assert seconds == pytest.approx(0.02)


def test_two_messages_stream_at_once(loop: QuickLoop) -> None:
    assert outcome_of(loop, lambda asker, _call: begin(asker, b"x", b"y")) == (None, 0.0)


def test_an_end_without_a_message_is_that_of_a_stream(loop: QuickLoop) -> None:
    def answer(asker: UnaryAsker, call: _Call) -> None:
        asker.end(Answer(StatusCode.OK, ""))

    assert outcome_of(loop, answer) == (None, 0.0)


@pytest.mark.parametrize("may_stream", [True, False])
def test_a_failure_behind_a_message_is_that_of_a_stream_where_there_may_be_one(
    loop: QuickLoop, may_stream: bool
) -> None:
    def answer(asker: UnaryAsker, call: _Call) -> None:
        begin(asker, b"x")
        asker.end(Answer(StatusCode.ABORTED, "no"))

    outcome, _ = outcome_of(loop, answer, may_stream=may_stream)
    expected = Answer(StatusCode.ABORTED, "no", initial=(("a", "1"),))
    assert outcome == (None if may_stream else expected)


def test_a_large_answer_may_take_its_time(loop: QuickLoop) -> None:
    def answer(asker: UnaryAsker, call: _Call) -> None:
        begin(asker)
        call.come_in_part(is_there=True)
        loop.call_later(TIMEOUT / 2, finish, asker, call)

    def finish(asker: UnaryAsker, call: _Call) -> None:
        call.come_in_part(is_there=False)
        asker.take([b"x"])
        asker.end(Answer(StatusCode.OK, ""))

    outcome, seconds = outcome_of(loop, answer)
    assert isinstance(outcome, Answer)
    assert (outcome.payload, seconds) == (b"x", TIMEOUT / 2)


def test_a_second_message_that_comes_in_part_streams(loop: QuickLoop) -> None:
    def answer(asker: UnaryAsker, call: _Call) -> None:
        begin(asker, b"x")
        call.come_in_part(is_there=True)

    outcome, seconds = outcome_of(loop, answer)
    assert outcome is None
    assert seconds < 0.1


def test_silence_has_the_time_of_a_unary_call(loop: QuickLoop) -> None:
    outcome, seconds = outcome_of(loop, lambda _asker, _call: None)
    assert isinstance(outcome, Answer)
    assert (outcome.code, seconds) == (StatusCode.DEADLINE_EXCEEDED, TIMEOUT)
