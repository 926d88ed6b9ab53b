"""Which assumption matters most: the geometric means after one of them has changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from escc.backend_sim.baselines.workload import LayerRun
from escc.backend_sim.simulator import EnergyTable, SimResult
from escc.compare.comparison import NetworkResult, SensitivityRow, headline
from escc.compare.machines import Machine, Rival, find_rivals
from escc.compare.measure import (
    Figures,
    our_figures,
    rival_figures,
    run_ours,
    run_rival,
    scaled_table,
)
from escc.compare.statistics import Network, Statistics
from escc.compare.workload import Workload, drawn_module, synthetic_workload
from escc.isa.arch import Arch
from escc.progress import Progress, silent

UNLIMITED_GBPS = 1e5


@dataclass(frozen=True)
class Scenario:
    """One assumption changed.

    ``statistics``: other numbers to draw the network with. ``arch``: escc's machine; ``compiled``: the
    program is compiled anew for it. ``rival``: the other machines. ``table``: costs.
    """

    name: str
    change: str
    statistics: Callable[[Statistics], Statistics] | None = None
    arch: Callable[[Arch], Arch] | None = None
    compiled: bool = False
    rival: Callable[[Machine], Machine] | None = None
    table: Callable[[EnergyTable], EnergyTable] | None = None


def _drawn(**factors: float) -> Callable[[Statistics], Statistics]:
    return lambda stated: stated.scaled(**factors)


def _bandwidth(gbps: float, requests: int) -> dict[str, Any]:
    return {
        "arch": lambda arch: arch.replace(dram_gbps=gbps, dram_requests=requests),
        "rival": lambda machine: replace(machine, dram_gbps=gbps),
    }


def _no_dram_time(arch: Arch) -> Arch:
    return arch.replace(
        dram_gbps=UNLIMITED_GBPS, dram_latency_cycles=0, dram_row_cycles=0, dram_requests=65536
    )


STORAGE = ("glb_kib", "filter_kib", "map_kib", "ram_kib")
"""Fields of the other machines that hold the sizes of their memories on the chip."""


def _storage(factor: float) -> Callable[[Machine], Machine]:
    def changed(machine: Machine) -> Machine:
        sizes = {name: getattr(machine, name) * factor for name in STORAGE if hasattr(machine, name)}
        return replace(machine, **sizes)

    return changed


def _double_buffered(machine: Machine) -> Machine:
    return replace(machine, double_buffered=True) if hasattr(machine, "double_buffered") else machine


def _two_level(machine: Machine) -> Machine:
    return replace(machine, mask_cell=8) if hasattr(machine, "mask_cell") else machine


def _register_rows(table: EnergyTable) -> EnergyTable:
    register = table.costs["register_bit"]
    return replace(table, costs=table.costs | {"scratch_read_bit": register, "scratch_write_bit": register})


SCENARIOS: tuple[Scenario, ...] = (
    Scenario("activation density", "x 0.75", statistics=_drawn(activations=0.75)),
    Scenario("activation density", "x 1.25", statistics=_drawn(activations=1.25)),
    Scenario("ternary coefficient density", "x 0.5", statistics=_drawn(coefficients=0.5)),
    Scenario("ternary coefficient density", "x 2", statistics=_drawn(coefficients=2.0)),
    Scenario("pruned weight density", "x 0.5", statistics=_drawn(weights=0.5)),
    Scenario("pruned weight density", "x 1.5", statistics=_drawn(weights=1.5)),
    Scenario(
        "ternary planes of 1 x 1 layers",
        "1: ternary weights",
        statistics=lambda stated: replace(stated, planes=1),
    ),
    Scenario("ternary planes of 1 x 1 layers", "2", statistics=lambda stated: replace(stated, planes=2)),
    Scenario("ternary planes of 1 x 1 layers", "4", statistics=lambda stated: replace(stated, planes=4)),
    Scenario("DRAM bandwidth", "6.4 GB/s", **_bandwidth(6.4, requests=32)),
    Scenario("DRAM bandwidth", "51.2 GB/s, 128 requests in flight", **_bandwidth(51.2, requests=128)),
    Scenario(
        "DRAM bandwidth",
        "unlimited, no latency",
        arch=_no_dram_time,
        rival=lambda machine: replace(machine, dram_gbps=None),
    ),
    Scenario("DRAM energy", "x 0.5", table=lambda table: scaled_table(table, dram=0.5)),
    Scenario("DRAM energy", "x 2.5: 20 pJ a bit", table=lambda table: scaled_table(table, dram=2.5)),
    Scenario("memories inside escc's rows", "at the cost of registers", table=_register_rows),
    Scenario("SRAM energy", "single arrays, no banks", table=lambda table: replace(table, bank_kib=math.inf)),
    Scenario(
        "SRAM of all machines",
        "x 0.5",
        arch=lambda arch: arch.replace(sram_kib=max(1, arch.sram_kib // 2)),
        compiled=True,
        rival=_storage(0.5),
    ),
    Scenario(
        "SRAM of all machines",
        "x 2",
        arch=lambda arch: arch.replace(sram_kib=arch.sram_kib * 2),
        compiled=True,
        rival=_storage(2.0),
    ),
    Scenario(
        "SRAM of escc alone",
        "x 2",
        arch=lambda arch: arch.replace(sram_kib=arch.sram_kib * 2),
        compiled=True,
    ),
    Scenario("masks of SparTen's weights", "two-level, cells of 8", rival=_two_level),
    Scenario("filter loading of the Eyeriss-like machine", "double buffered", rival=_double_buffered),
)


class _Cache:
    """Runs of one network: what a scenario does not change is not run again."""

    def __init__(self, network: Network, arch: Arch, seed: int, engine: str, progress: Progress) -> None:
        self.network, self.arch, self.seed = network, arch, seed
        self.engine, self.progress = engine, progress
        self.drawn = drawn_module(network, seed)
        self.workloads: dict[tuple[Statistics, str], Workload] = {}
        self.simulations: dict[tuple[Statistics, Arch], SimResult] = {}
        self.runs: dict[tuple[Statistics, Machine], list[LayerRun]] = {}

    def workload(self, statistics: Statistics, arch: Arch) -> Workload:
        """The network of these statistics, compiled for a machine of this geometry."""
        key = (statistics, arch.geometry_hash)
        if key not in self.workloads:
            # one at a time beside the base one: they are large
            base = (self.network.statistics, self.arch.geometry_hash)
            self.workloads = {name: value for name, value in self.workloads.items() if name == base}
            self.workloads[key] = synthetic_workload(
                self.network,
                arch=arch,
                seed=self.seed,
                statistics=statistics,
                drawn=self.drawn,
                progress=self.progress,
            )
        return self.workloads[key]

    def ours(self, statistics: Statistics, arch: Arch) -> SimResult:
        """The simulation; energy is priced later."""
        key = (statistics, arch)
        if key not in self.simulations:
            workload = self.workload(statistics, arch)
            self.simulations[key] = run_ours(workload, arch=arch, engine=self.engine)
        return self.simulations[key]

    def rival(self, rival: Rival, machine: Machine, statistics: Statistics) -> list[LayerRun]:
        """The layers on another machine.

        What only escc's own form depends on leaves them as they are: activations are steered to the same
        densities.
        """
        base = self.network.statistics
        statistics = replace(statistics, coefficients=base.coefficients, bases=base.bases, planes=base.planes)
        key = (statistics, machine)
        if key not in self.runs:
            workload = self.workload(statistics, self.arch)
            self.runs[key] = run_rival(rival, machine, workload, self.progress)
        return self.runs[key]


def sensitivity(
    networks: Sequence[Network],
    *,
    arch: Arch,
    table: EnergyTable,
    seed: int = 0,
    engine: str = "auto",
    scenarios: Sequence[Scenario] = SCENARIOS,
    progress: Progress = silent,
) -> list[SensitivityRow]:
    """The means of every scenario, the unchanged one first.

    Raises:
        EsccError: as of the runs.
    """
    rivals = find_rivals(["eyeriss", "scnn", "sparten"])
    every = (Scenario("none", "as stated"), *scenarios)
    found: dict[Scenario, list[NetworkResult]] = {scenario: [] for scenario in every}
    for index, network in enumerate(networks):
        cache = _Cache(network, arch, seed, engine, progress)
        for place, scenario in enumerate(every):
            progress("sensitivity", index * len(every) + place, len(networks) * len(every))
            found[scenario].append(_result(cache, rivals, scenario, table))
    sparse = [rival.name for rival in rivals if rival.kind == "sparse"]
    return [
        SensitivityRow(scenario.name, scenario.change, headline(results, sparse))
        for scenario, results in found.items()
    ]


def _result(cache: _Cache, rivals: Sequence[Rival], scenario: Scenario, table: EnergyTable) -> NetworkResult:
    network = cache.network
    stated = scenario.statistics(network.statistics) if scenario.statistics else network.statistics
    arch = scenario.arch(cache.arch) if scenario.arch else cache.arch
    priced = scenario.table(table) if scenario.table else table
    workload = cache.workload(stated, arch if scenario.compiled else cache.arch)
    figures: list[Figures] = [our_figures(workload, repriced(cache.ours(stated, arch), priced))]
    for rival in rivals:
        machine = rival.machine(cache.arch.multipliers, cache.arch)
        machine = scenario.rival(machine) if scenario.rival else machine
        runs = cache.rival(rival, machine, stated)
        figures.append(rival_figures(rival, machine, workload, runs, priced))
    return NetworkResult(
        network.name, network.title, workload.origin, True, {}, {}, "", workload.macs, 0, tuple(figures), ()
    )


def repriced(result: SimResult, table: EnergyTable) -> SimResult:
    """The same run with other costs."""
    from escc.backend_sim.simulator.result import layer_energy

    timed = result.timed
    assert timed is not None
    layers = [
        replace(layer, energy=layer_energy(layer.counts, layer.cycles, timed.arch, table))
        for layer in timed.layers
    ]
    return replace(result, timed=replace(timed, layers=layers, table=table))
