"""Answers on their way: those that wait to be sent, and those that may not have arrived."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Container, Iterable, Sequence
from typing import Callable, Optional

from revconn.core.chunks import LargeAnswer
from revconn.core.rope import Data
from revconn.core.status import StatusCode

__all__ = ["ROOM_BYTES", "Answer", "Held", "Outbound", "Sent", "answer", "as_left"]

_MOST_LARGE_BYTES = 512 << 20  # of large answers that wait: one more fails, unless it is alone
ROOM_BYTES = 16 << 20  # of small answers that wait; with more the gateway is held back
_LARGE_ROOM_BYTES = 128 << 20  # the same, of large ones
_OVERHEAD = 140  # bytes of Python's own that an answer takes beside its message


Answer = tuple[Data, Optional[float], bool, str]
"""An encoded response, and the instant after which nobody waits for it any more.

Then whether it has left before, on a connection that broke soon after; and the method of the
request, for an answer that may turn out to be too large. A bare tuple, because there is one for
each request: they are kept while they may not have arrived, tens of thousands of them, and the
garbage collector passes over a bare tuple of such things where it would follow an object.
"""


def answer(
    message: Data, deadline: float | None, *, has_left: bool = False, method: str = ""
) -> Answer:
    """An :data:`Answer`, where there is time to name its parts."""
    return (message, deadline, has_left, method)


class Outbound:
    """Answers that wait to be sent, the oldest first.

    Those that are too large for one message leave in chunks, in turns, if the connection's terms
    allow that (:meth:`agree`); until these are known they wait. Not thread-safe.

    :param refused: is told of each answer that became an error instead, in words for a log.
    """

    def __init__(self, refused: Callable[[str], object] = lambda _: None) -> None:
        self._refused = refused
        self._answers: deque[Answer] = deque()
        self._large: deque[LargeAnswer] = deque()
        self._limit = sys.maxsize
        self._chunks: bool | None = None  # not known yet
        # Both are 0 exactly while nothing waits: no message is empty.
        self.answer_bytes = 0
        self.large_bytes = 0

    def __len__(self) -> int:
        return len(self._answers) + len(self._large)

    @property
    def has_room(self) -> bool:
        """Whether there may be more: not while answers have piled up."""
        return self.answer_bytes <= ROOM_BYTES and self.large_bytes <= _LARGE_ROOM_BYTES

    @property
    def has_large(self) -> bool:
        """Whether there are large answers whose chunks may be taken."""
        return bool(self._large) and self._chunks is True

    def put_all(self, answers: Iterable[Answer | LargeAnswer]) -> None:
        """Queue answers behind everything else."""
        # What put() does, without its call: most answers are small, and there is one per request.
        limit = self._limit
        for answer in answers:
            if type(answer) is tuple and len(answer[0]) <= limit:
                self._answers.append(answer)
                self.answer_bytes += len(answer[0])
            else:
                self.put(answer)

    def put(self, answer: Answer | LargeAnswer) -> None:
        """Queue behind everything else."""
        if isinstance(answer, LargeAnswer):
            self._put_large(answer)
            return
        size = len(answer[0])
        if size > self._limit:
            self._put_large(_as_large(answer))
        else:
            self._answers.append(answer)
            self.answer_bytes += size

    def take_answers(self, enough_bytes: int) -> list[Answer]:
        """The oldest answers, until they are ``enough_bytes`` together or none is left."""
        taken: list[Answer] = []
        size = 0
        while self._answers and size < enough_bytes:
            answer = self._answers.popleft()
            size += len(answer[0])
            taken.append(answer)
        self.answer_bytes -= size
        return taken

    def take_chunk(self) -> tuple[bytes, LargeAnswer | None]:
        """A chunk of the large answer whose turn it is, and that answer if it was the last one."""
        # In turns: one that is just too large need not wait for a huge one before it. All its bytes
        # count until the last chunk is taken, as the payload is in memory until then.
        large = self._large.popleft()
        message, is_last = large.next_chunk()
        if not is_last:
            self._large.append(large)
            return message, None
        self.large_bytes -= large.size
        return message, large

    def take_all(self) -> list[Answer | LargeAnswer]:
        """Every answer; large ones whole, however much of them has left."""
        taken: list[Answer | LargeAnswer] = [*self._answers, *self._large]
        self._answers.clear()
        self._large.clear()
        self.answer_bytes = self.large_bytes = 0
        return taken

    def put_back(self, answers: list[Answer | LargeAnswer]) -> None:
        """Queue answers that were taken, and may not have left, ahead of the others again."""
        for answer in reversed(answers):
            if isinstance(answer, LargeAnswer):
                self._put_large(answer)
            elif len(answer[0]) > self._limit:  # it comes from another connection
                self._put_large(_as_large(answer))
            else:
                self._answers.appendleft(answer)
                self.answer_bytes += len(answer[0])

    def withdraw(self, request_ids: Container[str]) -> None:
        """Nobody waits for these any more: the rest of large answers to them need not be sent."""
        # Chunks that have left are the gateway's to forget, with the request that it gave up. A
        # small answer is left alone: sending it costs less than looking for it.
        for large in [each for each in self._large if each.request_id in request_ids]:
            self._large.remove(large)
            self.large_bytes -= large.size

    def drop_expired(self, now: float) -> int:
        """Drop the answers that nobody waits for any more; how many of them had never left.

        For a new connection. On a living one a late answer is still worth sending: it frees the
        gateway's pending entry.
        """
        never_left = 0
        for answer in self.take_all():
            deadline, has_left = _fate(answer)
            if deadline is None or deadline > now:
                self.put(answer)
            else:
                never_left += not has_left
        return never_left

    def drop_oldest(self, most_bytes: int) -> int:
        """Drop answers, large ones first, until at most so many bytes are left, or one answer.

        How many of them had never left.
        """
        never_left = 0
        # Large ones first: one of them makes room for thousands of small ones.
        while self.answer_bytes + self.large_bytes > most_bytes and len(self) > 1:
            if self._large:
                large = self._large.popleft()
                self.large_bytes -= large.size
                never_left += self._drop(large)
            else:
                answer = self._answers.popleft()
                self.answer_bytes -= len(answer[0])
                never_left += self._drop(answer)
        return never_left

    def _drop(self, answer: Answer | LargeAnswer) -> bool:
        """Give one up; whether it never left."""
        return not _fate(answer)[1]

    def agree(self, limit: int, *, chunks: bool) -> None:
        """The connection takes messages of ``limit`` bytes, and chunks or not.

        A large answer begins with its first chunk, or becomes the error of its request.
        """
        self._limit, self._chunks = limit, chunks
        for answer in self.take_all():
            self.put(answer)

    def _put_large(self, large: LargeAnswer) -> None:
        if self._chunks is not None and large.size <= self._limit:
            whole = large.whole()
            self.put(answer(whole, large.deadline, has_left=large.has_left, method=large.method))
            return
        if any(each.request_id == large.request_id for each in self._large):
            return  # its chunks leave here already: the same once more in between would spoil them
        problem = self._begin(large)
        if problem is None:
            self._large.append(large)
            self.large_bytes += large.size
            return
        # Said to the caller too, who would wait for a missing answer until the deadline.
        code, reason = problem
        self._refused(f"{large.about}: the answer was not sent: {reason}")
        failure = answer(large.failure(code, reason), large.deadline)
        self._answers.append(failure)
        self.answer_bytes += len(failure[0])

    def _begin(self, large: LargeAnswer) -> tuple[StatusCode, str] | None:
        """Make its first chunk the next, if it is known how large; or say why that cannot be."""
        if self._chunks is False:
            limit = f"{self._limit:,} bytes"
            reason = f"message of {large.size:,} bytes is larger than the limit of {limit}"
            return StatusCode.INTERNAL, reason
        if self._large and self.large_bytes + large.size > _MOST_LARGE_BYTES:
            reason = f"large answers of {self.large_bytes:,} bytes wait already"
            return StatusCode.RESOURCE_EXHAUSTED, reason
        if self._chunks:
            try:
                large.begin(self._limit)
            except ValueError as error:
                return StatusCode.INTERNAL, str(error)
        return None


class Held(Outbound):
    """Answers that wait for a connection. Somebody waits for them, or did when they came."""

    def __init__(self, refused: Callable[[str], object]) -> None:
        super().__init__(refused)
        self._awaited_until: float | None = -math.inf  # ``None``: to be looked for

    def awaited_for(self, now: float) -> float:
        """Seconds from now on in which somebody waits for one of them; none if there are none."""
        if self._awaited_until is None:
            held: list[Answer | LargeAnswer] = [*self._answers, *self._large]
            self._awaited_until = max(map(_awaited_until, held), default=-math.inf)
        return max(0.0, self._awaited_until - now)

    def put(self, answer: Answer | LargeAnswer) -> None:
        """Queue behind everything else."""
        super().put(answer)
        self._await(answer)

    def put_back(self, answers: list[Answer | LargeAnswer]) -> None:
        """Queue answers that may not have left, ahead of the others."""
        super().put_back(answers)
        for each in answers:
            self._await(each)

    def take_all(self) -> list[Answer | LargeAnswer]:
        """Every answer."""
        self._awaited_until = -math.inf
        return super().take_all()

    def withdraw(self, request_ids: Container[str]) -> None:
        """Nobody waits for these any more: large ones are dropped."""
        before = self.large_bytes
        super().withdraw(request_ids)
        if self.large_bytes != before:
            self._awaited_until = None

    def abandon(self) -> int:
        """Drop all; how many of them had never left."""
        left: set[Data | str] = set()
        never_left: set[Data | str] = set()
        for answer in self.take_all():  # each of two connections may have had a copy
            which = answer.request_id if isinstance(answer, LargeAnswer) else answer[0]
            (left if _fate(answer)[1] else never_left).add(which)
        return len(never_left - left)

    def _await(self, answer: Answer | LargeAnswer) -> None:
        if self._awaited_until is not None:
            self._awaited_until = max(self._awaited_until, _awaited_until(answer))

    def _drop(self, answer: Answer | LargeAnswer) -> bool:
        # The oldest is seldom the one that is awaited longest: else each would cost a look at all.
        if self._awaited_until is not None and _awaited_until(answer) >= self._awaited_until:
            self._awaited_until = None
        return super()._drop(answer)


class Sent:
    """Answers that left on a connection, while it may turn out that they did not arrive.

    A break is noticed some time after it happened: what left in the last ``doubt`` seconds may
    have been lost with it. The youngest ``batches`` are kept that fit into ``most_bytes``. Not
    thread-safe.
    """

    def __init__(self, doubt: float, most_bytes: int) -> None:
        self.doubt = doubt
        self._most_bytes = most_bytes
        self.batches: deque[tuple[float, int, Sequence[Answer | LargeAnswer]]] = deque()
        self._bytes = 0

    def add(self, answers: Sequence[Answer | LargeAnswer], now: float, size: int = 0) -> None:
        """``answers`` have left. Also forgets what need no longer be kept.

        ``size`` are their bytes, if the caller knows them.
        """
        if answers:  # one entry per batch, not per answer: tens of thousands may be kept
            size = (size or sum(map(_size, answers))) + _OVERHEAD * len(answers)
            self.batches.append((now, size, answers))
            self._bytes += size
        while self.batches:
            left_at, size, _ = self.batches[0]
            if self._bytes <= self._most_bytes and now - left_at < self.doubt:
                break
            self.batches.popleft()
            self._bytes -= size

    def take(self, now: float) -> list[Answer | LargeAnswer]:
        """What may not have arrived and is still waited for, the oldest first.

        Each of them has a deadline then, so that a connection which breaks again and again does
        not carry it for ever.
        """
        self.add([], now)
        doubtful: list[Answer | LargeAnswer] = []
        for left_at, _, answers in self.batches:
            for answer in answers:
                deadline, _ = _fate(answer)
                until = left_at + self.doubt if deadline is None else deadline
                if until > now:
                    doubtful.append(_doubtful(answer, until))
        self.batches.clear()
        self._bytes = 0
        return doubtful


def _size(answer: Answer | LargeAnswer) -> int:
    return answer.size if isinstance(answer, LargeAnswer) else len(answer[0])


def _fate(answer: Answer | LargeAnswer) -> tuple[float | None, bool]:
    """Until when somebody waits for it, and whether it has left before."""
    if isinstance(answer, LargeAnswer):
        return answer.deadline, answer.has_left
    return answer[1], answer[2]


def _awaited_until(answer: Answer | LargeAnswer) -> float:
    deadline, _ = _fate(answer)
    return math.inf if deadline is None else deadline


def as_left(answer: Answer | LargeAnswer) -> Answer | LargeAnswer:
    """The answer, once it is known that it has left."""
    deadline, _ = _fate(answer)
    return _doubtful(answer, deadline)


def _doubtful(answer: Answer | LargeAnswer, deadline: float | None) -> Answer | LargeAnswer:
    if isinstance(answer, LargeAnswer):
        answer.mark_doubtful(deadline)
        return answer
    message, _, _, method = answer
    return message, deadline, True, method


def _as_large(answer: Answer) -> LargeAnswer:
    message, deadline, has_left, method = answer
    return LargeAnswer(message, deadline, method=method, has_left=has_left)
