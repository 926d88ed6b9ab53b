"""Value ranges: which 8-bit scale represents a map best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from escc.passes.math.fixed_point import limits

Array = NDArray[np.float64]


def map_scale(low: float, high: float, signed: bool) -> float:
    """The smallest scale at which [low, high] fits an 8-bit map; 1.0 for a map that is always zero.

    A negative ``low`` of an unsigned map is ignored: such values saturate at 0.
    """
    smallest, largest = limits(signed)
    scale = max(high / largest, low / smallest if smallest else 0.0)
    return scale if scale > 1e-30 else 1.0


def scale_range(scale: float, signed: bool) -> tuple[float, float]:
    """The range an 8-bit map of this scale covers."""
    smallest, largest = limits(signed)
    return smallest * scale, largest * scale


@dataclass(frozen=True)
class Distribution:
    """A sample of the values of one map: how often each occurs, zeros left out, with the true extremes."""

    values: Array
    counts: Array
    low: float
    high: float

    @staticmethod
    def of(pieces: Sequence[NDArray[Any]], low: float, high: float, bins: int = 2048) -> Distribution:
        """Summarise samples in a histogram.

        Args:
            pieces: sampled values.
            low, high: smallest and largest value of the whole map, samples included.
            bins: resolution; 2048 bins are 8 per step of an 8-bit map that covers the range.

        Zeros are left out because every scale represents them exactly.
        """
        total = np.zeros(bins)
        if high > low:
            for piece in pieces:
                total += np.histogram(piece[piece != 0], bins=bins, range=(low, high))[0]
        width = (high - low) / bins
        centres: Array = low + width * (np.arange(bins, dtype=np.float64) + 0.5)
        kept = total > 0
        return Distribution(centres[kept], total[kept], low, high)

    def percentile(self, percent: float) -> tuple[float, float]:
        """The range that leaves (100 - percent) % of the non-zero values outside.

        Half of them on each side, all above when no value is negative.
        """
        if not len(self.counts):
            return self.low, self.high
        share = np.cumsum(self.counts) / self.counts.sum() * 100.0
        outside = 100.0 - percent
        below = outside / 2.0 if self.low < 0 else 0.0
        last = len(share) - 1
        low = self.values[min(int(np.searchsorted(share, below)), last)] if below else self.low
        high = self.values[min(int(np.searchsorted(share, 100.0 - outside + below)), last)]
        return float(low), float(high)


_ERROR_POWER = 2.4


def best_scale(
    data: Distribution, signed: bool, function: Callable[[Array], Array] | None = None, candidates: int = 64
) -> float:
    """The 8-bit scale with the least error, clipping included.

    The error is the mean of |difference|**2.4: a little dearer than the square for the few large differences
    that clipping makes, because a sample of a map does not show the largest values to come. Candidates run
    from the scale that just fits the extremes down to a tenth of it.

    Args:
        data: the map's values.
        signed: int8 rather than uint8.
        function: measure the error behind this element-wise function (for maps that feed a table).
    """
    smallest, largest = limits(signed)
    start = map_scale(data.low, data.high, signed)
    if not len(data.counts):
        return start
    behind = function if function is not None else _same
    wanted = behind(data.values)
    best, least = start, np.inf
    for share in np.linspace(1.0, 0.1, candidates):
        scale = start * float(share)
        rounded = np.clip(np.rint(data.values / scale), smallest, largest) * scale
        error = float(np.dot(data.counts, np.abs(behind(rounded) - wanted) ** _ERROR_POWER))
        if error < least:
            best, least = scale, error
    return best


def _same(x: Array) -> Array:
    return x
