"""Which input rows the bands of a convolution read, and how many taps of a kernel land on an output."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from escc.backend_sim.simulator.timing.work import ConvWork
from escc.errors import EsccError

Ints = npt.NDArray[np.int64]


@lru_cache(maxsize=4096)
def taps_along(
    extent: int, taps: int, stride: int, pad: int, dilation: int, first: int, count: int, parts: int = 1
) -> Ints:
    """Taps along one axis that carry each input position to an output of each part: (parts, extent).

    Input i meets tap r of output o where ``o * stride - pad + r * dilation == i``. Outputs first to
    first + count - 1 are cut into ``parts`` as numpy.array_split does. The array is kept: not to be written.
    """
    reached = np.arange(extent)[:, None] + (pad - dilation * np.arange(taps))
    output, rest = np.divmod(reached, stride)
    output -= first
    position, tap = ((rest == 0) & (output >= 0) & (output < count)).nonzero()
    longer, size = count % parts, count // parts
    part = np.repeat(np.arange(parts), [size + 1] * longer + [size] * (parts - longer))
    place = part[output[position, tap]] * extent + position
    found = np.bincount(place, minlength=parts * extent).reshape(parts, extent)
    found.setflags(write=False)
    return found


@dataclass(frozen=True)
class Plan:
    """The input rows of a convolution.

    ``rows``: all input rows that some band needs, ascending (R,). ``band_rows``: for each band the indices
    into ``rows`` of those it reads. ``row_taps`` (bands, R) and ``col_taps`` (width,): taps that land on an
    output of the band; the taps of a position are their product.
    """

    rows: Ints
    band_rows: tuple[Ints, ...]
    row_taps: Ints
    col_taps: Ints


def plan(work: ConvWork, x_rows: int) -> Plan:
    """The rows that every band of ``work`` reads: inside the map, with a tap that lands in the band.

    Raises EsccError if one of them is not among the ``x_rows`` resident rows from ``x_first`` on.
    """
    row_taps = taps_along(
        work.height,
        work.kernel_h,
        work.stride_h,
        work.pad_top,
        work.dil_h,
        work.y_first,
        work.y_rows,
        work.bands,
    )
    rows = np.flatnonzero(row_taps.any(axis=0))
    absent = rows[(rows < work.x_first) | (rows >= work.x_first + x_rows)]
    if absent.size:
        raise EsccError(
            f"convolution needs input row {absent[0]}, resident are rows {work.x_first} to "
            f"{work.x_first + x_rows - 1}"
        )
    row_taps = row_taps[:, rows]
    col_taps = taps_along(
        work.width, work.kernel_w, work.stride_w, work.pad_left, work.dil_w, 0, work.y_cols
    )[0]
    return Plan(rows, tuple(np.flatnonzero(taps) for taps in row_taps), row_taps, col_taps)
