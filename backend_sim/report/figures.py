"""The figures of a run that the page shows beside those of the result: all from the result alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from escc.backend_sim.report.critical_path import KINDS, Segment, critical_path
from escc.backend_sim.report.memory_plan import Region, memory_plan, occupancy
from escc.backend_sim.simulator.meter import GATHERS, LC_CAUSES, MAC_CAUSES
from escc.backend_sim.simulator.result import LayerResult, Row, SimResult, TimedResult
from escc.errors import EsccError
from escc.isa.arch import Arch
from escc.isa.instructions import Queue

Amounts = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LayerFigures:
    """A layer of the page.

    ``position`` counts from 1 as the page numbers layers; ``row`` is its record in the JSON result, means
    over the timed images. ``active``: cycles in which an instruction of it runs, on any queue. ``path``: its
    cycles on the critical path by kind, ``path_transfers`` of them DMA transfers; both of the first timed
    image. ``pairs``: coefficients times activations that its dilution looked at. ``sram_peak``: most bytes in
    use while its instructions run.
    """

    position: int
    number: int
    row: Row
    active: float
    path: dict[str, int]
    path_transfers: int
    pairs: float
    sram_peak: int

    @property
    def name(self) -> str:
        """Its name in the network, or ``layer N``; untrusted text."""
        return str(self.row["layer"])

    def value(self, key: str) -> float:
        """A number of the JSON record; 0 where it has none."""
        value = self.row[key]
        return 0.0 if isinstance(value, str) else float(value)

    def causes(self, part: str) -> dict[str, float]:
        """Row cycles of the ``lc`` or ``mac`` parts by cause."""
        names = LC_CAUSES if part == "lc" else MAC_CAUSES
        return {cause: self.value(f"{part}_{cause}_row_cycles") for cause in names}

    def queue(self, queue: str) -> dict[str, float]:
        """Cycles of a queue by cause, without idle_end."""
        causes = ("busy", "wait_dma", "wait_blk", "wait_vec", "wait_dispatch")
        return {cause: self.value(f"{queue}_{cause}_cycles") for cause in causes}

    @property
    def dram_bytes(self) -> float:
        """Bytes moved to and from DRAM."""
        return self.value("dram_read_bytes") + self.value("dram_write_bytes")


@dataclass(frozen=True)
class RunFigures:
    """Everything the page is made of."""

    result: SimResult
    timed: TimedResult
    layers: list[LayerFigures]
    path: list[Segment]
    regions: list[Region]
    used: list[tuple[int, int]]

    @property
    def arch(self) -> Arch:
        """The machine of the run: the program's, with the overrides of this run."""
        return self.timed.arch

    @property
    def cycles(self) -> float:
        """Mean cycles of a timed image."""
        return float(self.timed.timeline.total.mean())

    @property
    def adders(self) -> int:
        """Lane adders of all linear-combination units."""
        return self.arch.blocks * self.arch.rows * self.arch.units * self.arch.lanes

    @property
    def sram_peak(self) -> int:
        """Most bytes of the SRAM in use at a time, first timed image."""
        return max((used for _, used in self.used), default=0)

    def sum(self, key: str) -> float:
        """A number of the JSON records, summed over the layers."""
        return sum(layer.value(key) for layer in self.layers)

    def label(self, number: int) -> str:
        """The name of a layer number."""
        return self.timed.layer_names.get(number, f"layer {number}")


def run_figures(result: SimResult) -> RunFigures:
    """The figures of a run.

    Raises:
        EsccError: nothing was timed.
    """
    timed = result.timed
    if timed is None:
        raise EsccError("nothing was timed", hint="simulate with timing_images of 1 or more")
    path = critical_path(timed)
    regions = memory_plan(timed)
    used = occupancy(regions)
    members: dict[int, list[int]] = {number: [] for number in timed.layer_names}
    for index, step in enumerate(timed.steps):
        if step.registers is not None:
            members[step.layer].append(index)
    on_path: dict[int, dict[str, int]] = {number: dict.fromkeys(KINDS, 0) for number in timed.layer_names}
    transfers = dict.fromkeys(timed.layer_names, 0)
    for segment in path:
        on_path[segment.layer][segment.kind] += segment.end - segment.start
        transfers[segment.layer] += segment.kind == Queue.DMA.text
    layers: list[LayerFigures] = []
    records = zip(timed.layer_names, timed.layers, result.layer_rows(), strict=True)
    for position, (number, layer, row) in enumerate(records, start=1):
        steps = np.array(members[number], np.int64)
        layers.append(
            LayerFigures(
                position=position,
                number=number,
                row=row,
                active=_active(timed, steps),
                path=on_path[number],
                path_transfers=transfers[number],
                pairs=_pairs(layer, timed.arch),
                sram_peak=_peak(timed, steps, used),
            )
        )
    return RunFigures(result, timed, layers, path, regions, used)


def _active(timed: TimedResult, steps: npt.NDArray[np.int64]) -> float:
    """Cycles in which at least one of the steps runs, mean over the images."""
    if not len(steps):
        return 0.0
    start, end = timed.timeline.start[steps], timed.timeline.end[steps]
    order = np.argsort(start, axis=0, kind="stable")
    start, end = np.take_along_axis(start, order, 0), np.take_along_axis(end, order, 0)
    reached = np.maximum.accumulate(end, axis=0)
    previous = np.concatenate([start[:1], reached[:-1]])
    covered = np.maximum(end - np.maximum(start, previous), 0).sum(axis=0)
    return float(covered.mean())


def _pairs(layer: LayerResult, arch: Arch) -> float:
    """Coefficients times activations that dilution looked at, from the mask bits it moved."""
    levels = int(math.log2(arch.chunk))
    planes = 1 + 2 * GATHERS * levels + (8 * levels if arch.policy == "gather" else 0)
    return float(layer.event("dilution_bit_levels").mean()) / planes


def _peak(timed: TimedResult, steps: npt.NDArray[np.int64], used: list[tuple[int, int]]) -> int:
    """Most bytes of the SRAM in use while the steps run, first timed image."""
    if not len(steps):
        return 0
    first = int(timed.timeline.start[steps, 0].min())
    last = int(timed.timeline.end[steps, 0].max())
    peak = before = 0
    for time, amount in used:
        if time >= last:
            break
        if time <= first:
            before = amount
        else:
            peak = max(peak, amount)
    return max(peak, before)
