"""The baseline machines against their own papers: published figures beside ours, as plain rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from escc.backend_sim.baselines.dense import Dense
from escc.backend_sim.baselines.eyeriss import Eyeriss
from escc.backend_sim.baselines.published import (
    EYERISS_ALEXNET,
    NETWORKS,
    SCNN_BREAK_EVEN,
    SCNN_DENSE_SPEED,
    SCNN_SPEEDUP,
    SPARTEN_SPEEDUP,
)
from escc.backend_sim.baselines.scnn import Scnn
from escc.backend_sim.baselines.sparten import Sparten
from escc.backend_sim.baselines.workload import Baseline

SEED = 1


@dataclass(frozen=True)
class Figure:
    """A published figure and ours for it; ``published`` None where the paper gives none."""

    what: str
    published: float | None
    ours: float

    @property
    def ratio(self) -> float | None:
        """Ours for 1 published."""
        return None if self.published is None else self.ours / self.published


def eyeriss() -> dict[str, list[Figure]]:
    """AlexNet, batch of 4, published mappings: by quantity, a figure for each layer and for all."""
    machine = Eyeriss(batch=4)
    tables: dict[str, list[Figure]] = {"processing ms": [], "global buffer MB": [], "DRAM MB": []}
    for row in EYERISS_ALEXNET:
        work = row.layer.work(SEED)
        run = machine.run_mapped(work, row.mapping)
        ours = (
            run.cycles * machine.batch / (machine.clock_mhz * 1e3),
            machine.array_bytes(work, row.mapping) * machine.batch / 1e6,
            (run.dram_read_bytes + run.dram_write_bytes) * machine.batch / 1e6,
        )
        paper = (row.processing_ms, row.buffer_mb, row.dram_mb)
        for table, published, value in zip(tables.values(), paper, ours, strict=True):
            table.append(Figure(row.layer.name, published, value))
    for table in tables.values():
        published = sum(figure.published or 0.0 for figure in table)
        table.append(Figure("all", published, sum(figure.ours for figure in table)))
    return tables


def scnn(machine: Scnn | None = None, clump: int = 1) -> list[Figure]:
    """Speed-up over DCNN: of networks at their densities, and of VGG-16 without zeros and at break-even.

    ``clump``: of the inputs, see `Layer.work`.
    """
    taken = machine or Scnn()
    found = [
        Figure(
            network,
            SCNN_SPEEDUP[network],
            _speedup(cycles(Dense(), network), cycles(taken, network, clump=clump)),
        )
        for network in NETWORKS
    ]
    for what, published, density in (
        ("VGG-16, no zeros", SCNN_DENSE_SPEED, 1.0),
        (f"VGG-16, densities {SCNN_BREAK_EVEN:g}", 1.0, SCNN_BREAK_EVEN),
    ):
        some = _speedup(cycles(Dense(), "VGG-16"), cycles(taken, "VGG-16", density, clump))
        found.append(Figure(what, published, some))
    return found


def sparten(machine: Sparten | None = None, clump: int = 1) -> dict[str, list[Figure]]:
    """Speed-up over dense, one-sided SparTen and SCNN: geometric means over layers, by network and of all.

    The paper's figures are means over its layers; it pruned its own networks.
    """
    taken = machine or Sparten()
    others: dict[str, Baseline] = {
        "dense": Sparten(sides="dense"),
        "one-sided": Sparten(sides="weights"),
        "SCNN": Scnn(),
        "SCNN without bank queues": Scnn(banks_queued=False),
    }
    tables: dict[str, list[Figure]] = {}
    for name, other in others.items():
        rows: list[Figure] = []
        gains: list[float] = []
        for network in NETWORKS:
            ratios = [
                slow / fast
                for slow, fast in zip(
                    cycles(other, network, clump=clump), cycles(taken, network, clump=clump), strict=True
                )
            ]
            gains += ratios
            rows.append(Figure(network, None, _mean(ratios)))
        tables[name] = [*rows, Figure("all layers", SPARTEN_SPEEDUP[name.split()[0]], _mean(gains))]
    return tables


@cache
def cycles(machine: Baseline, network: str, density: float | None = None, clump: int = 1) -> tuple[int, ...]:
    """Cycles of every layer of a network, at its own densities or all at one."""
    return tuple(machine.run(layer.work(SEED, density, clump)).cycles for layer in NETWORKS[network])


def _speedup(slow: tuple[int, ...], fast: tuple[int, ...]) -> float:
    return sum(slow) / sum(fast)


def _mean(ratios: list[float]) -> float:
    return float(np.exp(np.mean(np.log(ratios))))
