"""Shared basis kernels of a convolution: the uncentred SVD of its kernels (PENNI, ICML 2020, section 3).

A weight (K, C, R, S) is read as N = K*C rows of P = R*S numbers, one row per kernel. With basis kernels
B (M, R, S), coefficients (K, C, M) and a scale per output channel (K,)::

    W[k, c] ~= scale[k] * sum_m coefficients[k, c, m] * B[m]

The rows are not centred: a mean kernel is not part of the model, so subtracting one would lose it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Float = NDArray[np.float64]


def kernel_rows(weight: Array) -> Float:
    """The kernels of a weight (K, C, R, S) as rows (K*C, R*S), float64."""
    return np.asarray(weight, dtype=np.float64).reshape(weight.shape[0] * weight.shape[1], -1)


def principal_kernels(weight: Array) -> tuple[Float, Float]:
    """All principal directions of the kernels, strongest first.

    Returns:
        (kernels (P, R, S) orthonormal, energies (P,)): energies are the squared singular values of the row
        matrix; they sum to the energy of the weight.
    """
    rows = kernel_rows(weight)
    values, vectors = np.linalg.eigh(rows.T @ rows)
    kernels = np.ascontiguousarray(vectors[:, ::-1].T).reshape(-1, *weight.shape[2:])
    return kernels, np.maximum(values[::-1], 0.0)


def svd_decompose(weight: Array, bases: int) -> tuple[Float, Float]:
    """Best real-valued decomposition with ``bases`` shared kernels (Eckart-Young).

    Its squared error is the tail energy ``principal_kernels(weight)[1][bases:].sum()``; with R*S bases it is
    exact.

    Returns:
        (bases (M, R, S) orthonormal, coefficients (K, C, M)), M = min(bases, R*S).
    """
    kernels = principal_kernels(weight)[0][:bases]
    coefficients = kernel_rows(weight) @ kernels.reshape(len(kernels), -1).T
    return kernels, coefficients.reshape(*weight.shape[:2], -1)


def reconstruct(bases: Array, coefficients: Array, scale: Array) -> Array:
    """The weight (K, C, R, S) that a decomposition stands for, in the precision of ``bases``."""
    kernels = bases.reshape(len(bases), -1)
    rows = (coefficients.astype(bases.dtype) @ kernels) * scale.astype(bases.dtype)[:, None, None]
    return rows.reshape(*coefficients.shape[:2], *bases.shape[1:])


def relative_error(weight: Array, approximation: Array) -> float:
    """||W - A||^2 / ||W||^2 (0 for two zero weights)."""
    exact = np.asarray(weight, dtype=np.float64)
    energy = float(np.vdot(exact, exact))
    difference = exact - approximation
    error = float(np.vdot(difference, difference))
    return error / energy if energy else float(error > 0)
