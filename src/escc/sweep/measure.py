"""Measuring points: fast ones from a recording of one run, full ones by compiling and simulating anew.

A *fast* point takes the program compiled for the base machine (with the point's chunk, Z width, SRAM and DRAM
rows, which a program holds for good), cuts every convolution into the bands that the compiler would choose
for the point's machine, and times those instructions there, exactly (`escc.backend_sim.simulator.retime`).
What it does not redo is the choice of tiles and of the maps kept on chip. A *full* point is what ``escc
compile --arch`` and ``escc sim`` say.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from escc.backend_sim.area import area
from escc.backend_sim.lowering import lower
from escc.backend_sim.lowering.assignment import Assignment, read_assignment
from escc.backend_sim.lowering.cost import CostModel
from escc.backend_sim.lowering.operators import extract_layers
from escc.backend_sim.simulator import EnergyTable, simulate
from escc.backend_sim.simulator.retime import PROGRAM, Recording
from escc.backend_sim.simulator.timing.reuse import CONCENTRATION
from escc.driver import machine_passes
from escc.errors import EsccError
from escc.ir.module import Module
from escc.ir.passes import PassContext, run_pipeline
from escc.isa.arch import Arch
from escc.sweep.space import Point, Space
from escc.sweep.workloads import Prepared, WorkloadSpec, load_prepared

Fidelity = Literal["fast", "full"]
Figures = dict[str, float]
PJ_PER_UJ = 1e6


class Family:
    """A network compiled for the base machine and recorded: all fast points that share its program.

    Args:
        prepared: the network.
        arch: the base machine with the point's chunk, Z width, SRAM and DRAM rows.

    Raises:
        EsccError: the network does not fit the machine.
    """

    def __init__(self, prepared: Prepared, arch: Arch) -> None:
        self.arch = arch
        scheduled = prepared.module.clone()
        run_pipeline(scheduled, machine_passes(), PassContext(arch=arch))
        self.assignments = [read_assignment(layer) for layer in extract_layers(scheduled, arch)]
        program = lower(scheduled, arch)
        self.recordings = [Recording(program, image[None]) for image in prepared.images]

        # the compiler chooses bands for a full tile of a layer, and for one of fewer channels
        self._cuts: list[tuple[tuple[int, int, int], int]] = []
        for conv in self.recordings[0].convs:
            assignment: Assignment = self.assignments[conv.layer]
            r = conv.registers
            whole = len(assignment.layer.parts) > 1 or r.outs == assignment.outs
            tile = (assignment.rows, assignment.outs) if whole else (r.y_rows, r.outs)
            self._cuts.append(((conv.layer, *tile), r.y_rows))
        self._tiles = sorted({key for key, _ in self._cuts})

    def bands(self, arch: Arch) -> list[int]:
        """Into how many bands the compiler cuts each convolution of the program for ``arch``."""
        models = {layer: CostModel(self.assignments[layer].layer, arch) for layer, _, _ in self._tiles}
        chosen = {key: models[key[0]].tile(*key[1:]).bands for key in self._tiles}
        return [min(chosen[key], rows) for key, rows in self._cuts]

    def measure(self, arch: Arch, table: EnergyTable | None = None) -> tuple[float, float]:
        """Cycles and energy in picojoules on ``arch``, means over the images."""
        bands = self.bands(arch)
        energies = table or EnergyTable.load()
        points = [recording.measure(arch, energies, bands) for recording in self.recordings]
        cycles = float(np.mean([point.cycles for point in points]))
        return cycles, float(np.mean([point.energy_total for point in points]))


def full_measure(prepared: Prepared, arch: Arch) -> tuple[float, float]:
    """Cycles and energy in picojoules of the network compiled for ``arch`` and simulated.

    Raises:
        EsccError: the network does not fit the machine.
    """
    module: Module = prepared.module.clone()
    run_pipeline(module, machine_passes(), PassContext(arch=arch))
    result = simulate(lower(module, arch), prepared.images, timing_images=len(prepared.images))
    return float(result.cycles.mean()), result.energy_pj


class Measurer:
    """Measures points in one process; networks and recordings used last are kept."""

    def __init__(self, space: Space, work: Path) -> None:
        self.space, self.work = space, work
        self.table = EnergyTable.load()
        # of every workload the network and the recording used last
        self._kept = len(space.workloads)
        self._networks: OrderedDict[tuple[Any, ...], Prepared] = OrderedDict()
        self._families: OrderedDict[tuple[Any, ...], Family] = OrderedDict()

    def measure(self, points: Sequence[Point], fidelity: Fidelity) -> list[dict[str, Figures] | str]:
        """Figures of each point by workload, or why it cannot be measured.

        All points on one workload before the next one: its recording is large.
        """
        found: list[dict[str, Figures] | str] = [{} for _ in points]
        for spec in self.space.workloads:
            for index in self._order(points):
                figures = found[index]
                if isinstance(figures, str):
                    continue
                try:
                    figures[spec.name] = self._one(spec, points[index], fidelity)
                except EsccError as error:
                    found[index] = f"{spec.name}: {error}"
        return found

    def _order(self, points: Sequence[Point]) -> list[int]:
        return sorted(range(len(points)), key=lambda index: order_key(self.space, points[index]))

    def _one(self, spec: WorkloadSpec, point: Point, fidelity: Fidelity) -> Figures:
        arch = self.space.arch(point)
        options = self.space.compile_options(point)
        if fidelity == "full":
            cycles, energy = full_measure(self._network(spec, options), arch)
        else:
            cycles, energy = self._family(spec, options, arch).measure(arch, self.table)
        return {"cycles": cycles, "latency_us": cycles / arch.mhz, "energy_uj": energy / PJ_PER_UJ}

    def _network(self, spec: WorkloadSpec, options: Mapping[str, Any]) -> Prepared:
        key = (spec.name, *sorted(options.items()))
        if key not in self._networks:
            self._networks[key] = load_prepared(spec, options, self.work)
            _trim(self._networks, self._kept)
        self._networks.move_to_end(key)
        return self._networks[key]

    def _family(self, spec: WorkloadSpec, options: Mapping[str, Any], arch: Arch) -> Family:
        held = {name: getattr(arch, name) for name in PROGRAM}
        key = (spec.name, *sorted(options.items()), *held.items())
        if key not in self._families:
            # an array too small for the base program's partial sums is refused by the recording
            self._families[key] = Family(self._network(spec, options), self.space.base.replace(**held))
            _trim(self._families, self._kept)
        self._families.move_to_end(key)
        return self._families[key]


def _trim(kept: OrderedDict[tuple[Any, ...], Any], most: int) -> None:
    while len(kept) > most:
        kept.popitem(last=False)


def family_key(space: Space, point: Point) -> tuple[str, ...]:
    """What fast points must share to share a recording."""
    arch = space.arch(point)
    options = (f"{name}={value}" for name, value in sorted(space.compile_options(point).items()))
    return (*options, *(str(getattr(arch, name)) for name in PROGRAM))


def order_key(space: Space, point: Point) -> tuple[Any, ...]:
    """Points sorted by it repeat least: recordings, then concentration, then the order of rows."""
    arch = space.arch(point)
    return family_key(space, point), [str(getattr(arch, name)) for name in CONCENTRATION], arch.rows


def static_figures(space: Space, point: Point) -> Figures:
    """Figures that need no measurement."""
    arch = space.arch(point)
    return {"multipliers": float(arch.multipliers), "area_mm2": area(arch).total_mm2}


def combined(results: Mapping[str, Figures]) -> Figures:
    """Over workloads: geometric means of what is a cost, the mean accuracy."""
    found: Figures = {}
    for name in ("cycles", "latency_us", "energy_uj"):
        values = [figures[name] for figures in results.values()]
        found[name] = values[0] if len(values) == 1 else float(np.exp(np.mean(np.log(values))))
    accuracies = [figures["accuracy"] for figures in results.values() if "accuracy" in figures]
    if accuracies:
        found["accuracy"] = float(np.mean(accuracies))
    return found
