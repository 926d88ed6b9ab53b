"""What the registers of a convolution say, checked once: windows, boxes in SRAM, limits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from escc.backend_sim.simulator.memory import Block
from escc.backend_sim.simulator.timing.work import Form
from escc.backend_sim.simulator.windows import Axis
from escc.errors import EsccError
from escc.isa.access import accesses, partial_sums
from escc.isa.registers import ConvFlags, ConvRegisters

FORMS: dict[str, Form] = {"conv_combine": "combine", "conv_dense": "dense", "conv_depthwise": "depthwise"}


@dataclass(frozen=True)
class ConvPlan:
    """One convolution instruction, its registers checked.

    ``rows``, ``cols``: the windows along both axes. ``x``, ``y``, ``residual``: boxes in SRAM.
    """

    form: Form
    registers: ConvRegisters
    rows: Axis
    cols: Axis
    x: Block
    y: Block
    residual: Block | None
    x_signed: bool
    y_signed: bool
    residual_signed: bool
    table: bool

    @property
    def taps(self) -> int:
        """Taps of a kernel."""
        return self.rows.taps * self.cols.taps

    @property
    def sums_fetched(self) -> int:
        """Partial sums read from the memory of a row during the instruction, and written to it as often.

        The sums under the window are in registers. As the window moves on, those of the output rows it
        touches leave, and come back with the next input row of theirs: a sum is there once for every input
        row under its kernel, begins at 0 the first time, and is done the last.
        """
        r = self.registers
        return r.outs * r.y_cols * sum(max(0, taps - 1) for taps in self.rows.taps_inside)


@lru_cache(maxsize=8192)
def conv_plan(mnemonic: str, r: ConvRegisters, psum_entries: int) -> ConvPlan:
    """Check the registers of a convolution and work out what it touches.

    Raises:
        EsccError: a register has a value no convolution may have, an input row is not resident, or a row of
            the array would have to hold more than ``psum_entries`` partial sums.
    """
    form = FORMS[mnemonic]
    accesses(mnemonic, r)
    flags = ConvFlags(r.flags)
    sums = partial_sums(r)
    if sums > psum_entries:
        raise EsccError(f"needs {sums} partial sums in a row of the array, which holds {psum_entries}")
    rows = Axis(
        r.y_first, r.y_rows, r.kernel_h, r.stride_h, r.pad_top, r.dil_h, r.height, r.x_first, r.x_rows
    )
    cols = Axis(0, r.y_cols, r.kernel_w, r.stride_w, r.pad_left, r.dil_w, r.width, 0, r.width)
    residual = None
    if flags & ConvFlags.RESIDUAL:
        residual = Block(r.res_addr, r.y_rows, r.y_cols, r.outs, r.res_row, r.res_pos)
    return ConvPlan(
        form,
        r,
        rows,
        cols,
        Block(r.x_addr, r.x_rows, r.width, r.chans, r.x_row, r.x_pos),
        Block(r.y_addr, r.y_rows, r.y_cols, r.outs, r.y_row, r.y_pos),
        residual,
        bool(flags & ConvFlags.X_SIGNED),
        bool(flags & ConvFlags.Y_SIGNED),
        bool(flags & ConvFlags.RESIDUAL_SIGNED),
        bool(flags & ConvFlags.TABLE),
    )
