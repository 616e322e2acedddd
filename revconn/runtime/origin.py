"""Where a request came from, which is where its answer goes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from revconn.core.large import LargeAnswer
from revconn.core.outbound import Answer
from revconn.messages import Request

__all__ = ["Entry", "Origin"]


class Origin(Protocol):
    """Where requests come from and their answers go."""

    @property
    def congested(self) -> bool:
        """Whether so many answers wait to leave that there should be no more for now."""

    def answer(self, answers: Iterable[Answer | LargeAnswer], *, alone: bool = False) -> None:
        """Queue answers; ``alone`` says that no others will follow soon. Does not block."""


Entry = tuple[Origin, Request]  # a request in flight, with its way back
