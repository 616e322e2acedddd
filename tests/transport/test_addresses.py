"""In which order addresses are tried."""

from __future__ import annotations

import random

from revconn.transport.dial import Address, AddressOrder

V4, V6 = 2, 10


def four(*names: str) -> list[Address]:
    return [(V4, name) for name in names]


def names(addresses: list[Address]) -> str:
    return "".join(name for _, name in addresses)


def test_families_take_turns_and_the_resolvers_favourite_comes_first() -> None:
    found = [(V6, "a"), (V6, "b"), (V6, "c"), *four("x", "y")]
    assert names(AddressOrder().arrange(found)) == "axbyc"
    assert names(AddressOrder().arrange(reversed(found))) == "ycxba"


def test_an_address_that_is_named_twice_is_tried_once() -> None:
    assert names(AddressOrder().arrange(four("a", "b", "a"))) == "ab"


def test_an_attempt_begins_with_the_address_after_the_one_that_failed_last() -> None:
    order = AddressOrder()
    begun = ""
    for _ in range(6):
        first = order.arrange(four("a", "b", "c"))[0]
        begun += first[1]
        order.failed(first)
    assert begun == "abcabc"


def test_that_holds_when_another_than_the_first_failed() -> None:
    order = AddressOrder()
    order.failed((V4, "b"))
    assert names(order.arrange(four("a", "b", "c"))) == "cab"


def test_several_that_failed_in_one_attempt_come_last() -> None:
    order = AddressOrder()
    for name in "ab":
        order.failed((V4, name))
    assert names(order.arrange(four("a", "b", "c", "d"))) == "cdab"


def test_one_that_fails_again_is_the_last_to_have_failed() -> None:
    order = AddressOrder()
    for name in "aba":
        order.failed((V4, name))
    assert names(order.arrange(four("a", "b"))) == "ba"


def test_a_resolver_that_shuffles_leaves_none_out() -> None:
    shuffling = random.Random(1)
    order = AddressOrder()
    for _ in range(20):
        tried = set()
        for _ in range(5):
            found = four("a", "b", "c", "d", "e")
            shuffling.shuffle(found)
            first = order.arrange(found)[0]
            tried.add(first)
            order.failed(first)
        assert len(tried) == 5


def test_what_a_name_no_longer_has_is_forgotten() -> None:
    order = AddressOrder()
    order.failed((V4, "gone"))
    assert names(order.arrange(four("a", "b"))) == "ab"
    assert names(order.arrange(four("gone", "a"))) == "gonea"


def test_no_address_is_none() -> None:
    assert AddressOrder().arrange([]) == []
