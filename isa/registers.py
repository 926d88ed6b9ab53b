"""The register table. Three unit register files, declared as typed named tuples, and 32 general registers.

Each field's annotation carries its width and meaning; the table `REGISTERS`, the encoder, the sequencer and
the reference page all derive from these classes. A value of one of the classes is a snapshot of the unit's
registers, as a queue instruction takes it at dispatch.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints

GENERAL_REGISTERS = 32
GENERAL_BITS = 48
IMMEDIATE_BITS = 48


class Field(NamedTuple):
    """What a register holds: ``width`` in bits (negative: signed), ``measure`` its unit, ``meaning``."""

    width: int
    measure: str
    meaning: str


class ConvFlags(IntFlag):
    """Bits of the register conv.flags."""

    X_SIGNED = 1
    Y_SIGNED = 2
    RESIDUAL = 4
    RESIDUAL_SIGNED = 8
    TABLE = 16
    TWO_LEVEL = 32


class VecFlags(IntFlag):
    """Bits of the register vec.flags."""

    A_SIGNED = 1
    B_SIGNED = 2
    Y_SIGNED = 4
    TABLE = 8
    COUNT_INCLUDE_PAD = 16
    ADAPTIVE = 32


class DmaRegisters(NamedTuple):
    """Registers of the DMA unit."""

    dram: Annotated[int, Field(40, "byte", "DRAM address of the first byte moved")] = 0
    sram: Annotated[int, Field(40, "byte", "SRAM address of the first byte moved")] = 0
    size: Annotated[int, Field(40, "byte", "bytes of a load_stream")] = 0
    rows: Annotated[int, Field(24, "row", "rows of the map tile")] = 0
    cols: Annotated[int, Field(24, "column", "columns of the map tile")] = 0
    chans: Annotated[int, Field(24, "channel", "channels of the map tile")] = 0
    dram_row: Annotated[int, Field(40, "byte", "row pitch in DRAM")] = 0
    dram_pos: Annotated[int, Field(40, "byte", "position pitch in DRAM")] = 0
    sram_row: Annotated[int, Field(40, "byte", "row pitch in SRAM")] = 0
    sram_pos: Annotated[int, Field(40, "byte", "position pitch in SRAM")] = 0


class ConvRegisters(NamedTuple):
    """Registers of the convolution blocks."""

    x_addr: Annotated[
        int, Field(40, "byte", "SRAM address of the input: row x_first, column 0, first used channel")
    ] = 0
    x_row: Annotated[int, Field(40, "byte", "row pitch of the input")] = 0
    x_pos: Annotated[int, Field(40, "byte", "position pitch of the input")] = 0
    x_first: Annotated[int, Field(-24, "row", "first resident input row, counted in the whole map")] = 0
    x_rows: Annotated[int, Field(24, "row", "resident input rows")] = 0
    height: Annotated[int, Field(24, "row", "height of the whole input map")] = 0
    width: Annotated[int, Field(24, "column", "width of the whole input map")] = 0
    chans: Annotated[int, Field(24, "channel", "input channels this instruction combines")] = 0
    y_addr: Annotated[
        int, Field(40, "byte", "SRAM address of the output: row y_first, column 0, channel 0 of the tile")
    ] = 0
    y_row: Annotated[int, Field(40, "byte", "row pitch of the output")] = 0
    y_pos: Annotated[int, Field(40, "byte", "position pitch of the output")] = 0
    y_first: Annotated[int, Field(24, "row", "first output row, counted in the whole map")] = 0
    y_rows: Annotated[int, Field(24, "row", "output rows of this instruction")] = 0
    y_cols: Annotated[int, Field(24, "column", "output columns")] = 0
    outs: Annotated[int, Field(24, "channel", "output channels of this instruction")] = 0
    kernel_h: Annotated[int, Field(16, "row", "kernel height")] = 0
    kernel_w: Annotated[int, Field(16, "column", "kernel width")] = 0
    stride_h: Annotated[int, Field(16, "row", "vertical stride")] = 0
    stride_w: Annotated[int, Field(16, "column", "horizontal stride")] = 0
    pad_top: Annotated[int, Field(-16, "row", "zero rows above the map")] = 0
    pad_left: Annotated[int, Field(-16, "column", "zero columns left of the map")] = 0
    dil_h: Annotated[int, Field(16, "row", "vertical distance of kernel taps")] = 0
    dil_w: Annotated[int, Field(16, "column", "horizontal distance of kernel taps")] = 0
    bases: Annotated[int, Field(16, "kernel", "basis kernels M of conv_combine")] = 0
    multiplier: Annotated[
        int, Field(16, "channel", "output channels per input channel of conv_depthwise")
    ] = 0
    coef_addr: Annotated[int, Field(40, "byte", "SRAM address of the coefficient row streams")] = 0
    basis_addr: Annotated[int, Field(40, "byte", "SRAM address of the kernels")] = 0
    quant_addr: Annotated[
        int, Field(40, "byte", "SRAM address of the requantisation records, 9 bytes per output")
    ] = 0
    table_addr: Annotated[int, Field(40, "byte", "SRAM address of the 256-byte table")] = 0
    res_addr: Annotated[
        int, Field(40, "byte", "SRAM address of the residual: row y_first, column 0, channel 0")
    ] = 0
    res_row: Annotated[int, Field(40, "byte", "row pitch of the residual")] = 0
    res_pos: Annotated[int, Field(40, "byte", "position pitch of the residual")] = 0
    res_mult: Annotated[int, Field(-32, "", "multiplier of the residual")] = 0
    res_shift: Annotated[int, Field(6, "bit", "right shift of the residual")] = 0
    low: Annotated[int, Field(-16, "", "lowest output value")] = 0
    high: Annotated[int, Field(-16, "", "highest output value")] = 0
    bands: Annotated[int, Field(24, "", "bands the output rows are cut into")] = 0
    flags: Annotated[
        int,
        Field(
            6,
            "",
            "bits: 0 x signed, 1 y signed, 2 residual present, 3 residual signed, 4 table, 5 two-level masks",
        ),
    ] = 0


class VecRegisters(NamedTuple):
    """Registers of the vector unit."""

    a_addr: Annotated[
        int, Field(40, "byte", "SRAM address of operand a: row a_first, column 0, first used channel")
    ] = 0
    a_row: Annotated[int, Field(40, "byte", "row pitch of a")] = 0
    a_pos: Annotated[int, Field(40, "byte", "position pitch of a")] = 0
    a_first: Annotated[int, Field(-24, "row", "first resident row of a, counted in the whole map")] = 0
    a_rows: Annotated[int, Field(24, "row", "resident rows of a")] = 0
    height: Annotated[int, Field(24, "row", "height of the whole map a")] = 0
    width: Annotated[int, Field(24, "column", "width of the whole map a")] = 0
    b_addr: Annotated[
        int, Field(40, "byte", "SRAM address of operand b: row y_first, column 0, first used channel")
    ] = 0
    b_row: Annotated[int, Field(40, "byte", "row pitch of b; 0 with b_pos = 0 broadcasts one position")] = 0
    b_pos: Annotated[int, Field(40, "byte", "position pitch of b")] = 0
    y_addr: Annotated[
        int, Field(40, "byte", "SRAM address of the output: row y_first, column 0, channel 0 of the tile")
    ] = 0
    y_row: Annotated[int, Field(40, "byte", "row pitch of the output")] = 0
    y_pos: Annotated[int, Field(40, "byte", "position pitch of the output")] = 0
    y_first: Annotated[int, Field(24, "row", "first output row, counted in the whole map")] = 0
    y_rows: Annotated[int, Field(24, "row", "output rows of this instruction")] = 0
    y_cols: Annotated[int, Field(24, "column", "output columns")] = 0
    chans: Annotated[int, Field(24, "channel", "channels of this instruction")] = 0
    kernel_h: Annotated[int, Field(24, "row", "window height; total output rows when adaptive")] = 0
    kernel_w: Annotated[int, Field(24, "column", "window width; total output columns when adaptive")] = 0
    stride_h: Annotated[int, Field(16, "row", "vertical stride")] = 0
    stride_w: Annotated[int, Field(16, "column", "horizontal stride")] = 0
    pad_top: Annotated[int, Field(-24, "row", "padding rows above the map")] = 0
    pad_left: Annotated[int, Field(-24, "column", "padding columns left of the map")] = 0
    a_mult: Annotated[int, Field(-32, "", "multiplier of a; 0 in vec_copy: copy unchanged")] = 0
    a_shift: Annotated[int, Field(6, "bit", "right shift of a")] = 0
    b_mult: Annotated[int, Field(-32, "", "multiplier of b")] = 0
    b_shift: Annotated[int, Field(6, "bit", "right shift of b")] = 0
    low: Annotated[int, Field(-16, "", "lowest output value")] = 0
    high: Annotated[int, Field(-16, "", "highest output value")] = 0
    table_addr: Annotated[
        int, Field(40, "byte", "SRAM address of the 256-byte table, or of the divisor records of vec_avg")
    ] = 0
    entries: Annotated[int, Field(24, "", "divisor records at table_addr, 9 bytes each")] = 0
    flags: Annotated[
        int,
        Field(6, "", "bits: 0 a signed, 1 b signed, 2 y signed, 3 table, 4 count_include_pad, 5 adaptive"),
    ] = 0


@dataclass(frozen=True)
class Register:
    """A row of the table: ``index`` is the operand of ``set`` and ``mov``, ``slot`` the field number."""

    name: str
    unit: str
    index: int
    slot: int
    width: int
    signed: bool
    measure: str
    meaning: str

    @property
    def low(self) -> int:
        """Smallest value the register holds."""
        return -(1 << (self.width - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        """Largest value the register holds."""
        return (1 << (self.width - self.signed)) - 1


UnitRegisters = DmaRegisters | ConvRegisters | VecRegisters

UNITS: dict[str, tuple[int, type[DmaRegisters] | type[ConvRegisters] | type[VecRegisters]]] = {
    "dma": (32, DmaRegisters),
    "conv": (64, ConvRegisters),
    "vec": (128, VecRegisters),
}
"""Unit prefix -> (index of its first register, snapshot class)."""


def _build() -> tuple[Register, ...]:
    table = [
        Register(f"r{i}", "r", i, i, GENERAL_BITS, True, "", "general register")
        for i in range(GENERAL_REGISTERS)
    ]
    for unit, (base, cls) in UNITS.items():
        hints: dict[str, Any] = get_type_hints(cls, include_extras=True)
        for slot, name in enumerate(cls._fields):
            field: Field = get_args(hints[name])[1]
            table.append(
                Register(
                    f"{unit}.{name}",
                    unit,
                    base + slot,
                    slot,
                    abs(field.width),
                    field.width < 0,
                    field.measure,
                    field.meaning,
                )
            )
    return tuple(table)


REGISTERS: tuple[Register, ...] = _build()
BY_NAME: dict[str, Register] = {register.name: register for register in REGISTERS}
BY_INDEX: dict[int, Register] = {register.index: register for register in REGISTERS}
