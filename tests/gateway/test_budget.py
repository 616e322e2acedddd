"""What several share: whoever takes most of it is refused first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from revconn.gateway.limits import SHARE, Budget


def fill(budget: Budget, *owners: str) -> None:
    """Take in turns, one by one, until nobody is given any more."""
    while sum(take(budget, owner) for owner in owners):
        pass


def take(budget: Budget, owner: str, amount: int = 1) -> bool:
    if not budget.has_room(owner, amount):
        return False
    budget.take(owner, amount)
    return True


def test_one_alone_may_take_nearly_all_and_leaves_room_for_another() -> None:
    budget = Budget(1000)
    fill(budget, "a")
    assert 900 < budget.of("a") < 1000
    assert take(budget, "b")
    assert not take(budget, "a")


def test_two_get_nearly_half_each() -> None:
    budget = Budget(1000)
    fill(budget, "a", "b")
    assert abs(budget.of("a") - budget.of("b")) <= 1
    assert 450 < budget.of("a") < 500
    assert take(budget, "c")


def test_who_takes_most_makes_room_for_nobody_but_by_giving_back() -> None:
    budget = Budget(1000)
    fill(budget, "a")
    held = budget.of("a")
    fill(budget, "b")
    assert budget.of("a") == held
    assert budget.of("b") < 100
    budget.give_back("a", held)
    fill(budget, "b")
    assert budget.of("b") > 900
    assert budget.of("a") == 0


def test_a_smaller_share_leaves_more() -> None:
    budget = Budget(1000, share=1)
    fill(budget, "a")
    assert budget.of("a") == 500
    assert SHARE > 1


def test_more_than_is_left_is_no_ones() -> None:
    budget = Budget(10)
    assert not budget.has_room("a", 11)
    assert budget.has_room("a", 10)
    budget.take("a", 10)
    assert not budget.has_room("b")


def test_of_nothing_nobody_gets_any() -> None:
    assert not Budget(0).has_room("a")


def test_who_has_given_all_back_is_forgotten() -> None:
    budget = Budget(10)
    for number in range(1000):
        budget.take(number)
        budget.give_back(number)
    assert budget.used == 0
    assert budget._by_owner == {}


@given(
    st.integers(0, 200),
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 40), st.booleans()), max_size=60),
)
def test_no_more_is_given_than_there_is(most: int, wishes: list[tuple[str, int, bool]]) -> None:
    budget, has = Budget(most), dict.fromkeys("abc", 0)
    for owner, amount, gives_back in wishes:
        if gives_back:
            amount = min(amount, has[owner])
            budget.give_back(owner, amount)
            has[owner] -= amount
        elif take(budget, owner, amount):
            has[owner] += amount
        assert budget.used == sum(has.values()) <= most
        assert {owner: budget.of(owner) for owner in "abc"} == has
