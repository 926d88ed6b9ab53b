"""Running a program: instructions in program order on the memories of a batch of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, cast

from escc.backend_sim.simulator.conv import ConvOperands, conv_operands, run_conv
from escc.backend_sim.simulator.conv_plan import ConvPlan, conv_plan
from escc.backend_sim.simulator.memory import Block, DivergentOperand, Memory
from escc.backend_sim.simulator.operands import OperandCache
from escc.backend_sim.simulator.vec_plan import VecPlan, vec_plan
from escc.backend_sim.simulator.vector import run_vec
from escc.backend_sim.simulator.workspace import Workspace
from escc.errors import EsccError
from escc.isa.access import accesses
from escc.isa.instructions import Queue
from escc.isa.program import Program
from escc.isa.registers import ConvRegisters, DmaRegisters, VecRegisters
from escc.isa.sequence import Dispatch


@dataclass(frozen=True)
class DmaPlan:
    """A transfer: its boxes in DRAM and SRAM, or None and ``size`` bytes for a stream."""

    mnemonic: str
    registers: DmaRegisters
    dram: Block | None
    sram: Block | None


@lru_cache(maxsize=8192)
def dma_plan(mnemonic: str, r: DmaRegisters) -> DmaPlan:
    """Check the registers of a DMA instruction and work out what it moves.

    Raises:
        EsccError: a register has a value no transfer may have.
    """
    accesses(mnemonic, r)
    if mnemonic == "load_stream":
        return DmaPlan(mnemonic, r, None, None)
    dram = Block(r.dram, r.rows, r.cols, r.chans, r.dram_row, r.dram_pos)
    return DmaPlan(mnemonic, r, dram, Block(r.sram, r.rows, r.cols, r.chans, r.sram_row, r.sram_pos))


Plan = DmaPlan | ConvPlan | VecPlan


class Observer(Protocol):
    """Watches the instructions of a batch, to time them: called before and after each one."""

    def before(self, index: int, plan: Plan, operands: ConvOperands | None, memory: Memory) -> None:
        """Instruction ``index`` of the sequence is about to run."""
        ...

    def after(self, index: int, plan: Plan, memory: Memory) -> None:
        """It has run."""
        ...


def place(program: Program, step: Dispatch) -> str:
    """How an error message names an instruction: its word, mnemonic and layer."""
    name = program.layer_name(step.layer)
    layer = f", layer {name or step.layer}" if step.layer >= 0 else ""
    return step.text + layer


def plan_of(program: Program, step: Dispatch) -> Plan:
    """Check the registers of an instruction of one of the three queues.

    Raises:
        EsccError: naming the instruction and its layer.
    """
    try:
        mnemonic = step.instruction.mnemonic
        if step.queue == Queue.DMA:
            return dma_plan(mnemonic, cast("DmaRegisters", step.registers))
        if step.queue == Queue.BLK:
            return conv_plan(mnemonic, cast("ConvRegisters", step.registers), program.arch.psum_entries)
        return vec_plan(mnemonic, cast("VecRegisters", step.registers))
    except EsccError as error:
        raise EsccError(error.message, where=place(program, step), hint=error.hint) from None


def execute(
    program: Program,
    steps: Sequence[Dispatch],
    memory: Memory,
    cache: OperandCache,
    workspace: Workspace,
    observer: Observer | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Run ``steps`` (the dispatches of ``program`` in order) on ``memory``; waits and signals do nothing.

    ``progress`` is called with the number of steps done.

    Raises:
        EsccError: naming the instruction and its layer. DivergentOperand, if the batch has to be run image
            by image.
    """
    for index, step in enumerate(steps):
        if step.registers is None:
            continue
        plan = plan_of(program, step)
        try:
            operands = None
            if isinstance(plan, ConvPlan):
                operands = conv_operands(plan, memory, cache, program.arch.chunk)
            if observer is not None:
                observer.before(index, plan, operands, memory)
            _run(plan, operands, program, memory, cache, workspace)
            if observer is not None:
                observer.after(index, plan, memory)
        except DivergentOperand:
            raise
        except EsccError as error:
            raise EsccError(error.message, where=place(program, step), hint=error.hint) from None
        if progress is not None:
            progress(index + 1)


def _run(
    plan: Plan,
    operands: ConvOperands | None,
    program: Program,
    memory: Memory,
    cache: OperandCache,
    workspace: Workspace,
) -> None:
    if isinstance(plan, ConvPlan):
        assert operands is not None
        run_conv(plan, operands, memory, program.arch.z_bits, workspace)
    elif isinstance(plan, VecPlan):
        run_vec(plan, memory, cache)
    elif plan.dram is None or plan.sram is None:
        memory.load_stream(plan.registers.dram, plan.registers.sram, plan.registers.size)
    elif plan.mnemonic == "load_map":
        source = memory.dram_view(plan.dram)
        memory.sram_view(plan.sram, write=True)[...] = source
    else:
        source = memory.sram_view(plan.sram)
        memory.dram_view(plan.dram, write=True)[...] = source
