"""A comparison: every network on every machine, and the ratios that are made of it."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from escc.backend_sim.area import area
from escc.backend_sim.simulator import EnergyTable
from escc.compare.machines import OURS, Machine, Rival, at_area, rival_mm2
from escc.compare.measure import Figures, our_figures, rival_figures, run_ours, run_rival
from escc.compare.statistics import geometric_mean
from escc.compare.workload import Workload
from escc.isa.arch import Arch
from escc.progress import Progress, silent

Measure = Literal["latency", "energy"]
MEASURES: tuple[Measure, ...] = ("latency", "energy")
FORMAT_VERSION = 1

TARGETS: Mapping[str, Mapping[Measure, float]] = {
    "eyeriss": {"latency": 17.9, "energy": 8.3},
    "sparse": {"latency": 2.16, "energy": 3.77},
}
"""What ESCALATE is remembered to claim (MICRO 2021; recalled, not confirmed): a target, not a truth."""


@dataclass(frozen=True)
class NetworkResult:
    """One network on all machines: ``equal`` at equal multipliers (references as published), ``areas`` at
    equal area; escc's figures are the first of both."""

    name: str
    title: str
    origin: str
    synthetic: bool
    stated: Mapping[str, Any]
    reached: Mapping[str, float]
    digest: str
    macs: int
    layers: int
    equal: tuple[Figures, ...]
    areas: tuple[Figures, ...]

    def ratio(self, machine: str, measure: Measure, basis: str = "multipliers") -> float | None:
        """How many times escc's machine is better than ``machine``; None if that was not run."""
        found = {item.machine: item for item in (self.areas if basis == "area" else self.equal)}
        other, ours = found.get(machine), found.get(OURS)
        if other is None or ours is None:
            return None
        if measure == "latency":
            return other.latency_us / ours.latency_us
        return other.energy_total / ours.energy_total


@dataclass(frozen=True)
class MachineInfo:
    """A machine as it was run: parameters, and area by the rules of escc's area model."""

    name: str
    title: str
    kind: str
    basis: str
    multipliers: int
    mm2: float
    about: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Networks x machines; ``unit`` is the energy table's."""

    arch: Arch
    table: EnergyTable
    seed: int
    networks: tuple[NetworkResult, ...]
    machines: tuple[MachineInfo, ...]
    sensitivity: tuple[SensitivityRow, ...] = ()

    @property
    def kinds(self) -> dict[str, str]:
        """Machine to kind."""
        return {machine.name: machine.kind for machine in self.machines}

    @property
    def rivals(self) -> list[str]:
        """The other machines, in order."""
        return [name for name in dict.fromkeys(machine.name for machine in self.machines) if name != OURS]

    def title(self, machine: str) -> str:
        """What tables call a machine."""
        return next(item.title for item in self.machines if item.name == machine)

    def mean(self, machine: str, measure: Measure, basis: str = "multipliers") -> float:
        """Geometric mean over the networks of how many times escc is better; ``machine`` may be ``sparse``:
        then over all sparse machines, too."""
        names = [machine]
        if machine == "sparse":
            names = [name for name, kind in self.kinds.items() if kind == "sparse"]
        ratios = [net.ratio(name, measure, basis) for net in self.networks for name in names]
        return geometric_mean([ratio for ratio in ratios if ratio is not None])


@dataclass(frozen=True)
class SensitivityRow:
    """An assumption changed: the four means that the targets are about, by measure and against whom."""

    name: str
    change: str
    means: Mapping[str, float]


def headline(networks: Sequence[NetworkResult], sparse: Sequence[str]) -> dict[str, float]:
    """The four geometric means at equal multipliers: ``latency eyeriss``, ``energy sparse``, ..."""
    found: dict[str, float] = {}
    for against, names in (("eyeriss", ["eyeriss"]), ("sparse", list(sparse))):
        for measure in MEASURES:
            ratios = [net.ratio(name, measure) for net in networks for name in names]
            found[f"{measure} {against}"] = geometric_mean([x for x in ratios if x is not None])
    return found


class Bench:
    """The machines of a comparison, made once: those of equal area with the first network."""

    def __init__(self, rivals: Sequence[Rival], arch: Arch, table: EnergyTable) -> None:
        self.rivals, self.arch, self.table = list(rivals), arch, table
        self.mm2 = area(arch).total_mm2
        self.equal = [(rival, rival.machine(arch.multipliers, arch)) for rival in self.rivals]
        self.by_area: list[tuple[Rival, Machine]] | None = None
        self.infos: list[MachineInfo] = [
            MachineInfo(
                OURS,
                "escc",
                OURS,
                "multipliers",
                arch.multipliers,
                self.mm2,
                "ternary combinations of shared kernels",
                dataclasses.asdict(arch),
            )
        ]

    def _prepare(self, workload: Workload) -> list[tuple[Rival, Machine]]:
        """Find the machines of equal area with a small layer of the workload."""
        if self.by_area is None:
            probe = min((layer.pruned for layer in workload.layers), key=lambda work: work.macs)
            self.by_area = [
                (rival, at_area(rival, self.arch, self.mm2, probe))
                for rival in self.rivals
                if rival.kind != "reference"
            ]
            for machines, basis in ((self.equal, "multipliers"), (self.by_area, "area")):
                for rival, machine in machines:
                    mm2 = rival_mm2(machine, machine.run(probe).buffers)
                    shown = "published" if rival.kind == "reference" else basis
                    self.infos.append(
                        MachineInfo(
                            rival.name,
                            rival.title,
                            rival.kind,
                            shown,
                            machine.multipliers,
                            mm2,
                            rival.about,
                            dataclasses.asdict(machine),
                        )
                    )
        return self.by_area

    def run(
        self,
        workload: Workload,
        *,
        equal_area: bool = True,
        engine: str = "auto",
        progress: Progress = silent,
    ) -> NetworkResult:
        """One network on all machines.

        Raises:
            EsccError: the simulator and the integer network disagree, or a machine cannot map a layer.
        """
        progress(f"{workload.name}: escc", 0, 1)
        ours = our_figures(workload, run_ours(workload, table=self.table, engine=engine))
        equal = [ours]
        for rival, machine in self.equal:
            runs = run_rival(rival, machine, workload, progress)
            equal.append(rival_figures(rival, machine, workload, runs, self.table))
        areas: list[Figures] = []
        if equal_area:
            areas.append(dataclasses.replace(ours, basis="area"))
            for rival, machine in self._prepare(workload):
                runs = run_rival(rival, machine, workload, progress)
                areas.append(rival_figures(rival, machine, workload, runs, self.table, "area"))
        stated = {} if workload.statistics is None else dataclasses.asdict(workload.statistics)
        return NetworkResult(
            workload.name,
            workload.title,
            workload.origin,
            workload.synthetic,
            stated,
            workload.reached(),
            workload.activations_digest,
            workload.macs,
            len(workload.layers),
            tuple(equal),
            tuple(areas),
        )


def compare(
    workloads: Iterable[Callable[[], Workload]],
    rivals: Sequence[Rival],
    *,
    arch: Arch,
    table: EnergyTable,
    seed: int = 0,
    engine: str = "auto",
    progress: Progress = silent,
) -> Comparison:
    """Every workload on every machine; workloads are made one after the other, and let go.

    Raises:
        EsccError: as :meth:`Bench.run`.
    """
    bench = Bench(rivals, arch, table)
    results = [bench.run(make(), engine=engine, progress=progress) for make in workloads]
    return Comparison(arch, table, seed, tuple(results), tuple(bench.infos))


def to_json(comparison: Comparison) -> str:
    """Everything as JSON."""
    content: dict[str, Any] = {
        "format": "escc comparison",
        "version": FORMAT_VERSION,
        "architecture": dataclasses.asdict(comparison.arch),
        "energy_table": {
            "name": comparison.table.name,
            "unit": comparison.table.unit,
            "node_nm": comparison.table.node_nm,
        },
        "seed": comparison.seed,
        "machines": [dataclasses.asdict(machine) for machine in comparison.machines],
        "networks": [
            {
                "name": net.name,
                "title": net.title,
                "origin": net.origin,
                "synthetic": net.synthetic,
                "stated": net.stated,
                "reached": dict(net.reached),
                "activations_sha256": net.digest,
                "dense_macs": net.macs,
                "results": [
                    {**item.record(), "lost": dict(item.lost), "layers": _layers(item)}
                    for item in (*net.equal, *net.areas)
                ],
            }
            for net in comparison.networks
        ],
        "times_better": [
            {"machine": name, "basis": basis, "network": net.name, **ratios}
            for basis in ("multipliers", "area")
            for name in comparison.rivals
            for net in comparison.networks
            if (ratios := _ratios(net, name, basis))
        ],
        "geometric_means": _means(comparison),
        "targets_recalled": {name: dict(values) for name, values in TARGETS.items()},
        "sensitivity": [dataclasses.asdict(row) for row in comparison.sensitivity],
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _layers(figures: Figures) -> list[dict[str, Any]]:
    return [dataclasses.asdict(layer) for layer in figures.layers]


def _ratios(net: NetworkResult, machine: str, basis: str) -> dict[str, float]:
    found = {measure: net.ratio(machine, measure, basis) for measure in MEASURES}
    return {name: value for name, value in found.items() if value is not None}


def _means(comparison: Comparison) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for basis in ("multipliers", "area"):
        for name in (*comparison.rivals, "sparse"):
            means = {measure: comparison.mean(name, measure, basis) for measure in MEASURES}
            if all(value == value for value in means.values()):
                rows.append({"machine": name, "basis": basis, **means})
    return rows


def to_csv(comparison: Comparison) -> str:
    """A line for every network and machine; lost cycles and layers are in the JSON only."""
    rows = [
        {
            "network": net.name,
            "synthetic": net.synthetic,
            "energy_unit": comparison.table.unit,
            **item.record(),
        }
        for net in comparison.networks
        for item in (*net.equal, *net.areas)
    ]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]) if rows else ["network"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
