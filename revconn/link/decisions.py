"""What a plan decides, and what it has to tell."""

from __future__ import annotations

import math
from typing import NamedTuple, Union

from revconn.link.records import Outage

__all__ = [
    "AnotherKey",
    "Connected",
    "Decision",
    "End",
    "Failed",
    "GaveUpReplacing",
    "Judge",
    "LookAtKey",
    "Lost",
    "News",
    "Open",
    "Retire",
    "SayGoodbye",
    "ServesOn",
    "Shows",
    "Wait",
]


# Decisions: what the link's thread is to do. Sessions go by the numbers that Open gives them.


class Open(NamedTuple):
    """Open a session, after so many failures in a row; tell of its end if there is no key."""

    session: int
    registers: bool
    failures: int


class SayGoodbye(NamedTuple):
    """Send DISCONNECTED on each. Not ``last``: answers to other sessions' requests are left."""

    sessions: tuple[int, ...]
    last: bool


class Retire(NamedTuple):
    """End these streams at once."""

    sessions: tuple[int, ...]
    why: str


class Judge(NamedTuple):
    """Say by :meth:`Plan.judged` whether to try again; without ``error`` only after how long."""

    error: BaseException | None
    failures: int


class LookAtKey(NamedTuple):
    """If the key to show is another one by now, say so by :meth:`Plan.another_key`."""


class Wait(NamedTuple):
    """Until then (monotonic), or until something happens.

    ``for_traffic`` says that :class:`Traffic` counts as that.
    """

    until: float = math.inf
    for_traffic: bool = False


class End(NamedTuple):
    """Retire whatever is left; ``error`` says why, unless that was asked for."""

    error: BaseException | None


Decision = Union[Open, SayGoodbye, Retire, Judge, LookAtKey, Wait, End]


# News: what the log and the supervisor are to be told, by whoever told the plan of the cause


class Shows(NamedTuple):
    """The link is shown in another state, or in the same one once more."""


class Connected(NamedTuple):
    """A session serves, the ``number``-th one: in the place of another, or after an outage."""

    session: int
    connection_id: str
    number: int
    in_place_of: str | None
    outage: Outage | None
    now: float


class ServesOn(NamedTuple):
    """The session that served is over, and the one that it had replaced is there yet."""

    connection_id: str
    error: BaseException
    fallback: str


class Lost(NamedTuple):
    """No session serves any more: an outage begins."""

    error: BaseException


class Failed(NamedTuple):
    """An attempt failed, and the next is in ``wait`` seconds."""

    error: BaseException
    outage: Outage | None
    worth_a_line: bool
    wait: float
    now: float


class GaveUpReplacing(NamedTuple):
    """No other session can be had in the place of one, which is kept until it ends."""

    kept: str
    error: Exception


class AnotherKey(NamedTuple):
    """The key that was shown is not the one to show any more."""


News = Union[Shows, Connected, ServesOn, Lost, Failed, GaveUpReplacing, AnotherKey]
