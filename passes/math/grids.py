"""Weights that lie on a grid already: those of a network that was trained with quantised weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_SAMPLE = 16
_TOLERANCE = 2.0**-12
"""How far from a whole number of steps float32 weights may lie: they went through a few roundings."""


def grid_steps(rows: NDArray[Any], limit: int) -> Array:
    """The step at which each row is best written in integers of magnitude up to ``limit``.

    A row of integer multiples of a step keeps that step, so that nothing is rounded twice. Its largest
    integer may be smaller than ``limit``: what reached it can have gone with a dead channel or an unused
    basis. Any other row gets the step that takes its largest value to ``limit``.

    Args:
        rows: (N, V) values.
        limit: largest integer.

    Returns:
        (N,) steps, 0 for rows of zeros.
    """
    sizes = np.abs(np.asarray(rows, np.float64))
    largest = sizes.max(axis=1, initial=0.0)
    steps = largest / limit
    undecided = np.flatnonzero(largest > 0)
    shares = sizes / np.where(largest > 0, largest, 1.0)[:, None]
    # a few values of each row rule almost every candidate out
    first = max(shares.shape[1] - _SAMPLE, 0)
    sample = np.partition(shares, first, axis=1)[:, first:] if first else shares
    for most in range(limit, 0, -1):
        if not len(undecided):
            break
        likely = undecided[_whole(sample[undecided] * most)]
        found = likely[_whole(shares[likely] * most)]
        steps[found] = largest[found] / most
        undecided = np.setdiff1d(undecided, found, assume_unique=True)
    return steps


def _whole(values: Array) -> NDArray[np.bool_]:
    return np.asarray((np.abs(values - np.rint(values)) <= _TOLERANCE).all(axis=1))
