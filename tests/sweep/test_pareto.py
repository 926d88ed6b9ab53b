"""Fronts and ranks against their definition."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from escc.sweep.pareto import crowding, dominated, front, ranks

POINTS = st.integers(1, 4).flatmap(
    lambda columns: st.lists(st.lists(st.integers(0, 5), min_size=columns, max_size=columns), max_size=25)
)


def beats(a: list[int], b: list[int]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


@given(POINTS)
def test_against_the_definition(points: list[list[int]]) -> None:
    values = np.array(points, np.float64).reshape(len(points), len(points[0]) if points else 2)
    lost = [any(beats(other, point) for other in points) for point in points]
    assert dominated(values).tolist() == lost
    chosen = [points[index] for index in front(values)]
    assert chosen == sorted({tuple(p): p for p, bad in zip(points, lost, strict=True) if not bad}.values())
    found = ranks(values)
    for point, rank in zip(points, found, strict=True):
        better = [r for other, r in zip(points, found, strict=True) if beats(other, point)]
        assert rank == max(better, default=-1) + 1


def test_crowding_by_hand() -> None:
    values = np.array([[0.0, 4.0], [1.0, 2.0], [4.0, 0.0], [5.0, 5.0]])
    assert ranks(values) == [0, 0, 0, 1]
    # the middle one: (4 - 0) / 4 along the first objective, (4 - 0) / 4 along the second
    assert crowding(values, ranks(values)) == [math.inf, 2.0, math.inf, math.inf]
