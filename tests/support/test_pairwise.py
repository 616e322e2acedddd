"""pairwise: what a product would show of every two, in fewer cases."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from tests.support.pairwise import pairwise

FACTORS = [
    ["abcdefghijk", "xy", [1, 2, 3, 4], [True, False]],
    ["ab", "xy", [1, 2]],
    ["abc", "xyz"],
    ["a", "xy", [1, 2, 3]],
]


@pytest.mark.parametrize("factors", FACTORS)
def test_every_two_values_meet(factors: list) -> None:
    def meetings(cases: list[tuple]) -> set:
        return {pair for case in cases for pair in combinations(enumerate(case), 2)}

    assert meetings(pairwise(*factors)) == meetings(list(product(*factors)))


def test_the_cases_are_few_and_always_the_same() -> None:
    cases = pairwise(*FACTORS[0])
    assert len(cases) == len(set(cases)) == 44  # the two largest factors, of 176 in all
    assert cases == pairwise(*FACTORS[0])
