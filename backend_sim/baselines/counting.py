"""Exact counts that several machines need, from the bitmaps of a layer."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from escc.backend_sim.baselines.workload import ConvWork, Mask

Counts = npt.NDArray[np.int64]


def ceil_div(value: int, by: int) -> int:
    """value / by, rounded up."""
    return -(-value // by)


def near_square(count: int) -> tuple[int, int]:
    """(rows, columns) of a grid of ``count``: the factors nearest to each other, rows the smaller."""
    rows = next(n for n in range(math.isqrt(count), 0, -1) if count % n == 0)
    return rows, count // rows


def tap_activity(work: ConvWork) -> Counts:
    """For every channel and tap, how many output positions read a non-zero value through it: (C, R, S)."""
    _, rows, columns = work.output_shape
    kernel_h, kernel_w = work.weight.shape[2:]
    mask = work.padded_mask
    found = np.empty((mask.shape[0], kernel_h, kernel_w), np.int64)
    for i in range(kernel_h):
        read = mask[:, window(i, rows, work.stride[0], work.dilation[0])].sum(axis=1, dtype=np.int32)
        for j in range(kernel_w):
            found[:, i, j] = read[:, window(j, columns, work.stride[1], work.dilation[1])].sum(axis=1)
    return found


def window(tap: int, outputs: int, stride: int, dilation: int) -> slice:
    """The padded rows (or columns) that a tap reads for all outputs."""
    first = tap * dilation
    return slice(first, first + (outputs - 1) * stride + 1, stride)


def weight_activity(work: ConvWork) -> Counts:
    """Non-zero weights of every channel and tap, all its output channels: (C, R, S)."""
    outs, chans, kernel_h, kernel_w = work.weight.shape
    split = work.weight_mask.reshape(work.groups, outs // work.groups, chans, kernel_h, kernel_w)
    return split.sum(axis=1, dtype=np.int64).reshape(-1, kernel_h, kernel_w)


def active_macs(work: ConvWork) -> int:
    """Multiply-accumulates with a non-zero activation, whatever the weight."""
    return int(tap_activity(work).sum()) * (work.weight.shape[0] // work.groups)


def matches(work: ConvWork) -> int:
    """Multiply-accumulates of which both operands are non-zero: what no machine can avoid."""
    return int((tap_activity(work) * weight_activity(work)).sum())


def run_length_entries(mask: Mask, run_bits: int) -> int:
    """Entries of a run-length code in storage order: a non-zero each, and a zero for every run too long.

    An entry holds up to 2^run_bits - 1 zeros before its value; zeros at the end need none.
    """
    places = np.flatnonzero(mask)
    if not len(places):
        return 0
    runs = np.diff(places, prepend=-1) - 1
    return len(places) + int((runs >> run_bits).sum())


def blocks(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of ``size`` that cover 0 .. count - 1, the last one shorter."""
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))
