"""Instruction words to and from operands, one at a time or a whole code array at once; all from the table."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from escc.errors import EsccError
from escc.isa.instructions import (
    BY_MNEMONIC,
    BY_OPCODE,
    INSTRUCTIONS,
    OPCODE_LOW,
    Instruction,
    Operand,
    Queue,
)
from escc.isa.registers import BY_INDEX, BY_NAME, GENERAL_REGISTERS, REGISTERS

QUEUES = {queue.text: queue for queue in Queue}


class Word(NamedTuple):
    """A decoded instruction word: its table row and the operand values in table order."""

    instruction: Instruction
    operands: tuple[int, ...]


class DecodedCode(NamedTuple):
    """A decoded code array: ``opcode`` (n,) uint8; operands ``first``, ``second`` (n,) int64, 0 if absent."""

    opcode: npt.NDArray[np.uint8]
    first: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]


def encode(mnemonic: str, *operands: int | str, where: str | None = None) -> int:
    """The word of an instruction; registers and queues also by name (``conv.x_addr``, ``r3``, ``dma``).

    Raises:
        EsccError: unknown mnemonic, wrong operand count, or a value outside its field or register.
    """
    instruction = BY_MNEMONIC.get(mnemonic)
    if instruction is None:
        raise EsccError(f"unknown instruction {mnemonic!r}", where=where)
    if len(operands) != len(instruction.operands):
        raise EsccError(
            f"{mnemonic} takes {len(instruction.operands)} operands, not {len(operands)}", where=where
        )
    values = tuple(_number(o, v, where) for o, v in zip(instruction.operands, operands, strict=True))
    problem = _problem(instruction, values)
    if problem:
        raise EsccError(problem, where=where)
    word = instruction.opcode << OPCODE_LOW
    for operand, value in zip(instruction.operands, values, strict=True):
        word |= (value & ((1 << operand.bits) - 1)) << operand.low
    return word


def decode(word: int, where: str | None = None) -> Word:
    """The instruction of a 64-bit word.

    Raises:
        EsccError: unknown opcode, bits set outside the operands, or an operand outside its register or queue.
    """
    instruction = BY_OPCODE.get(word >> OPCODE_LOW)
    if instruction is None:
        raise EsccError(f"unknown opcode {word >> OPCODE_LOW:#04x}", where=where)
    rest = word & ((1 << OPCODE_LOW) - 1)
    values: list[int] = []
    for operand in instruction.operands:
        mask = (1 << operand.bits) - 1
        value = (word >> operand.low) & mask
        rest &= ~(mask << operand.low)
        values.append(value - (mask + 1) if operand.kind == "signed" and value > operand.maximum else value)
    if rest:
        raise EsccError(f"{instruction.mnemonic} has bits {rest:#x} set outside its operands", where=where)
    problem = _problem(instruction, tuple(values))
    if problem:
        raise EsccError(problem, where=where)
    return Word(instruction, tuple(values))


def decode_code(code: npt.NDArray[np.uint64]) -> DecodedCode:
    """Decode and check all words of ``code`` (n,) uint64.

    Raises:
        EsccError: as `decode`, for the first bad word, naming its index.
    """
    code = np.ascontiguousarray(code, dtype=np.uint64)
    opcode = (code >> np.uint64(OPCODE_LOW)).astype(np.uint8)
    columns = (np.zeros(code.shape, np.int64), np.zeros(code.shape, np.int64))
    bad = ~_KNOWN[opcode]
    bad |= (code & _UNUSED_BITS[opcode]) != 0
    for instruction in INSTRUCTIONS:
        if not instruction.operands:
            continue
        index = np.flatnonzero(opcode == instruction.opcode)
        if not index.size:
            continue
        words = code[index]
        for operand, column in zip(instruction.operands, columns, strict=False):
            column[index] = values = _extract(words, operand)
            if operand.kind == "register":
                bad[index] |= ~_REGISTER_KNOWN[values]
            elif operand.kind == "unit_register":
                bad[index] |= ~_REGISTER_KNOWN[values] | (values < GENERAL_REGISTERS)
            elif operand.kind == "queue":
                bad[index] |= values >= len(Queue)
        if instruction.mnemonic == "set":
            register, value = columns[0][index], columns[1][index]
            bad[index] |= (value < _REGISTER_LOW[register]) | (value > _REGISTER_HIGH[register])
    if bad.any():
        first = int(np.argmax(bad))
        decode(int(code[first]), where=f"word {first}")
        raise EsccError("not a valid instruction", where=f"word {first}")
    return DecodedCode(opcode, *columns)


def _extract(words: npt.NDArray[np.uint64], operand: Operand) -> npt.NDArray[np.int64]:
    if operand.kind == "signed":
        left = np.uint64(63 - operand.high)
        return (words << left).view(np.int64) >> np.int64(64 - operand.bits)
    mask = np.uint64((1 << operand.bits) - 1)
    return ((words >> np.uint64(operand.low)) & mask).view(np.int64)


def _number(operand: Operand, value: int | str, where: str | None) -> int:
    if not isinstance(value, str):
        return int(value)
    if operand.kind == "queue" and value in QUEUES:
        return QUEUES[value]
    if operand.kind in ("register", "unit_register", "general") and value in BY_NAME:
        return BY_NAME[value].index
    raise EsccError(f"{value!r} is not a {operand.kind.replace('_', ' ')}", where=where)


def _problem(instruction: Instruction, values: tuple[int, ...]) -> str | None:
    """What is wrong with the operand values, None if nothing is."""
    for operand, value in zip(instruction.operands, values, strict=True):
        if not operand.minimum <= value <= operand.maximum:
            allowed = f"{operand.minimum}..{operand.maximum}"
            return f"{instruction.mnemonic}: {operand.name} {value} is outside {allowed}"
        if operand.kind in ("register", "unit_register") and value not in BY_INDEX:
            return f"{instruction.mnemonic}: there is no register number {value}"
        if operand.kind == "unit_register" and value < GENERAL_REGISTERS:
            return f"{instruction.mnemonic}: {BY_INDEX[value].name} is not a unit register"
        if operand.kind == "queue" and value >= len(Queue):
            return f"{instruction.mnemonic}: there is no queue number {value}"
    if instruction.mnemonic == "set":
        register = BY_INDEX[values[0]]
        if not register.low <= values[1] <= register.high:
            return f"set: {register.name} cannot hold {values[1]} (allowed {register.low}..{register.high})"
    return None


def _unused_bits(instruction: Instruction) -> int:
    unused = (1 << OPCODE_LOW) - 1
    for operand in instruction.operands:
        unused &= ~(((1 << operand.bits) - 1) << operand.low)
    return unused


_KNOWN = np.zeros(256, np.bool_)
_UNUSED_BITS = np.zeros(256, np.uint64)
for _instruction in INSTRUCTIONS:
    _KNOWN[_instruction.opcode] = True
    _UNUSED_BITS[_instruction.opcode] = _unused_bits(_instruction)
_REGISTER_KNOWN = np.zeros(256, np.bool_)
_REGISTER_LOW = np.zeros(256, np.int64)
_REGISTER_HIGH = np.zeros(256, np.int64)
for _register in REGISTERS:
    _REGISTER_KNOWN[_register.index] = True
    _REGISTER_LOW[_register.index] = _register.low
    _REGISTER_HIGH[_register.index] = _register.high
