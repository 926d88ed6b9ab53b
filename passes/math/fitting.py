"""What alternating least squares works on: codes, bases and scales of a layer, and the objective.

Weights are in units in which the mean kernel energy is 1. The codes enter the fits of bases and scales, and
the objective, only through statistics of each output k: ``used[k] = T[k]^T T[k]`` (M, M) and
``match[k] = T[k]^T W[k]`` (M, P). :class:`KernelFit` takes them from the codes themselves. For kernels of one
weight :class:`SingleFit` does without: codes change at thresholds of the weight, so that statistics are
differences of running sums over each output's weights in order, and an exact alternation costs as much for a
thousand weights as for ten.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from escc.passes.math.coding import Lines, descend, encode, pick

Array = NDArray[Any]
Float = NDArray[np.float64]
Single = NDArray[np.float32]
Codes = NDArray[np.int8]


class Fit(ABC):
    """The variables of one alternation.

    Attributes:
        rows: float32 (K, C, P), the kernels.
        penalty: price of a non-zero.
        bases: (M, P).
        scale: (K,).
        energy: of all kernels.
        nonzeros: of the present codes.
    """

    def __init__(self, rows: Single, penalty: float, bases: Float, scale: Float) -> None:
        self.rows, self.penalty, self.bases, self.scale = rows, penalty, bases, scale
        # not a BLAS product: those of long vectors go to threads, which costs more than it gains
        self.energy = float(np.einsum("kcp,kcp->", rows, rows, dtype=np.float64))
        self.nonzeros = 0

    @abstractmethod
    def recode(self, exact: bool) -> bool:
        """Better codes for the present bases and scales; False (and nothing changes) if there are none."""

    @abstractmethod
    def codes(self) -> Codes:
        """The present codes, (K, C, M)."""

    @abstractmethod
    def usage(self) -> Float:
        """(M,) kernels that use each basis."""

    @abstractmethod
    def reorder(self, order: Array, sign: Array) -> None:
        """Codes for bases that were put in another order and then multiplied by ``sign``."""

    @abstractmethod
    def _of_outputs(self) -> tuple[Float, Float]:
        """(K,) ||T[k] B||^2 and <W[k], T[k] B> for the present bases."""

    @abstractmethod
    def _of_bases(self) -> tuple[Float, Float]:
        """Least squares of the bases for the present scales: matrix (M, M), right side (M, P)."""

    def refit(self, rounds: int) -> None:
        """Least-squares scales and bases in turns."""
        for _ in range(rounds):
            self.refit_scale()
            normal, right = self._of_bases()
            rest = right - normal @ self.bases
            # a little damping: directions that no code uses keep what they had
            damping = (1e-9 * np.trace(normal) + 1e-30) * np.eye(len(normal))
            self.bases = self.bases + np.linalg.solve(normal + damping, rest)

    def refit_scale(self) -> None:
        """g = <W, TB> / ||TB||^2 for each output; outputs without codes keep theirs."""
        energy, match = self._of_outputs()
        fitted = np.divide(match, energy, out=np.zeros_like(match), where=energy > 0)
        self.scale = np.where(fitted > 0, fitted, self.scale)

    def error(self) -> float:
        """Squared error, relative to the energy of all kernels; 0 for kernels of zeros."""
        return self._squared_error() / self.energy if self.energy else 0.0

    def objective(self) -> float:
        """Squared error plus penalty, per kernel: so relative to the weight's energy."""
        whole = self._squared_error() + self.penalty * self.nonzeros
        return whole / (self.rows.shape[0] * self.rows.shape[1])

    def _squared_error(self) -> float:
        energy, match = self._of_outputs()
        # rounding can take an exact fit below zero
        return max(self.energy + float(self.scale @ (self.scale * energy - 2.0 * match)), 0.0)


class KernelFit(Fit):
    """Kernels of several weights."""

    def __init__(self, rows: Single, penalty: float, bases: Float, scale: Float) -> None:
        super().__init__(rows, penalty, bases, scale)
        # the objective is a difference of large numbers where the fit is close
        self._wide = rows.astype(np.float64)
        self._set(np.zeros((*rows.shape[:2], len(bases)), dtype=np.int8))

    def _set(self, codes: Codes) -> None:
        self._codes = codes
        values = codes.astype(np.float32)
        turned = values.transpose(0, 2, 1)
        self._used = (turned @ values).astype(np.float64)
        self._match = turned.astype(np.float64) @ self._wide
        self.nonzeros = int(np.count_nonzero(codes))

    def recode(self, exact: bool) -> bool:
        beta = self.bases.astype(np.float32) @ self.rows.transpose(0, 2, 1)
        beta /= self.scale[:, None, None].astype(np.float32)
        beta = beta.transpose(0, 2, 1)
        gram, mu = self.bases @ self.bases.T, 0.5 * self.penalty / self.scale**2
        before, old = self.objective(), (self._codes, self._used, self._match, self.nonzeros)
        self._set(encode(beta, gram, mu) if exact else descend(beta, gram, mu, self._codes, sweeps=2))
        if self.objective() < before:
            return True
        self._codes, self._used, self._match, self.nonzeros = old
        return False

    def codes(self) -> Codes:
        return self._codes

    def usage(self) -> Float:
        return np.einsum("kmm->m", self._used)

    def reorder(self, order: Array, sign: Array) -> None:
        self._set(self._codes[..., order] * sign.astype(np.int8))

    def _of_outputs(self) -> tuple[Float, Float]:
        energy = np.einsum("kmn,mn->k", self._used, self.bases @ self.bases.T)
        return energy, np.einsum("kmp,mp->k", self._match, self.bases)

    def _of_bases(self) -> tuple[Float, Float]:
        normal = np.einsum("k,kmn->mn", self.scale**2, self._used)
        return normal, np.einsum("k,kmp->mp", self.scale, self._match)


class SingleFit(Fit):
    """Kernels of one weight: codes are always the best ones."""

    def __init__(self, rows: Single, penalty: float, bases: Float, scale: Float) -> None:
        super().__init__(rows, penalty, bases, scale)
        sizes = np.sort(np.abs(rows[..., 0]), axis=1)
        self._sums = np.zeros((sizes.shape[0], sizes.shape[1] + 1))
        np.cumsum(sizes, axis=1, dtype=np.float64, out=self._sums[:, 1:])
        # all outputs in one ascending array: one search finds the thresholds of all of them
        self._step = 2.0 * float(sizes[:, -1].max(initial=0.0)) + 1.0
        keys = sizes + self._step * np.arange(len(sizes))[:, None]
        self._keys = keys.reshape(-1)
        nothing = np.zeros((1, len(bases)))
        empty = np.zeros((len(sizes), 1))
        self._state = nothing, np.zeros(empty.shape, np.float32), empty + sizes.shape[1], self._sums[:, -1:]

    def recode(self, exact: bool) -> bool:
        outputs, inputs, _ = self.rows.shape
        lines = Lines(self.bases[:, 0], 0.5 * self.penalty / self.scale**2)
        starts = (lines.starts * self.scale[:, None]).astype(np.float32)
        first = np.arange(outputs)[:, None]
        wanted = np.minimum(starts, self._step - 1.0) + self._step * first
        found = np.searchsorted(self._keys, wanted.reshape(-1)).reshape(starts.shape) - inputs * first
        bounds = np.column_stack([found, np.full(outputs, inputs)])
        counts = np.diff(bounds, axis=1).astype(np.float64)
        sums = np.diff(np.take_along_axis(self._sums, bounds, axis=1), axis=1)
        before, old = self.objective(), (self._state, self.nonzeros)
        self._state = lines.codes.astype(np.float64), starts, counts, sums
        self.nonzeros = int(counts.sum(axis=0) @ np.abs(lines.codes).sum(axis=1))
        if self.objective() < before:
            return True
        self._state, self.nonzeros = old
        return False

    def codes(self) -> Codes:
        levels, starts, _, _ = self._state
        return pick(self.rows[..., 0], levels.astype(np.int8), starts)

    def usage(self) -> Float:
        levels, _, counts, _ = self._state
        return counts.sum(axis=0) @ np.abs(levels)

    def reorder(self, order: Array, sign: Array) -> None:
        levels, *rest = self._state
        self._state = (levels[:, order] * sign, *rest)

    def _of_outputs(self) -> tuple[Float, Float]:
        levels, _, counts, sums = self._state
        slopes = levels @ self.bases[:, 0]
        return counts @ slopes**2, sums @ slopes

    def _of_bases(self) -> tuple[Float, Float]:
        levels, _, counts, sums = self._state
        normal = (levels.T * (self.scale**2 @ counts)) @ levels
        return normal, (levels.T @ (self.scale @ sums))[:, None]
