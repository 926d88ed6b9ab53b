"""Ternary coding that knows the inputs: least error of a layer's sums instead of its weights.

Codes are chosen input channel by input channel, each error passed on to the channels that follow (block OBS:
OBQ, arXiv 2208.11580, and GPTQ, arXiv 2210.17323, with a codebook of 3^M words per kernel), then improved by
coordinate descent; bases and scales are least squares. The quadratic they work in is :class:`Quadratic`.

Updates are lazy: inside a block of channels the columns of that block alone are kept up to date, the others
follow at the end of the block in one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from escc.passes.math.coding import encode
from escc.passes.math.quadratic import Array, Float, Quadratic, Single

Codes = NDArray[np.int8]

_SMALLEST_SCALE = 1e-12
_COLUMNS = 128
"""About how many columns of H a block has."""


class _Part:
    """The codes of one group, input channels in coding order."""

    def __init__(self, quadratic: Quadratic, codes: Codes, scale: Float) -> None:
        self.quadratic = quadratic
        self.codes = np.ascontiguousarray(codes[:, quadratic.order])
        self.scale = np.asarray(scale, dtype=np.float64)

    def weight(self, bases: Float) -> Single:
        """The weights the codes stand for, (K, n) in coding order."""
        kernels = self.codes.astype(np.float32) @ bases.astype(np.float32)
        return (kernels * self.scale[:, None, None].astype(np.float32)).reshape(len(self.scale), -1)

    def error(self, bases: Float) -> float:
        """Sum over output channels of (w* - w) H (w* - w)^T."""
        rest = self.quadratic.white - self.weight(bases) @ self.quadratic.factor
        return float(np.einsum("kn,kn->", rest, rest, dtype=np.float64))

    def code_in_order(self, bases: Float, penalty: float) -> None:
        """Every code anew, channel by channel, each channel making up for those before it."""
        taps, factor = self.quadratic.taps, self.quadratic.factor
        left = self.quadratic.white.copy()
        kernels = bases.astype(np.float32)
        scale = self.scale.astype(np.float32)[:, None]
        for channels in _blocks(self.quadratic):
            first, end = channels.start * taps, channels.stop * taps
            made = np.empty((len(scale), end - first), dtype=np.float32)
            for channel in channels:
                at = channel * taps
                here = slice(at, at + taps)
                metric = kernels @ factor[here, here]
                codes = self._encode(left[:, here] @ metric.T, metric @ metric.T, penalty)
                self.codes[:, channel] = codes
                kernel = (codes.astype(np.float32) @ kernels) * scale
                made[:, at - first : at - first + taps] = kernel
                left[:, at:end] -= kernel @ factor[here, at:end]
            if end < left.shape[1]:
                left[:, end:] -= made @ factor[first:end, end:]

    def sweep(self, bases: Float, penalty: float) -> int:
        """Coordinate descent: the best code of each channel with all others as they are. Never worse.

        Returns:
            How many codes (kernels) changed.
        """
        taps, covariance = self.quadratic.taps, self.quadratic.covariance
        gradient = self.quadratic.match - self.weight(bases) @ covariance
        kernels = bases.astype(np.float32)
        scale = self.scale.astype(np.float32)[:, None]
        changed = 0
        for channels in _blocks(self.quadratic):
            first, end = channels.start * taps, channels.stop * taps
            moves = np.zeros((len(scale), end - first), dtype=np.float32)
            slope = gradient[:, first:end].copy()
            for channel in channels:
                here = slice(channel * taps, (channel + 1) * taps)
                local = slice(here.start - first, here.stop - first)
                through = kernels @ covariance[here, here]
                gram = through @ kernels.T
                old = self.codes[:, channel].copy()
                # in units of the scale: the optimum of the quadratic lies gradient / block from the old code
                beta = slope[:, local] @ kernels.T + (old.astype(np.float32) @ gram) * scale
                self.codes[:, channel] = new = self._encode(beta, gram, penalty)
                moved = (new != old).any(axis=1)
                count = int(np.count_nonzero(moved))
                if count:
                    changed += count
                    move = ((new - old).astype(np.float32) @ kernels) * scale
                    moves[:, local] = move
                    slope -= move @ covariance[here, first:end]
            gradient -= moves @ covariance[first:end]
        return changed

    def _encode(self, projected: Array, gram: Array, penalty: float) -> Codes:
        """Codes of kernels with the given projections on the bases, both in one metric."""
        beta = projected / self.scale.astype(np.float32)[:, None]
        return encode(beta[:, None, :], gram, penalty / (2 * self.scale**2))[:, 0]

    def fit_scale(self, bases: Float) -> None:
        """Scales by least squares; a channel without a useful code keeps its own."""
        made = self.weight(bases)
        through = made @ self.quadratic.factor
        energy = np.einsum("kn,kn->k", through, through, dtype=np.float64)
        match = np.einsum("kn,kn->k", through, self.quadratic.white, dtype=np.float64)
        ratio = np.where((energy > 0) & (match > 0), match / np.where(energy > 0, energy, 1.0), 1.0)
        self.scale = np.maximum(self.scale * ratio, _SMALLEST_SCALE)

    def normal_equations(self) -> tuple[Float, Float]:
        """The least squares of the bases: matrix (M, P, M, P) and right side (M, P)."""
        outputs, inputs, count = self.codes.shape
        taps = self.quadratic.taps
        scaled = self.codes.astype(np.float32) * self.scale.astype(np.float32)[:, None, None]
        wanted = self.quadratic.match.reshape(outputs * inputs, taps)
        right = scaled.reshape(-1, count).T @ wanted
        flat = scaled.reshape(outputs, inputs * count)
        matrix = np.zeros((count * count, taps * taps), dtype=np.float64)
        for channels in _blocks(self.quadratic):
            here, rows = slice(channels.start, channels.stop), len(channels)
            # sums over output channels of code times code, then against the covariance
            pairs = scaled[:, here].reshape(outputs, -1).T @ flat
            pairs = pairs.reshape(rows, count, inputs, count).transpose(1, 3, 0, 2).reshape(count * count, -1)
            block = self.quadratic.covariance[channels.start * taps : channels.stop * taps]
            block = block.reshape(rows, taps, inputs, taps).transpose(0, 2, 1, 3).reshape(-1, taps * taps)
            matrix += pairs @ block
        matrix = matrix.reshape(count, count, taps, taps).transpose(0, 2, 1, 3)
        return matrix, right.astype(np.float64)


def _blocks(quadratic: Quadratic) -> list[range]:
    """Ranges of channels, each of about _COLUMNS columns."""
    step = max(1, _COLUMNS // quadratic.taps)
    return [range(at, min(at + step, quadratic.inputs)) for at in range(0, quadratic.inputs, step)]


@dataclass(frozen=True)
class LayerCode:
    """A layer coded: W[k, c] ~= scale[k] * sum_m codes[k, c, m] * bases[m].

    Attributes:
        codes: int8 (K, C/groups, M); bases: float64 (M, P), largest magnitude 1; scale: float64 (K,).
        error: of the sums, as a share of the energy of w* (1 for zero weights).
        objective: error + penalty * non-zeros / kernels, at the start and after each round.
    """

    codes: Codes
    bases: Float
    scale: Float
    error: float
    objective: tuple[float, ...]

    @property
    def nonzeros(self) -> int:
        """Coefficients that are not zero."""
        return int(np.count_nonzero(self.codes))


class CovarianceFit:
    """One layer being coded.

    Args:
        quadratics: of each group (one for an ordinary convolution).
        bases: (M, P); scale: (K,); codes: int8 (K, C/groups, M).
        penalty: price of a non-zero coefficient in units of the mean energy of one kernel's output.
    """

    def __init__(
        self, quadratics: Sequence[Quadratic], bases: Float, scale: Float, codes: Codes, penalty: float
    ) -> None:
        self.energy = max(sum(quadratic.energy for quadratic in quadratics), 1e-30)
        self.bases = np.asarray(bases, dtype=np.float64)
        self.kernels = codes.shape[0] * codes.shape[1]
        self.price = penalty * self.energy / self.kernels
        outputs = quadratics[0].outputs
        self._parts = [
            _Part(quadratic, codes[at : at + outputs], np.maximum(scale[at : at + outputs], _SMALLEST_SCALE))
            for quadratic, at in zip(quadratics, range(0, len(codes), outputs), strict=True)
        ]

    @property
    def scale(self) -> Float:
        """(K,)."""
        return np.concatenate([part.scale for part in self._parts])

    @property
    def codes(self) -> Codes:
        """(K, C/groups, M), channels in the layer's own order."""
        found: list[Codes] = []
        for part in self._parts:
            codes = np.empty_like(part.codes)
            codes[:, part.quadratic.order] = part.codes
            found.append(codes)
        return np.concatenate(found)

    def weight(self) -> Single:
        """The weights the codes stand for, (K, C/groups * P), channels in the layer's own order."""
        found: list[Single] = []
        for part in self._parts:
            weight = part.weight(self.bases)
            weight[:, part.quadratic.columns] = weight.copy()
            found.append(weight)
        return np.concatenate(found)

    def error(self) -> float:
        """Share of the energy of w* that is lost."""
        return sum(part.error(self.bases) for part in self._parts) / self.energy

    def objective(self) -> float:
        """Error plus the price of the non-zero coefficients."""
        used = sum(int(np.count_nonzero(part.codes)) for part in self._parts)
        return self.error() + self.price * used / self.energy

    def code_in_order(self) -> None:
        """Block OBS: every code anew."""
        for part in self._parts:
            part.code_in_order(self.bases, self.price)

    def sweep(self) -> int:
        """Coordinate descent over all codes. Never worse; returns how many codes changed."""
        return sum(part.sweep(self.bases, self.price) for part in self._parts)

    def fit_scale(self) -> None:
        """Scales by least squares."""
        for part in self._parts:
            part.fit_scale(self.bases)

    def fit_bases(self) -> None:
        """Bases by least squares, M * P unknowns."""
        equations = [part.normal_equations() for part in self._parts]
        size = self.bases.size
        system = np.sum([matrix for matrix, _ in equations], axis=0).reshape(size, size)
        right = np.sum([side for _, side in equations], axis=0).reshape(-1)
        # an unused basis has empty rows: the ridge leaves it where it is
        ridge = 1e-7 * max(float(np.trace(system)) / size, 1e-30)
        rest = right - system @ self.bases.reshape(-1)
        step = np.linalg.solve(system + ridge * np.eye(size), rest)
        self.bases = self.bases + step.reshape(self.bases.shape)

    def round_bases(self, steps: int) -> None:
        """Largest magnitude 1 (the factor goes to the scales), then the nearest multiples of 1 / steps."""
        peak = float(np.abs(self.bases).max()) or 1.0
        self.bases = np.rint(self.bases / peak * steps) / steps if steps else self.bases / peak
        for part in self._parts:
            part.scale = part.scale * peak

    def state(self) -> tuple[list[Codes], list[Float], Float]:
        """What :meth:`restore` brings back."""
        return [part.codes.copy() for part in self._parts], [part.scale for part in self._parts], self.bases

    def restore(self, state: tuple[list[Codes], list[Float], Float]) -> None:
        """Back to an earlier state."""
        codes, scales, self.bases = state
        for part, code, scale in zip(self._parts, codes, scales, strict=True):
            part.codes, part.scale = code, scale


def refine(fit: CovarianceFit, rounds: int, sweeps: int, steps: int = 127) -> list[float]:
    """Alternate coding and least squares; keeps the best state found.

    Args:
        fit: changed in place.
        rounds: of coding in order, ``sweeps`` coordinate descents, bases and scales.
        steps: bases end on the grid max|B| / steps, so that 8-bit bases lose nothing more; 0: left real.

    Returns:
        The objective at the start and after each round.
    """
    fit.round_bases(steps)
    fit.fit_scale()
    best, state = fit.objective(), fit.state()
    history = [best]
    for _ in range(rounds):
        fit.code_in_order()
        for _ in range(sweeps):
            if not fit.sweep():
                break
        fit.fit_bases()
        fit.round_bases(steps)
        fit.fit_scale()
        history.append(fit.objective())
        if history[-1] < best:
            best, state = history[-1], fit.state()
    fit.restore(state)
    return history


def code_layer(
    quadratics: Sequence[Quadratic],
    start: tuple[Float, Float, Codes],
    penalty: float,
    *,
    rounds: int = 2,
    sweeps: int = 2,
    steps: int = 127,
) -> LayerCode:
    """Code one layer for a price of non-zeros; what costs most, and is the same for all prices, is given.

    Args:
        quadratics: of each group, from :func:`~escc.passes.math.quadratic.layer_quadratic`.
        start: bases (M, P), scale (K,), codes (K, C/groups, M) to begin with; M is theirs. Another penalty's
            result is the best start, :func:`~escc.passes.math.ternary.fit_ternary` the first.
        penalty: price of a non-zero coefficient in units of the mean energy of one kernel's output.
        rounds, sweeps, steps: as in :func:`refine`.
    """
    bases, scale, codes = start
    fit = CovarianceFit(quadratics, bases, scale, codes, penalty)
    history = refine(fit, rounds, sweeps, steps)
    return LayerCode(fit.codes, fit.bases, fit.scale, fit.error(), tuple(history))
