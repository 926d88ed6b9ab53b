"""The instruction table: the one place that defines every instruction word.

A word has 64 bits: the opcode in bits 63..56, operands in the bit-fields given here, all other bits zero.
The encoder, decoder, assembler, disassembler, sequencer and the reference page derive from this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from escc.isa.registers import ConvRegisters, DmaRegisters, VecRegisters

WORD_BITS = 64
OPCODE_HIGH, OPCODE_LOW = 63, 56
TOKENS = 64
MAX_LOOP_NEST = 4


class Queue(IntEnum):
    """The three in-order queues."""

    DMA = 0
    BLK = 1
    VEC = 2

    @property
    def text(self) -> str:
        """The name in assembly text."""
        return self.name.lower()


QUEUE_UNIT: dict[Queue, str] = {Queue.DMA: "dma", Queue.BLK: "conv", Queue.VEC: "vec"}
"""Which register file the instructions of a queue read."""

OperandKind = Literal["register", "unit_register", "general", "signed", "unsigned", "queue"]


@dataclass(frozen=True)
class Operand:
    """A bit-field ``high..low`` of the word (inclusive) and how to read it."""

    name: str
    kind: OperandKind
    high: int
    low: int

    @property
    def bits(self) -> int:
        """Width of the field."""
        return self.high - self.low + 1

    @property
    def minimum(self) -> int:
        """Smallest value of the field."""
        return -(1 << (self.bits - 1)) if self.kind == "signed" else 0

    @property
    def maximum(self) -> int:
        """Largest value of the field (of the bits; kinds narrow it further)."""
        return (1 << (self.bits - (self.kind == "signed"))) - 1


@dataclass(frozen=True)
class Instruction:
    """One row of the table. ``queue`` is None for instructions the sequencer runs itself.

    ``reads`` names the registers (without the unit prefix) that a queue instruction takes from its unit.
    """

    mnemonic: str
    opcode: int
    queue: Queue | None
    operands: tuple[Operand, ...]
    semantics: str
    reads: tuple[str, ...] = ()

    @property
    def unit(self) -> str | None:
        """Prefix of the register file the instruction reads, None for sequencer instructions."""
        return None if self.queue is None else QUEUE_UNIT[self.queue]


_REG = Operand("register", "register", 55, 48)
_UNIT_REG = Operand("register", "unit_register", 55, 48)
_IMMEDIATE = Operand("immediate", "signed", 47, 0)
_GENERAL_HIGH = Operand("general", "general", 52, 48)
_GENERAL_LOW = Operand("general", "general", 4, 0)
_QUEUE = Operand("queue", "queue", 9, 8)
_TOKEN = Operand("token", "unsigned", 5, 0)

_DMA_MAP = tuple(name for name in DmaRegisters._fields if name != "size")
_CONV_COMMON = tuple(
    name for name in ConvRegisters._fields if name not in ("bases", "multiplier", "coef_addr")
)
_VEC_Y = ("y_addr", "y_row", "y_pos", "y_first", "y_rows", "y_cols", "chans")
_VEC_A = ("a_addr", "a_row", "a_pos", "a_first", "a_rows", "height", "width")
_VEC_B = ("b_addr", "b_row", "b_pos")
_VEC_WINDOW = ("kernel_h", "kernel_w", "stride_h", "stride_w", "pad_top", "pad_left")
_VEC_END = ("low", "high", "flags")


def _ordered(fields: tuple[str, ...], *groups: tuple[str, ...]) -> tuple[str, ...]:
    wanted = {name for group in groups for name in group}
    return tuple(name for name in fields if name in wanted)


def _vec(*groups: tuple[str, ...]) -> tuple[str, ...]:
    return _ordered(VecRegisters._fields, *groups)


INSTRUCTIONS: tuple[Instruction, ...] = (
    Instruction("nop", 0x00, None, (), "does nothing"),
    Instruction("halt", 0x01, None, (), "ends the program; everything dispatched still completes"),
    Instruction("set", 0x02, None, (_REG, _IMMEDIATE), "register = immediate"),
    Instruction("mov", 0x03, None, (_UNIT_REG, _GENERAL_LOW), "unit register = general register"),
    Instruction("add", 0x04, None, (_GENERAL_HIGH, _IMMEDIATE), "general register += immediate"),
    Instruction(
        "loop",
        0x05,
        None,
        (Operand("count", "unsigned", 31, 0),),
        f"runs up to the matching endloop count times (0 skips the body); nests at most {MAX_LOOP_NEST} deep",
    ),
    Instruction("endloop", 0x06, None, (), "ends the body of the innermost loop"),
    Instruction(
        "mark",
        0x07,
        None,
        (Operand("layer", "unsigned", 31, 0),),
        "attributes what follows to a layer, for statistics only",
    ),
    Instruction(
        "wait",
        0x08,
        None,
        (_QUEUE, _TOKEN),
        "the queue stops until the token's count is above 0, then takes 1 from it",
    ),
    Instruction(
        "signal",
        0x09,
        None,
        (_QUEUE, _TOKEN),
        "adds 1 to the token's count when the queue's earlier instructions are done",
    ),
    Instruction("load_map", 0x10, Queue.DMA, (), "map tile DRAM -> SRAM; moves SparseMap bytes", _DMA_MAP),
    Instruction("store_map", 0x11, Queue.DMA, (), "map tile SRAM -> DRAM; moves SparseMap bytes", _DMA_MAP),
    Instruction("load_stream", 0x12, Queue.DMA, (), "size bytes DRAM -> SRAM", ("dram", "sram", "size")),
    Instruction(
        "conv_combine",
        0x20,
        Queue.BLK,
        (),
        "Z[k,m] = sum_c T[k,c,m] x[c]; y[k] = requantize(sum_m Z[k,m] * B[m])",
        _ordered(ConvRegisters._fields, _CONV_COMMON, ("bases", "coef_addr")),
    ),
    Instruction("conv_dense", 0x21, Queue.BLK, (), "y[k] = requantize(sum_c x[c] * W[k,c])", _CONV_COMMON),
    Instruction(
        "conv_depthwise",
        0x22,
        Queue.BLK,
        (),
        "y[k] = requantize(x[k // multiplier] * W[k])",
        _ordered(ConvRegisters._fields, _CONV_COMMON, ("multiplier",)),
    ),
    Instruction(
        "vec_add",
        0x30,
        Queue.VEC,
        (),
        "y = clamp or table(rq(a, a_mult, a_shift) + rq(b, b_mult, b_shift))",
        _vec(_VEC_A, _VEC_B, _VEC_Y, ("a_mult", "a_shift", "b_mult", "b_shift", "table_addr"), _VEC_END),
    ),
    Instruction(
        "vec_mul",
        0x31,
        Queue.VEC,
        (),
        "y = clamp(rq(a * b, a_mult, a_shift))",
        _vec(_VEC_A, _VEC_B, _VEC_Y, ("a_mult", "a_shift"), _VEC_END),
    ),
    Instruction(
        "vec_max",
        0x32,
        Queue.VEC,
        (),
        "y = largest a in the window; padding never wins",
        _vec(_VEC_A, _VEC_Y, _VEC_WINDOW, ("flags",)),
    ),
    Instruction(
        "vec_avg",
        0x33,
        Queue.VEC,
        (),
        "y = clamp(rq(sum of a in the window, m(count), s(count))), m and s from the divisor records",
        _vec(_VEC_A, _VEC_Y, _VEC_WINDOW, ("table_addr", "entries"), _VEC_END),
    ),
    Instruction(
        "vec_lut", 0x34, Queue.VEC, (), "y = table[a & 0xff]", _vec(_VEC_A, _VEC_Y, ("table_addr", "flags"))
    ),
    Instruction(
        "vec_copy",
        0x35,
        Queue.VEC,
        (),
        "y(oy, ox) = clamp(rq(a(oy * stride_h - pad_top, ox * stride_w - pad_left))), zero outside the map; "
        "a_mult = 0 copies unchanged",
        _vec(_VEC_A, _VEC_Y, ("stride_h", "stride_w", "pad_top", "pad_left", "a_mult", "a_shift"), _VEC_END),
    ),
    Instruction("vec_fill", 0x36, Queue.VEC, (), "y = 0", _VEC_Y),
)

BY_MNEMONIC: dict[str, Instruction] = {instruction.mnemonic: instruction for instruction in INSTRUCTIONS}
BY_OPCODE: dict[int, Instruction] = {instruction.opcode: instruction for instruction in INSTRUCTIONS}
