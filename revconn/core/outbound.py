"""What waits to be sent, in order: control messages first."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

__all__ = ["Answer", "Outbound"]


class Answer(NamedTuple):
    """An encoded response, and the instant after which nobody waits for it any more."""

    message: bytes
    deadline: float | None


class Outbound:
    """Control messages (the registration, heartbeats, the goodbye) and answers.

    Control messages belong to one connection and go with it. Answers outlive it: a gateway keeps
    a pending request by its id, so an answer may travel on the next connection. Not thread-safe.
    """

    def __init__(self) -> None:
        self._control: deque[bytes] = deque()
        self._answers: deque[Answer] = deque()
        self.answer_bytes = 0
        self.undelivered = 0

    def __len__(self) -> int:
        return len(self._control) + len(self._answers)

    def put_control(self, message: bytes) -> None:
        """Queue ahead of all answers."""
        self._control.append(message)

    def put(self, answer: Answer) -> None:
        """Queue behind everything else."""
        self._answers.append(answer)
        self.answer_bytes += len(answer.message)

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

    def put_back(self, answers: list[Answer]) -> None:
        """Queue answers that were taken, and may not have left, ahead of the others again."""
        self._answers.extendleft(reversed(answers))
        self.answer_bytes += sum(len(answer.message) for answer in answers)

    def start_over(self, now: float) -> None:
        """A new connection begins: drop what belonged to the last one, and expired answers.

        On a living connection a late answer is still worth sending: it frees the gateway's
        pending entry.
        """
        self._control.clear()
        alive = [a for a in self._answers if a.deadline is None or a.deadline > now]
        self.undelivered += len(self._answers) - len(alive)
        self._answers = deque(alive)
        self.answer_bytes = sum(len(answer.message) for answer in alive)
