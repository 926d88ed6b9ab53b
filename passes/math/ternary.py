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

from escc.passes.math.basis import kernel_rows, principal_kernels, reconstruct, relative_error, svd_decompose
from escc.passes.math.coding import descend, encode, encode_single
from escc.passes.math.thresholds import residual_planes, ternarize

Array = NDArray[Any]
Float = NDArray[np.float64]
Codes = NDArray[np.int8]


@dataclass(frozen=True)
class Decomposition:
    """W[k, c] ~= scale[k] * sum_m coefficients[k, c, m] * bases[m].

    Attributes:
        bases: float32 (M, R, S).
        coefficients: int8 (K, C, M) in {-1, 0, 1}, or float32.
        scale: float32 (K,), positive.
        objective: value after each alternation, relative to ||W||^2 (empty for one-shot methods).
    """

    bases: NDArray[np.float32]
    coefficients: Array
    scale: NDArray[np.float32]
    objective: list[float] = field(default_factory=lambda: [])

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


class _Fit:
    """The alternation's variables, in units in which the mean kernel energy is 1.

    The codes enter the fits of bases and scales, and the objective, only through statistics of each output k:
    ``used[k] = T[k]^T T[k]`` (M, M) and ``match[k] = T[k]^T W[k]`` (M, P).
    """

    def __init__(self, rows: Float, penalty: float, bases: Float, scale: Float) -> None:
        self.rows = rows  # (K, C, P)
        self.penalty = penalty
        self.bases = bases  # (M, P)
        self.scale = scale  # (K,)
        # not a BLAS product: those of long vectors go to threads, which costs more than it gains
        self.energy = float(np.einsum("kcp,kcp->", rows, rows))
        self.set_codes(np.zeros((*rows.shape[:2], len(bases)), dtype=np.int8))

    def set_codes(self, codes: Codes) -> None:
        """New codes (K, C, M) and their statistics."""
        self.codes = codes
        values = codes.astype(np.float64)
        turned = values.transpose(0, 2, 1)
        self.used = turned @ values
        self.match = turned @ self.rows
        self.nonzeros = int(np.count_nonzero(codes))

    def recode(self, exact: bool) -> bool:
        """Better codes for the present bases and scales; False (and nothing changes) if there are none."""
        beta = (self.rows @ self.bases.T) / self.scale[:, None, None]
        gram, mu = self.bases @ self.bases.T, 0.5 * self.penalty / self.scale**2
        before, old = self.objective(), (self.codes, self.used, self.match, self.nonzeros)
        if not exact:
            self.set_codes(descend(beta, gram, mu, self.codes, sweeps=2))
        elif self.bases.shape[1] == 1:
            self.set_codes(encode_single(self.rows[..., 0] / self.scale[:, None], self.bases[:, 0], mu))
        else:
            self.set_codes(encode(beta, gram, mu))
        if self.objective() < before:
            return True
        self.codes, self.used, self.match, self.nonzeros = old
        return False

    def refit(self, rounds: int) -> None:
        """Least-squares scales and bases in turns."""
        for _ in range(rounds):
            self.refit_scale()
            normal = np.einsum("k,kmn->mn", self.scale**2, self.used)
            rest = np.einsum("k,kmp->mp", self.scale, self.match) - normal @ self.bases
            # a little damping: directions that no code uses keep what they had
            damping = (1e-9 * np.trace(normal) + 1e-30) * np.eye(len(normal))
            self.bases = self.bases + np.linalg.solve(normal + damping, rest)

    def refit_scale(self) -> None:
        """g = <W, TB> / ||TB||^2 for each output; outputs without codes keep theirs."""
        energy = np.einsum("kmn,mn->k", self.used, self.bases @ self.bases.T)
        match = np.einsum("kmp,mp->k", self.match, self.bases)
        fitted = np.divide(match, energy, out=np.zeros_like(match), where=energy > 0)
        self.scale = np.where(fitted > 0, fitted, self.scale)

    def objective(self) -> float:
        """Squared error plus penalty, per kernel: so relative to the weight's energy."""
        energy = np.einsum("kmn,mn->k", self.used, self.bases @ self.bases.T)
        match = np.einsum("kmp,mp->k", self.match, self.bases)
        error = self.energy + float(self.scale @ (self.scale * energy - 2.0 * match))
        return (error + self.penalty * self.nonzeros) / (self.rows.shape[0] * self.rows.shape[1])


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
        sample: layers with over twice as many kernels are first fitted on about so many of them (evenly
            spaced input channels); a fifth of the alternations then runs over all kernels from there. A
            quarter of that, and two alternations, for 1x1 kernels: their bases are just M numbers.
        steps: bases are put on the grid max|B| / steps, so that 8-bit bases lose nothing more; 0 leaves them
            real.

    Returns:
        Bases with max|B| = 1, the one that carries most energy first.

    Raises:
        ValueError: more than 9 bases.
    """
    outputs, inputs = weight.shape[:2]
    rows = kernel_rows(weight).reshape(outputs, inputs, -1)
    unit = float(np.sqrt(np.einsum("kcp,kcp->", rows, rows) / (outputs * inputs))) or 1.0
    rows = rows / unit
    fit = _Fit(rows, penalty, *_start(rows, bases))
    if rows.shape[2] == 1:
        sample //= 4
    if (stride := outputs * inputs // sample) > 1:
        small = _Fit(np.ascontiguousarray(rows[:, ::stride]), penalty, fit.bases, fit.scale)
        _alternate(small, iterations, exact_every, tolerance)
        fit.bases, fit.scale = small.bases, small.scale
        iterations = -(-iterations // 5) if rows.shape[2] > 1 else min(iterations, 2)
    history = _alternate(fit, iterations, exact_every, tolerance)
    _normalize(fit, steps)
    fit.recode(exact=True)
    fit.refit_scale()
    return Decomposition(
        fit.bases.astype(np.float32).reshape(bases, *weight.shape[2:]),
        fit.codes,
        (fit.scale * unit).astype(np.float32),
        history,
    )


def _alternate(fit: _Fit, iterations: int, exact_every: int, tolerance: float) -> list[float]:
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


def _start(rows: Float, bases: int) -> tuple[Float, Float]:
    """Bases and scales to begin with.

    Principal kernels of the outputs brought to one size, each as large as its ternarised coefficients want it
    (and again at half that size when there are more bases than taps); powers of 1/3 for single weights.
    """
    taps = rows.shape[2]
    size = np.sqrt(np.mean(np.einsum("kcp,kcp->kc", rows, rows), axis=1))
    scale = np.where(size > 0, size, 1.0)
    if taps == 1:
        powers = 3.0 ** -np.arange(bases)[:, None]
        return (0.7 * bases + 0.7) * powers / powers.sum(), scale
    evened = rows / scale[:, None, None]
    kernels = principal_kernels(evened[..., None])[0][..., 0][np.arange(bases) % taps]
    _, sizes = ternarize(evened.reshape(-1, taps) @ kernels.T, axis=0)
    return kernels * sizes.T * 2.0 ** -(np.arange(bases)[:, None] // taps), scale


def _normalize(fit: _Fit, steps: int) -> None:
    """Common factor into the scales, grid, order by energy, sign such that the largest tap is positive."""
    order = np.argsort(-np.einsum("kmm,mp,mp->m", fit.used, fit.bases, fit.bases), kind="stable")
    bases = fit.bases[order]
    largest = bases[np.arange(len(order)), np.abs(bases).argmax(axis=1)]
    sign = np.where(largest < 0, -1, 1)
    bases = bases * sign[:, None]
    peak = float(np.abs(bases).max()) or 1.0
    bases, fit.scale = bases / peak, fit.scale * peak
    fit.bases = np.rint(bases * steps) / steps if steps else bases
    fit.set_codes(fit.codes[..., order] * sign.astype(np.int8))


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
    target = np.asarray(weight, dtype=np.float64)
    unscaled = reconstruct(bases.astype(np.float64), coefficients, np.ones(len(target)))
    energy = np.einsum("kcrs,kcrs->k", unscaled, unscaled)
    match = np.einsum("kcrs,kcrs->k", target, unscaled)
    fitted = np.divide(match, energy, out=np.zeros_like(match), where=energy > 0)
    return np.where(fitted > 0, fitted, scale).astype(np.float32)
