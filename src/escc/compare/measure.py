"""Running a workload on escc's machine and on the others, with one account of energy for all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from escc.backend_sim.baselines.workload import BUSY, REGISTER_KIB, WAIT_DRAM, LayerRun
from escc.backend_sim.simulator import EnergyTable, SimResult, simulate
from escc.compare.machines import OURS, Machine, Rival
from escc.compare.workload import Workload
from escc.errors import EsccError
from escc.isa.arch import Arch
from escc.progress import Progress, silent

GROUPS = ("DRAM", "SRAM", "registers", "arithmetic and logic", "leakage")
"""Energy of every machine, by where it goes. Storage up to 4 KiB counts as registers."""

_OUR_GROUPS = {
    "dram": "DRAM",
    "sram": "SRAM",
    "leakage": "leakage",
    **dict.fromkeys(("ring_buffer", "operand_registers", "fifo", "partial_sums"), "registers"),
}


@dataclass(frozen=True)
class LayerFigures:
    """One layer on one machine; ``wait_dram`` of its cycles it waits for DRAM."""

    name: str
    macs: int
    cycles: float
    energy: float
    dram_bytes: float
    wait_dram: float
    note: str = ""


@dataclass(frozen=True)
class Figures:
    """A network on a machine.

    Attributes:
        machine: key of the machine, ``escc`` or a rival's.
        basis: ``multipliers``, ``area`` or ``published``: what it has in common with escc's machine.
        multipliers, mhz: of the machine.
        cycles: for one image.
        energy: by :data:`GROUPS`, in the unit of the energy table.
        dram_read_bytes, dram_write_bytes: moved.
        macs: multiply-accumulates of the dense network.
        products: multiplications done.
        busy: share of all multiplier cycles spent on products of two non-zero operands (escc: on products).
        lost: share of all multiplier cycles by cause, busy left out; empty for escc, whose report says more.
        layers: convolutions and linear layers in order; escc's other layers as one.
        estimated: share of the cycles that come from samples.
    """

    machine: str
    basis: str
    multipliers: int
    mhz: float
    cycles: float
    energy: Mapping[str, float]
    dram_read_bytes: float
    dram_write_bytes: float
    macs: int
    products: float
    busy: float
    lost: Mapping[str, float]
    layers: tuple[LayerFigures, ...] = field(repr=False)
    estimated: float = 0.0

    @property
    def latency_us(self) -> float:
        """Time of an image in microseconds."""
        return self.cycles / self.mhz

    @property
    def energy_total(self) -> float:
        """Energy of an image."""
        return sum(self.energy.values())

    @property
    def dram_bytes(self) -> float:
        """Bytes moved to and from DRAM."""
        return self.dram_read_bytes + self.dram_write_bytes

    @property
    def macs_per_multiplier(self) -> float:
        """MACs of the dense network for every cycle of every multiplier: 1 is a full dense machine."""
        return self.macs / (self.cycles * self.multipliers)

    def record(self) -> dict[str, Any]:
        """The figures as a flat record, layers left out."""
        return {
            "machine": self.machine,
            "basis": self.basis,
            "multipliers": self.multipliers,
            "clock_mhz": self.mhz,
            "cycles": self.cycles,
            "latency_us": self.latency_us,
            "energy": self.energy_total,
            **{f"energy_{name.replace(' ', '_').lower()}": value for name, value in self.energy.items()},
            "dram_read_bytes": self.dram_read_bytes,
            "dram_write_bytes": self.dram_write_bytes,
            "dense_macs": self.macs,
            "products": self.products,
            "multipliers_busy": self.busy,
            "dense_macs_per_multiplier_cycle": self.macs_per_multiplier,
            "estimated_share": self.estimated,
        }


def run_ours(
    workload: Workload, *, arch: Arch | None = None, table: EnergyTable | None = None, engine: str = "auto"
) -> SimResult:
    """Simulate the program; its outputs must be those of the integer reference.

    Args:
        workload: what to run.
        arch: another clock or DRAM than it was compiled for.
        table: energy table.
        engine: of the simulator.

    Raises:
        EsccError: the program gave other outputs than the integer network.
    """
    result = simulate(
        workload.program, workload.images, arch=arch, energy_table=table, engine=engine, timing_images=1
    )
    for got, wanted in zip(result.outputs, workload.outputs, strict=True):
        if not np.array_equal(got, wanted):
            raise EsccError("the program and the integer network disagree", where=workload.name)
    return result


def our_figures(workload: Workload, result: SimResult) -> Figures:
    """The figures of a simulation."""
    timed = result.timed
    assert timed is not None
    arch, cycles = timed.arch, float(timed.timeline.total[0])
    energy: dict[str, float] = dict.fromkeys(GROUPS, 0.0)
    for component, values in result.energy.items():
        energy[_OUR_GROUPS.get(component, "arithmetic and logic")] += float(values[0])
    rows = result.layer_rows()
    products = sum(float(row["products_ops"]) for row in rows)
    macs = {layer.dense.name: layer.dense.macs for layer in workload.layers}
    layers: list[LayerFigures] = []
    for row, layer in zip(rows, timed.layers, strict=True):
        moved = float(row["dram_read_bytes"]) + float(row["dram_write_bytes"])
        layers.append(
            LayerFigures(
                str(row["layer"]),
                macs.get(str(row["layer"]), 0),
                float(row["elapsed_cycles"]),
                float(layer.energy_total[0]),
                moved,
                float(row["blk_wait_dma_cycles"]),
            )
        )
    return Figures(
        OURS,
        "multipliers",
        arch.multipliers,
        arch.mhz,
        cycles,
        energy,
        sum(float(row["dram_read_bytes"]) for row in rows),
        sum(float(row["dram_write_bytes"]) for row in rows),
        workload.macs,
        products,
        products / (cycles * arch.multipliers),
        {},
        tuple(layers),
    )


def run_rival(
    rival: Rival, machine: Machine, workload: Workload, progress: Progress = silent
) -> list[LayerRun]:
    """All layers of a workload on a machine."""
    runs: list[LayerRun] = []
    work = rival.work(workload)
    for index, item in enumerate(work):
        progress(f"{workload.name}: {rival.name}", index, len(work))
        runs.append(machine.run(item))
    return runs


def rival_figures(
    rival: Rival,
    machine: Machine,
    workload: Workload,
    runs: Sequence[LayerRun],
    table: EnergyTable,
    basis: str | None = None,
) -> Figures:
    """The figures of a machine's layers, one after the other."""
    energy: dict[str, float] = dict.fromkeys(GROUPS, 0.0)
    layers: list[LayerFigures] = []
    for layer, run in zip(workload.layers, runs, strict=True):
        parts = _grouped(run, table, machine.clock_mhz)
        moved = run.dram_read_bytes + run.dram_write_bytes
        for name, value in parts.items():
            energy[name] += value
        waits = run.slots.get(WAIT_DRAM, 0) / run.multipliers
        layers.append(
            LayerFigures(run.name, layer.dense.macs, run.cycles, sum(parts.values()), moved, waits, run.note)
        )
    cycles = sum(run.cycles for run in runs)
    slots = max(1, cycles * machine.multipliers)
    lost: dict[str, float] = {}
    for run in runs:
        for cause, count in run.slots.items():
            if cause != BUSY:
                lost[cause] = lost.get(cause, 0.0) + count / slots
    return Figures(
        rival.name,
        basis or ("published" if rival.kind == "reference" else "multipliers"),
        machine.multipliers,
        machine.clock_mhz,
        cycles,
        energy,
        sum(run.dram_read_bytes for run in runs),
        sum(run.dram_write_bytes for run in runs),
        workload.macs,
        sum(run.multiplications for run in runs),
        sum(run.slots.get(BUSY, 0) for run in runs) / slots,
        dict(sorted(lost.items(), key=lambda item: -item[1])),
        tuple(layers),
        sum(run.cycles for run in runs if run.sampled < 1) / max(1, cycles),
    )


def _grouped(run: LayerRun, table: EnergyTable, mhz: float) -> dict[str, float]:
    """Energy of a layer by :data:`GROUPS`."""
    large = {item.name for item in run.buffers if item.kib > REGISTER_KIB}
    small = {item.name for item in run.buffers} - large
    found: dict[str, float] = dict.fromkeys(GROUPS, 0.0)
    for name, value in run.energy(table, mhz).items():
        group = "arithmetic and logic"
        if name in ("dram", "leakage"):
            group = "DRAM" if name == "dram" else "leakage"
        elif name in large:
            group = "SRAM"
        elif name in small:
            group = "registers"
        found[group] += value
    return found


def scaled_table(table: EnergyTable, *, dram: float) -> EnergyTable:
    """A table with dearer or cheaper DRAM."""
    costs = dict(table.costs)
    for name in ("dram_bit", "dram_activate"):
        costs[name] = dataclasses.replace(costs[name], value=costs[name].value * dram)
    return dataclasses.replace(table, costs=costs)
