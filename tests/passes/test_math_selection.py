"""Settings per layer under a budget, against the exact optimum of small problems."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from escc.passes.math.selection import Frontier, lower_hull

Float = NDArray[np.float64]
Tables = list[tuple[Float, Float]]


@st.composite
def tables(draw: st.DrawFn) -> Tables:
    """Up to four layers with up to five settings, whole costs."""
    layers: Tables = []
    for _ in range(draw(st.integers(1, 4))):
        points = draw(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 20)), min_size=1, max_size=5))
        layers.append((np.array([p[0] for p in points], float), np.array([p[1] for p in points], float)))
    return layers


def exact(layers: Tables, budget: int) -> float:
    """Least error within a whole budget by dynamic programming over cost; inf when nothing fits."""
    best = np.zeros(budget + 1)
    for costs, errors in layers:
        after = np.full(budget + 1, np.inf)
        for cost, error in zip(costs.astype(int).tolist(), errors.tolist(), strict=True):
            if cost <= budget:
                after[cost:] = np.minimum(after[cost:], best[: budget + 1 - cost] + error)
        best = after
    return float(best[budget])


def frontier(layers: Tables) -> Frontier:
    return Frontier([costs for costs, _ in layers], [errors for _, errors in layers])


@given(tables())
def test_every_choice_of_the_frontier_is_optimal_for_what_it_costs(layers: Tables) -> None:
    line = frontier(layers)
    for step in range(len(line)):
        choice = line.at(step)
        assert choice.error == exact(layers, int(choice.cost))
        assert (choice.cost, choice.error) == (line.costs[step], line.errors[step])
    assert (np.diff(line.costs) > 0).all()
    assert (np.diff(line.errors) < 0).all()
    # from the least possible cost to the least possible error
    assert line.costs[0] == sum(costs.min() for costs, _ in layers)
    assert line.errors[-1] == sum(errors.min() for _, errors in layers)


@given(tables(), st.integers(1, 48))
def test_a_budget_is_kept_and_spent_to_within_one_move_of_the_optimum(layers: Tables, budget: int) -> None:
    line = frontier(layers)
    if budget < line.costs[0]:
        with pytest.raises(ValueError, match="cheapest"):
            line.within(budget)
        return
    choice = line.within(budget)
    assert choice.cost <= budget
    assert choice.cost == sum(costs[i] for (costs, _), i in zip(layers, choice.settings, strict=True))
    step = int(np.flatnonzero(line.costs <= budget)[-1])
    # the optimum lies on or above the chords of the frontier
    assert choice.error <= line.errors[step]
    assert exact(layers, budget) <= choice.error
    floor = np.interp(budget, line.costs, line.errors)
    assert exact(layers, budget) >= floor - 1e-9


@given(tables())
def test_the_hull_lies_below_every_point(layers: Tables) -> None:
    costs, errors = layers[0]
    hull = lower_hull(costs, errors)
    below = np.interp(costs, costs[hull], errors[hull])
    assert (errors >= below - 1e-9).all()
    slopes = np.diff(errors[hull]) / np.diff(costs[hull])
    assert (slopes < 0).all()
    assert (np.diff(slopes) > 0).all()


def test_left_over_budget_goes_to_settings_between_the_corners() -> None:
    # the hull of the layer is its first and last point; the middle one fits the budget
    line = frontier([(np.array([1.0, 6.0, 10.0]), np.array([10.0, 7.0, 0.0]))])
    assert line.at(0).settings == (0,)
    assert line.at(1).settings == (2,)
    assert line.within(9).settings == (1,)


@pytest.mark.parametrize("errors", [[], [np.nan]])
def test_layers_need_settings_of_finite_cost(errors: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        Frontier([np.ones(len(errors))], [np.array(errors)])


def test_exact_search_agrees_with_trying_everything() -> None:
    random = np.random.default_rng(3)
    layers = [(random.integers(1, 6, 3).astype(float), random.random(3)) for _ in range(3)]
    for budget in range(3, 16):
        sums = [
            sum(layers[k][1][i] for k, i in enumerate(choice))
            for choice in product(range(3), repeat=3)
            if sum(layers[k][0][i] for k, i in enumerate(choice)) <= budget
        ]
        assert exact(layers, budget) == pytest.approx(min(sums, default=np.inf))
