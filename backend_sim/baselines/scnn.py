"""SCNN: two-sided sparsity by Cartesian products (Parashar et al., ISCA 2017)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from escc.backend_sim.baselines.conflicts import Vectors, extra_cycles
from escc.backend_sim.baselines.counting import ceil_div, matches, near_square, run_length_entries
from escc.backend_sim.baselines.workload import BUSY, WAIT_DRAM, BufferUse, ConvWork, LayerRun, wait_for_dram

INDEX_BITS = 4
"""Zero run kept with every value (section IV)."""
SWITCH_LEVELS = 2.5
"""A 16 x 32 crossbar in small multiplexers of 1 to 4: log4(32)."""
GOLDEN = (math.sqrt(5) - 1) / 2

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tiles:
    """How a layer is cut: ``rows`` x ``columns`` inputs an element in each of ``down`` x ``across`` passes.

    ``held``: output channels whose sums an element holds at once; ``sets``: parts of the output channels that
    run side by side on elements of their own.
    """

    rows: int
    columns: int
    down: int
    across: int
    held: int
    sets: int


@dataclass(frozen=True)
class Steps:
    """Exact counts of the steps of a layer.

    ``times``: of each group of output channels, (groups of the convolution, groups, passes), steps of the
    slowest element, which the others wait for. ``all``: steps of all elements. ``products``: non-zero
    products, those outside the map included.
    """

    times: Counts
    all: int
    products: int


@dataclass(frozen=True)
class Scnn:
    """``rows`` x ``columns`` elements; each multiplies ``weights`` x ``activations`` values a cycle.

    Products go to 2 * weights * activations accumulator banks. ``banks_queued``: they wait in front of
    their bank while later steps go on, so that only a bank with more products than there are steps costs
    time; False: every step takes as many cycles as products fall into one bank. That is counted on
    ``samples`` evenly spread (channel, group, element) of a layer and applied to all, None: on every one,
    exactly. ``barrier``: elements wait for each other after every "group" of output channels, or after every
    "channel" of the input. ``halo_overlapped``: the sums beyond a tile are handed over while the next
    group is computed, the accumulators being double buffered; False: after every group.
    ``sums``: partial sums of an element.
    ``ram_kib``: of the input RAM, and of the output RAM, of an element; a map that does not fit is cut
    into passes and goes through DRAM. ``spread``: elements without a tile take output channels of those
    with one (not in the paper; dense layers always do).
    """

    name: str = "SCNN"
    rows: int = 8
    columns: int = 8
    weights: int = 4
    activations: int = 4
    halo_overlapped: bool = True
    sums: int = 1024
    ram_kib: float = 10.0
    fifo_entries: int = 200
    banks_queued: bool = True
    barrier: Literal["group", "channel"] = "group"
    samples: int | None = 48
    spread: bool = False
    word_bits: int = 16
    psum_bits: int = 24
    clock_mhz: float = 1000.0
    dram_gbps: float | None = None

    @property
    def elements(self) -> int:
        """Processing elements."""
        return self.rows * self.columns

    @property
    def multipliers(self) -> int:
        """Multipliers of all elements."""
        return self.elements * self.weights * self.activations

    @property
    def banks(self) -> int:
        """Accumulator banks of an element."""
        return 2 * self.weights * self.activations

    def scaled(self, multipliers: int = 1024) -> Scnn:
        """Values of 8 bits in RAMs of as many values; more or fewer elements of the same kind."""
        rows, columns = near_square(max(1, multipliers // (self.weights * self.activations)))
        ram = self.ram_kib * (8 + INDEX_BITS) / (self.word_bits + INDEX_BITS)
        return replace(self, rows=rows, columns=columns, ram_kib=ram, word_bits=8, clock_mhz=800.0)

    def run(self, work: ConvWork) -> LayerRun:
        """One layer, one image."""
        tiles = self.tiles(work)
        vectors = Vectors(
            work, self.weights, self.activations, tiles.rows, tiles.columns, tiles.held, tiles.sets
        )
        steps = self._steps(vectors, tiles)
        times, extra_all, share = self._conflicts(vectors, tiles, steps)
        exchange = self.halo(work, tiles)
        computed = round(float(times.sum()))
        if self.halo_overlapped:
            halo = round(float(np.maximum(times, exchange).sum())) - computed
        else:
            halo = exchange * times.size
        compute = computed + halo
        value = (self.word_bits + INDEX_BITS) / 8
        passes = tiles.down * tiles.across
        weight_bytes = int(run_length_entries(work.weight_mask, INDEX_BITS) * value)
        x_bytes, y_bytes = int(work.x_nonzeros * value), int(work.y_nonzeros * value)
        moves = passes > 1
        read = weight_bytes * passes + (x_bytes if moves or work.x_in_dram else 0)
        written = y_bytes if moves or work.y_in_dram else 0
        wait = wait_for_dram(compute, read + written, self.clock_mhz, self.dram_gbps)
        useful = matches(work)
        width, total = self.weights * self.activations, compute + wait
        slots = {
            BUSY: useful,
            "outside_map": steps.products - useful,
            "fragment": steps.all * width - steps.products,
            "bank_conflict": extra_all * width,
            "halo": halo * self.multipliers,
            WAIT_DRAM: wait * self.multipliers,
        }
        # elements that have finished a channel, or have no tile at all
        slots["barrier"] = total * self.multipliers - sum(slots.values())
        word, psum = self.word_bits / 8, self.psum_bits / 8
        broadcast = weight_bytes * passes * (self.elements // tiles.sets)
        return LayerRun(
            name=work.name,
            cycles=total,
            multipliers=self.multipliers,
            multiplications=steps.products,
            slots=slots,
            events={
                "products": steps.products * word**2,
                "sum_adds": useful,
                "lane_adds": steps.products,
                "moved_bits": useful * self.psum_bits * SWITCH_LEVELS,
            },
            buffers=(
                BufferUse(
                    "input_ram", self.ram_kib, self.elements, x_bytes * self._fetches(work, tiles), x_bytes
                ),
                BufferUse("output_ram", self.ram_kib, self.elements, y_bytes * moves, y_bytes),
                BufferUse(
                    "weight_fifo",
                    self.fifo_entries * value / 1024,
                    self.elements,
                    steps.all * self.weights * value,
                    broadcast,
                ),
                BufferUse(
                    "accumulators",
                    self.sums / self.banks * psum / 1024,
                    self.elements * self.banks,
                    (useful + int(np.prod(work.output_shape))) * psum,
                    useful * psum,
                ),
            ),
            dram_read_bytes=read,
            dram_write_bytes=written,
            sampled=share,
            note=self._note(work),
            mapping=vars(tiles).copy(),
        )

    def tiles(self, work: ConvWork) -> Tiles:
        """The cut of a layer: as few passes as the RAMs and the accumulators of an element allow."""
        outs, rows, columns = work.output_shape
        outs //= work.groups
        _, height, width = work.x.shape
        room = self.ram_kib * 8192 / (self.word_bits + INDEX_BITS)
        produced = work.y_nonzeros / (rows * columns)
        lines = np.concatenate([[0], np.cumsum(work.x_mask.sum(axis=(0, 2)))])
        down = across = 1
        while True:
            tile_h, tile_w = ceil_div(height, self.rows * down), ceil_div(width, self.columns * across)
            tile = ceil_div(tile_h, work.stride[0]) * ceil_div(tile_w, work.stride[1])
            edges = np.minimum(np.arange(0, height + tile_h, tile_h), height)
            stored = np.diff(lines[edges]).max() * tile_w / width
            fits = stored <= room and tile * produced <= room and tile <= self.sums
            if fits or tile_h == tile_w == 1:
                break
            if tile_h >= tile_w:
                down += 1
            else:
                across += 1
        used = min(self.rows, ceil_div(height, tile_h)) * min(self.columns, ceil_div(width, tile_w))
        sets = self.elements // used if self.spread or work.is_dense_layer else 1
        sets = max(1, min(sets, outs))
        return Tiles(tile_h, tile_w, down, across, max(1, min(self.sums // tile, ceil_div(outs, sets))), sets)

    def _steps(self, vectors: Vectors, tiles: Tiles) -> Steps:
        """Steps without conflicts, from counts of non-zeros alone."""
        weight = -(-vectors.weight_counts // self.weights)
        tile = -(-vectors.tile_counts // self.activations)
        products = vectors.weight_counts.sum(axis=(1, 2)) * vectors.tile_counts.sum(axis=(1, 2))
        return Steps(
            times=self._times(vectors, _taken(weight, tile, self._barriers(vectors)), tiles),
            all=int((weight.sum(axis=(1, 2)) * tile.sum(axis=(1, 2))).sum()),
            products=int(products.sum()),
        )

    def _times(self, vectors: Vectors, taken: Counts, tiles: Tiles) -> Counts:
        """`Steps.times` from what `_taken` gives: the slowest element up to each barrier, summed up."""
        worst = by_pass(self, taken.max(axis=1), tiles).max(axis=-1)
        return worst.reshape(vectors.work.groups, -1, *worst.shape[1:]).sum(axis=1)

    def _conflicts(self, vectors: Vectors, tiles: Tiles, steps: Steps) -> tuple[npt.NDArray[Any], int, float]:
        """`Steps.times` with conflicts, cycles lost on all elements, and the share of steps looked at."""
        if steps.all == 0:
            return steps.times, 0, 1.0
        weight = -(-vectors.weight_counts // self.weights)
        tile = -(-vectors.tile_counts // self.activations)
        places = vectors.pairs()
        if self.samples is None or places <= self.samples:
            cost = np.zeros((*weight.shape[:3], *tile.shape[1:3]), np.int64)
            for index in range(places):
                place = vectors.place(index)
                cost[place] = extra_cycles(vectors, place, self.banks, self.banks_queued)
            units = self._barriers(vectors)
            joined = cost.reshape(units, -1, *cost.shape[1:]).sum(axis=1)
            times = self._times(vectors, _taken(weight, tile, units) + joined, tiles)
            return times, int(cost.sum()), 1.0
        extra = seen = 0
        for number in range(self.samples):
            # a stride by the golden ratio never falls into step with channels, groups or elements
            place = vectors.place(int((number + 1) * GOLDEN % 1.0 * places))
            channel, part, group, down, across = place
            seen += int(weight[channel, part, group] @ tile[channel, down, across])
            extra += extra_cycles(vectors, place, self.banks, self.banks_queued)
        ratio = extra / max(1, seen)
        return steps.times * (1 + ratio), round(steps.all * ratio), seen / steps.all

    def _barriers(self, vectors: Vectors) -> int:
        """Parts of the input channels after each of which elements wait for each other."""
        return vectors.work.groups if self.barrier == "group" else vectors.work.x.shape[0]

    def halo(self, work: ConvWork, tiles: Tiles) -> int:
        """Cycles to hand the largest block of sums beyond a tile to a neighbour."""
        if max(work.weight.shape[2:]) == 1:
            return 0
        spans = [
            (size - 1) * dilation for size, dilation in zip(work.weight.shape[2:], work.dilation, strict=True)
        ]
        reach_h, reach_w = (
            ceil_div(max(pad, span - pad), stride)
            for pad, span, stride in zip(work.padding[:2], spans, work.stride, strict=True)
        )
        tile_h, tile_w = ceil_div(tiles.rows, work.stride[0]), ceil_div(tiles.columns, work.stride[1])
        return max(reach_h * tile_w, reach_w * tile_h) * tiles.held

    def _fetches(self, work: ConvWork, tiles: Tiles) -> int:
        """How often an element reads its inputs: once for every group of output channels."""
        return ceil_div(work.weight.shape[0] // work.groups, tiles.held)

    @staticmethod
    def _note(work: ConvWork) -> str:
        if work.is_dense_layer:
            return "dense layer: outputs shared out, one activation a step"
        if work.groups > 1:
            return "groups one after the other"
        return "stride by phases" if max(work.stride) > 1 else ""


def _taken(weight: Counts, tile: Counts, units: int) -> Counts:
    """Steps of every element up to a barrier, (units, sets, groups, tiles down, tiles across).

    ``weight`` (C, sets, groups, phases) and ``tile`` (C, tiles down, tiles across, phases): vectors.
    """
    chans, sets, groups, phases = weight.shape
    down, across = tile.shape[1:3]
    each = chans // units
    left = weight.reshape(units, each, sets * groups, phases).transpose(0, 2, 1, 3)
    right = tile.reshape(units, each, down * across, phases).transpose(0, 1, 3, 2)
    # in double precision for BLAS; the sums are far below 2^53
    product = left.reshape(units, sets * groups, -1).astype(np.float64) @ right.reshape(
        units, each * phases, -1
    ).astype(np.float64)
    return product.astype(np.int64).reshape(units, sets, groups, down, across)


def by_pass(machine: Scnn, taken: Counts, tiles: Tiles) -> Counts:
    """(..., tiles down, tiles across) to (..., passes, elements), places without a tile 0."""
    lead = taken.shape[:-2]
    shape = (tiles.down * machine.rows, tiles.across * machine.columns)
    full = np.zeros((*lead, *shape), taken.dtype)
    full[..., : taken.shape[-2], : taken.shape[-1]] = taken
    cut = full.reshape(*lead, tiles.down, machine.rows, tiles.across, machine.columns)
    return np.moveaxis(cut, -2, -3).reshape(*lead, tiles.down * tiles.across, -1)
