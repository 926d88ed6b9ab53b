"""What the registers of a vector instruction say, checked once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
import numpy.typing as npt

from escc.backend_sim.simulator.memory import Block
from escc.backend_sim.simulator.windows import Axis
from escc.isa.access import accesses
from escc.isa.registers import VecFlags, VecRegisters

POOLS = ("vec_max", "vec_avg")
TWO_OPERANDS = ("vec_add", "vec_mul")
ELEMENT_WISE = ("vec_add", "vec_mul", "vec_lut", "vec_fill")

Cell = tuple[tuple[int, slice], tuple[int, slice]]


@dataclass(frozen=True)
class VecPlan:
    """One vector instruction, its registers checked. ``rows``, ``cols``: which inputs of a it reads."""

    mnemonic: str
    registers: VecRegisters
    rows: Axis
    cols: Axis
    a: Block | None
    b: Block | None
    y: Block
    a_signed: bool
    b_signed: bool
    table: bool
    adaptive: bool
    count_include_pad: bool

    @property
    def positions(self) -> int:
        """Output positions."""
        return self.registers.y_rows * self.registers.y_cols

    @property
    def windows(self) -> int:
        """Sum of the window sizes over all output positions: the vector unit's work per channel group."""
        if self.mnemonic not in POOLS:
            return self.positions
        if not self.adaptive:
            return self.positions * self.rows.taps * self.cols.taps
        return int(self.counts().sum())

    def cells(self) -> Iterator[Cell]:
        """The windows of adaptive pooling: (index, slice of resident rows), (index, slice of columns)."""
        r = self.registers
        rows = [_adaptive(r.y_first + i, r.height, r.kernel_h, r.a_first) for i in range(r.y_rows)]
        cols = [_adaptive(j, r.width, r.kernel_w, 0) for j in range(r.y_cols)]
        yield from product(enumerate(rows), enumerate(cols))

    def counts(self) -> npt.NDArray[np.int64]:
        """How many values each window counts for its average, (y_rows, y_cols)."""
        r = self.registers
        if self.adaptive:
            sizes = [(row.stop - row.start) * (col.stop - col.start) for (_, row), (_, col) in self.cells()]
            return np.array(sizes, np.int64).reshape(r.y_rows, r.y_cols)
        if self.count_include_pad:
            return np.full((r.y_rows, r.y_cols), r.kernel_h * r.kernel_w, np.int64)
        return _inside(self.rows)[:, None] * _inside(self.cols)[None, :]


def _inside(axis: Axis) -> npt.NDArray[np.int64]:
    """Taps of every output that land inside the map."""
    first = np.arange(axis.first, axis.first + axis.count) * axis.stride - axis.pad
    inputs = first[:, None] + np.arange(axis.taps) * axis.dilation
    return ((inputs >= 0) & (inputs < axis.extent)).sum(axis=1)


def _adaptive(index: int, extent: int, total: int, held_first: int) -> slice:
    """floor(i * H / O) .. ceil((i + 1) * H / O), counted from the first resident row."""
    first, stop = index * extent // total, -(-(index + 1) * extent // total)
    return slice(first - held_first, stop - held_first)


@lru_cache(maxsize=8192)
def vec_plan(mnemonic: str, r: VecRegisters) -> VecPlan:
    """Check the registers of a vector instruction and work out what it touches.

    Raises:
        EsccError: a register has a value no such instruction may have, or an input row is not resident.
    """
    accesses(mnemonic, r)
    flags = VecFlags(r.flags)
    adaptive = mnemonic in POOLS and bool(flags & VecFlags.ADAPTIVE)
    table = mnemonic == "vec_lut" or (mnemonic == "vec_add" and bool(flags & VecFlags.TABLE))
    y = Block(r.y_addr, r.y_rows, r.y_cols, r.chans, r.y_row, r.y_pos)
    rows, cols = _axes(mnemonic, r, adaptive)
    return VecPlan(
        mnemonic,
        r,
        rows,
        cols,
        None if mnemonic == "vec_fill" else Block(r.a_addr, r.a_rows, cols.held, r.chans, r.a_row, r.a_pos),
        Block(r.b_addr, r.y_rows, r.y_cols, r.chans, r.b_row, r.b_pos) if mnemonic in TWO_OPERANDS else None,
        y,
        bool(flags & VecFlags.A_SIGNED),
        bool(flags & VecFlags.B_SIGNED),
        table,
        adaptive,
        bool(flags & VecFlags.COUNT_INCLUDE_PAD),
    )


def _axes(mnemonic: str, r: VecRegisters, adaptive: bool) -> tuple[Axis, Axis]:
    """The windows along both axes; element-wise work does not look at the size of the whole map."""
    if mnemonic in ELEMENT_WISE or adaptive:
        rows = Axis(r.y_first, r.y_rows, 1, 1, 0, 1, r.a_first + r.a_rows, r.a_first, r.a_rows)
        width = r.width if adaptive else r.y_cols
        return rows, Axis(0, r.y_cols, 1, 1, 0, 1, width, 0, width)
    kernel = (r.kernel_h, r.kernel_w) if mnemonic in POOLS else (1, 1)
    return (
        Axis(r.y_first, r.y_rows, kernel[0], r.stride_h, r.pad_top, 1, r.height, r.a_first, r.a_rows),
        Axis(0, r.y_cols, kernel[1], r.stride_w, r.pad_left, 1, r.width, 0, r.width),
    )
