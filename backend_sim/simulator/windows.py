"""Which input values a window instruction reads, and reading them from SRAM into a padded array."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Axis:
    """One axis of a window operation, in whole-map coordinates.

    Output o (``first`` .. ``first + count - 1``) reads inputs ``o * stride - pad + t * dilation`` for taps
    t = 0..taps-1. ``extent`` inputs exist; ``held_first`` .. ``held_first + held - 1`` are resident.
    """

    first: int
    count: int
    taps: int
    stride: int
    pad: int
    dilation: int
    extent: int
    held_first: int
    held: int

    @cached_property
    def step(self) -> int:
        """Distance of the inputs to gather: with one tap only every stride-th is needed."""
        return self.stride if self.taps == 1 else 1

    @cached_property
    def out_stride(self) -> int:
        """Stride that remains once only the needed inputs are gathered."""
        return 1 if self.taps == 1 else self.stride

    @cached_property
    def start(self) -> int:
        """Input coordinate of the first gathered value."""
        return self.first * self.stride - self.pad

    @cached_property
    def size(self) -> int:
        """Gathered values, padding included."""
        return ((self.count - 1) * self.stride + (self.taps - 1) * self.dilation) // self.step + 1

    @cached_property
    def inside(self) -> tuple[int, int]:
        """First and one-past-last gathered index that is resident and inside the map."""
        low, high = max(0, self.held_first), min(self.extent, self.held_first + self.held)
        first = min(max(-(-(low - self.start) // self.step), 0), self.size)
        stop = min(max(-(-(high - self.start) // self.step), first), self.size)
        return first, stop

    @cached_property
    def taps_inside(self) -> list[int]:
        """Taps of each output that land inside the map, (count,)."""
        starts = np.arange(self.first, self.first + self.count) * self.stride - self.pad
        reads = starts[:, None] + np.arange(self.taps) * self.dilation
        return np.count_nonzero((reads >= 0) & (reads < self.extent), axis=1).tolist()

    @cached_property
    def source(self) -> slice:
        """The resident values that the inside indices are, counted from the first resident one."""
        first, stop = self.inside
        if stop == first:
            return slice(0, 0)
        begin = self.start + first * self.step - self.held_first
        return slice(begin, begin + (stop - first - 1) * self.step + 1, self.step)


def gather(
    source: npt.NDArray[Any], rows: Axis, cols: Axis, out: npt.NDArray[Any], fill: int = 0
) -> npt.NDArray[Any]:
    """Copy the inputs of a window operation out of SRAM, padding filled in.

    ``source``: (n, resident rows, width, chans) int8 or uint8. ``out``: (n, rows.size, cols.size, chans).
    """
    fill_inside(source, rows, cols, pad(rows, cols, out, fill))
    return out


def pad(rows: Axis, cols: Axis, out: npt.NDArray[Any], fill: int = 0) -> npt.NDArray[Any]:
    """Set the padding of ``out`` (n, rows.size, cols.size, chans)."""
    (top, bottom), (left, right) = rows.inside, cols.inside
    out[:, :top] = fill
    out[:, bottom:] = fill
    out[:, top:bottom, :left] = fill
    out[:, top:bottom, right:] = fill
    return out


def fill_inside(source: npt.NDArray[Any], rows: Axis, cols: Axis, out: npt.NDArray[Any]) -> None:
    """Copy what is inside the map to ``out`` (n, rows.size, cols.size, chans)."""
    (top, bottom), (left, right) = rows.inside, cols.inside
    if bottom > top and right > left:
        np.copyto(out[:, top:bottom, left:right], source[:, rows.source, cols.source])
