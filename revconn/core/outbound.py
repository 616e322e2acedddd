"""What waits to be sent, in order: control messages first."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Container
from typing import NamedTuple

from revconn.core.large import LargeAnswer
from revconn.core.status import StatusCode

__all__ = ["Answer", "Outbound"]

logger = logging.getLogger(__name__)

_MOST_LARGE_BYTES = 512 << 20


class Answer(NamedTuple):
    """An encoded response, and the instant after which nobody waits for it any more."""

    message: bytes
    deadline: float | None


class Outbound:
    """Control messages (the registration, heartbeats, the goodbye) and answers.

    Control messages belong to one connection and go with it. Answers outlive it: a gateway keeps
    a pending request by its id, so an answer may travel on the next connection. Those that are
    too large for one message leave in chunks, in turns, if the connection's terms allow that
    (:meth:`agree`); until these are known they wait. Not thread-safe.
    """

    def __init__(self) -> None:
        self._control: deque[bytes] = deque()
        self._answers: deque[Answer] = deque()
        self._large: deque[LargeAnswer] = deque()
        self._limit = sys.maxsize
        self._chunks: bool | None = None
        self.answer_bytes = 0
        self.large_bytes = 0
        self.undelivered = 0

    def __len__(self) -> int:
        return len(self._control) + len(self._answers) + len(self._large)

    @property
    def has_large(self) -> bool:
        """Whether there are large answers whose chunks may be taken."""
        return bool(self._large) and self._chunks is True

    def put_control(self, message: bytes) -> None:
        """Queue ahead of all answers."""
        self._control.append(message)

    def put(self, answer: Answer | LargeAnswer) -> None:
        """Queue behind everything else."""
        if isinstance(answer, LargeAnswer):
            self._put_large(answer)
            return
        size = len(answer.message)
        if size > self._limit:
            self._put_large(LargeAnswer(*answer))
        else:
            self._answers.append(answer)
            self.answer_bytes += size

    def take_control(self) -> list[bytes]:
        """Every control message that waits."""
        taken = list(self._control)
        self._control.clear()
        return taken

    def take_answers(self, enough_bytes: int) -> list[Answer]:
        """The oldest answers, until they are ``enough_bytes`` together or none is left."""
        taken: list[Answer] = []
        size = 0
        while self._answers and size < enough_bytes:
            answer = self._answers.popleft()
            size += len(answer.message)
            taken.append(answer)
        self.answer_bytes -= size
        return taken

    def take_chunk(self) -> tuple[bytes, LargeAnswer | None]:
        """A chunk of the large answer whose turn it is, and that answer if it was the last one."""
        large = self._large.popleft()
        message, is_last = large.next_chunk()
        if not is_last:
            self._large.append(large)
            return message, None
        self.large_bytes -= large.size
        return message, large

    def put_back(self, answers: list[Answer | LargeAnswer]) -> None:
        """Queue answers that were taken, and may not have left, ahead of the others again."""
        for answer in reversed(answers):
            if isinstance(answer, LargeAnswer):
                self._put_large(answer)
            else:
                self._answers.appendleft(answer)
                self.answer_bytes += len(answer.message)

    def withdraw(self, request_ids: Container[str]) -> None:
        """Nobody waits for these any more: the rest of large answers to them need not be sent."""
        for large in [each for each in self._large if each.request_id in request_ids]:
            self._large.remove(large)
            self.large_bytes -= large.size
            logger.debug("%s was cancelled: dropped its large answer", large.about)

    # Connections

    def start_over(self, now: float) -> None:
        """A new connection begins: drop what belonged to the last one, and expired answers.

        On a living connection a late answer is still worth sending: it frees the gateway's
        pending entry.
        """
        self.hang_up()
        waiting = len(self._answers) + len(self._large)
        self._answers = deque(each for each in self._answers if _is_awaited(each, now))
        self._large = deque(each for each in self._large if _is_awaited(each, now))
        self.undelivered += waiting - len(self._answers) - len(self._large)
        self.answer_bytes = sum(len(answer.message) for answer in self._answers)
        self.large_bytes = sum(large.size for large in self._large)

    def agree(self, limit: int, *, chunks: bool) -> None:
        """The connection takes messages of ``limit`` bytes, and chunks or not.

        A large answer begins with its first chunk, or becomes the error of its request.
        """
        self._limit, self._chunks = limit, chunks
        waiting: list[Answer | LargeAnswer] = [*self._large, *self._answers]
        self._large.clear()
        self._answers.clear()
        self.answer_bytes = self.large_bytes = 0
        for answer in waiting:
            self.put(answer)

    def hang_up(self) -> None:
        """The connection is over: nothing is agreed any more."""
        self._control.clear()
        self._limit, self._chunks = sys.maxsize, None

    def _put_large(self, large: LargeAnswer) -> None:
        if self._chunks is not None and large.size <= self._limit:
            self.put(Answer(large.whole(), large.deadline))
            return
        problem = self._begin(large)
        if problem is None:
            self._large.append(large)
            self.large_bytes += large.size
            return
        code, reason = problem
        logger.error("%s: the answer was not sent: %s", large.about, reason)
        failure = Answer(large.failure(code, reason), large.deadline)
        self._answers.append(failure)
        self.answer_bytes += len(failure.message)

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


def _is_awaited(answer: Answer | LargeAnswer, now: float) -> bool:
    return answer.deadline is None or answer.deadline > now
