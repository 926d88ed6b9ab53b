"""Which non-zeros of a ternary code can go at the least cost."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from escc.passes.math.basis import kernel_rows

Array = NDArray[Any]
Codes = NDArray[np.int8]

_ROUNDS = 16


def remove_cheapest(weight: Array, bases: Array, codes: Codes, scale: Array, density: float) -> Codes:
    """Set codes to zero until at most ``density`` of them are left, cheapest first.

    Dropping entry m of the code c of kernel w raises its squared error by

        2 g c_m <w - g c B, B_m> + g^2 ||B_m||^2

    for the present bases B and scale g. Entries of one kernel depend on each other, so that a round takes at
    most one from each.

    Args:
        weight: (K, C, R, S) that the codes approximate.
        bases: (M, R, S).
        codes: int8 (K, C, M).
        scale: (K,).
        density: share of non-zeros to keep, 0 to 1.

    Returns:
        int8 (K, C, M).
    """
    surplus = int(np.count_nonzero(codes)) - int(density * codes.size)
    if surplus <= 0:
        return codes
    inputs, count = codes.shape[1:]
    kernels = np.asarray(bases, dtype=np.float64).reshape(count, -1)
    gram = kernels @ kernels.T
    gains = np.repeat(np.asarray(scale, dtype=np.float64), inputs)[:, None]
    kept = codes.reshape(-1, count).astype(np.float64)
    match = kernel_rows(weight) @ kernels.T
    rounds = _ROUNDS
    while surplus > 0:
        price = 2.0 * gains * kept * (match - gains * (kept @ gram)) + gains**2 * np.diag(gram)
        price[kept == 0] = np.inf
        entry = price.argmin(axis=1)
        lowest = price[np.arange(len(price)), entry]
        take = min(-(-surplus // max(rounds, 1)), int(np.isfinite(lowest).sum()))
        rows = np.argpartition(lowest, take - 1)[:take]
        kept[rows, entry[rows]] = 0.0
        surplus -= take
        rounds -= 1
    return kept.astype(np.int8).reshape(codes.shape)
