"""What several share: whoever has most of it makes room for who has little."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn.gateway.budgets import Budget

_numbers = count()


class Takers:
    """A budget, and whose what was taken back was."""

    def __init__(self, most: int, *, newest_first: bool = False) -> None:
        self.lost: list[Holder] = []
        self.budget: Budget[Holder] = Budget(most, self.lost.append, newest_first=newest_first)

    @property
    def losers(self) -> list[tuple[str, ...]]:
        return [owners for owners, _ in self.lost]

    def take(self, *owners: str, amount: int = 1) -> bool:
        if not self.budget.make_room(owners, amount):
            return False
        self.budget.take(owners, (owners, next(_numbers)), amount)
        return True

    def fill(self, *owners: str) -> int:
        """Take one by one until no more is given, or what one has is taken back for it."""
        taken = 0
        while len(self.lost) < 10_000 and self.take(*owners):
            taken += 1
        return taken


Holder = tuple[tuple[str, ...], int]


def test_one_alone_may_take_all_and_is_then_refused() -> None:
    takers = Takers(1000)
    assert takers.fill("a") == 1000
    assert takers.losers == []


def test_whoever_comes_with_little_finds_room_however_many_have_filled_it_before() -> None:
    # As long as there was a share of what is left, owners that came one after the other halved it:
    # sixteen left nothing.
    takers = Takers(2000)
    for number in range(100):
        takers.fill(f"greedy {number}")
    assert takers.take("genuine")
    assert takers.budget.used == 2000


def test_who_has_most_gives_back_what_it_has_had_for_longest() -> None:
    takers = Takers(4)
    for owner in ("a", "a", "b", "a"):
        assert takers.take(owner)
    oldest = next(iter(takers.budget._held))
    assert takers.take("c")
    assert takers.lost == [oldest]
    assert takers.budget.of(("a",)) == 2


def test_of_two_that_have_as_much_neither_takes_from_the_other() -> None:
    takers = Takers(100)
    takers.fill("a")
    takers.fill("b")
    held = takers.budget.of(("a",)), takers.budget.of(("b",))
    assert min(held) >= 100 // 3
    assert not takers.take("a")
    assert not takers.take("b")


def test_what_lasts_a_moment_makes_room_for_what_is_new_even_among_equals() -> None:
    takers = Takers(3, newest_first=True)
    for owner in ("a", "b", "c"):
        assert takers.take(owner)
    assert takers.take("d")
    assert takers.losers == [("a",)]
    assert not Takers(0, newest_first=True).take("a")


def test_nobody_makes_room_for_who_has_something_already() -> None:
    takers = Takers(3, newest_first=True)
    for owner in ("a", "b", "a"):
        assert takers.take(owner)
    assert not takers.take("a")
    assert not takers.take("b")
    assert takers.lost == []


def test_hosts_are_compared_before_their_connections() -> None:
    takers = Takers(12)
    for number in range(10):
        assert takers.take("crowd", f"connection {number}")
    assert takers.take("lone", "one")
    assert takers.take("lone", "one")
    # It has more than any of the others has, but its host has less than theirs.
    assert takers.take("lone", "two")
    assert takers.losers == [("crowd", "connection 0")]


def test_among_the_connections_of_one_host_who_has_most_gives_back() -> None:
    takers = Takers(10)
    for _ in range(8):
        assert takers.take("host", "greedy")
    assert takers.take("host", "modest")
    assert takers.take("host", "modest")
    assert takers.take("host", "new")
    assert takers.losers == [("host", "greedy")]


def test_what_has_no_owner_goes_before_all_others_and_is_never_taken_back() -> None:
    takers = Takers(3)
    assert takers.take("a")
    assert all(takers.take() for _ in range(3))
    assert takers.losers == [("a",)]
    assert not takers.take()
    assert not takers.take("b")


def test_more_than_there_is_takes_nothing_from_anybody() -> None:
    takers = Takers(10)
    takers.fill("a")
    assert not takers.take("b", amount=11)
    assert takers.losers == []
    assert takers.take("b", amount=3)
    assert takers.losers == [("a",)] * 3


def test_a_holder_may_take_more_and_gives_back_all_of_it() -> None:
    takers = Takers(10)
    holder = ("a",), next(_numbers)
    takers.budget.take(("a",), holder, 3)
    takers.budget.take(("a",), holder, 0)
    takers.budget.take(("a",), holder, 4)
    assert takers.budget.used == 7
    takers.budget.give_back(holder)
    takers.budget.give_back(holder)
    assert takers.budget.used == 0


def test_what_a_holder_takes_later_is_on_the_account_of_its_first_owner() -> None:
    takers = Takers(10)
    holder = ("a",), next(_numbers)
    takers.budget.take(("a",), holder, 3)
    takers.budget.take((), holder, 4)  # it has come to be nobody's
    assert takers.budget.of(("a",)) == takers.budget.used == 7
    takers.budget.give_back(holder)
    assert takers.budget.used == 0


def test_who_has_given_all_back_is_forgotten() -> None:
    takers = Takers(10)
    for number in range(1000):
        owners = ("host", str(number))
        takers.budget.take(owners, (owners, number))
        takers.budget.give_back((owners, number))
    assert takers.budget.used == 0
    assert not takers.budget._all.under
    assert not takers.budget._all.ranks


def test_what_is_given_back_meanwhile_is_not_taken_twice() -> None:
    given_back: list[Hashable] = []

    def lose(holder: str) -> None:
        given_back.append(holder)
        budget.give_back("second")  # as what ends with the first

    budget: Budget[str] = Budget(7, lose)
    budget.take(("a",), "first")
    budget.take(("a",), "second")
    budget.take(("a",), "third", 5)
    assert budget.make_room(("b",), 2)
    assert given_back == ["first", "second"]
    assert budget.used == 5


def test_nobody_loses_anything_where_that_would_not_be_enough() -> None:
    takers = Takers(16)
    for _ in range(9):
        takers.take("a")
    for _ in range(7):
        takers.take("b")
    assert not takers.take("c", amount=7)
    assert takers.lost == []
    assert takers.budget.of(("a",)) == 9
    assert takers.take("c", amount=2)
    assert takers.losers == [("a",)] * 2


_names = st.sampled_from("abc")
_owners = st.one_of(st.tuples(_names, _names), st.just(()))


@pytest.mark.parametrize("newest_first", [False, True])
@given(st.integers(0, 200), st.lists(st.tuples(_owners, st.integers(1, 40), st.booleans())))
def test_no_more_is_given_than_there_is_and_nobody_loses_it_to_the_greedier(
    newest_first: bool, most: int, wishes: list[tuple[tuple[str, ...], int, bool]]
) -> None:
    held: dict[int, tuple[tuple[str, ...], int]] = {}
    asking: tuple[str, ...] = ()
    wanted = 0

    def of(owners: tuple[str, ...]) -> int:
        return sum(
            amount for path, amount in held.values() if path[: len(owners)] == owners and path
        )

    def lose(number: int) -> None:
        owners, _ = held[number]
        assert owners
        # Where their ways part, the one that loses has not less; nearly.
        for depth in range(1, len(asking) + 1):
            if owners[:depth] != asking[:depth]:
                assert 2 * of(owners[:depth]) > of(asking[:depth]) + wanted
                break
        del held[number]

    budget: Budget[int] = Budget(most, lose, newest_first=newest_first)
    for number, (owners, amount, gives_back) in enumerate(wishes):
        if gives_back and held:
            oldest = next(iter(held))
            del held[oldest]
            budget.give_back(oldest)
        asking, wanted = owners, amount
        if budget.make_room(owners, amount):
            held[number] = owners, amount
            budget.take(owners, number, amount)
        assert budget.used == sum(amount for _, amount in held.values()) <= most
        for path in {path for path, _ in held.values() if path}:
            assert budget.of(path) == of(path)
