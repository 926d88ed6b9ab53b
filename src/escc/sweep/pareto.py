"""Which points are worth having: Pareto fronts and what NSGA-II ranks by. Everything is minimised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]


def dominated(values: Values) -> npt.NDArray[np.bool_]:
    """Which of the points ``values`` (n, objectives) another one beats."""
    found = np.zeros(len(values), dtype=np.bool_)
    for index, point in enumerate(values):
        no_worse = (values <= point).all(axis=1)
        found[index] = bool((no_worse & (values < point).any(axis=1)).any())
    return found


def front(values: Values) -> list[int]:
    """Indices of the points that none dominates, by rising first objective; of equal points the first one."""
    order = np.lexsort(values.T[::-1]).tolist() if len(values) else []
    lost = dominated(values)
    found: list[int] = []
    for index in order:
        if not lost[index] and not any((values[index] == values[other]).all() for other in found):
            found.append(index)
    return found


def ranks(values: Values) -> list[int]:
    """The front each point is on, from 0: NSGA-II's non-dominated sorting (Deb et al., 2002)."""
    found = np.full(len(values), -1, dtype=np.int64)
    rest = np.arange(len(values))
    rank = 0
    while rest.size:
        first = rest[~dominated(values[rest])]
        found[first] = rank
        rest = rest[found[rest] < 0]
        rank += 1
    return found.tolist()


def crowding(values: Values, rank: Sequence[int]) -> list[float]:
    """NSGA-II's crowding distance of each point among those of its rank; infinite at the ends of a front."""
    found = np.zeros(len(values))
    ranked = np.array(rank)
    for number in set(rank):
        members = np.flatnonzero(ranked == number)
        for column in values[members].T:
            order = members[np.argsort(column, kind="stable")]
            line = np.sort(column, kind="stable")
            found[order[[0, -1]]] = np.inf
            span = line[-1] - line[0] if np.isfinite(line).all() else 0.0
            if span > 0:
                found[order[1:-1]] += (line[2:] - line[:-2]) / span
    return found.tolist()
