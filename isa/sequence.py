"""The sequencer: runs set, mov, add, loops and marks, and yields what it dispatches to the queues, in order.

Program order is a valid sequential execution, so a functional simulator runs the dispatches as they come; a
timing model distributes them over the three queues.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from escc.errors import EsccError
from escc.isa.encoding import decode_code
from escc.isa.instructions import BY_MNEMONIC, BY_OPCODE, MAX_LOOP_NEST, QUEUE_UNIT, Instruction, Queue
from escc.isa.registers import (
    BY_INDEX,
    GENERAL_BITS,
    UNITS,
    ConvRegisters,
    DmaRegisters,
    VecRegisters,
)

MAX_EXECUTED_WORDS = 50_000_000
"""Words the sequencer executes before it takes the program for a runaway loop."""


class Dispatch(NamedTuple):
    """One dispatched instruction.

    ``pc``: index of its word. ``queue``: where it goes. ``token``: of a wait or signal, else -1.
    ``registers``: the unit's registers at dispatch, None for wait and signal; equal snapshots are one object
    as long as no register of the unit is written. ``layer``: of the last mark, -1 before any. ``executed``:
    words the sequencer has executed before this one (each takes it one cycle).
    """

    pc: int
    instruction: Instruction
    queue: Queue
    token: int
    registers: DmaRegisters | ConvRegisters | VecRegisters | None
    layer: int
    executed: int = 0

    @property
    def text(self) -> str:
        """The instruction as an error message names it."""
        return f"word {self.pc} ({self.instruction.mnemonic})"


def loop_ends(opcode: npt.NDArray[np.uint8]) -> dict[int, int]:
    """Index of the matching endloop for the index of every loop word.

    Raises:
        EsccError: a loop without endloop, an endloop without loop, or loops nested too deep.
    """
    loop, end = BY_MNEMONIC["loop"].opcode, BY_MNEMONIC["endloop"].opcode
    ends: dict[int, int] = {}
    open_loops: list[int] = []
    for index in np.flatnonzero((opcode == loop) | (opcode == end)).tolist():
        if opcode[index] == loop:
            open_loops.append(index)
            if len(open_loops) > MAX_LOOP_NEST:
                raise EsccError(f"loops nest deeper than {MAX_LOOP_NEST}", where=f"word {index}")
        elif not open_loops:
            raise EsccError("endloop without a loop", where=f"word {index}")
        else:
            ends[open_loops.pop()] = index
    if open_loops:
        raise EsccError("loop without an endloop", where=f"word {open_loops[-1]}")
    return ends


def expand(
    code: npt.NDArray[np.uint64], max_words: int = MAX_EXECUTED_WORDS
) -> Generator[Dispatch, None, int]:
    """Run the sequencer over ``code`` (words,) uint64 and yield every queue instruction, wait and signal.

    All words are decoded and the loop structure is checked before the first dispatch. The generator's return
    value is the number of words executed, halt included.

    Raises:
        EsccError: an invalid word, bad loop structure, a register that cannot hold its value, no halt, or
            more than ``max_words`` executed words; names the index of the word.
    """
    decoded = decode_code(code)
    ends = loop_ends(decoded.opcode)
    return _run(decoded.opcode.tolist(), decoded.first.tolist(), decoded.second.tolist(), ends, max_words)


_SET = BY_MNEMONIC["set"].opcode
_MOV = BY_MNEMONIC["mov"].opcode
_ADD = BY_MNEMONIC["add"].opcode
_LOOP = BY_MNEMONIC["loop"].opcode
_ENDLOOP = BY_MNEMONIC["endloop"].opcode
_MARK = BY_MNEMONIC["mark"].opcode
_WAIT = BY_MNEMONIC["wait"].opcode
_TOKEN_OPCODES = (_WAIT, BY_MNEMONIC["signal"].opcode)
_HALT = BY_MNEMONIC["halt"].opcode
_GENERAL_LIMIT = 1 << (GENERAL_BITS - 1)

# Per opcode of a queue instruction: table row, queue, number of the register file, its span and class.
_UNIT_NUMBER = {unit: number for number, unit in enumerate(UNITS, start=1)}
_QUEUED = {
    opcode: (
        instruction,
        instruction.queue,
        _UNIT_NUMBER[QUEUE_UNIT[instruction.queue]],
        slice(UNITS[QUEUE_UNIT[instruction.queue]][0], _end),
        _cls,
    )
    for opcode, instruction in BY_OPCODE.items()
    if instruction.queue is not None
    for _base, _cls in [UNITS[QUEUE_UNIT[instruction.queue]]]
    for _end in [_base + len(_cls._fields)]
}
_UNIT_OF = [0] * 256
for _index, _register in BY_INDEX.items():
    _UNIT_OF[_index] = _UNIT_NUMBER.get(_register.unit, 0)


def _run(
    opcodes: list[int], first: list[int], second: list[int], ends: dict[int, int], max_words: int
) -> Generator[Dispatch, None, int]:
    state = [0] * 256
    snapshots: list[DmaRegisters | ConvRegisters | VecRegisters | None] = [None] * (len(UNITS) + 1)
    unit_of, queued, queues = _UNIT_OF, _QUEUED, tuple(Queue)
    wait, signal = BY_MNEMONIC["wait"], BY_MNEMONIC["signal"]
    loops: list[list[int]] = []  # [first word of the body, remaining passes]
    make: Any = tuple.__new__  # pyright: ignore[reportUnknownMemberType]
    layer = -1
    pc = 0
    executed = 0
    size = len(opcodes)
    while pc < size:
        executed += 1
        if executed > max_words:
            raise EsccError(f"the program executes more than {max_words} words", where=f"word {pc}")
        opcode = opcodes[pc]
        if opcode == _SET:
            index = first[pc]
            state[index] = second[pc]
            snapshots[unit_of[index]] = None
        elif opcode in queued:
            instruction, queue, unit, span, cls = queued[opcode]
            registers = snapshots[unit]
            if registers is None:
                registers = snapshots[unit] = make(cls, state[span])
            yield make(Dispatch, (pc, instruction, queue, -1, registers, layer, executed - 1))
        elif opcode in _TOKEN_OPCODES:
            instruction = wait if opcode == _WAIT else signal
            yield make(Dispatch, (pc, instruction, queues[first[pc]], second[pc], None, layer, executed - 1))
        elif opcode == _MOV:
            index = first[pc]
            value = state[second[pc]]
            register = BY_INDEX[index]
            if not register.low <= value <= register.high:
                raise EsccError(
                    f"mov: {register.name} cannot hold {value} (allowed {register.low}..{register.high})",
                    where=f"word {pc}",
                )
            state[index] = value
            snapshots[unit_of[index]] = None
        elif opcode == _ADD:
            value = state[first[pc]] = state[first[pc]] + second[pc]
            if not -_GENERAL_LIMIT <= value < _GENERAL_LIMIT:
                raise EsccError(f"add: r{first[pc]} overflows {GENERAL_BITS} bits", where=f"word {pc}")
        elif opcode == _LOOP:
            if first[pc]:
                loops.append([pc, first[pc]])
            else:
                pc = ends[pc]
        elif opcode == _ENDLOOP:
            loop = loops[-1]
            loop[1] -= 1
            if loop[1]:
                pc = loop[0]
            else:
                loops.pop()
        elif opcode == _MARK:
            layer = first[pc]
        elif opcode == _HALT:
            return executed
        pc += 1
    raise EsccError("the program ends without halt", where=f"word {size}")
