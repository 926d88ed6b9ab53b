"""Thresholds: which coefficients stay, and with what sign.

Ternary weight networks (Li et al., arXiv 1605.04711) for signs and scales, their greedy expansion into
several planes, and the magnitude rule of PENNI (ICML 2020). Exact planes of integers: ``fixed_point``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Float = NDArray[np.float64]
Codes = NDArray[np.int8]

TWN_FACTOR = 0.7
"""Threshold in units of the mean magnitude (arXiv 1605.04711, section 2.2)."""


def ternarize(
    values: Array, axis: int | tuple[int, ...] | None = None, factor: float = TWN_FACTOR
) -> tuple[Codes, Float]:
    """Ternary weight network rule: codes = sign(v) where |v| > factor * mean|v|, scale = mean|v| over those.

    Args:
        values: any shape.
        axis: axes over which one threshold and scale is shared; None shares one over everything.
        factor: threshold in units of the mean magnitude.

    Returns:
        (codes int8 of the same shape, scale with the reduced axes kept as size 1; 0 where every code is 0).
        The scale is the least-squares one for the codes.
    """
    magnitude = np.abs(np.asarray(values, dtype=np.float64))
    kept = magnitude > factor * magnitude.mean(axis=axis, keepdims=True)
    count = kept.sum(axis=axis, keepdims=True)
    scale = np.where(kept, magnitude, 0.0).sum(axis=axis, keepdims=True) / np.maximum(count, 1)
    return np.where(kept, np.sign(values), 0).astype(np.int8), scale


def residual_planes(values: Array, planes: int, factor: float = TWN_FACTOR) -> tuple[Codes, Float]:
    """Greedy ternary expansion: each plane ternarises what the planes before it left over.

    Plane p lowers the squared error by exactly (its non-zeros) * scales[p]^2.

    Returns:
        (codes int8 (*shape, planes), scales (planes,)).
    """
    rest = np.array(values, dtype=np.float64)
    codes = np.zeros((*rest.shape, planes), dtype=np.int8)
    scales = np.zeros(planes)
    for plane in range(planes):
        codes[..., plane], scale = ternarize(rest, factor=factor)
        scales[plane] = scale.item()
        rest -= scales[plane] * codes[..., plane]
    return codes, scales


def magnitude_mask(coefficients: Array, deviations: float) -> NDArray[np.bool_]:
    """PENNI's rule: keep |c| >= deviations * std(c), the standard deviation over the whole layer."""
    values = np.asarray(coefficients, dtype=np.float64)
    return np.abs(values) >= deviations * values.std()
