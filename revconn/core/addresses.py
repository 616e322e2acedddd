"""In which order to try the addresses that a name has, and for how long."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["Address", "AddressOrder", "patience"]

_FIRST_ROUND = 5.0  # seconds: many times what a handshake takes across the world
_MOST_ROUNDS = 64  # of which each doubles it: then it is more than anybody waits

Address = tuple[int, Any]
"""A family and what a socket of it connects to."""


class AddressOrder:
    """One target's addresses: an attempt begins with the one after that which failed last.

    So each has its turn, whichever step of the handshake fails at the others. Whoever owns it
    guards it.
    """

    def __init__(self) -> None:
        self._failed: dict[Address, None] = {}  # the last one last

    def arrange(self, found: Iterable[Address]) -> list[Address]:
        """What a name has resolved to now, in the order to try it.

        Those that failed come last, and in the order in which they did: a resolver that shuffles
        leaves none out.
        """
        addresses = _interleave(list(dict.fromkeys(found)))
        self._failed = {each: None for each in self._failed if each in addresses}
        ranks = {address: rank for rank, address in enumerate(self._failed)}
        if self._failed:
            start = addresses.index(next(reversed(self._failed))) + 1
            addresses = addresses[start:] + addresses[:start]
        return sorted(addresses, key=lambda address: ranks.get(address, -1))

    def failed(self, address: Address) -> None:
        """An attempt, or a connection, came to a bad end there."""
        self._failed.pop(address, None)
        self._failed[address] = None


def patience(most: float, failures: int, addresses: int) -> float:
    """How many seconds an attempt may take: with other addresses to try, not all at once.

    One that takes connections and says nothing would cost so much each time. In each further round
    it is twice as long, until it is ``most``: slow gateways are found too.

    :param failures: to connect, or to stay connected, in a row.
    :param addresses: that the name had when it was last looked up.
    """
    if addresses < 2:
        return most
    return min(most, _FIRST_ROUND * 2.0 ** min(failures // addresses, _MOST_ROUNDS))


def _interleave(addresses: list[Address]) -> list[Address]:
    """IPv6 and IPv4 in turn (RFC 8305), the resolver's favourite first."""
    first = [each for each in addresses if each[0] == addresses[0][0]]
    others = [each for each in addresses if each[0] != addresses[0][0]]
    mixed = []
    while first or others:
        mixed += first[:1] + others[:1]
        first, others = first[1:], others[1:]
    return mixed
