"""What an instruction touches: the boxes of SRAM and DRAM that a queue instruction reads and writes.

Everything follows from the registers alone, but for the length of a coefficient stream, which only its own
mask bits tell; `coefficients` gives the shortest one and `escc.isa.verify` measures the real one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from escc.errors import EsccError
from escc.isa.registers import ConvFlags, ConvRegisters, DmaRegisters, UnitRegisters, VecFlags, VecRegisters
from escc.isa.sparsemap import smallest_row_streams

SRAM, DRAM = "SRAM", "DRAM"
RECORD_BYTES = 9
TABLE_BYTES = 256

# Plain integers: this runs once per executed instruction, and a flag enumeration is ten times slower.
_CONV_SIGNED, _CONV_RESIDUAL = int(ConvFlags.Y_SIGNED), int(ConvFlags.RESIDUAL)
_CONV_TABLE, _CONV_TWO_LEVEL = int(ConvFlags.TABLE), int(ConvFlags.TWO_LEVEL)
_VEC_SIGNED, _VEC_TABLE, _VEC_ADAPTIVE = int(VecFlags.Y_SIGNED), int(VecFlags.TABLE), int(VecFlags.ADAPTIVE)


class Access(NamedTuple):
    """A box of bytes: ``rows`` x ``cols`` runs of ``chans`` bytes, pitches in bytes.

    ``operand`` names it in messages ("x", "y", "coefficients", ...).
    """

    memory: str
    write: bool
    operand: str
    base: int
    rows: int
    row_pitch: int
    cols: int
    pos_pitch: int
    chans: int

    @property
    def end(self) -> int:
        """One past the last byte."""
        return self.base + (self.rows - 1) * self.row_pitch + (self.cols - 1) * self.pos_pitch + self.chans

    @property
    def separate(self) -> bool:
        """Whether every byte of the box has its own address, rows and positions in order."""
        row = (self.cols - 1) * self.pos_pitch + self.chans
        in_row = self.cols == 1 or self.pos_pitch >= self.chans
        return in_row and (self.rows == 1 or self.row_pitch >= row)


class Footprint(NamedTuple):
    """The accesses of an instruction; ``coefficients`` indexes the coefficient stream among them, or -1."""

    accesses: tuple[Access, ...]
    coefficients: int = -1


@lru_cache(maxsize=8192)
def accesses(mnemonic: str, registers: UnitRegisters) -> Footprint:
    """The boxes that a queue instruction reads and writes.

    Raises:
        EsccError: registers that no such instruction may have (an empty box, a zero stride, a needed row that
            is not resident, limits outside the output type, ...).
    """
    return _FUNCTIONS[mnemonic](registers)


def partial_sums(r: ConvRegisters) -> int:
    """Partial sums a row of the array holds during a convolution: columns x output rows in flight."""
    return r.y_cols * -(-((r.kernel_h - 1) * r.dil_h + 1) // r.stride_h)


def _load_map(r: DmaRegisters) -> Footprint:
    return Footprint(_map_move(r, to_dram=False))


def _store_map(r: DmaRegisters) -> Footprint:
    return Footprint(_map_move(r, to_dram=True))


def _map_move(r: DmaRegisters, *, to_dram: bool) -> tuple[Access, ...]:
    _positive("dma", r, "rows", "cols", "chans")
    dram = Access(DRAM, to_dram, "map", r.dram, r.rows, r.dram_row, r.cols, r.dram_pos, r.chans)
    sram = Access(SRAM, not to_dram, "map", r.sram, r.rows, r.sram_row, r.cols, r.sram_pos, r.chans)
    return _written_separately(dram, sram)


def _load_stream(r: DmaRegisters) -> Footprint:
    _positive("dma", r, "size")
    return Footprint(
        (_run(DRAM, False, "stream", r.dram, r.size), _run(SRAM, True, "stream", r.sram, r.size))
    )


def _convolution(r: ConvRegisters, kernel_bytes: int, *extra: Access) -> tuple[Access, ...]:
    table = r.flags & _CONV_TABLE
    if not table:
        _limits("conv", r.low, r.high, r.flags & _CONV_SIGNED)
    if r.bands > r.y_rows:
        raise EsccError(f"conv.bands is {r.bands}, but there are only {r.y_rows} output rows")
    first, last = _needed(r.y_first, r.y_rows, r.kernel_h, r.stride_h, r.pad_top, r.dil_h, r.height)
    found = [
        *_resident("x", r.x_addr, r.x_row, r.x_first, r.x_rows, first, last, r.width, r.x_pos, r.chans),
        *extra,
        _run(SRAM, False, "kernels", r.basis_addr, kernel_bytes),
        _run(SRAM, False, "requantisation", r.quant_addr, RECORD_BYTES * r.outs),
    ]
    if table:
        found.append(_run(SRAM, False, "table", r.table_addr, TABLE_BYTES))
    if r.flags & _CONV_RESIDUAL:
        found.append(
            Access(SRAM, False, "residual", r.res_addr, r.y_rows, r.res_row, r.y_cols, r.res_pos, r.outs)
        )
    found.append(Access(SRAM, True, "y", r.y_addr, r.y_rows, r.y_row, r.y_cols, r.y_pos, r.outs))
    return _written_separately(*found)


_CONV_POSITIVE = (
    *("width", "height", "chans", "y_rows", "y_cols", "outs", "bands"),
    *("kernel_h", "kernel_w", "stride_h", "stride_w", "dil_h", "dil_w"),
)


def _conv_combine(r: ConvRegisters) -> Footprint:
    _positive("conv", r, *_CONV_POSITIVE, "bases")
    two_level = bool(r.flags & _CONV_TWO_LEVEL)
    shortest = smallest_row_streams(r.outs, r.chans, r.bases, two_level=two_level)
    stream = _run(SRAM, False, "coefficients", r.coef_addr, shortest)
    found = _convolution(r, r.bases * r.kernel_h * r.kernel_w, stream)
    return Footprint(found, found.index(stream))


def _conv_dense(r: ConvRegisters) -> Footprint:
    _positive("conv", r, *_CONV_POSITIVE)
    return Footprint(_convolution(r, r.outs * r.chans * r.kernel_h * r.kernel_w))


def _conv_depthwise(r: ConvRegisters) -> Footprint:
    _positive("conv", r, *_CONV_POSITIVE, "multiplier")
    if r.chans * r.multiplier != r.outs:
        raise EsccError(f"conv.chans {r.chans} times conv.multiplier {r.multiplier} are not {r.outs} outputs")
    return Footprint(_convolution(r, r.outs * r.kernel_h * r.kernel_w))


def _vec_y(r: VecRegisters) -> Access:
    _positive("vec", r, "y_rows", "y_cols", "chans")
    return Access(SRAM, True, "y", r.y_addr, r.y_rows, r.y_row, r.y_cols, r.y_pos, r.chans)


def _same_place(r: VecRegisters) -> list[Access]:
    """Operand a of an element-wise instruction: the rows and columns of the output."""
    last = r.y_first + r.y_rows - 1
    return _resident("a", r.a_addr, r.a_row, r.a_first, r.a_rows, r.y_first, last, r.y_cols, r.a_pos, r.chans)


def _vec_add(r: VecRegisters) -> Footprint:
    return _two_operands(r, table=bool(r.flags & _VEC_TABLE))


def _vec_mul(r: VecRegisters) -> Footprint:
    return _two_operands(r, table=False)


def _two_operands(r: VecRegisters, *, table: bool) -> Footprint:
    y = _vec_y(r)
    if not table:
        _limits("vec", r.low, r.high, r.flags & _VEC_SIGNED)
    rows, cols = (1, 1) if r.b_row == r.b_pos == 0 else (r.y_rows, r.y_cols)
    found = [*_same_place(r), Access(SRAM, False, "b", r.b_addr, rows, r.b_row, cols, r.b_pos, r.chans)]
    if table:
        found.append(_run(SRAM, False, "table", r.table_addr, TABLE_BYTES))
    return Footprint(_written_separately(*found, y))


def _window(r: VecRegisters) -> list[Access]:
    """Operand a of a pooling instruction: every resident value some window covers."""
    _positive("vec", r, "height", "width", "kernel_h", "kernel_w")
    if r.flags & _VEC_ADAPTIVE:
        if r.y_first + r.y_rows > r.kernel_h or r.y_cols > r.kernel_w:
            raise EsccError(f"output {r.y_first + r.y_rows} x {r.y_cols} exceeds {r.kernel_h} x {r.kernel_w}")
        first = r.y_first * r.height // r.kernel_h
        last = -(-(r.y_first + r.y_rows) * r.height // r.kernel_h) - 1
        left, right = 0, -(-r.y_cols * r.width // r.kernel_w) - 1
    else:
        _positive("vec", r, "stride_h", "stride_w")
        first, last = _needed(r.y_first, r.y_rows, r.kernel_h, r.stride_h, r.pad_top, 1, r.height)
        left, right = _needed(0, r.y_cols, r.kernel_w, r.stride_w, r.pad_left, 1, r.width)
    if right < left:
        return []
    start = r.a_addr + left * r.a_pos
    return _resident(
        "a", start, r.a_row, r.a_first, r.a_rows, first, last, right - left + 1, r.a_pos, r.chans
    )


def _vec_max(r: VecRegisters) -> Footprint:
    y = _vec_y(r)
    return Footprint(_written_separately(*_window(r), y))


def _vec_avg(r: VecRegisters) -> Footprint:
    y = _vec_y(r)
    _limits("vec", r.low, r.high, r.flags & _VEC_SIGNED)
    _positive("vec", r, "entries")
    records = _run(SRAM, False, "divisors", r.table_addr, RECORD_BYTES * r.entries)
    return Footprint(_written_separately(*_window(r), records, y))


def _vec_lut(r: VecRegisters) -> Footprint:
    y = _vec_y(r)
    table = _run(SRAM, False, "table", r.table_addr, TABLE_BYTES)
    return Footprint(_written_separately(*_same_place(r), table, y))


def _vec_copy(r: VecRegisters) -> Footprint:
    y = _vec_y(r)
    _positive("vec", r, "height", "width", "stride_h", "stride_w")
    if r.a_mult:
        _limits("vec", r.low, r.high, r.flags & _VEC_SIGNED)
    first, last = _needed(r.y_first, r.y_rows, 1, r.stride_h, r.pad_top, 1, r.height)
    left, right = _needed(0, r.y_cols, 1, r.stride_w, r.pad_left, 1, r.width)
    if last < first or right < left:
        return Footprint(_written_separately(y))
    _check_resident("a", first, last, r.a_first, r.a_rows)
    a = Access(
        SRAM,
        False,
        "a",
        r.a_addr + (first - r.a_first) * r.a_row + left * r.a_pos,
        (last - first) // r.stride_h + 1,
        r.a_row * r.stride_h,
        (right - left) // r.stride_w + 1,
        r.a_pos * r.stride_w,
        r.chans,
    )
    return Footprint(_written_separately(a, y))


def _vec_fill(r: VecRegisters) -> Footprint:
    return Footprint(_written_separately(_vec_y(r)))


_FUNCTIONS: dict[str, Callable[[Any], Footprint]] = {
    "load_map": _load_map,
    "store_map": _store_map,
    "load_stream": _load_stream,
    "conv_combine": _conv_combine,
    "conv_dense": _conv_dense,
    "conv_depthwise": _conv_depthwise,
    "vec_add": _vec_add,
    "vec_mul": _vec_mul,
    "vec_max": _vec_max,
    "vec_avg": _vec_avg,
    "vec_lut": _vec_lut,
    "vec_copy": _vec_copy,
    "vec_fill": _vec_fill,
}


def _run(memory: str, write: bool, operand: str, base: int, size: int) -> Access:
    return Access(memory, write, operand, base, 1, 0, 1, 0, size)


def _positive(unit: str, registers: UnitRegisters, *names: str) -> None:
    for name in names:
        if getattr(registers, name) < 1:
            raise EsccError(f"{unit}.{name} is {getattr(registers, name)}, at least 1 is needed")


def _limits(unit: str, low: int, high: int, signed: int) -> None:
    least, most = (-128, 127) if signed else (0, 255)
    if not least <= low <= high <= most:
        raise EsccError(f"{unit}.low..high is {low}..{high}, not a range inside {least}..{most}")


def _written_separately(*found: Access) -> tuple[Access, ...]:
    for access in found:
        if access.write and not access.separate:
            raise EsccError(
                f"{access.operand} overlaps itself in {access.memory}: {access.cols} positions of "
                f"{access.chans} channels with pitches {access.row_pitch} and {access.pos_pitch}"
            )
    return found


@lru_cache(maxsize=4096)
def _needed(
    first: int, count: int, taps: int, stride: int, pad: int, dilation: int, extent: int
) -> tuple[int, int]:
    """First and last input coordinate inside the map that some output reads; ``(0, -1)`` if none is."""
    lows: list[int] = []
    highs: list[int] = []
    for tap in range(taps):
        start = first * stride - pad + tap * dilation
        # The outputs o = 0..count-1 whose input start + o * stride lies in 0..extent-1.
        low, high = max(0, -(start // stride)), min(count - 1, (extent - 1 - start) // stride)
        if low <= high:
            lows.append(start + low * stride)
            highs.append(start + high * stride)
    return (min(lows), max(highs)) if lows else (0, -1)


def _resident(
    operand: str,
    address: int,
    row_pitch: int,
    held_first: int,
    held: int,
    first: int,
    last: int,
    cols: int,
    pos_pitch: int,
    chans: int,
) -> list[Access]:
    if last < first:
        return []
    _check_resident(operand, first, last, held_first, held)
    base = address + (first - held_first) * row_pitch
    return [Access(SRAM, False, operand, base, last - first + 1, row_pitch, cols, pos_pitch, chans)]


def _check_resident(operand: str, first: int, last: int, held_first: int, held: int) -> None:
    if first < held_first or last >= held_first + held:
        here = f"{held_first}..{held_first + held - 1}" if held else "none"
        raise EsccError(f"{operand} needs the rows {first}..{last}, resident are {here}")
