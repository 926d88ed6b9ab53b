"""Which input rows the bands of a convolution read, and how many taps of a kernel land on an output."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from escc.backend_sim.simulator.timing.work import ConvWork
from escc.errors import EsccError

Ints = npt.NDArray[np.int64]


def taps_along(
    positions: Ints, taps: int, stride: int, pad: int, dilation: int, first: int, stop: int
) -> Ints:
    """Taps along one axis that carry each input position to an output in first..stop-1.

    Input i meets tap r of output o where ``o * stride - pad + r * dilation == i``.
    """
    reached = positions[:, None] + pad - dilation * np.arange(taps)
    output, rest = np.divmod(reached, stride)
    return ((rest == 0) & (output >= first) & (output < stop)).sum(axis=1)


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
    every = np.arange(work.height)
    stops = work.y_first + np.cumsum([len(run) for run in np.array_split(np.arange(work.y_rows), work.bands)])
    starts = np.concatenate([[work.y_first], stops[:-1]])
    row_taps = np.stack(
        [
            taps_along(every, work.kernel_h, work.stride_h, work.pad_top, work.dil_h, int(first), int(stop))
            for first, stop in zip(starts, stops, strict=True)
        ]
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
        np.arange(work.width), work.kernel_w, work.stride_w, work.pad_left, work.dil_w, 0, work.y_cols
    )
    return Plan(rows, tuple(np.flatnonzero(taps) for taps in row_taps), row_taps, col_taps)
