"""One sentence for each layer: what would have to be faster for the run to be shorter."""

from __future__ import annotations

from dataclasses import dataclass

from escc.backend_sim.report.figures import LayerFigures, RunFigures
from escc.backend_sim.report.text import count, percent, size

LIMITS = {
    "dma": "DRAM",
    "mac": "multipliers",
    "lc": "linear combination",
    "ring": "ring buffer",
    "idle": "idle rows",
    "vec": "vector unit",
    "sequencer": "sequencer",
    "hidden": "hidden",
}
"""What can limit a layer, and how the page calls it."""


@dataclass(frozen=True)
class Limit:
    """``kind`` is a key of `LIMITS`; ``sentence`` is plain text, to be escaped like any other."""

    kind: str
    sentence: str


def limit_of(layer: LayerFigures, run: RunFigures) -> Limit:
    """What limits a layer: its largest share of the critical path, and for convolutions what is behind it."""
    total = sum(layer.path.values())
    if not total:
        if not layer.active:
            return Limit("hidden", "No instruction of its own runs here.")
        return Limit(
            "hidden",
            f"Nothing of it is on the critical path: its {count(layer.active)} cycles run beside others.",
        )
    kind = max(layer.path, key=lambda name: layer.path[name])
    lead = f"{percent(layer.path[kind], total)} of its {count(total)} cycles on the critical path are "
    if kind == "dma":
        return Limit("dma", lead + _dma(layer, run))
    if kind == "vec":
        return Limit(
            "vec", lead + f"the vector unit's, which handles {run.arch.vector_lanes} channels a cycle."
        )
    if kind == "sequencer":
        return Limit("sequencer", lead + "the sequencer's, which executes one word a cycle.")
    inside, why = _blocks(layer)
    return Limit(inside, lead + "convolution: " + why)


def _dma(layer: LayerFigures, run: RunFigures) -> str:
    latency = min(layer.path_transfers * run.arch.dram_latency_cycles, layer.path["dma"])
    transfers = "1 transfer" if layer.path_transfers == 1 else f"{layer.path_transfers} transfers"
    rate = f"{run.arch.bytes_per_cycle:g} B a cycle"
    return (
        f"DRAM traffic: {transfers}, {percent(latency, layer.path['dma'])} of that time latency and the rest "
        f"moving data ({size(layer.dram_bytes)} in all at {rate} or less)."
    )


def _blocks(layer: LayerFigures) -> tuple[str, str]:
    """The part of the array that holds the rest up, from the row cycles of both parts."""
    lc, mac = layer.causes("lc"), layer.causes("mac")
    total = sum(lc.values())
    if not total:
        return "idle", "the array's start-up."
    works = percent(mac["busy"], total), percent(lc["busy"], total)
    busy = f"MAC parts are busy {works[0]} of the row cycles, LC parts {works[1]}"
    idle = max(0.0, total - max(lc["busy"] + lc["wait_fifo"] + lc["wait_row"], mac["busy"] + mac["wait_lc"]))
    reasons = {
        "mac": (lc["wait_fifo"], f"LC parts wait {percent(lc['wait_fifo'], total)} for room in the FIFO"),
        "lc": (mac["wait_lc"], f"MAC parts wait {percent(mac['wait_lc'], total)} for sums"),
        "ring": (
            lc["wait_row"],
            f"rows wait {percent(lc['wait_row'], total)} for slower rows of their block (ring buffer full)",
        ),
        "idle": (
            idle,
            f"{percent(idle, total)} idle: rows without an output channel, uneven work, start-up",
        ),
    }
    kind = max(reasons, key=lambda name: reasons[name][0])
    if reasons[kind][0] < max(lc["busy"], mac["busy"]):
        # nobody waits much: the part that works most sets the pace, unless waiting says otherwise
        kind = "mac" if mac["busy"] >= lc["busy"] else "lc"
    return kind, f"{busy}; {reasons[kind][1]}."
