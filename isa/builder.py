"""Building a code array: instruction words in order, with only the register writes that change something."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from escc.errors import EsccError
from escc.isa.encoding import encode
from escc.isa.instructions import BY_MNEMONIC, INSTRUCTIONS, OPCODE_LOW, Queue
from escc.isa.registers import BY_INDEX, BY_NAME, UNITS, UnitRegisters

_READS = {
    instruction.mnemonic: tuple(
        (register.index, register.slot, register.low, register.high)
        for register in (BY_NAME[f"{instruction.unit}.{name}"] for name in instruction.reads)
    )
    for instruction in INSTRUCTIONS
}
"""Per mnemonic, of each register it reads: number, slot in the unit, lowest and highest value."""
_SET = BY_MNEMONIC["set"].opcode << OPCODE_LOW
_SET_REGISTER, _SET_VALUE = BY_MNEMONIC["set"].operands
_SET_MASK = (1 << _SET_VALUE.bits) - 1  # the field starts at bit 0


class CodeBuilder:
    """Collects words; remembers register values and leaves out a ``set`` that would change nothing."""

    def __init__(self) -> None:
        self.words: list[int] = []
        self._known: dict[int, int] = dict.fromkeys(BY_INDEX, 0)  # values by register number

    def __len__(self) -> int:
        return len(self.words)

    def emit(self, mnemonic: str, *operands: int | str) -> None:
        """Append one word as it is (registers it writes are forgotten, `set` excepted)."""
        self.words.append(encode(mnemonic, *operands))
        if mnemonic in ("set", "mov", "add"):
            target = operands[0]
            index = BY_NAME[target].index if isinstance(target, str) else target
            if mnemonic == "set":
                self._known[index] = int(operands[1])
            else:
                self._known.pop(index, None)
        elif mnemonic in ("loop", "endloop"):
            # Another pass may find other values: nothing is known at the head or after the end.
            self._known.clear()

    def set(self, register: str, value: int) -> None:
        """Give ``register`` (``conv.x_addr``, ``r3``) a value; no word if it holds it already."""
        found = BY_NAME.get(register)
        if found is None or self._known.get(found.index) != value:
            self.emit("set", register, value)

    def run(self, mnemonic: str, registers: UnitRegisters) -> None:
        """Emit ``mnemonic`` after setting those registers it reads that differ from ``registers``.

        Raises:
            EsccError: the registers are of another unit, or a value does not fit its register.
        """
        instruction = BY_MNEMONIC[mnemonic]
        unit = instruction.unit
        if unit is None or not isinstance(registers, UNITS[unit][1]):
            raise EsccError(f"{mnemonic} does not read {type(registers).__name__}")
        known = self._known
        for index, slot, low, high in _READS[mnemonic]:
            value = int(registers[slot])
            if known.get(index) != value:
                if not low <= value <= high:
                    raise EsccError(f"{BY_INDEX[index].name} cannot hold {value} (allowed {low}..{high})")
                known[index] = value
                self.words.append(_SET | index << _SET_REGISTER.low | value & _SET_MASK)
        self.words.append(instruction.opcode << OPCODE_LOW)

    def wait(self, queue: Queue, token: int) -> None:
        """The queue waits for a token."""
        self.emit("wait", int(queue), token)

    def signal(self, queue: Queue, token: int) -> None:
        """The queue signals a token."""
        self.emit("signal", int(queue), token)

    @contextmanager
    def loop(self, count: int) -> Generator[None]:
        """Words emitted inside run ``count`` times."""
        self.emit("loop", count)
        yield
        self.emit("endloop")

    def array(self) -> npt.NDArray[np.uint64]:
        """The words so far, (n,) uint64."""
        return np.array(self.words, dtype=np.uint64)
