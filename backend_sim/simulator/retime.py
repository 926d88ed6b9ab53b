"""One run of a program, timed on many machines: cycles and energy without running it again.

A `Recording` holds what a program did on one image: which instructions ran, what their transfers moved, what
the convolutions read. Another machine's cycles follow from it: convolutions from the recurrence of their
queues over concentration done once (`escc.backend_sim.simulator.timing.reuse`), transfers and vector
instructions from their formulas, all of it from the timeline. Everything is exact: what comes out is what the
simulator says of the same instructions on that machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from escc.backend_sim.simulator.conv import ConvOperands
from escc.backend_sim.simulator.conv_plan import ConvPlan
from escc.backend_sim.simulator.energy import EnergyTable
from escc.backend_sim.simulator.execute import DmaPlan, Plan, execute
from escc.backend_sim.simulator.host import quantize_input, write_input
from escc.backend_sim.simulator.memory import Memory
from escc.backend_sim.simulator.meter import GATHERS, LayerCounts, conv_work
from escc.backend_sim.simulator.operands import OperandCache
from escc.backend_sim.simulator.result import layer_energy
from escc.backend_sim.simulator.runner import simulate
from escc.backend_sim.simulator.timeline import run_timeline
from escc.backend_sim.simulator.timing import Engine, make_engine
from escc.backend_sim.simulator.timing.native import NativeEngine, program_cycles
from escc.backend_sim.simulator.timing.reuse import CONCENTRATION, FIGURES, Instruction, Reuse, reusing
from escc.backend_sim.simulator.vec_plan import VecPlan
from escc.backend_sim.simulator.workspace import Workspace
from escc.errors import EsccError
from escc.isa.access import partial_sums
from escc.isa.arch import PARAMETERS, Arch
from escc.isa.dram import rows_of_box, rows_of_range, transfer_cycles
from escc.isa.instructions import Queue
from escc.isa.program import Program
from escc.isa.registers import ConvRegisters
from escc.isa.sequence import expand

Counts = npt.NDArray[np.int64]
Amounts = npt.NDArray[np.float64]

PROGRAM = ("chunk", "z_bits", "sram_kib", "dram_row_bytes")
"""What a program holds for good: its streams, its buffers, its proofs; and the rows its transfers open."""


@dataclass(frozen=True)
class Point:
    """One image on one machine: ``cycles`` and ``energy`` by component in the unit of the table."""

    cycles: int
    energy: dict[str, float]
    layer_bands: tuple[int, ...]

    @property
    def energy_total(self) -> float:
        """Energy of the image."""
        return sum(self.energy.values())


@dataclass(frozen=True)
class Conv:
    """A convolution that ran: its step, layer and registers, and what its events need.

    ``kernel_bytes`` are read once for every band, and with ``combine`` once for every group too.
    """

    step: int
    layer: int
    registers: ConvRegisters
    combine: bool
    stream_bytes: int
    register_bytes: int
    sums_fetched: int
    kernel_bytes: int


class Recording:
    """What a program did on one image, and its concentration on the machine asked for last.

    Args:
        program: verified by running it.
        images: of one input, (1, *torch_shape), as `simulate` takes them.
        engine: what times convolutions; the native one is a hundred times faster here.

    Raises:
        EsccError: as `simulate`.
    """

    def __init__(self, program: Program, images: npt.NDArray[Any], *, engine: Engine | None = None) -> None:
        self.arch = program.arch
        self.engine = engine or make_engine()
        result = simulate(program, images[:1], engine=self.engine.name)
        assert result.timed is not None
        self.outputs = result.outputs
        self.steps = result.timed.steps
        watch = _Watch(self.arch)
        _execute(program, images[:1], result.timed.steps, watch, self.engine)
        self.convs, self.instructions = watch.convs, watch.instructions
        self._columns = _Columns(self.convs)
        self._sums = max((partial_sums(conv.registers) for conv in self.convs), default=0)
        self._vec = np.array(watch.vecs, np.int64).reshape(-1, 3)
        self._dma = [
            (index, int(result.timed.moved[index, 0]), activates) for index, activates in watch.transfers
        ]
        self._clock = _Clock(result.timed.steps, _words(program), self.engine)
        self._reuse: Reuse | None = None
        self._concentrated: tuple[Any, ...] = ()
        self._transfers: tuple[tuple[Any, ...], Counts] | None = None
        # What the convolutions do not account for does not depend on the machine.
        self.events: dict[str, float] = {}
        for layer in result.timed.layers:
            for name, amount in layer.counts.events.items():
                self.events[name] = self.events.get(name, 0.0) + float(amount[0])
        bands = self.bands
        figures = self._figures(self.arch, bands)
        for name, amount in self._columns.events(self.arch, figures, np.array(bands)).items():
            self.events[name] -= amount
        if self.measure(self.arch).cycles != int(result.cycles[0]):
            raise AssertionError("the recording gives other cycles than the run")

    @property
    def bands(self) -> list[int]:
        """Into how many bands the program cuts each convolution (`convs`)."""
        return [conv.registers.bands for conv in self.convs]

    def check(self, arch: Arch) -> None:
        """Refuse a machine that the program does not run on.

        Raises:
            EsccError: it differs in what the program was compiled for, or a row holds too few partial sums.
        """
        for name in PROGRAM:
            if getattr(arch, name) != getattr(self.arch, name):
                known, asked = getattr(self.arch, name), getattr(arch, name)
                raise EsccError(f"the program was compiled for {name} {known}, not {asked}")
        if self._sums > arch.psum_entries:
            raise EsccError(
                f"needs {self._sums} partial sums in a row of the array, which holds {arch.psum_entries}"
            )

    def measure(
        self, arch: Arch, table: EnergyTable | None = None, bands: Sequence[int] | None = None
    ) -> Point:
        """Cycles and energy of the image on ``arch``.

        Args:
            arch: a machine that the program runs on.
            table: of energies; ``horowitz45`` by default.
            bands: into how many each convolution is cut; as in the program by default.

        Raises:
            EsccError: see `check`.
        """
        self.check(arch)
        chosen = list(self.bands if bands is None else bands)
        figures = self._figures(arch, chosen)
        cycles = self._clock.cycles(self._durations(arch, figures), arch.queue_depth)
        events = {name: amount for name, amount in self.events.items()}
        for name, amount in self._columns.events(arch, figures, np.array(chosen)).items():
            events[name] += amount
        counts = LayerCounts({name: np.array([amount]) for name, amount in events.items()})
        energy = layer_energy(counts, np.array([cycles]), arch, table or EnergyTable.load())
        return Point(cycles, {name: float(value[0]) for name, value in energy.items()}, tuple(chosen))

    def _figures(self, arch: Arch, bands: Sequence[int]) -> Counts:
        key = tuple(getattr(arch, name) for name in CONCENTRATION)
        if self._reuse is None or key != self._concentrated:
            self._reuse = None  # its memory first
            self._reuse = reusing(self.engine, arch, self.instructions)
            self._concentrated = key
        return self._reuse.timings(arch, bands)

    def _durations(self, arch: Arch, figures: Counts) -> Counts:
        durations = self._transfer_cycles(arch).copy()
        if len(self._vec):
            index, windows, chans = self._vec.T
            durations[index] = arch.vector_startup_cycles + windows * -(-chans // arch.vector_lanes)
        durations[self._columns.step] = figures[:, FIGURES.index("cycles")]
        return durations

    def _transfer_cycles(self, arch: Arch) -> Counts:
        """Durations of the transfers, the rest zero; most machines of a sweep share them."""
        key = tuple(getattr(arch, p.name) for p in PARAMETERS if p.key.startswith("dram_") or p.key == "mhz")
        if self._transfers is None or self._transfers[0] != key:
            durations = np.zeros(len(self.steps), np.int64)
            for index, moved, activates in self._dma:
                durations[index] = transfer_cycles(arch, moved, activates)
            self._transfers = key, durations
        return self._transfers[1]


class _Watch:
    """An observer that keeps what the timing of an instruction asks for."""

    def __init__(self, arch: Arch) -> None:
        self.arch = arch
        self.convs: list[Conv] = []
        self.instructions: list[Instruction] = []
        self.vecs: list[tuple[int, int, int]] = []
        self.transfers: list[tuple[int, int]] = []
        self.layer_of: list[int] = []

    def before(self, index: int, plan: Plan, operands: ConvOperands | None, memory: Memory) -> None:
        """Take what the instruction reads."""
        if isinstance(plan, ConvPlan):
            assert operands is not None
            self._conv(index, plan, operands, memory)
        elif isinstance(plan, VecPlan):
            self.vecs.append((index, plan.windows, plan.registers.chans))
        else:
            self.transfers.append((index, _activates(plan, self.arch.dram_row_bytes)))

    def after(self, index: int, plan: Plan, memory: Memory) -> None:
        """Nothing more."""

    def _conv(self, index: int, plan: ConvPlan, operands: ConvOperands, memory: Memory) -> None:
        coefficients = operands.coefficients
        x = memory.sram_view(plan.x)[0]
        # tiles of output channels read the same rows
        last = self.instructions[-1].x if self.instructions else None
        same = last is not None and last.shape == x.shape and np.array_equal(last, x)
        self.instructions.append(
            Instruction(
                conv_work(plan),
                last if same and last is not None else x.copy(),
                None if coefficients is None else coefficients.bits,
            )
        )
        self.convs.append(
            Conv(
                index,
                self.layer_of[index],
                plan.registers,
                coefficients is not None,
                0 if coefficients is None else coefficients.stream_bytes,
                0 if coefficients is None else coefficients.register_bytes,
                plan.sums_fetched,
                operands.kernels.values.size,
            )
        )


def _activates(plan: DmaPlan, row_bytes: int) -> int:
    if plan.dram is None or plan.sram is None:
        return rows_of_range(plan.registers.dram, plan.registers.size, row_bytes)
    return rows_of_box(*plan.dram, row_bytes)


def _execute(
    program: Program, images: npt.NDArray[Any], steps: Sequence[Any], watch: _Watch, engine: Engine
) -> None:
    watch.layer_of = [step.layer for step in steps]
    memory = Memory(program, 1)
    write_input(memory, program.inputs[0], quantize_input(program.inputs[0], images))
    execute(program, steps, memory, OperandCache(codec=engine), Workspace(engine.maps), watch)


def _words(program: Program) -> int:
    """Words that the sequencer executes."""
    sequence = expand(program.code)
    while True:
        try:
            next(sequence)
        except StopIteration as stop:
            return int(stop.value)


class _Columns:
    """Numbers of the convolutions, one array for each, and the events that depend on the machine.

    The counts are those of docs/machine.md, Energy.
    """

    def __init__(self, convs: Sequence[Conv]) -> None:
        registers = [conv.registers for conv in convs]

        def column(values: list[int]) -> Counts:
            return np.array(values, np.int64)

        self.step = column([conv.step for conv in convs])
        self.combine = column([conv.combine for conv in convs])
        self.outs = column([r.outs for r in registers])
        self.chans = column([r.chans for r in registers])
        self.bases = column(
            [r.bases if conv.combine else 1 for r, conv in zip(registers, convs, strict=True)]
        )
        self.stream_bytes = column([conv.stream_bytes for conv in convs])
        self.register_bytes = column([conv.register_bytes for conv in convs])
        self.sums_fetched = column([conv.sums_fetched for conv in convs])
        self.kernel_bytes = column([conv.kernel_bytes for conv in convs])

    def events(self, arch: Arch, figures: Counts, bands: Counts) -> dict[str, float]:
        """The events of all convolutions together."""
        f = {name: figures[:, index] for index, name in enumerate(FIGURES)}
        combine = self.combine
        levels = int(math.log2(arch.chunk))
        planes = 1 + 2 * GATHERS * levels + (8 * levels if arch.policy == "gather" else 0)
        words = self.outs * self.bases * -(-self.chans // arch.chunk)
        positions = f["dilution_words"] // words
        value_bits = np.where(combine, arch.z_bits, 8)
        groups = np.where(combine, -(-self.outs // arch.rows), 1)
        kernels = bands * (self.kernel_bytes * groups + 9 * self.outs)
        moved = 8 if arch.policy == "window" else 0
        sums: dict[str, npt.NDArray[Any]] = {
            "sram_read_bytes": f["ring_bytes_written"] + bands * self.stream_bytes + kernels,
            "ring_bits": 8 * (f["ring_bytes_written"] + f["ring_bytes_read"]),
            "operand_bits": 8 * f["products"],
            "coefficient_bits": 8 * positions * self.register_bytes,
            "dilution_bit_levels": positions * self.outs * self.bases * self.chans * planes,
            "moved_bits": combine * f["matches"] * moved,
            "lane_adds": combine * f["matches"],
            "z_adds": combine * f["issue_cycles"],
            "z_bits": combine * f["issue_cycles"] * (2 * arch.z_bits),
            "fifo_bits": 2 * value_bits * f["fifo_values"],
            "products": f["products"] * (value_bits / 8),
            "sum_adds": f["psum_updates"],
            "sum_bits": 64 * f["psum_updates"],
            "sum_bits_read": 32 * self.sums_fetched,
            "sum_bits_written": 32 * self.sums_fetched,
        }
        return {name: float(amount.sum()) for name, amount in sums.items()}


class _Clock:
    """The timeline of a program: how long it takes when its instructions take so long."""

    def __init__(self, steps: Sequence[Any], words: int, engine: Engine) -> None:
        self.steps, self.words = steps, words
        self.native = isinstance(engine, NativeEngine)
        order = {queue: number for number, queue in enumerate(Queue)}
        self.queue = np.array([order[step.queue] for step in steps], np.int64)
        self.executed = np.array([step.executed for step in steps], np.int64)
        self.partner = np.full(len(steps), -1, np.int64)
        signals: dict[int, list[int]] = {}
        waited: dict[int, int] = {}
        for index, step in enumerate(steps):
            if step.registers is not None:
                continue
            if step.instruction.mnemonic == "signal":
                signals.setdefault(step.token, []).append(index)
                self.partner[index] = index
            else:
                number = waited.get(step.token, 0)
                waited[step.token] = number + 1
                self.partner[index] = signals[step.token][number]

    def cycles(self, durations: Counts, depth: int) -> int:
        """Cycles of the program."""
        if self.native:
            return program_cycles(self.queue, self.executed, self.partner, durations, depth, self.words)
        return int(run_timeline(self.steps, self.words, durations[:, None], depth).total[0])
