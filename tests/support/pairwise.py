"""Fewer cases than a product has, and every two values still meet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations, product
from typing import Any

__all__ = ["pairwise"]

_Pair = tuple[tuple[int, int], tuple[int, int]]  # of positions: (factor, value), twice


def pairwise(*factors: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Cases in which each value of each factor meets each value of every other, at least once.

    What depends on one factor, or on how two of them go together, is seen as in the whole product;
    what takes three is left to chance. The same factors give the same cases in every process.
    """
    values = [list(factor) for factor in factors]
    left = list(product(*(range(len(some)) for some in values)))
    missing = {pair for case in left for pair in _pairs(case)}
    chosen = []
    while missing:
        best = max(left, key=lambda case: len(missing & _pairs(case)))
        missing -= _pairs(best)
        chosen.append(tuple(some[index] for some, index in zip(values, best)))
    return chosen


def _pairs(case: Sequence[int]) -> set[_Pair]:
    return set(combinations(enumerate(case), 2))
