"""What several share, such as places or bytes: who has most of it makes room for who has little.

Everything here belongs to the gateway's thread.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Callable, Generic, TypeVar

__all__ = ["Budget", "Owners"]

Holder = TypeVar("Holder", bound=Hashable)

Owners = tuple[Hashable, ...]

_PLENTY = 4  # times as much as is taken


class _Account:
    """What an owner has: the last of a path by what holds it, others by the owners under them.

    Owners are ranked by the number of digits of what they have, in binary: so one that has twice as
    much stands above, and the order hardly ever changes.
    """

    __slots__ = ("amount", "held", "ranks", "under")

    def __init__(self) -> None:
        self.amount = 0
        self.held: dict[Any, int] = {}  # oldest first
        self.under: dict[Hashable, _Account] = {}
        self.ranks: dict[int, dict[Hashable, None]] = {}  # of those under it

    def change(self, owners: Owners, holder: Any, by: int) -> None:
        """Have so much more, or less, under these owners."""
        self.amount += by
        if not owners:
            held = self.held.get(holder, 0) + by
            if held:
                self.held[holder] = held
            else:
                self.held.pop(holder, None)
            return
        name = owners[0]
        account = self.under.get(name)
        if account is None:
            account = self.under[name] = _Account()
        before = account.amount.bit_length()
        account.change(owners[1:], holder, by)
        after = account.amount.bit_length()
        if before != after:
            self._rank(name, before, after)
        if not account.amount:
            del self.under[name]

    def _rank(self, name: Hashable, before: int, after: int) -> None:
        if before:
            peers = self.ranks[before]
            del peers[name]
            if not peers:
                del self.ranks[before]
        if after:
            self.ranks.setdefault(after, {})[name] = None

    def greediest(self) -> _Account:
        """Of all that are under it, the one that has most, or has had as much for longest."""
        account = self
        while account.ranks:
            account = account.under[next(iter(account.ranks[max(account.ranks)]))]
        return account


class Budget(Generic[Holder]):
    """What several share: as long as there is some, everybody may take of it.

    When there is none left, an owner that has far more than the one who asks will have (up to twice
    as much: what counts are the digits of both, in binary) gives back what it has had for longest.
    So nobody can fill it who does not lose what they filled it with, and whoever needs little finds
    room.

    Owners are named by a path, such as (host, connection): hosts are compared first, then the
    connections of one. What has no owner, whose path is (), goes before all others.

    :param most: all of it.
    :param take_back: ends what a holder had that place or those bytes for.
    :param newest_first: whether, among equals, one makes room for who has nothing yet: for what is
        over in a moment, unless somebody means to hold up others.
    :ivar used: how much of it is taken.
    """

    def __init__(
        self, most: int, take_back: Callable[[Holder], None], *, newest_first: bool = False
    ) -> None:
        self.most = most
        self._take_back = take_back
        self._newest_first = newest_first
        self.used = 0
        self._held: dict[Holder, tuple[Owners, int]] = {}  # oldest first
        # Of all that; but as long as there is plenty, nobody asks who has how much.
        self._accounts: _Account | None = None

    def has_room(self, amount: int = 1) -> bool:
        """Whether so much is left."""
        return self.used + amount <= self.most

    def make_room(self, owners: Owners, amount: int = 1) -> bool:
        """Whether so much is left for them: if need be, once others have given back theirs.

        Nobody does for less than all of it.
        """
        if self.has_room(amount):
            return True
        lost: list[tuple[Owners, Holder, int]] = []
        while not self.has_room(amount):
            account = self._who_gives_back(owners, amount) if amount <= self.most else None
            if account is None:
                for each in lost:  # in vain
                    self.take(*each)
                return False
            holder = next(iter(account.held))
            lost.append((self._held[holder][0], holder, self._held[holder][1]))
            self.give_back(holder)
        for _, holder, _ in lost:
            self._take_back(holder)
        return self.has_room(amount)

    def _who_gives_back(self, owners: Owners, amount: int) -> _Account | None:
        account = self._all
        if not owners:
            return account.greediest() if account.under else None
        for name in owners:
            mine = account.under.get(name)
            has = mine.amount if mine else 0
            most, wanted = max(account.ranks, default=0), (has + amount).bit_length()
            if most > wanted or (not has and most == wanted and self._newest_first):
                return account.greediest()
            if mine is None:
                return None
            account = mine
        return None

    def of(self, owners: Owners) -> int:
        """How much they have."""
        account = self._all
        for name in owners:
            if name not in account.under:
                return 0
            account = account.under[name]
        return account.amount

    @property
    def _all(self) -> _Account:
        if self._accounts is None:
            self._accounts = _Account()
            for holder, (owners, amount) in self._held.items():
                self._accounts.change(owners, holder, amount)
        return self._accounts

    def take(self, owners: Owners, holder: Holder, amount: int = 1) -> None:
        """``holder`` has so much, or so much more, on account of these owners."""
        if not amount:
            return
        # What it has had before stays where it is: they are given back together.
        owners, had = self._held.get(holder, (owners, 0))
        self._held[holder] = owners, had + amount
        self.used += amount
        if self._accounts is not None:
            self._accounts.change(owners, holder, amount)

    def give_back(self, holder: Holder) -> None:
        """It needs all of that no longer, if it had any."""
        owners, amount = self._held.pop(holder, ((), 0))
        self.used -= amount
        if amount and self._accounts is not None:
            self._accounts.change(owners, holder, -amount)
            if self.used < self.most // _PLENTY:
                self._accounts = None
