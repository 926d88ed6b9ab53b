"""SparTen: two-sided sparsity by inner joins of bit masks (Gondimalla et al., MICRO 2019)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from escc.backend_sim.baselines.counting import active_macs, ceil_div, matches
from escc.backend_sim.baselines.inner_join import (
    SHALLOW,
    cut_positions,
    piece_times,
    total,
    unit_costs,
    window_chunks,
)
from escc.backend_sim.baselines.workload import BUSY, WAIT_DRAM, BufferUse, ConvWork, LayerRun, wait_for_dram


@dataclass(frozen=True)
class Join:
    """Cycles of a layer, without waits for DRAM.

    ``cycles``: of the slowest cluster. ``unit_cycles``: cycles in which a unit multiplied or fetched a
    chunk without a match, all units. ``cluster_cycles``: all clusters, each until its own end.
    """

    cycles: int
    unit_cycles: int
    cluster_cycles: int


@dataclass(frozen=True)
class Sparten:
    """``clusters`` of ``units`` units, each one multiplier with a filter's chunk of up to ``chunk`` channels.

    A chunk of the input is broadcast to a cluster; a unit takes max(1, matches) cycles for it. ``lead``:
    chunks of input a unit holds, so that one is broadcast when all units have done the one ``lead`` before
    it (1: they wait for each other after every chunk). ``sides``: whose zeros are skipped. ``balance``:
    "none"; "gb-s", a unit takes a dense and a sparse filter; "gb-h", such pairs anew for every chunk.
    ``map_kib``: all buffers for maps; what fits is not moved to DRAM. ``mask_cell``: 0 as published; else
    weights come from DRAM with escc's two-level masks, a bit for each cell of so many neighbours and mask
    bits only for cells with a weight, where that takes fewer bytes.
    """

    name: str = "SparTen"
    clusters: int = 32
    units: int = 32
    chunk: int = 128
    lead: int = 2
    sides: Literal["two", "weights", "activations", "dense"] = "two"
    balance: Literal["none", "gb-s", "gb-h"] = "gb-h"
    map_kib: float = 1024.0
    mask_cell: int = 0
    word_bits: int = 8
    psum_bits: int = 24
    clock_mhz: float = 800.0
    dram_gbps: float | None = None

    @property
    def multipliers(self) -> int:
        """One in every unit."""
        return self.clusters * self.units

    def scaled(self, multipliers: int = 1024) -> Sparten:
        """More or fewer clusters of the same kind, with buffers in proportion."""
        clusters = max(1, multipliers // self.units)
        return replace(self, clusters=clusters, map_kib=self.map_kib * clusters / self.clusters)

    def run(self, work: ConvWork) -> LayerRun:
        """One layer, one image."""
        join = self.join(work)
        useful = matches(work)
        formed = {
            "two": useful,
            "weights": work.weight_nonzeros * math.prod(work.output_shape[1:]),
            "activations": active_macs(work),
            "dense": work.macs,
        }[self.sides]
        word = self.word_bits / 8
        sparse_x, sparse_w = self.sides in ("two", "activations"), self.sides in ("two", "weights")
        x_bytes = _map_bytes(work.x.size, work.x_nonzeros, sparse_x, word)
        w_bytes = _map_bytes(work.weight.size, work.weight_nonzeros, sparse_w, word)
        if self.mask_cell and sparse_w:
            w_bytes -= _saved_by_cells(work, self.mask_cell)
        y_bytes = _map_bytes(math.prod(work.output_shape), work.y_nonzeros, sparse_x, word)
        stays = x_bytes + y_bytes <= self.map_kib * 1024
        read = w_bytes + (x_bytes if work.x_in_dram or not stays else 0)
        written = y_bytes if work.y_in_dram or not stays else 0
        wait = wait_for_dram(join.cycles, read + written, self.clock_mhz, self.dram_gbps)
        outputs = math.prod(work.output_shape)
        taps = math.prod(work.weight.shape[1:])
        groups = ceil_div(work.weight.shape[0], self._filters(work))
        # every position's window is read once for each group of filters, masks and values
        window_bytes = outputs / work.weight.shape[0] * groups * (
            taps * word * (work.x_nonzeros / work.x.size if sparse_x else 1.0) + sparse_x * taps / 8
        )  # fmt: skip
        levels = 0 if self.sides == "dense" else 2 + 2 * math.ceil(math.log2(self.chunk))
        mask_bits = min(self.chunk, work.weight.shape[1] if work.weight.shape[1] >= SHALLOW else taps)
        return LayerRun(
            name=work.name,
            cycles=join.cycles + wait,
            multipliers=self.multipliers,
            multiplications=formed,
            slots={
                BUSY: useful,
                "zero_operand": formed - useful,
                "no_match": join.unit_cycles - formed,
                "imbalance_in_cluster": join.cluster_cycles * self.units - join.unit_cycles,
                "imbalance_of_clusters": (join.cycles * self.clusters - join.cluster_cycles) * self.units,
                WAIT_DRAM: wait * self.multipliers,
            },
            events={
                "products": formed * word**2,
                "sum_adds": formed,
                # AND, priority encoder and two prefix sums settle anew for every match
                "dilution_bit_levels": join.unit_cycles * mask_bits * levels,
                "moved_bits": formed * self.psum_bits if self.balance == "gb-h" else 0,
            },
            buffers=(
                BufferUse(
                    "map_buffers", self.map_kib / self.clusters, self.clusters, window_bytes,
                    y_bytes + x_bytes * (work.x_in_dram or not stays),
                ),
                BufferUse("chunk_buffers", 0.25, self.multipliers, formed * 2 * word,
                          window_bytes * self.units + w_bytes * self.clusters),
                BufferUse("accumulators", 0.0625, self.multipliers, formed * self.psum_bits / 8,
                          formed * self.psum_bits / 8),
            ),
            dram_read_bytes=read,
            dram_write_bytes=written,
            note=self._note(work),
            mapping={"filters": self._filters(work), "groups": groups},
        )  # fmt: skip

    def join(self, work: ConvWork) -> Join:
        """Cycles from the real masks."""
        together = self._side_by_side(work)
        parts = 1 if together else work.groups
        outs = work.weight.shape[0] // parts
        pairs = self._pairs(outs)
        groups = ceil_div(outs, self.units * (1 + pairs))
        positions = math.prod(work.output_shape[1:])
        cut = cut_positions(positions, groups, self.clusters)
        cycles = unit_cycles = cluster_cycles = 0
        for part in range(parts):
            chunks = window_chunks(
                work,
                slice(None) if together else slice(part, part + 1),
                self.chunk,
                ones_w=self.sides in ("activations", "dense"),
                ones_x=self.sides in ("weights", "dense"),
            )
            costs = unit_costs(chunks, self.units, self.balance if pairs else "none", cut)
            times = piece_times(costs, cut, self.lead)
            busy = np.zeros(ceil_div(times.size, self.clusters) * self.clusters, np.int64)
            busy[: times.size] = times.reshape(-1)
            # pieces are dealt out in turn; the groups of a convolution come one after the other
            clusters = busy.reshape(-1, self.clusters).sum(axis=0)
            cycles += int(clusters.max())
            cluster_cycles += int(clusters.sum())
            repeats = positions if self.sides in ("weights", "dense") else 1
            unit_cycles += total(costs) * repeats
        return Join(cycles, unit_cycles, cluster_cycles)

    def _pairs(self, filters: int) -> bool:
        """Whether units take two filters: there are more filters than units to give one each."""
        return self.balance != "none" and self.sides != "dense" and filters > self.units

    def _filters(self, work: ConvWork) -> int:
        """Filters that a cluster works on at once."""
        count = work.weight.shape[0] if self._side_by_side(work) else work.weight.shape[0] // work.groups
        return min(count, self.units * (1 + self._pairs(count)))

    def _side_by_side(self, work: ConvWork) -> bool:
        """Groups too small to fill a cluster: its units take different ones, each with its own inputs."""
        return work.groups > 1 and work.weight.shape[0] // work.groups < self.units

    def _note(self, work: ConvWork) -> str:
        if self._side_by_side(work):
            return "groups side by side on the units of a cluster, chunks over taps"
        return "chunks over taps" if work.weight.shape[1] < SHALLOW else ""


def _saved_by_cells(work: ConvWork, cell: int) -> int:
    """Bytes by which two-level masks of a layer's filters are shorter than plain ones."""
    masks = work.weight_mask.reshape(len(work.weight_mask), -1)
    masks = np.pad(masks, ((0, 0), (0, -masks.shape[1] % cell)))
    cells = masks.reshape(len(masks), -1, cell)
    bits = cells.size // cell + cell * int(cells.any(axis=2).sum())
    return max(0, (work.weight.size - bits) // 8)


def _map_bytes(size: int, nonzeros: int, sparse: bool, word: float) -> int:
    """Bytes of a map: plain, or one mask bit a value and the non-zero values."""
    return math.ceil(nonzeros * word + size / 8) if sparse else math.ceil(size * word)
