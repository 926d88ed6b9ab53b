"""The error of a layer's sums as a quadratic function of its weights.

For patches x of the layer's real inputs (mean removed) and the sums y that are wanted,

    E |y - w . x|^2 = const + (w* - w) H (w* - w)^T,   H = E[x x^T],   w* = E[y x^T] H^-1,

so that w* also repairs what earlier layers got wrong. With H = R R^T, R upper triangular, the error is
|w* R - w R|^2, and column block q of w R depends on the input channels up to q only: channels can be coded
one after the other, each aiming at what those before it left of column block q. That is the order and error
feedback of OBQ and GPTQ (there through the factor of H^-1) without an inverse: Babai's nearest plane.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Float = NDArray[np.float64]
Single = NDArray[np.float32]

LEAST_DAMPING = 1e-6
"""Least share of the mean variance on the diagonal of H: what sums in float32 can carry."""

_BLOCK = 128


@dataclass(frozen=True)
class Quadratic:
    """The quadratic of one layer (or group of a grouped layer) with C input channels of P taps, n = C * P.

    It does not depend on how the layer is coded: candidates share it. Columns are in coding order.

    Attributes:
        order: (C,) input channel at each position, the most energetic first.
        taps: P.
        covariance: H, float32 (n, n), positive definite.
        factor: R, float32 (n, n).
        match: w* H, float32 (K, n).
        white: w* R, float32 (K, n).
    """

    order: NDArray[np.intp]
    taps: int
    covariance: Single
    factor: Single
    match: Single
    white: Single

    @property
    def inputs(self) -> int:
        """Input channels, C."""
        return len(self.order)

    @property
    def outputs(self) -> int:
        """Output channels, K."""
        return len(self.match)

    @cached_property
    def columns(self) -> NDArray[np.intp]:
        """Index that brings the columns of a weight (K, n) into coding order."""
        return (self.order[:, None] * self.taps + np.arange(self.taps)).reshape(-1)

    @cached_property
    def energy(self) -> float:
        """w* H w*^T summed over output channels: the error of zero weights."""
        return float(np.einsum("kn,kn->", self.white, self.white, dtype=np.float64))

    def target(self) -> Single:
        """w*, (K, n), columns in the layer's own order."""
        found = np.empty_like(self.white)
        solved = np.linalg.solve(self.covariance.astype(np.float64), self.match.T.astype(np.float64))
        found[:, self.columns] = solved.T
        return found


def layer_quadratic(inputs: Single, sums: Array, weight: Array, taps: int, damping: float) -> Quadratic:
    """The quadratic from samples.

    Args:
        inputs: patches (samples, C * P) as the compressed network sees them.
        sums: what is wanted there, (samples, K).
        weight: original weights (K, C * P): where the data says nothing, the target stays there.
        taps: P, taps of one kernel.
        damping: share of the mean variance added to the diagonal of H, at least 1e-6.
    """
    mean = inputs.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = inputs - mean
    samples, size = centred.shape
    covariance: Single = centred.T @ centred
    covariance /= np.float32(samples)
    ridge = max(damping, LEAST_DAMPING) * max(float(np.trace(covariance)) / size, 1e-12)
    covariance[np.diag_indices(size)] += ridge
    wanted = (sums - sums.mean(axis=0, dtype=np.float64)).astype(np.float32)
    match = wanted.T @ centred / np.float32(samples) + np.float32(ridge) * weight.astype(np.float32)
    return quadratic(covariance, match, taps)


def quadratic(covariance: Array, match: Array, taps: int) -> Quadratic:
    """The quadratic with this H (n, n), positive definite, and match w* H (K, n); channels in natural order.

    Raises:
        LinAlgError: H is not positive definite.
    """
    energy = np.diagonal(covariance).reshape(-1, taps).sum(axis=1)
    order = np.argsort(-energy, kind="stable")
    columns = (order[:, None] * taps + np.arange(taps)).reshape(-1)
    ordered = covariance[np.ix_(columns, columns)]
    # the lower factor of H backwards is, backwards, the upper factor of H
    factor = np.linalg.cholesky(ordered[::-1, ::-1].astype(np.float64))[::-1, ::-1].astype(np.float32)
    right = match[:, columns]
    return Quadratic(
        order,
        taps,
        ordered.astype(np.float32),
        np.ascontiguousarray(factor),
        right.astype(np.float32),
        _solve_transposed(factor, right).astype(np.float32),
    )


def _solve_transposed(factor: Single, right: Array) -> Float:
    """X with X R^T = right for R upper triangular, block by block from the last."""
    size = len(factor)
    found = right.astype(np.float64)
    for end in range(size, 0, -_BLOCK):
        start = max(end - _BLOCK, 0)
        corner = factor[start:end, start:end].astype(np.float64)
        found[:, start:end] = np.linalg.solve(corner, found[:, start:end].T).T
        if start:
            found[:, :start] -= found[:, start:end] @ factor[:start, start:end].T.astype(np.float64)
    return found
