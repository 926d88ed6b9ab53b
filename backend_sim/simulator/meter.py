"""Durations and events of every instruction of a timed batch, from the data it really works on.

While a batch runs, the meter takes from the memories what will be gone later, and lets the engine time the
convolutions. When all have run, counts are worked out for all instructions at once and added up by layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from escc.backend_sim.simulator.background import Background
from escc.backend_sim.simulator.conv import ConvOperands
from escc.backend_sim.simulator.conv_plan import ConvPlan
from escc.backend_sim.simulator.execute import DmaPlan, Plan
from escc.backend_sim.simulator.memory import Memory
from escc.backend_sim.simulator.operands import Coefficients
from escc.backend_sim.simulator.timing import Convolution, ConvTiming, ConvWork, Engine, NativeMaps
from escc.backend_sim.simulator.vec_plan import VecPlan
from escc.errors import EsccError
from escc.isa.arch import Arch
from escc.isa.dram import requests, rows_of_box, rows_of_range, transfer_cycles

Counts = npt.NDArray[np.int64]
Amounts = npt.NDArray[np.float64]

GATHERS = 2
"""Bit gathers of a coefficient word: the activation mask and the sign mask (docs/machine.md)."""

LC_CAUSES = ("busy", "wait_input", "wait_row", "wait_fifo", "idle")
MAC_CAUSES = ("busy", "wait_lc", "idle")
_FIGURES = tuple(figure.name for figure in fields(ConvTiming))

WAITING_BYTES = 16 << 20
"""Activations of convolutions that are timed together; more of them do not make numpy quicker."""
HANDED_OVER = 16
"""Convolutions that are given to the background at once."""


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


class _Timed(NamedTuple):
    """The time of a convolution, its non-zero coefficients, and the non-zero activations of each image."""

    timing: ConvTiming
    nonzeros: int
    active: list[int]


@dataclass
class _Waiting:
    """Convolutions to be timed together; ``x`` are copies. ``results``, of each, when they have been."""

    works: list[ConvWork] = field(default_factory=list[ConvWork])
    x: list[npt.NDArray[np.uint8]] = field(default_factory=list[npt.NDArray[np.uint8]])
    coefficients: list[Coefficients | None] = field(default_factory=list[Coefficients | None])
    held: int = 0
    results: Callable[[], list[_Timed | EsccError]] | None = None

    def add(self, work: ConvWork, x: npt.NDArray[np.uint8], coefficients: Coefficients | None) -> int:
        """Take one more; returns its place in the results."""
        self.works.append(work)
        self.x.append(x)
        self.coefficients.append(coefficients)
        self.held += x.size
        return len(self.works) - 1

    def time(self, engine: Engine, arch: Arch) -> list[_Timed | EsccError]:
        """Time them, and let go of the copies."""
        convolutions = [
            Convolution(work, x, None if coefficients is None else coefficients.bits)
            for work, x, coefficients in zip(self.works, self.x, self.coefficients, strict=True)
        ]
        try:
            timings: list[ConvTiming | EsccError] = [*engine.conv_timings(arch, convolutions)]
        except EsccError:
            # one of them is to blame
            timings = [_alone(engine, arch, item) for item in convolutions]
        found: list[_Timed | EsccError] = []
        for timing, item in zip(timings, convolutions, strict=True):
            if isinstance(timing, EsccError):
                found.append(timing)
            else:
                nonzeros = 0 if item.ternary is None else engine.nonzeros(arch, item.ternary)
                found.append(_Timed(timing, nonzeros, nonzero_counts(item.x, engine.maps)))
        self.works, self.x, self.coefficients = [], [], []
        return found


def _alone(engine: Engine, arch: Arch, item: Convolution) -> ConvTiming | EsccError:
    try:
        return engine.conv_timing(arch, *item)
    except EsccError as error:
        return error


@dataclass(frozen=True)
class _Conv:
    """A convolution that has run: what the counts need. It has place ``place`` in ``timed``."""

    plan: ConvPlan
    timed: _Waiting
    place: int
    combine: bool
    register_bytes: int
    coefficients: int
    kernel_bytes: int
    activations: int


class Meter:
    """An observer that times a batch: ``durations`` and DRAM bytes ``moved``, (steps, images), and after
    `finish` counts per layer.

    Convolutions are timed in the ``background``, where there is one.
    """

    def __init__(
        self,
        arch: Arch,
        layers: list[int],
        images: int,
        engine: Engine,
        background: Background | None = None,
    ) -> None:
        self.arch, self.engine, self.images = arch, engine, images
        self.layer_of = layers
        self.durations: Counts = np.zeros((len(layers), images), np.int64)
        self.moved: Counts = np.zeros((len(layers), images), np.int64)
        self.layers: dict[int, LayerCounts] = {}
        self._background = background
        self._convs: dict[int, _Conv] = {}
        self._waiting = _Waiting()
        self._vecs: dict[int, VecPlan] = {}
        self._stores: dict[int, bool] = {}
        self._activates = np.zeros((len(layers), 1), np.int64)
        self._requests = np.zeros_like(self.moved)
        self._sram_read = np.zeros_like(self.moved)
        self._sram_written = np.zeros_like(self.moved)
        self._active = np.zeros_like(self.moved)

    def before(self, index: int, plan: Plan, operands: ConvOperands | None, memory: Memory) -> None:
        """Take what the instruction reads; it may overwrite it."""
        if isinstance(plan, ConvPlan):
            assert operands is not None
            self._conv(index, plan, operands, memory)
        elif isinstance(plan, VecPlan):
            self._vec(index, plan, memory)
        else:
            self._dma(index, plan, memory)

    def after(self, index: int, plan: Plan, memory: Memory) -> None:
        """Take what the instruction has written."""
        if isinstance(plan, ConvPlan | VecPlan):
            self._sram_written[index] = sparse_bytes(memory.sram_view(plan.y), self.engine.maps)

    def finish(self, failed: Callable[[int, EsccError], EsccError]) -> None:
        """All have run: fill in the durations of convolutions and the counts of the layers.

        ``failed`` makes the exception to raise of what the timing of an instruction raised.
        """
        sums = _Sums(self.layer_of, self.images)
        self._count_dma(sums)
        self._count_vecs(sums)
        self._count_convs(sums, failed)
        sums.add("events", "sram_read_bytes", slice(None), self._sram_read)
        sums.add("events", "sram_write_bytes", slice(None), self._sram_written)
        self.layers = sums.layers()

    # DMA

    def _dma(self, index: int, plan: DmaPlan, memory: Memory) -> None:
        arch, r = self.arch, plan.registers
        row = arch.dram_row_bytes
        store = plan.mnemonic == "store_map"
        if plan.dram is None or plan.sram is None:
            sizes = [r.size] * self.images
            activates = rows_of_range(r.dram, r.size, row)
        else:
            view = memory.sram_view(plan.sram) if store else memory.dram_view(plan.dram)
            sizes = nonzero_counts(view, self.engine.maps)
            masks = r.rows * r.cols * -(-r.chans // 8)
            sizes = [masks + size for size in sizes]
            activates = rows_of_box(*plan.dram, row)
        self.moved[index] = sizes
        self.durations[index] = [transfer_cycles(arch, size, activates) for size in sizes]
        self._requests[index] = [requests(arch, size, activates) for size in sizes]
        self._activates[index] = activates
        self._stores[index] = store
        (self._sram_read if store else self._sram_written)[index] = sizes

    def _count_dma(self, sums: _Sums) -> None:
        store = np.zeros((len(self.layer_of), 1), np.bool_)
        store[[index for index, stores in self._stores.items() if stores]] = True
        everything = slice(None)
        sums.add("events", "dram_read_bits", everything, np.where(store, 0, 8 * self.moved))
        sums.add("events", "dram_write_bits", everything, np.where(store, 8 * self.moved, 0))
        sums.add("events", "dram_activates", everything, self._activates)
        sums.add("figures", "dram_requests", everything, self._requests)

    # vector unit

    def _vec(self, index: int, plan: VecPlan, memory: Memory) -> None:
        r, arch = plan.registers, self.arch
        work = plan.windows * -(-r.chans // arch.vector_lanes)
        self.durations[index] = arch.vector_startup_cycles + work
        read = np.zeros(self.images, np.int64)
        if plan.a is not None:
            view = memory.sram_view(plan.a)
            read += sparse_bytes(
                view if plan.adaptive else view[:, plan.rows.source, plan.cols.source], self.engine.maps
            )
        if plan.b is not None:
            one = r.b_row == r.b_pos == 0
            other = memory.sram_view(plan.b)
            read += sparse_bytes(other[:, :1, :1] if one else other, self.engine.maps)
        if plan.mnemonic == "vec_avg":
            read += 9 * r.entries
        if plan.table:
            read += 256
        self._sram_read[index] = read
        self._vecs[index] = plan

    def _count_vecs(self, sums: _Sums) -> None:
        if not self._vecs:
            return
        index = list(self._vecs)
        plans = list(self._vecs.values())
        outputs = _column([plan.positions * plan.registers.chans for plan in plans])
        tables = _column([plan.table for plan in plans])
        products = _column([plan.mnemonic == "vec_mul" for plan in plans])
        scaled = {"vec_add": 2, "vec_mul": 1, "vec_avg": 1}
        rescales = [
            int(plan.registers.a_mult != 0) if plan.mnemonic == "vec_copy" else scaled.get(plan.mnemonic, 0)
            for plan in plans
        ]
        windows = _column([plan.windows * plan.registers.chans for plan in plans])
        sums.add("events", "operand_bits", index, 8 * outputs * tables)
        sums.add("events", "vector_ops", index, windows)
        sums.add("events", "vector_products", index, outputs * products)
        self._requantized(sums, index, outputs * _column(rescales))

    @staticmethod
    def _requantized(sums: _Sums, index: list[int], values: Counts) -> None:
        sums.add("events", "requantize_multiplies", index, values)
        sums.add("events", "requantize_adds", index, 2 * values)

    # convolutions

    def _conv(self, index: int, plan: ConvPlan, operands: ConvOperands, memory: Memory) -> None:
        work, x = conv_work(plan), memory.sram_view(plan.x)
        coefficients = operands.coefficients
        # the SRAM will hold something else by the time it is timed
        timed, place = self._waiting, self._waiting.add(work, x.copy(), coefficients)
        if timed.held >= WAITING_BYTES or (self._background and place + 1 >= HANDED_OVER):
            self._time_waiting()
        # SRAM reads besides the input, which goes to the rings: for every item (group, band) its operands
        r = plan.registers
        read = np.zeros(self.images, np.int64)
        kernel_bytes = operands.kernels.values.size
        if coefficients is not None:
            read += r.bands * coefficients.stream_bytes
            kernel_bytes *= -(-r.outs // self.arch.rows)
        read += r.bands * (kernel_bytes + 9 * r.outs)
        if plan.residual is not None:
            read += sparse_bytes(memory.sram_view(plan.residual), self.engine.maps)
        if plan.table:
            read += 256
        self._sram_read[index] = read
        self._convs[index] = _Conv(
            plan,
            timed,
            place,
            coefficients is not None,
            0 if coefficients is None else coefficients.register_bytes,
            0 if coefficients is None else coefficients.size,
            kernel_bytes,
            x[0].size,
        )

    def _time_waiting(self) -> None:
        """Have the waiting convolutions timed."""
        waiting, self._waiting = self._waiting, _Waiting()

        def time() -> list[_Timed | EsccError]:
            return waiting.time(self.engine, self.arch)

        if self._background is None:
            found = time()
            waiting.results = lambda: found
        else:
            waiting.results = self._background.run(time)

    def _count_convs(self, sums: _Sums, failed: Callable[[int, EsccError], EsccError]) -> None:
        if not self._convs:
            return
        self._time_waiting()
        timings: list[list[Counts]] = []
        nonzeros: list[int] = []
        for index, conv in self._convs.items():
            assert conv.timed.results is not None
            timed = conv.timed.results()[conv.place]
            if isinstance(timed, EsccError):
                raise failed(index, timed)
            timings.append(list(vars(timed.timing).values()))
            nonzeros.append(timed.nonzeros)
            self._active[index] = timed.active
        index = list(self._convs)
        figures: dict[str, Counts] = dict(zip(_FIGURES, np.array(timings).swapaxes(0, 1), strict=True))
        self.durations[index] = figures["cycles"]
        for cause in LC_CAUSES:
            sums.add("causes", f"lc_{cause}", index, figures[f"lc_{cause}"])
        for cause in MAC_CAUSES:
            sums.add("causes", f"mac_{cause}", index, figures[f"mac_{cause}"])
        self._sram_read[index] += figures["ring_bytes_written"]
        sums.add("figures", "coefficients_nonzero", index, _column(nonzeros))
        convs = list(self._convs.values())
        self._conv_figures(sums, index, convs, figures)
        self._conv_array(sums, index, convs, figures)

    def _conv_figures(
        self, sums: _Sums, index: list[int], convs: list[_Conv], figures: dict[str, Counts]
    ) -> None:
        dense = [
            r.y_rows * r.y_cols * r.outs * plan.taps * (1 if plan.form == "depthwise" else r.chans)
            for plan, r in ((conv.plan, conv.plan.registers) for conv in convs)
        ]
        sums.add("figures", "dense_macs", index, _column(dense))
        sums.add("figures", "products", index, figures["products"])
        sums.add("figures", "additions", index, figures["matches"])
        sums.add("figures", "activations", index, _column([conv.activations for conv in convs]))
        sums.add("figures", "activations_nonzero", index, self._active[index])
        sums.add("figures", "coefficients", index, _column([conv.coefficients for conv in convs]))

    def _conv_array(
        self, sums: _Sums, index: list[int], convs: list[_Conv], figures: dict[str, Counts]
    ) -> None:
        arch = self.arch
        registers = [conv.plan.registers for conv in convs]

        def event(name: str, amount: npt.NDArray[Any]) -> None:
            sums.add("events", name, index, amount)

        combine = _column([conv.combine for conv in convs])
        outs = _column([r.outs for r in registers])
        outputs = _column([r.y_rows * r.y_cols for r in registers]) * outs
        tables = _column([conv.plan.table for conv in convs])
        residuals = _column([conv.plan.residual is not None for conv in convs])
        streams = _column([conv.register_bytes for conv in convs])
        words = _column([r.outs * max(r.bases, 1) * -(-r.chans // arch.chunk) for r in registers])
        masks = _column([r.outs * r.bases * r.chans for r in registers])
        value_bits = np.where(combine, arch.z_bits, 8)
        positions = combine * figures["dilution_words"] // words
        levels = int(math.log2(arch.chunk))
        planes = 1 + 2 * GATHERS * levels + (8 * levels if arch.policy == "gather" else 0)
        event("ring_bits", 8 * (figures["ring_bytes_written"] + figures["ring_bytes_read"]))
        event("operand_bits", 8 * (figures["products"] + outputs * tables))
        event("coefficient_bits", 8 * positions * streams)
        event("dilution_bit_levels", positions * masks * planes)
        event("moved_bits", combine * figures["matches"] * (8 if arch.policy == "window" else 0))
        event("lane_adds", combine * figures["matches"])
        event("z_adds", combine * figures["issue_cycles"])
        event("z_bits", combine * figures["issue_cycles"] * (2 * arch.z_bits))
        event("fifo_bits", 2 * value_bits * figures["fifo_values"])
        event("products", figures["products"] * (value_bits / 8))
        event("sum_adds", figures["psum_updates"])
        event("sum_bits", 64 * figures["psum_updates"])
        fetched = _column([32 * conv.plan.sums_fetched for conv in convs])
        event("sum_bits_read", fetched)
        event("sum_bits_written", fetched)
        self._requantized(sums, index, outputs * (1 + residuals))


class _Sums:
    """Counts of instructions added up by layer."""

    def __init__(self, layer_of: list[int], images: int) -> None:
        self.numbers, self.place = np.unique(np.array(layer_of, np.int64), return_inverse=True)
        self.images = images
        self.groups: dict[str, dict[str, npt.NDArray[Any]]] = {"events": {}, "causes": {}, "figures": {}}

    def add(self, group: str, name: str, index: list[int] | slice, amount: npt.NDArray[Any]) -> None:
        """Add ``amount`` (instructions, images or 1) of the instructions ``index`` to a count."""
        known = self.groups[group]
        if name not in known:
            kind = np.float64 if group == "events" else np.int64
            known[name] = np.zeros((len(self.numbers), self.images), kind)
        np.add.at(known[name], self.place[index], amount)

    def layers(self) -> dict[int, LayerCounts]:
        """The counts by layer."""
        return {
            number: LayerCounts(
                *({name: sums[i] for name, sums in counts.items()} for counts in self.groups.values())
            )
            for i, number in enumerate(self.numbers.tolist())
        }


def _column(numbers: list[int] | list[bool]) -> Counts:
    """Numbers that are the same for all images: (n, 1) int64."""
    return np.array(numbers, np.int64)[:, None]


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


def sparse_bytes(values: npt.NDArray[np.uint8], maps: NativeMaps | None = None) -> Counts:
    """SparseMap bytes of maps (n, rows, cols, chans): ceil(chans / 8) a position and 1 a non-zero, (n,)."""
    _, rows, cols, chans = values.shape
    return rows * cols * -(-chans // 8) + np.array(nonzero_counts(values, maps), np.int64)


def nonzero_counts(
    values: npt.NDArray[np.uint8] | npt.NDArray[np.bool_], maps: NativeMaps | None = None
) -> list[int]:
    """Non-zeros of each image of ``values`` (n, rows, cols, chans), counted by ``maps`` or numpy."""
    if maps is not None and (values.shape[3] < 2 or values.strides[3] == 1):
        return [maps.count_nonzeros(image) for image in values]
    # counting bools of a whole array is fast, counting along axes adds up int64
    return [int(np.count_nonzero(image != 0)) for image in values]
