"""Small machines for tests: an SRAM filled by hand, one instruction at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from tests.backend_sim.timing.engines import narrow_engines

from escc.backend_sim.simulator.execute import execute
from escc.backend_sim.simulator.memory import Memory
from escc.backend_sim.simulator.operands import OperandCache
from escc.backend_sim.simulator.workspace import Workspace
from escc.isa.arch import Arch
from escc.isa.builder import CodeBuilder
from escc.isa.program import MapDescriptor, Program
from escc.isa.registers import UnitRegisters
from escc.isa.sequence import expand

ENGINES = narrow_engines()
SMALL = Arch.default().replace(sram_kib=16)


def program_of(
    build: CodeBuilder,
    *,
    arch: Arch = SMALL,
    data: bytes = b"",
    dram_bytes: int = 4096,
    inputs: list[MapDescriptor] | None = None,
    outputs: list[MapDescriptor] | None = None,
    debug: dict[str, Any] | None = None,
) -> Program:
    """A program of the words collected so far and a halt."""
    build.emit("halt")
    return Program(arch, build.array(), data, inputs or [], outputs or [], dram_bytes, debug)


def run_program(program: Program, memory: Memory) -> None:
    """Run a whole program on ``memory``."""
    execute(program, list(expand(program.code)), memory, OperandCache(), Workspace())


def run_one(
    mnemonic: str, registers: UnitRegisters, sram: npt.NDArray[np.uint8], arch: Arch = SMALL
) -> npt.NDArray[np.uint8]:
    """Run one instruction on SRAM contents (images, bytes); the SRAM after it, the same for all engines."""
    build = CodeBuilder()
    build.run(mnemonic, registers)
    program = program_of(build, arch=arch)
    found: list[npt.NDArray[np.uint8]] = []
    for engine in ENGINES:
        memory = Memory(program, len(sram))
        memory.sram[:, : sram.shape[1]] = sram
        steps = list(expand(program.code))
        execute(program, steps, memory, OperandCache(codec=engine), Workspace(engine.maps))
        found.append(memory.sram[:, : sram.shape[1]].copy())
        np.testing.assert_array_equal(found[-1], found[0], err_msg=engine.name)
    return found[0]


class Layout:
    """Hands out SRAM addresses one behind the other, with a gap between them."""

    def __init__(self, gap: int = 3) -> None:
        self.used = 0
        self.gap = gap

    def take(self, size: int) -> int:
        """The address of ``size`` fresh bytes."""
        address = self.used
        self.used += size + self.gap
        return address


def records(rows: npt.NDArray[np.int64]) -> bytes:
    """Requantisation (or divisor) records of (n, 3) integers: int32, int32, uint8, little endian."""
    return b"".join(
        int(a % (1 << 32)).to_bytes(4, "little")
        + int(b).to_bytes(4, "little", signed=True)
        + int(c).to_bytes(1, "little")
        for a, b, c in rows.tolist()
    )
