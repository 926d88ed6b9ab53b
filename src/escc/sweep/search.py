"""Search strategies: each asks for batches of points and sees their figures before it asks for the next one.

All are deterministic in the seed and in the figures, so a sweep that was stopped takes the same way again and
finds what it has measured already in its journal.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np

from escc.sweep.pareto import Values, crowding, ranks
from escc.sweep.space import Axis, Point, Space

Judge = Callable[[Sequence[Point]], list[tuple[float, ...] | None]]
"""Measures points: their objectives, all to be minimised, or None for a point that cannot be."""

CROSSOVER = 0.9
ATTEMPTS = 200
"""Draws of a new point before the space is taken for exhausted."""
SMALL_STEP = 0.7
"""Share of mutations that go to a neighbouring value of an axis with an order."""


def search(space: Space, judge: Judge) -> None:
    """Ask ``judge`` for the points of the space's strategy."""
    strategies = {"grid": _grid, "random": _random, "evolution": _evolution}
    strategies[space.search.strategy](space, judge)


def _grid(space: Space, judge: Judge) -> None:
    judge([point for point in space.grid() if space.refusal(point) is None])


def _random(space: Space, judge: Judge) -> None:
    draw = _Draw(space)
    judge(draw.new(space.search.points))


class _Draw:
    """Draws points that meet the constraints on parameters and have not been drawn before."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.random = random.Random(space.search.seed)
        self.seen: set[tuple[object, ...]] = set()

    def new(self, count: int) -> list[Point]:
        """At most ``count`` new points; fewer when the space has no more to give."""
        found: list[Point] = []
        while len(found) < count:
            point = self.fresh(self._anywhere)
            if point is None:
                break
            found.append(point)
        return found

    def fresh(self, make: Callable[[], Point]) -> Point | None:
        """The first new and allowed point that ``make`` makes; None after many attempts."""
        for _ in range(ATTEMPTS):
            point = make()
            key = tuple(point.items())
            if key not in self.seen and self.space.refusal(point) is None:
                self.seen.add(key)
                return point
        return None

    def _anywhere(self) -> Point:
        return {axis.name: self.random.choice(axis.values) for axis in self.space.axes}


def _evolution(space: Space, judge: Judge) -> None:
    """NSGA-II (Deb et al., 2002): uniform crossover, mutation mostly to neighbouring values, elitism."""
    draw = _Draw(space)
    count = len(space.objectives)
    population = draw.new(min(space.search.population, space.search.points))
    size, left = len(population), space.search.points - len(population)
    values = _filled(judge(population), count)
    while left > 0 and population:
        children = _Parents(draw, population, values).children(min(size, left))
        if not children:
            return
        left -= len(children)
        population = population + children
        values = np.concatenate([values, _filled(judge(children), count)])
        kept = _best(values)[:size]
        population, values = [population[index] for index in kept], values[kept]


def _best(values: Values) -> list[int]:
    """Indices, lower fronts first, lonelier points of a front first."""
    rank = ranks(values)
    distance = crowding(values, rank)
    return sorted(range(len(values)), key=lambda index: (rank[index], -distance[index]))


class _Parents:
    """A generation that has children."""

    def __init__(self, draw: _Draw, population: list[Point], values: Values) -> None:
        self.draw, self.population = draw, population
        self.place = {index: place for place, index in enumerate(_best(values))}

    def children(self, count: int) -> list[Point]:
        """At most ``count`` new points; where no child is new, points from anywhere."""
        found: list[Point] = []
        while len(found) < count:
            child = self.draw.fresh(self._child) or next(iter(self.draw.new(1)), None)
            if child is None:
                break
            found.append(child)
        return found

    def _child(self) -> Point:
        return _child(self.draw.random, self.draw.space.axes, self._pick(), self._pick())

    def _pick(self) -> Point:
        """The better one of two."""
        pair = [self.draw.random.randrange(len(self.population)) for _ in range(2)]
        return self.population[min(pair, key=lambda index: self.place[index])]


def _child(source: random.Random, axes: Sequence[Axis], one: Point, other: Point) -> Point:
    crossed = source.random() < CROSSOVER
    child: Point = {}
    for axis in axes:
        parent = other if crossed and source.random() < 0.5 else one
        value = parent[axis.name]
        if source.random() < 1.5 / len(axes):
            value = _mutated(source, axis, value)
        child[axis.name] = value
    return child


def _mutated(source: random.Random, axis: Axis, value: object) -> int | float | str | bool:
    place = next(i for i, known in enumerate(axis.values) if known == value)
    ordered = not any(isinstance(known, str) for known in axis.values)
    if ordered and source.random() < SMALL_STEP:
        place = min(max(place + source.choice((-1, 1)), 0), len(axis.values) - 1)
        return axis.values[place]
    return source.choice(axis.values)


def _filled(objectives: Sequence[tuple[float, ...] | None], count: int) -> Values:
    """Objectives as an array; what cannot be measured is worse than anything."""
    rows = [[np.inf] * count if row is None else list(row) for row in objectives]
    return np.array(rows, np.float64).reshape(len(rows), count)
