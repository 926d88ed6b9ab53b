"""Building a code array: instruction words in order, with only the register writes that change something."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from escc.errors import EsccError
from escc.isa.encoding import encode
from escc.isa.instructions import BY_MNEMONIC, Queue
from escc.isa.registers import BY_INDEX, BY_NAME, UNITS, UnitRegisters


class CodeBuilder:
    """Collects words; remembers register values and leaves out a ``set`` that would change nothing."""

    def __init__(self) -> None:
        self.words: list[int] = []
        self._known: dict[str, int] = {name: 0 for name in BY_NAME}

    def __len__(self) -> int:
        return len(self.words)

    def emit(self, mnemonic: str, *operands: int | str) -> None:
        """Append one word as it is (registers it writes are forgotten, `set` excepted)."""
        self.words.append(encode(mnemonic, *operands))
        if mnemonic == "set":
            name = operands[0] if isinstance(operands[0], str) else BY_INDEX[operands[0]].name
            self._known[name] = int(operands[1])
        elif mnemonic in ("mov", "add"):
            name = operands[0] if isinstance(operands[0], str) else BY_INDEX[operands[0]].name
            self._known.pop(name, None)
        elif mnemonic in ("loop", "endloop"):
            # Another pass may find other values: nothing is known at the head or after the end.
            self._known.clear()

    def set(self, register: str, value: int) -> None:
        """Give ``register`` (``conv.x_addr``, ``r3``) a value; no word if it holds it already."""
        if self._known.get(register) != value:
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
        for name in instruction.reads:
            self.set(f"{unit}.{name}", int(getattr(registers, name)))
        self.words.append(encode(mnemonic))

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
