"""Durations and events of every instruction of a timed batch, from the data it really works on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from escc.backend_sim.simulator.conv import ConvOperands
from escc.backend_sim.simulator.conv_plan import ConvPlan
from escc.backend_sim.simulator.execute import DmaPlan, Plan
from escc.backend_sim.simulator.memory import Memory
from escc.backend_sim.simulator.timing import ConvTiming, ConvWork, Engine
from escc.backend_sim.simulator.vec_plan import VecPlan
from escc.isa.arch import Arch
from escc.isa.dram import requests, rows_of_box, rows_of_range, transfer_cycles

Counts = npt.NDArray[np.int64]
Amounts = npt.NDArray[np.float64]

GATHERS = 2
"""Bit gathers of a coefficient word: the activation mask and the sign mask (docs/machine.md)."""

LC_CAUSES = ("busy", "wait_input", "wait_row", "wait_fifo", "idle")
MAC_CAUSES = ("busy", "wait_lc", "idle")


@dataclass
class LayerCounts:
    """What the instructions of one layer did, each an array over images.

    ``events``: counts by name (`escc.backend_sim.simulator.energy.EVENTS`). ``causes``: row cycles of the
    LC and MAC parts by ``lc_...`` and ``mac_...``. ``figures``: ``dense_macs`` (multiply-accumulates of the
    convolution without any sparsity), ``products``, ``additions``, ``dram_requests``, and numerators and
    denominators of the densities.
    """

    events: dict[str, Amounts] = field(default_factory=dict[str, Amounts])
    causes: dict[str, Counts] = field(default_factory=dict[str, Counts])
    figures: dict[str, Counts] = field(default_factory=dict[str, Counts])

    def add(self, group: dict[str, Any], name: str, amount: Any) -> None:
        """Add to a count; a number is the same for all images."""
        group[name] = group[name] + amount if name in group else amount

    def settle(self, images: int) -> None:
        """Make every count an array over the images: most amounts come as numbers, which add up faster."""
        for group, kind in ((self.events, np.float64), (self.causes, np.int64), (self.figures, np.int64)):
            target: dict[str, Any] = group
            for name, amount in target.items():
                target[name] = np.broadcast_to(np.asarray(amount, kind), (images,))


class Meter:
    """An observer that times a batch: ``durations`` and DRAM bytes ``moved``, (steps, images), and counts
    per layer."""

    def __init__(self, arch: Arch, layers: list[int], images: int, engine: Engine) -> None:
        self.arch = arch
        self.engine = engine
        self.layer_of = layers
        self.images = images
        self.durations: Counts = np.zeros((len(layers), images), np.int64)
        self.moved: Counts = np.zeros((len(layers), images), np.int64)
        self.layers: dict[int, LayerCounts] = {}

    def before(self, index: int, plan: Plan, operands: ConvOperands | None, memory: Memory) -> None:
        """Take what the instruction reads; it may overwrite it."""
        counts = self.layers.setdefault(self.layer_of[index], LayerCounts())
        if isinstance(plan, ConvPlan):
            assert operands is not None
            self._conv(index, plan, operands, memory, counts)
        elif isinstance(plan, VecPlan):
            self._vec(index, plan, memory, counts)
        else:
            self._dma(index, plan, memory, counts)

    def after(self, index: int, plan: Plan, memory: Memory) -> None:
        """Take what the instruction has written."""
        counts = self.layers[self.layer_of[index]]
        if isinstance(plan, ConvPlan | VecPlan):
            written = sparse_bytes(memory.sram_view(plan.y))
            counts.add(counts.events, "sram_write_bytes", written)

    def _event(self, counts: LayerCounts, name: str, amount: npt.NDArray[Any] | float) -> None:
        counts.add(counts.events, name, amount)

    def _figure(self, counts: LayerCounts, name: str, amount: npt.NDArray[Any] | int) -> None:
        counts.add(counts.figures, name, amount)

    # DMA

    def _dma(self, index: int, plan: DmaPlan, memory: Memory, counts: LayerCounts) -> None:
        arch, r = self.arch, plan.registers
        row = arch.dram_row_bytes
        moved: Counts | int
        if plan.dram is None or plan.sram is None:
            moved = r.size
            activates = rows_of_range(r.dram, r.size, row)
        else:
            load = plan.mnemonic == "load_map"
            moved = sparse_bytes(memory.dram_view(plan.dram) if load else memory.sram_view(plan.sram))
            activates = rows_of_box(*plan.dram, row)
        self.moved[index] = moved
        sizes: list[int] = [moved] if isinstance(moved, int) else moved.tolist()
        self.durations[index] = [transfer_cycles(arch, size, activates) for size in sizes]
        store = plan.mnemonic == "store_map"
        self._event(counts, "dram_write_bits" if store else "dram_read_bits", 8 * moved)
        self._event(counts, "dram_activates", activates)
        self._figure(counts, "dram_requests", np.array([requests(arch, size, activates) for size in sizes]))
        self._event(counts, "sram_read_bytes" if store else "sram_write_bytes", moved)

    # vector unit

    def _vec(self, index: int, plan: VecPlan, memory: Memory, counts: LayerCounts) -> None:
        r, arch = plan.registers, self.arch
        work = plan.windows * -(-r.chans // arch.vector_lanes)
        self.durations[index] = arch.vector_startup_cycles + work
        read = np.zeros(self.images, np.int64)
        if plan.a is not None:
            view = memory.sram_view(plan.a)
            read += sparse_bytes(view if plan.adaptive else view[:, plan.rows.source, plan.cols.source])
        if plan.b is not None:
            one = r.b_row == r.b_pos == 0
            other = memory.sram_view(plan.b)
            read += sparse_bytes(other[:, :1, :1] if one else other)
        if plan.mnemonic == "vec_avg":
            read += 9 * r.entries
        if plan.table:
            read += 256
            self._event(counts, "operand_bits", 8 * plan.positions * r.chans)
        self._event(counts, "sram_read_bytes", read)
        self._event(counts, "vector_ops", plan.windows * r.chans)
        outputs = plan.positions * r.chans
        if plan.mnemonic == "vec_mul":
            self._event(counts, "vector_products", outputs)
        scaled = {"vec_add": 2, "vec_mul": 1, "vec_avg": 1, "vec_copy": int(r.a_mult != 0)}
        self._requantized(counts, scaled.get(plan.mnemonic, 0) * outputs)

    def _requantized(self, counts: LayerCounts, values: int) -> None:
        self._event(counts, "requantize_multiplies", values)
        self._event(counts, "requantize_adds", 2 * values)

    # convolutions

    def _conv(
        self, index: int, plan: ConvPlan, operands: ConvOperands, memory: Memory, counts: LayerCounts
    ) -> None:
        work = conv_work(plan)
        x = memory.sram_view(plan.x)
        ternary = None if operands.coefficients is None else operands.coefficients.bits
        timing = self.engine.conv_timing(self.arch, work, x, ternary)
        self.durations[index] = timing.cycles
        for cause in LC_CAUSES:
            counts.add(counts.causes, f"lc_{cause}", timing.lc_causes[cause])
        for cause in MAC_CAUSES:
            counts.add(counts.causes, f"mac_{cause}", timing.mac_causes[cause])
        self._conv_figures(plan, operands, x, timing, counts)
        self._conv_memory(plan, operands, memory, timing, counts)
        self._conv_array(plan, operands, timing, counts)

    def _conv_figures(
        self,
        plan: ConvPlan,
        operands: ConvOperands,
        x: npt.NDArray[np.uint8],
        timing: ConvTiming,
        counts: LayerCounts,
    ) -> None:
        r = plan.registers
        inputs = 1 if plan.form == "depthwise" else r.chans
        self._figure(counts, "dense_macs", r.y_rows * r.y_cols * r.outs * inputs * plan.taps)
        self._figure(counts, "products", timing.products)
        self._figure(counts, "additions", timing.matches)
        self._figure(counts, "activations", x[0].size)
        self._figure(counts, "activations_nonzero", nonzeros(x))
        if operands.coefficients is not None:
            self._figure(counts, "coefficients", operands.coefficients.ternary.size)
            self._figure(counts, "coefficients_nonzero", operands.coefficients.nonzeros)

    def _conv_memory(
        self,
        plan: ConvPlan,
        operands: ConvOperands,
        memory: Memory,
        timing: ConvTiming,
        counts: LayerCounts,
    ) -> None:
        """SRAM reads: input to the rings, and for every item (group, band) the operands of its outputs."""
        r = plan.registers
        read = timing.ring_bytes_written.copy()
        kernel_bytes = operands.kernels.values.size
        if operands.coefficients is not None:
            read += r.bands * operands.coefficients.stream_bytes
            kernel_bytes *= -(-r.outs // self.arch.rows)
        read += r.bands * (kernel_bytes + 9 * r.outs)
        if plan.residual is not None:
            read += sparse_bytes(memory.sram_view(plan.residual))
        if plan.table:
            read += 256
        self._event(counts, "sram_read_bytes", read)

    def _conv_array(
        self, plan: ConvPlan, operands: ConvOperands, timing: ConvTiming, counts: LayerCounts
    ) -> None:
        r, arch = plan.registers, self.arch
        combine = operands.coefficients is not None
        value_bits = arch.z_bits if combine else 8
        outputs = r.y_rows * r.y_cols * r.outs
        self._event(counts, "ring_bits", 8 * (timing.ring_bytes_written + timing.ring_bytes_read))
        operand_bits = 8.0 * timing.products + (8 * outputs if plan.table else 0)
        if operands.coefficients is not None:
            chunks = -(-r.chans // arch.chunk)
            positions = timing.dilution_words // (r.outs * r.bases * chunks)
            operand_bits = operand_bits + 8.0 * positions * operands.coefficients.stream_bytes
            mask_bits = positions * (r.outs * r.bases * r.chans)
            levels = int(math.log2(arch.chunk))
            planes = 1 + 2 * GATHERS * levels + (8 * levels if arch.policy == "gather" else 0)
            self._event(counts, "dilution_bit_levels", mask_bits * planes)
            self._event(counts, "moved_bits", 8 * timing.matches if arch.policy == "window" else 0)
            self._event(counts, "lane_adds", timing.matches)
            self._event(counts, "z_adds", timing.issue_cycles)
            self._event(counts, "z_bits", 2 * arch.z_bits * timing.issue_cycles)
        self._event(counts, "operand_bits", operand_bits)
        self._event(counts, "fifo_bits", 2 * value_bits * timing.fifo_values)
        self._event(counts, "products", timing.products * (value_bits / 8))
        self._event(counts, "sum_adds", timing.psum_updates)
        self._event(counts, "sum_bits", 64 * timing.psum_updates)
        self._requantized(counts, outputs * (1 if plan.residual is None else 2))


def conv_work(plan: ConvPlan) -> ConvWork:
    """The convolution as the timing model takes it."""
    r = plan.registers
    return ConvWork(
        form=plan.form,
        outs=r.outs,
        chans=r.chans,
        height=r.height,
        width=r.width,
        y_rows=r.y_rows,
        y_cols=r.y_cols,
        bases=r.bases if plan.form == "combine" else 1,
        kernel_h=r.kernel_h,
        kernel_w=r.kernel_w,
        stride_h=r.stride_h,
        stride_w=r.stride_w,
        pad_top=r.pad_top,
        pad_left=r.pad_left,
        dil_h=r.dil_h,
        dil_w=r.dil_w,
        x_first=r.x_first,
        y_first=r.y_first,
        bands=r.bands,
        multiplier=r.multiplier if plan.form == "depthwise" else 1,
    )


def sparse_bytes(values: npt.NDArray[np.uint8]) -> Counts:
    """SparseMap bytes of maps (n, rows, cols, chans): ceil(chans / 8) a position and 1 a non-zero, (n,)."""
    _, rows, cols, chans = values.shape
    return rows * cols * -(-chans // 8) + nonzeros(values)


def nonzeros(values: npt.NDArray[np.uint8]) -> Counts:
    """Non-zeros of each image of ``values`` (n, rows, cols, chans), (n,)."""
    # counting bools of a whole array is fast, counting along axes adds up int64
    return np.array([np.count_nonzero(image != 0) for image in values], np.int64)
