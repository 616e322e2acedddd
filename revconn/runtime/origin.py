"""Where requests came from, which is where their answers go."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, Union

from revconn.core.large import LargeAnswer
from revconn.core.outbound import Answer
from revconn.messages import Request

__all__ = ["Delivery", "Entry", "Origin", "Unanswered"]


class Origin(Protocol):
    """Where requests come from and their answers go."""

    def answer(self, answers: Iterable[Answer | LargeAnswer], *, alone: bool = False) -> None:
        """Queue answers; ``alone`` says that no others will follow soon. Does not block."""


class Delivery:
    """Requests that are being taken in: some of them may be answered on the spot."""

    def __init__(self, arrived: float) -> None:
        self._arrived = arrived


Entry = tuple[Origin, Request]  # a request in flight, with its way back
Unanswered = Union[Request, Delivery]
