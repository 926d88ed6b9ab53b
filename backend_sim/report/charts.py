"""The bar charts of the page: every one has a row for each layer."""

from __future__ import annotations

from collections.abc import Callable

from escc.backend_sim.report.critical_path import KINDS
from escc.backend_sim.report.figures import LayerFigures, RunFigures
from escc.backend_sim.report.svg import Panel, Series, legend, row_chart
from escc.backend_sim.report.text import count, energy, percent, size
from escc.backend_sim.simulator.energy import COMPONENTS
from escc.isa.instructions import Queue

Pairs = list[tuple[str, str]]

CAUSE_COLOURS = {
    "busy": "c1",
    "wait_dma": "c4",
    "wait_blk": "c2",
    "wait_vec": "c3",
    "wait_dispatch": "c6",
    "idle_end": "c7",
    "wait_input": "c8",
    "wait_row": "c5",
    "wait_fifo": "c2",
    "wait_lc": "c4",
    "idle": "c7",
    "stopped": "c9",
}
PATH_COLOURS = {"dma": "c4", "blk": "c1", "vec": "c3", "sequencer": "c6"}
PATH_NAMES = {"dma": "DMA", "blk": "blocks", "vec": "vector unit", "sequencer": "sequencer"}

ENERGY_GROUPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "DRAM": ("c4", ("dram",)),
    "SRAM": ("c2", ("sram",)),
    "linear combination": (
        "c1",
        ("ring_buffer", "dilution", "operand_registers", "concentration", "linear_combination"),
    ),
    "MAC part": ("c3", ("fifo", "mac", "partial_sums", "requantisation")),
    "vector unit": ("c5", ("vector_unit",)),
    "leakage": ("c7", ("leakage",)),
}
"""Components of the energy table as the bars group them."""

assert sorted(name for _, names in ENERGY_GROUPS.values() for name in names) == sorted(COMPONENTS)


def energy_key(run: RunFigures, component: str) -> str:
    """The key of a component's energy in a JSON record."""
    return f"{component}_energy_{run.timed.table.suffix}"


def time_and_energy(run: RunFigures) -> str:
    """Elapsed cycles, critical path, energy."""
    unit, shown, scale = run.timed.table.unit, run.timed.table.unit, 1.0
    if unit == "pJ":
        shown, scale = "uJ", 1e6
    elapsed = [layer.value("elapsed_cycles") for layer in run.layers]
    path = [Series(PATH_NAMES[k], PATH_COLOURS[k], [float(x.path[k]) for x in run.layers]) for k in KINDS]
    groups = [
        Series(
            name, colour, [sum(x.value(energy_key(run, c)) for c in components) / scale for x in run.layers]
        )
        for name, (colour, components) in ENERGY_GROUPS.items()
    ]
    total = sum(elapsed)
    hints = [
        f"{x.name}: {count(value)} cycles, {percent(value, total)} of the run"
        for x, value in zip(run.layers, elapsed, strict=True)
    ]
    panels = [
        Panel("elapsed cycles", [Series("elapsed", "c1", elapsed)], hints),
        Panel("critical path, cycles", path, _hints(run, path, lambda value: count(value))),
        Panel(f"energy, {shown}", groups, _hints(run, groups, lambda value: energy(value * scale, unit))),
    ]
    legends = _keys("Critical path", _used(path)) + _keys("Energy", _used(groups))
    return legends + _chart(run, "Cycles and energy of each layer", panels)


def stalls(run: RunFigures) -> str:
    """Where the cycles of the block queue and the row cycles of both parts of the rows go."""
    queue = _causes(run, lambda layer: layer.queue(Queue.BLK.text))
    lc = _causes(run, lambda layer: layer.causes("lc"))
    mac = _causes(run, lambda layer: layer.causes("mac"))
    panels = [
        Panel("block queue, cycles", queue, _hints(run, queue, count)),
        Panel("LC parts, row cycles", lc, _hints(run, lc, count)),
        Panel("MAC parts, row cycles", mac, _hints(run, mac, count)),
    ]
    legends = (
        _keys("Block queue", _used(queue)) + _keys("LC parts", _used(lc)) + _keys("MAC parts", _used(mac))
    )
    return legends + _chart(run, "Cycles of each layer by cause", panels)


def traffic(run: RunFigures) -> str:
    """Bytes from and to both memories."""
    panels: list[Panel] = []
    for memory in ("dram", "sram"):
        series = [
            Series(name, colour, [layer.value(f"{memory}_{name}_bytes") for layer in run.layers])
            for name, colour in (("read", "c1"), ("write", "c2"))
        ]
        panels.append(Panel(f"{memory.upper()}, bytes", series, _hints(run, series, size)))
    return _keys("", [("read", "c1"), ("write", "c2")]) + _chart(run, "Memory traffic of each layer", panels)


def sparsity(run: RunFigures) -> str:
    """Densities, and how busy multipliers and adders are."""
    names = (("activations", "c2"), ("coefficients", "c1"), ("matches", "c3"))
    dense = [Series(name, colour, [_density(layer, name) for layer in run.layers]) for name, colour in names]
    used = (("multipliers", "c3"), ("adders", "c1"))
    busy = [
        Series(name, colour, [utilisation(run, layer, name) for layer in run.layers]) for name, colour in used
    ]
    panels = [
        Panel("density, share of non-zeros", dense, _shares(run, dense), 1.0, dots=True),
        Panel("utilisation during convolutions", busy, _shares(run, busy), 1.0, dots=True),
    ]
    return (
        _keys("Density", list(names))
        + _keys("Utilisation", list(used))
        + _chart(run, "Sparsity and utilisation of each layer", panels)
    )


def match_density(layer: LayerFigures) -> float | None:
    """Matches over the coefficient-activation pairs that dilution looked at; None without any."""
    return layer.value("additions_ops") / layer.pairs if layer.pairs else None


def utilisation(run: RunFigures, layer: LayerFigures, what: str) -> float:
    """Products or additions over what the multipliers or adders could do while the block queue is busy.

    -1 for a layer without them.
    """
    done, could = (
        (layer.value("products_ops"), run.arch.multipliers)
        if what == "multipliers"
        else (layer.value("additions_ops"), run.adders)
    )
    busy = layer.value("blk_busy_cycles")
    return done / (busy * could) if busy and done else -1.0


def _density(layer: LayerFigures, what: str) -> float:
    if what == "matches":
        share = match_density(layer)
        return -1.0 if share is None else share
    value = layer.row[f"{what[:-1]}_density_ratio"]
    return -1.0 if isinstance(value, str) else float(value)


def _causes(run: RunFigures, of: Callable[[LayerFigures], dict[str, float]]) -> list[Series]:
    found = [of(layer) for layer in run.layers]
    names = list(found[0]) if found else []
    return [Series(n.replace("_", " "), CAUSE_COLOURS[n], [causes[n] for causes in found]) for n in names]


def _hints(run: RunFigures, series: list[Series], text: Callable[[float], str]) -> list[str]:
    """For each layer its values: name, number, share of the bar."""
    hints: list[str] = []
    for row, layer in enumerate(run.layers):
        total = sum(item.values[row] for item in series)
        values = [f"{x.name} {text(x.values[row])}" for x in series if x.values[row]]
        hints.append(f"{layer.name}: {text(total)}: {', '.join(values)}" if values else "")
    return hints


def _shares(run: RunFigures, series: list[Series]) -> list[str]:
    hints: list[str] = []
    for row, layer in enumerate(run.layers):
        values = [f"{x.name} {percent(x.values[row], 1)}" for x in series if x.values[row] >= 0]
        hints.append(f"{layer.name}: {', '.join(values)}" if values else "")
    return hints


def _used(series: list[Series]) -> Pairs:
    """The series that are anywhere to be seen."""
    return [(item.name, item.colour) for item in series if any(item.values)]


def _keys(title: str, pairs: Pairs) -> str:
    head = f"<b>{title}</b>" if title else ""
    return f'<div class="keys">{head}{legend(pairs)}</div>' if pairs else ""


def _chart(run: RunFigures, description: str, panels: list[Panel]) -> str:
    labels = [layer.name for layer in run.layers]
    return f"<figure>{row_chart(description, labels, panels)}</figure>"
