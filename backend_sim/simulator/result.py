"""What a simulation tells: outputs, cycles and their causes, energy, layer by layer; as JSON and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from escc.backend_sim.simulator.energy import COMPONENTS, EVENTS, EnergyTable
from escc.backend_sim.simulator.meter import LC_CAUSES, MAC_CAUSES, LayerCounts
from escc.backend_sim.simulator.timeline import CAUSES, Cycles, Timeline
from escc.errors import EsccError
from escc.isa.arch import Arch
from escc.isa.instructions import Queue
from escc.isa.program import MapDescriptor
from escc.isa.sequence import Dispatch

Amounts = npt.NDArray[np.float64]
Row = dict[str, str | int | float]

FORMAT_VERSION = 1


@dataclass(frozen=True)
class LayerResult:
    """One layer of a timed run; every array has one entry per timed image.

    ``cycles``: by how much the layer moved the end of everything so far; layers sum to the total. ``queues``:
    cycles of each queue by cause. ``causes``: row cycles of the LC and MAC parts. ``energy``: by component,
    in the table's unit.
    """

    name: str
    operation: str
    source: str
    cycles: Cycles
    queues: dict[Queue, dict[str, Cycles]]
    counts: LayerCounts
    energy: dict[str, Amounts]

    def event(self, name: str) -> Amounts:
        """How often an event happened, (N,)."""
        return self.counts.events.get(name, np.zeros(len(self.cycles)))

    def figure(self, name: str) -> npt.NDArray[np.int64]:
        """A figure of `LayerCounts`, (N,)."""
        return self.counts.figures.get(name, np.zeros(len(self.cycles), np.int64))

    @property
    def energy_total(self) -> Amounts:
        """Energy of the layer in the table's unit, (N,)."""
        return sum(self.energy.values(), np.zeros(len(self.cycles)))

    def density(self, what: str) -> float | None:
        """Share of non-zero ``activations`` or ``coefficients``, all timed images; None if it has none."""
        total = int(self.figure(what).sum())
        return float(self.figure(f"{what}_nonzero").sum() / total) if total else None

    def row(self, suffix: str) -> Row:
        """The layer as a flat record, means over the timed images; units end the names."""
        row: Row = {"layer": self.name, "operation": self.operation, "source": self.source}
        row["elapsed_cycles"] = mean(self.cycles)
        for queue in Queue:
            for cause in CAUSES[:-1]:
                row[f"{queue.text}_{cause}_cycles"] = mean(self.queues.get(queue, {}).get(cause))
        for part, causes in (("lc", LC_CAUSES), ("mac", MAC_CAUSES)):
            for cause in causes:
                row[f"{part}_{cause}_row_cycles"] = mean(self.counts.causes.get(f"{part}_{cause}"))
        row["dram_read_bytes"] = mean(self.event("dram_read_bits") / 8)
        row["dram_write_bytes"] = mean(self.event("dram_write_bits") / 8)
        row["dram_requests_ops"] = mean(self.figure("dram_requests"))
        row["dram_activates_ops"] = mean(self.event("dram_activates"))
        row["sram_read_bytes"] = mean(self.event("sram_read_bytes"))
        row["sram_write_bytes"] = mean(self.event("sram_write_bytes"))
        row["dense_macs_ops"] = mean(self.figure("dense_macs"))
        row["products_ops"] = mean(self.figure("products"))
        row["additions_ops"] = mean(self.figure("additions"))
        for what in ("activations", "coefficients"):
            density = self.density(what)
            row[f"{what[:-1]}_density_ratio"] = "" if density is None else round(density, 6)
        for component in COMPONENTS:
            row[f"{component}_energy_{suffix}"] = mean(self.energy.get(component))
        row[f"total_energy_{suffix}"] = mean(self.energy_total)
        return row


@dataclass(frozen=True)
class TimedResult:
    """The timed images of a run: ``timeline`` in cycles, ``layers`` in program order, energy ``table``.

    ``steps``: the dispatched instructions that the timeline has times of; ``layer_names`` by layer number;
    ``moved`` (steps, N): DRAM bytes of each transfer.
    """

    arch: Arch
    timeline: Timeline
    layers: list[LayerResult]
    table: EnergyTable
    steps: list[Dispatch]
    layer_names: dict[int, str]
    moved: Cycles

    @property
    def energy(self) -> dict[str, Amounts]:
        """Energy by component in the table's unit, (N,) each."""
        zero = np.zeros(len(self.timeline.total))
        return {c: sum((layer.energy.get(c, zero) for layer in self.layers), zero) for c in COMPONENTS}


@dataclass(frozen=True)
class SimResult:
    """The result of `escc.backend_sim.simulator.runner.simulate`.

    ``outputs``: for each output map integers (N, *torch_shape), int8 or uint8. ``timed``: None when nothing
    was timed. ``seconds``: wall-clock time of the simulation. ``engine``: what times convolutions, such as
    ``numpy`` or ``native-avx512``.
    """

    outputs: list[npt.NDArray[Any]]
    maps: list[MapDescriptor]
    timed: TimedResult | None
    seconds: float
    engine: str

    @property
    def images(self) -> int:
        """How many images were run."""
        return len(self.outputs[0]) if self.outputs else 0

    @property
    def outputs_float(self) -> list[npt.NDArray[np.float32]]:
        """The outputs times their scale, float32."""
        return [
            (values * np.float64(item.scale)).astype(np.float32)
            for values, item in zip(self.outputs, self.maps, strict=True)
        ]

    @property
    def _timed(self) -> TimedResult:
        if self.timed is None:
            raise EsccError("nothing was timed", hint="simulate with timing_images of 1 or more")
        return self.timed

    @property
    def cycles(self) -> Cycles:
        """Cycles of each timed image, (n,)."""
        return self._timed.timeline.total

    @property
    def latency_us(self) -> Amounts:
        """Time of each timed image in microseconds, (n,)."""
        return self.cycles / self._timed.arch.mhz

    @property
    def queues(self) -> dict[str, dict[str, Cycles]]:
        """Cycles of each queue by cause, (n,) each; the causes of a queue sum to the cycles."""
        return {queue.text: causes for queue, causes in self._timed.timeline.queues.items()}

    @property
    def layers(self) -> list[LayerResult]:
        """The layers of the timed images, in program order."""
        return self._timed.layers

    @property
    def energy(self) -> dict[str, Amounts]:
        """Energy of each timed image by component, (n,) each, in the unit of the energy table."""
        return self._timed.energy

    @property
    def energy_pj(self) -> float:
        """Mean energy of a timed image in picojoules.

        Raises:
            EsccError: nothing was timed, or the energy table has a relative unit.
        """
        table = self._timed.table
        if table.unit != "pJ":
            raise EsccError(f"energy table {table.name} is in units of {table.unit}, not pJ")
        return float(sum(values.mean() for values in self.energy.values()))

    def layer_rows(self) -> list[Row]:
        """The per-layer table, means over the timed images; empty when nothing was timed."""
        if self.timed is None:
            return []
        return [layer.row(self.timed.table.suffix) for layer in self.timed.layers]

    def to_csv(self) -> str:
        """The per-layer table as CSV; a header line with units, a line per layer.

        Raises:
            EsccError: nothing was timed.
        """
        rows = [layer.row(self._timed.table.suffix) for layer in self._timed.layers]
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(rows[0]) if rows else ["layer"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return stream.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Everything but the output values, ready for JSON."""
        content: dict[str, Any] = {
            "format": "escc simulation",
            "version": FORMAT_VERSION,
            "images": self.images,
            "simulation_seconds": round(self.seconds, 6),
            "engine": self.engine,
            "outputs": [
                {"name": m.name, "shape": list(m.torch_shape), "signed": m.signed, "scale": m.scale}
                for m in self.maps
            ],
        }
        if self.timed is not None:
            content |= _timed_dict(self, self.timed)
        return content

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"


def _timed_dict(result: SimResult, timed: TimedResult) -> dict[str, Any]:
    table = timed.table
    suffix = table.suffix
    energy = {component: mean(values) for component, values in timed.energy.items()}
    return {
        "timed_images": len(timed.timeline.total),
        "architecture": dataclasses.asdict(timed.arch),
        "cycles": timed.timeline.total.tolist(),
        "latency_us": result.latency_us.tolist(),
        "queues_cycles": {
            name: {cause: mean(cycles) for cause, cycles in causes.items()}
            for name, causes in result.queues.items()
        },
        f"energy_{suffix}": energy | {"total": sum(energy.values())},
        "layers": result.layer_rows(),
        "energy_table": {
            "name": table.name,
            "unit": table.unit,
            "node_nm": table.node_nm,
            "about": table.about,
            "costs": {name: dataclasses.asdict(cost) for name, cost in table.costs.items()},
            "sram_citation": table.sram_citation,
            "sram_bank_kib": table.bank_kib,
            "sram_wire_citation": table.wire_citation,
            "sram_read_per_byte": table.sram_read(timed.arch.sram_kib),
            "sram_write_per_byte": table.sram_write(timed.arch.sram_kib),
            "sram_leakage_uw": table.sram_leakage_uw(timed.arch.sram_kib),
        },
    }


def layer_energy(counts: LayerCounts, cycles: Cycles, arch: Arch, table: EnergyTable) -> dict[str, Amounts]:
    """Energy by component: events times their costs, and SRAM leakage over the layer's cycles.

    Leakage is in picojoules and therefore left out of a table with a relative unit.
    """
    per_byte = {"sram_read": table.sram_read(arch.sram_kib), "sram_write": table.sram_write(arch.sram_kib)}
    energy: dict[str, Amounts] = {}
    for event in EVENTS:
        cost = per_byte[event.cost] if event.cost in per_byte else table.costs[event.cost].value
        amount = counts.events.get(event.name, np.zeros(len(cycles)))
        energy[event.component] = energy.get(event.component, 0.0) + amount * cost
    # microwatts times microseconds are picojoules
    microseconds = cycles / arch.mhz
    power = table.sram_leakage_uw(arch.sram_kib) if table.unit == "pJ" else 0.0
    energy["leakage"] = microseconds * power
    return energy


def mean(values: npt.NDArray[Any] | None) -> int | float:
    """Mean over the timed images, as an integer where it is one; 0 for what did not happen."""
    if values is None or not len(values):
        return 0
    value = float(values[0] if len(values) == 1 else np.mean(values))
    return int(value) if value.is_integer() else round(value, 6)
