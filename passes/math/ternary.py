"""Ternary decompositions: shared bases, codes in {-1, 0, 1}, one scale per output channel.

:func:`fit_ternary` alternates three steps, each of which can only lower

    sum_{k,c} ||W[k,c] - g[k] T[k,c] B||^2  +  penalty * E * nnz(T),        E = mean of ||W[k,c]||^2:

codes T given B and g (exact, by enumeration), bases B given T and g (linear least squares), scales g given T
and B (closed form). This is K-SVD with an exact coder: structured vector quantisation with 3^M words.
:func:`svd_ternary` and :func:`tap_ternary` are the one-shot rules to compare with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from escc.passes.math.basis import principal_kernels, reconstruct, relative_error, svd_decompose
from escc.passes.math.fitting import Fit, KernelFit, SingleFit
from escc.passes.math.thresholds import residual_planes, ternarize

Array = NDArray[Any]
Float = NDArray[np.float64]
Codes = NDArray[np.int8]


_SIZES = 1 << 15
"""About how many kernels tell how large ternary coefficients are to begin with."""


@dataclass(frozen=True)
class Decomposition:
    """W[k, c] ~= scale[k] * sum_m coefficients[k, c, m] * bases[m].

    Attributes:
        bases: float32 (M, R, S).
        coefficients: int8 (K, C, M) in {-1, 0, 1}, or float32.
        scale: float32 (K,), positive.
        objective: value after each alternation, relative to ||W||^2 (empty for one-shot methods).
        fitted_error: ||W - weight()||^2 / ||W||^2 for the weight it was fitted to, where the fit knows it.
    """

    bases: NDArray[np.float32]
    coefficients: Array
    scale: NDArray[np.float32]
    objective: list[float] = field(default_factory=lambda: [])
    fitted_error: float | None = None

    def weight(self) -> NDArray[np.float32]:
        """The weight (K, C, R, S) it stands for."""
        return reconstruct(self.bases, self.coefficients, self.scale)

    def error(self, weight: Array) -> float:
        """||W - weight()||^2 / ||W||^2."""
        return relative_error(weight, self.weight())

    @property
    def density(self) -> float:
        """Share of non-zero coefficients."""
        return float(np.count_nonzero(self.coefficients) / self.coefficients.size)


def fit_ternary(
    weight: Array,
    bases: int,
    penalty: float = 0.02,
    *,
    iterations: int = 25,
    exact_every: int = 2,
    tolerance: float = 2e-4,
    sample: int = 1 << 15,
    steps: int = 127,
) -> Decomposition:
    """Ternary decomposition by alternating least squares with exact coding.

    Args:
        weight: (K, C, R, S); R = S = 1 gives scaled ternary planes.
        bases: M, 1 to 9.
        penalty: cost of a non-zero in units of the mean kernel energy: larger is sparser.
        iterations: most alternations.
        exact_every: exact coding in every n-th alternation, cheap descent in the others; the last is exact.
        tolerance: stop when an exact alternation gains less than this share of the objective.
        sample: layers with over twice as many kernels are first fitted on about so many of them (of evenly
            spaced input channels); a fifth of the alternations then runs over all kernels from there. 1x1
            kernels are those of evenly spaced outputs instead, and coded exactly every time.
        steps: bases are put on the grid max|B| / steps, so that 8-bit bases lose nothing more; 0 leaves them
            real.

    Returns:
        Bases with max|B| = 1, the one that carries most energy first.

    Raises:
        ValueError: more than 9 bases.
    """
    outputs, inputs = weight.shape[:2]
    rows = np.asarray(weight, dtype=np.float32).reshape(outputs, inputs, -1)
    unit = float(np.sqrt(np.einsum("kcp,kcp->", rows, rows, dtype=np.float64) / (outputs * inputs))) or 1.0
    rows = rows * np.float32(1.0 / unit)
    kernels, scale = _start(rows, bases)
    single = rows.shape[2] == 1
    if single:
        exact_every = 1
    if (stride := outputs * inputs // sample) > 1:
        part = rows[::stride] if single else rows[:, ::stride]
        own = scale[::stride] if single else scale
        small = _fit(np.ascontiguousarray(part), penalty, kernels, own)
        _alternate(small, iterations, exact_every, tolerance)
        kernels, scale = small.bases, scale * np.median(small.scale / own) if single else small.scale
        iterations = -(-iterations // 5)
    fit = _fit(rows, penalty, kernels, scale)
    history = _alternate(fit, iterations, exact_every, tolerance)
    _normalize(fit, steps)
    fit.recode(exact=True)
    fit.refit_scale()
    codes, kernels = fit.codes(), fit.bases.astype(np.float32).reshape(bases, *weight.shape[2:])
    if single:
        scale, error = (fit.scale * unit).astype(np.float32), fit.error()
    else:
        # the same in double precision
        scale, error = _least_squares(weight, fit.bases, codes, fit.scale * unit)
    return Decomposition(kernels, codes, scale, history, error)


def _fit(rows: NDArray[np.float32], penalty: float, bases: Float, scale: Float) -> Fit:
    return (SingleFit if rows.shape[2] == 1 else KernelFit)(rows, penalty, bases, scale)


def _alternate(fit: Fit, iterations: int, exact_every: int, tolerance: float) -> list[float]:
    """Run alternations; the objective after each one that improved it."""
    history: list[float] = []
    before = fit.objective()
    for iteration in range(iterations):
        exact = iteration % exact_every == 0
        if not fit.recode(exact):
            if exact:
                break
            continue
        fit.refit(rounds=4)
        history.append(fit.objective())
        if exact:
            if iteration and before - history[-1] <= tolerance * before:
                break
            before = history[-1]
    return history


def _start(rows: Array, bases: int) -> tuple[Float, Float]:
    """Bases and scales to begin with.

    Principal kernels of the outputs brought to one size, each as large as its ternarised coefficients want it
    (and again at half that size when there are more bases than taps); powers of 1/3 for single weights.
    """
    taps = rows.shape[2]
    size = np.sqrt(np.einsum("kcp,kcp->k", rows, rows, dtype=np.float64) / rows.shape[1])
    scale = np.where(size > 0, size, 1.0)
    if taps == 1:
        powers = 3.0 ** -np.arange(bases)[:, None]
        return (0.7 * bases + 0.7) * powers / powers.sum(), scale
    evened = rows * (1.0 / scale).astype(np.float32)[:, None, None]
    kernels = principal_kernels(evened[..., None])[0][..., 0][np.arange(bases) % taps]
    evened = evened.reshape(-1, taps)
    _, sizes = ternarize(evened[:: max(len(evened) // _SIZES, 1)] @ kernels.T, axis=0)
    return kernels * sizes.T * 2.0 ** -(np.arange(bases)[:, None] // taps), scale


def _normalize(fit: Fit, steps: int) -> None:
    """Common factor into the scales, grid, order by energy, sign such that the largest tap is positive."""
    order = np.argsort(-fit.usage() * np.einsum("mp,mp->m", fit.bases, fit.bases), kind="stable")
    bases = fit.bases[order]
    largest = bases[np.arange(len(order)), np.abs(bases).argmax(axis=1)]
    sign = np.where(largest < 0, -1, 1)
    bases = bases * sign[:, None]
    peak = float(np.abs(bases).max()) or 1.0
    bases, fit.scale = bases / peak, fit.scale * peak
    fit.bases = np.rint(bases * steps) / steps if steps else bases
    fit.reorder(order, sign)


def svd_ternary(weight: Array, bases: int) -> Decomposition:
    """One-shot rule to compare with: SVD, then the coefficients ternarised with one scale per basis.

    That scale goes into the basis. 1x1 kernels are expanded into greedy residual planes instead.
    """
    if weight.shape[2:] == (1, 1):
        codes, sizes = residual_planes(weight[..., 0, 0], bases)
        kernels = np.ones((bases, 1, 1))
    else:
        kernels, coefficients = svd_decompose(weight, bases)
        codes, sizes = ternarize(coefficients, axis=(0, 1))
    return _unscaled(kernels * sizes.reshape(-1, 1, 1), codes, weight.shape[0])


def tap_ternary(weight: Array) -> Decomposition:
    """Plain ternary weights: one basis per tap (a single 1), one threshold and scale per output channel."""
    outputs, inputs, height, width = weight.shape
    codes, scale = ternarize(weight.reshape(outputs, inputs, -1), axis=(1, 2))
    taps = np.eye(height * width, dtype=np.float32).reshape(-1, height, width)
    return Decomposition(taps, codes, np.where(scale > 0, scale, 1.0)[:, 0, 0].astype(np.float32))


def svd_float(weight: Array, bases: int) -> Decomposition:
    """SVD with real coefficients; R*S bases lose nothing."""
    kernels, coefficients = svd_decompose(weight, bases)
    return _unscaled(kernels, coefficients.astype(np.float32), weight.shape[0])


def _unscaled(kernels: Float, coefficients: Array, outputs: int) -> Decomposition:
    return Decomposition(kernels.astype(np.float32), coefficients, np.ones(outputs, dtype=np.float32))


def refit_scale(weight: Array, bases: Array, coefficients: Array, scale: Array) -> NDArray[np.float32]:
    """Least-squares scale of each output channel for given bases and coefficients; (K,), positive.

    Outputs without coefficients, or whose fit would not be positive, keep ``scale``.
    """
    return _least_squares(weight, bases, coefficients, scale)[0]


def _least_squares(
    weight: Array, bases: Array, coefficients: Array, scale: Array
) -> tuple[NDArray[np.float32], float]:
    """:func:`refit_scale`, and ||W - g T B||^2 / ||W||^2."""
    kernels = bases.reshape(len(bases), -1).astype(np.float64)
    values = coefficients.astype(np.float64)
    turned = values.transpose(0, 2, 1)
    rows = np.asarray(weight, dtype=np.float64).reshape(*values.shape[:2], -1)
    energy = np.einsum("kmn,mn->k", turned @ values, kernels @ kernels.T)
    match = np.einsum("kmp,mp->k", turned @ rows, kernels)
    fitted = np.divide(match, energy, out=np.zeros_like(match), where=energy > 0)
    fitted = np.where(fitted > 0, fitted, scale)
    whole = float(np.einsum("kcp,kcp->", rows, rows))
    left = whole + float(fitted @ (fitted * energy - 2.0 * match))
    return fitted.astype(np.float32), max(left, 0.0) / whole if whole else 0.0
