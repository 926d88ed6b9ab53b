"""Ternary coding that knows the inputs: least error of a layer's sums instead of its weights.

For patches x of the layer's real inputs with covariance H = E[x x^T], the error of output channel k is

    E |y_k - w_k' . x|^2 = const + (w_k* - w_k')^T H (w_k* - w_k'),   w_k* = H^-1 E[x y_k],

where y are the sums of the original network, so that w* also repairs what earlier layers got wrong. Codes are
chosen input channel by input channel, each error passed on to the channels that follow (block OBS: OBQ and
GPTQ with a codebook of 3^d words per kernel), then improved by coordinate descent; bases and scales are least
squares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from escc.passes.math.coding import encode

Float = NDArray[np.float64]
Codes = NDArray[np.int8]

_SMALLEST_SCALE = 1e-12


@dataclass
class CovarianceFit:
    """One layer being coded. All weights are (K, C * P), a kernel's P = R * S taps together.

    Attributes:
        target: least-squares weights w*.
        covariance: H, (C * P, C * P), positive definite.
        bases: (M, P); scale: (K,); codes: int8 (K, C, M).
        penalty: price of one non-zero coefficient, in units of the error.
    """

    target: Float
    covariance: Float
    bases: Float
    scale: Float
    codes: Codes
    penalty: float

    @property
    def taps(self) -> int:
        """Taps of a kernel, P."""
        return self.bases.shape[1]

    @property
    def inputs(self) -> int:
        """Input channels, C."""
        return self.codes.shape[1]

    def weight(self) -> Float:
        """The weights the codes stand for, (K, C * P)."""
        kernels = np.einsum("kcm,mp->kcp", self.codes.astype(np.float64), self.bases)
        return (kernels * self.scale[:, None, None]).reshape(len(self.scale), -1)

    def error(self) -> float:
        """Sum over output channels of (w* - w')^T H (w* - w')."""
        difference = self.target - self.weight()
        return float(np.einsum("kn,kn->", difference @ self.covariance, difference))

    def objective(self) -> float:
        """Error plus the price of the non-zero coefficients."""
        return self.error() + self.penalty * float(np.count_nonzero(self.codes))

    # -- codes ----------------------------------------------------------------------------------------------
    def code_in_order(self) -> None:
        """Block OBS: code channel by channel, the most energetic inputs first, passing errors on."""
        taps = self.taps
        energy = np.diagonal(self.covariance).reshape(self.inputs, taps).sum(axis=1)
        order = np.argsort(-energy, kind="stable")
        index = (order[:, None] * taps + np.arange(taps)).reshape(-1)
        inverse = np.linalg.inv(self.covariance[np.ix_(index, index)])
        # inverse = U^T U with U upper triangular: the rows from q on factor the inverse of what is left at q
        upper = np.linalg.cholesky(inverse).T
        left = self.target[:, index].copy()
        codes = np.empty_like(self.codes)
        for position, channel in enumerate(order):
            here = slice(position * taps, (position + 1) * taps)
            rest = slice((position + 1) * taps, None)
            white = np.linalg.inv(upper[here, here])
            codes[:, channel] = self._best(left[:, here] @ white, self.bases @ white)
            made = (codes[:, channel].astype(np.float64) @ self.bases) * self.scale[:, None]
            error = (left[:, here] - made) @ white
            left[:, rest] -= error @ upper[here, rest]
        self.codes = codes

    def sweep(self) -> None:
        """Coordinate descent: the best code of each channel with all others as they are. Never worse."""
        taps = self.taps
        gradient = (self.target - self.weight()) @ self.covariance
        for channel in range(self.inputs):
            here = slice(channel * taps, (channel + 1) * taps)
            block = self.covariance[here, here]
            old = (self.codes[:, channel].astype(np.float64) @ self.bases) * self.scale[:, None]
            # the optimum of the quadratic for this block is old + gradient / block; its projection is linear
            projected = (old @ block + gradient[:, here]) @ self.bases.T
            gram = self.bases @ block @ self.bases.T
            self.codes[:, channel] = self._encode(projected, gram)
            new = (self.codes[:, channel].astype(np.float64) @ self.bases) * self.scale[:, None]
            gradient -= (new - old) @ self.covariance[here]

    def _best(self, kernels: Float, bases: Float) -> Codes:
        return self._encode(kernels @ bases.T, bases @ bases.T)

    def _encode(self, projected: Float, gram: Float) -> Codes:
        """Codes of kernels with the given projections on the bases, both in one metric."""
        beta = projected / self.scale[:, None]
        price = self.penalty / (2 * self.scale**2)
        return encode(beta[:, None, :], gram, price)[:, 0]

    # -- bases and scales -----------------------------------------------------------------------------------
    def fit_scale(self) -> None:
        """Scales by least squares; a channel without a useful code keeps its own."""
        made = self.weight()
        through = made @ self.covariance
        energy = np.einsum("kn,kn->k", through, made)
        match = np.einsum("kn,kn->k", through, self.target)
        ratio = np.where((energy > 0) & (match > 0), match / np.where(energy > 0, energy, 1.0), 1.0)
        self.scale = np.maximum(self.scale * ratio, _SMALLEST_SCALE)

    def fit_bases(self) -> None:
        """Bases by least squares, M * P unknowns."""
        outputs, inputs, count = self.codes.shape
        taps = self.taps
        matrix = np.zeros((count, taps, count, taps))
        right = np.zeros((count, taps))
        by_channel = self.covariance.reshape(inputs, taps * inputs * taps)
        wanted = (self.target @ self.covariance).reshape(outputs, inputs, taps)
        for output in range(outputs):
            codes = self.codes[output].astype(np.float64)
            half = (codes.T @ by_channel).reshape(count, taps, inputs, taps)
            matrix += self.scale[output] ** 2 * np.einsum("mpcq,cn->mpnq", half, codes, optimize=True)
            right += self.scale[output] * (codes.T @ wanted[output])
        size = count * taps
        system = matrix.reshape(size, size)
        # an unused basis has empty rows: the ridge leaves it where it is
        ridge = 1e-9 * max(float(np.trace(system)) / size, 1e-30)
        system = system + ridge * np.eye(size)
        self.bases = np.linalg.solve(system, right.reshape(-1) + ridge * self.bases.reshape(-1)).reshape(
            count, taps
        )


def least_squares_target(
    inputs: Float, sums: Float, weight: Float, damping: float
) -> tuple[Float, Float]:
    """Target weights and covariance from samples.

    Args:
        inputs: patches (n, C * P) as the compressed network sees them.
        sums: what the original network computed there, (n, K).
        weight: original weights (K, C * P): where the data says nothing, the target stays there.
        damping: share of the mean variance added to the diagonal of H.

    Returns:
        w* (K, C * P) and H (C * P, C * P), both for inputs with their mean removed (the bias takes it).
    """
    centred = inputs - inputs.mean(axis=0)
    size = centred.shape[1]
    covariance = centred.T @ centred / len(centred)
    cross = (sums - sums.mean(axis=0)).T @ centred / len(centred)
    ridge = damping * max(float(np.trace(covariance)) / size, 1e-12)
    covariance = covariance + ridge * np.eye(size)
    target = np.linalg.solve(covariance, (cross + ridge * weight).T).T
    return target, covariance


def refine(fit: CovarianceFit, rounds: int, sweeps: int) -> list[float]:
    """Alternate coding and least squares; keeps the best state found.

    Returns:
        The objective at the start and after each round.
    """
    fit.fit_scale()
    best = (fit.objective(), fit.codes, fit.bases, fit.scale)
    history = [best[0]]
    for _ in range(rounds):
        fit.code_in_order()
        for _ in range(sweeps):
            fit.sweep()
        fit.fit_bases()
        fit.fit_scale()
        value = fit.objective()
        history.append(value)
        if value < best[0]:
            best = (value, fit.codes.copy(), fit.bases, fit.scale)
    _, fit.codes, fit.bases, fit.scale = best
    return history
