"""One self-contained HTML page about a run: no network, no fonts, no libraries; the script only sorts tables.

It is made of the result alone, so its figures are those of the JSON result, and the same result gives the
same page byte for byte.
"""

from __future__ import annotations

import dataclasses

from escc.backend_sim.report import charts, tables
from escc.backend_sim.report.figures import RunFigures, run_figures
from escc.backend_sim.report.limits import LIMITS, limit_of
from escc.backend_sim.report.memory_chart import COLOURS, memory_chart
from escc.backend_sim.report.roofline import LIMIT_COLOURS, roofline
from escc.backend_sim.report.style import SCRIPT, STYLE
from escc.backend_sim.report.svg import legend
from escc.backend_sim.report.text import count, duration, energy, escape, percent, short, size
from escc.backend_sim.simulator.result import SimResult

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""The page may load nothing: a browser holds it to that."""


def html_report(result: SimResult, title: str, note: str = "") -> str:
    """The page. ``title`` is what was run, ``note`` on what input; both may be any text.

    Raises:
        EsccError: nothing was timed.
    """
    run = run_figures(result)
    limits = {layer.number: limit_of(layer, run) for layer in run.layers}
    queues, stalls = tables.stall_tables(run)
    components, energies = tables.energy_tables(run)
    kinds = [
        (LIMITS[kind], LIMIT_COLOURS[kind]) for kind in LIMITS if kind in {x.kind for x in limits.values()}
    ]
    sections = [
        (
            "layers",
            "Layers",
            "Elapsed cycles: by how much a layer moved the end of everything before it; they sum to the run. "
            "Critical path: the chain of instructions that decides the time of the first timed image; every "
            "cycle of it is one layer's.",
            charts.time_and_energy(run)
            + tables.limits_table(run, limits)
            + _more("by queue", tables.path_table(run)),
        ),
        (
            "stalls",
            "Where the cycles go",
            "Every cycle of every unit has one cause. A row cycle is a cycle of one row of the array while a "
            "convolution runs; stopped: no convolution runs.",
            queues + charts.stalls(run) + _more("every cause of every layer", stalls),
        ),
        (
            "roofline",
            "Roofline",
            "Operations really done (zeros skipped) per cycle in which the layer runs at all, against "
            "operations per byte from and to DRAM. Colour: what limits the layer. Numbers: the layer's.",
            legend(kinds) + roofline(run, limits),
        ),
        (
            "sparsity",
            "Sparsity and utilisation",
            "Density: share of non-zeros. Matches: both the activation and the coefficient are not zero. "
            "Utilisation: multiplications and additions over what the array could do while it convolves.",
            charts.sparsity(run) + _more("operations of each layer", tables.work_table(run)),
        ),
        (
            "traffic",
            "Memory traffic",
            "DRAM bytes are those of the compressed maps and streams really moved; SRAM bytes are reads and "
            "writes of all units.",
            charts.traffic(run) + _more("bytes of each layer", tables.traffic_table(run)),
        ),
        (
            "memory",
            "Memory plan",
            "What lies in which bytes of the SRAM, from its first write to its last read; first timed image. "
            "Above: when the queues work. Below: bytes in use.",
            legend([(kind, colour) for kind, colour in COLOURS.items()])
            + memory_chart(run)
            + _more("every range", tables.region_table(run)),
        ),
        (
            "energies",
            "Energy",
            f"{escape(run.timed.table.name)}: {escape(run.timed.table.about)}.",
            components + _more("components of each layer", energies),
        ),
    ]
    links = "".join(f'<a href="#{ident}-s">{head}</a>' for ident, head, _, _ in sections)
    body = "".join(
        f'<section id="{ident}-s"><h2>{head}</h2><p class="soft">{text}</p>{content}</section>\n'
        for ident, head, text, content in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)} - escc</title><style>{STYLE}</style></head><body>\n"
        f'<header><h1>{escape(title)}</h1><p class="soft">{escape(_subtitle(run, note))}</p>'
        f"{_tiles(run)}<nav>{links}</nav></header>\n<main>{body}"
        f'<section id="machine-s"><h2>Machine</h2>{_machine(run)}</section>\n</main>'
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _subtitle(run: RunFigures, note: str) -> str:
    images = len(run.timed.timeline.total)
    timed = "1 timed image" if images == 1 else f"means of {images} timed images"
    return ", ".join(text for text in (note, timed, f"engine {run.result.engine}") if text)


def _tiles(run: RunFigures) -> str:
    arch, unit = run.arch, run.timed.table.unit
    microseconds = run.cycles / arch.mhz
    moved = run.sum("dram_read_bytes") + run.sum("dram_write_bytes")
    total = sum(float(values.mean()) for values in run.result.energy.values())
    dense, products = run.sum("dense_macs_ops"), run.sum("products_ops")
    tiles = [
        ("cycles", count(run.cycles), f"{duration(microseconds)} at {arch.mhz:g} MHz"),
        ("images a second", short(1e6 / microseconds) if microseconds else "", "one after the other"),
        ("energy an image", energy(total, unit), run.timed.table.name),
        (
            "DRAM traffic",
            size(moved),
            f"{percent(moved, run.cycles * arch.bytes_per_cycle)} of its bandwidth",
        ),
        (
            "multipliers in use",
            percent(products, run.cycles * arch.multipliers),
            f"of {arch.multipliers:,}, over the whole run",
        ),
        (
            "dense MACs a cycle",
            short(dense / run.cycles) if run.cycles else "",
            f"{short(dense)} MACs if nothing were zero",
        ),
        ("SRAM in use, peak", percent(run.sram_peak, arch.sram_bytes), f"of {arch.sram_kib:,} KiB"),
    ]
    items = "".join(
        f"<div><dt>{escape(head)}</dt><dd>{escape(value)}<small>{escape(detail)}</small></dd></div>"
        for head, value, detail in tiles
    )
    return f'<dl class="tiles">{items}</dl>'


def _machine(run: RunFigures) -> str:
    items = "".join(
        f"<div><dt>{escape(name.replace('_', ' '))}:</dt> <dd>{escape(str(value))}</dd></div>"
        for name, value in dataclasses.asdict(run.arch).items()
    )
    return f'<dl class="machine">{items}</dl>'


def _more(what: str, content: str) -> str:
    return f"<details><summary>Table: {escape(what)}</summary>{content}</details>"
