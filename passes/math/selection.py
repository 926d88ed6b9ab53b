"""One setting per layer under a common budget: Lagrangian relaxation on each layer's lower convex hull.

For layers with settings of cost c and error e, the sum of errors is to be least with the sum of costs at
most a budget. For a price lambda of the cost every layer chooses for itself, min e + lambda c, and always a
corner of the lower convex hull of its points (c, e). As lambda falls the layers move along their hulls,
each when lambda passes its slope: sorting all moves by slope gives the solution for every lambda at once,
and each of them is optimal for what it costs (Everett 1963; Shoham and Gersho 1988). Between two of them the
exact optimum may lie lower by less than one move; :meth:`Frontier.within` spends what is left of the budget
on the best single changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def lower_hull(costs: Float, errors: Float) -> list[int]:
    """Corners of the lower convex hull, from the cheapest point to the one of least error.

    Args:
        costs, errors: one finite number each per point, (N,), N > 0.

    Returns:
        Indices by rising cost and strictly falling error; slopes grow flatter.
    """
    order = np.lexsort((errors, costs))
    hull: list[int] = []
    for index in order.tolist():
        if hull and errors[index] >= errors[hull[-1]]:
            continue
        while len(hull) > 1 and _slope(costs, errors, hull[-2], hull[-1]) >= _slope(
            costs, errors, hull[-2], index
        ):
            hull.pop()
        hull.append(index)
    return hull


def _slope(costs: Float, errors: Float, first: int, second: int) -> float:
    """Change of error per cost between two points of different cost, negative."""
    return float((errors[second] - errors[first]) / (costs[second] - costs[first]))


@dataclass(frozen=True)
class Choice:
    """One setting per layer: their indices, and the sums of cost and error."""

    settings: tuple[int, ...]
    cost: float
    error: float


class Frontier:
    """The choices that some price of the cost makes optimal, from the cheapest to the one of least error.

    Attributes:
        costs, errors: their sums, (steps + 1,), rising and falling.
    """

    def __init__(self, costs: Sequence[Float], errors: Sequence[Float]) -> None:
        """
        Args:
            costs, errors: for each layer those of its settings, (settings,), finite.

        Raises:
            ValueError: a layer without settings, or a number that is not finite.
        """
        for cost, error in zip(costs, errors, strict=True):
            if len(cost) == 0 or not (np.isfinite(cost).all() and np.isfinite(error).all()):
                raise ValueError("every layer needs settings of finite cost and error")
        self._costs, self._errors = list(costs), list(errors)
        hulls = [lower_hull(cost, error) for cost, error in zip(costs, errors, strict=True)]
        self._start = [hull[0] for hull in hulls]
        # hulls are convex, so sorting by slope keeps the moves of one layer in their order (sort is stable)
        self._moves = sorted(
            (
                (_slope(costs[layer], errors[layer], a, b), layer, b)
                for layer, hull in enumerate(hulls)
                for a, b in pairwise(hull)
            ),
            key=lambda move: move[0],
        )
        choices = [self.at(step) for step in range(len(self._moves) + 1)]
        self.costs = np.array([choice.cost for choice in choices])
        self.errors = np.array([choice.error for choice in choices])

    def __len__(self) -> int:
        return len(self._moves) + 1

    def at(self, step: int) -> Choice:
        """The choice after the first ``step`` moves."""
        settings = list(self._start)
        for _, layer, setting in self._moves[:step]:
            settings[layer] = setting
        return self._sum(settings)

    def within(self, budget: float) -> Choice:
        """A choice that costs at most ``budget``: the last of the frontier that fits, then single changes.

        Raises:
            ValueError: even the cheapest choice costs more.
        """
        step = int(np.searchsorted(self.costs, budget, side="right")) - 1
        if step < 0:
            raise ValueError(f"the cheapest choice costs {self.costs[0]:g}, more than {budget:g}")
        settings = list(self.at(step).settings)
        while (change := self._best_change(settings, budget - self._sum(settings).cost)) is not None:
            settings[change[0]] = change[1]
        return self._sum(settings)

    def _best_change(self, settings: list[int], left: float) -> tuple[int, int] | None:
        """The layer and setting that lower the error most for at most ``left`` more cost."""
        best, found = 0.0, None
        for layer, (cost, error) in enumerate(zip(self._costs, self._errors, strict=True)):
            now = settings[layer]
            gain = np.where(cost - cost[now] <= left, error[now] - error, 0.0)
            setting = int(gain.argmax())
            if gain[setting] > best:
                best, found = float(gain[setting]), (layer, setting)
        return found

    def _sum(self, settings: list[int]) -> Choice:
        cost = sum(float(row[i]) for row, i in zip(self._costs, settings, strict=True))
        error = sum(float(row[i]) for row, i in zip(self._errors, settings, strict=True))
        return Choice(tuple(settings), cost, error)
