"""The tables of the page. A column that shows a figure of the JSON result carries its key as ``data-key``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from escc.backend_sim.report.charts import ENERGY_GROUPS, energy_key, match_density, utilisation
from escc.backend_sim.report.critical_path import KINDS
from escc.backend_sim.report.figures import LayerFigures, RunFigures
from escc.backend_sim.report.limits import LIMITS, Limit
from escc.backend_sim.report.memory_chart import what
from escc.backend_sim.report.roofline import LIMIT_COLOURS
from escc.backend_sim.report.text import count, escape, percent
from escc.backend_sim.simulator.energy import COMPONENTS
from escc.backend_sim.simulator.meter import LC_CAUSES, MAC_CAUSES
from escc.isa.instructions import Queue

Cell = tuple[str, float | None]
"""What a cell shows, and the exact number behind it (None: text, or nothing to tell)."""


@dataclass(frozen=True)
class Column:
    """A column of a per-layer table: ``cell`` is called for each layer, ``key`` names the JSON figure."""

    head: str
    cell: Callable[[LayerFigures], Cell]
    key: str = ""


def json_column(head: str, key: str) -> Column:
    """The column of a figure of the JSON record."""
    return Column(head, lambda layer: _number(layer.row[key]), key)


def share_column(head: str, key: str) -> Column:
    """The column of a ratio of the JSON record, shown in percent."""

    def cell(layer: LayerFigures) -> Cell:
        value = layer.row[key]
        return ("", None) if isinstance(value, str) else (percent(value, 1), float(value))

    return Column(head, cell, key)


def layer_table(
    ident: str, run: RunFigures, columns: list[Column], text: dict[int, str] | None = None
) -> str:
    """A sortable table with a row for each layer; ``text`` by layer number is HTML for a last column."""
    heads = "".join(_head(column.head, column.key) for column in columns)
    heads = (
        _head("#", "")
        + _head("layer", "layer", "s")
        + heads
        + ('<th class="s">what limits it</th>' if text else "")
    )
    rows: list[str] = []
    for layer in run.layers:
        cells = "".join(_td(*column.cell(layer)) for column in columns)
        last = f'<td class="s w">{text[layer.number]}</td>' if text else ""
        rows.append(f'<tr><td>{layer.position}</td><td class="s">{escape(layer.name)}</td>{cells}{last}</tr>')
    return _table(ident, heads, rows)


def limits_table(run: RunFigures, limits: dict[int, Limit]) -> str:
    """Cycles, energy and the sentence that says what limits each layer."""
    suffix = run.timed.table.suffix
    total = run.cycles
    columns = [
        json_column("cycles", "elapsed_cycles"),
        Column("share", lambda layer: _share(layer.value("elapsed_cycles"), total)),
        Column("on critical path", lambda layer: _number(sum(layer.path.values()))),
        Column("active", lambda layer: _number(layer.active)),
        json_column(f"energy, {run.timed.table.unit}", f"total_energy_{suffix}"),
    ]
    text = {
        number: f'<i class="{LIMIT_COLOURS[limit.kind]}"></i><b>{LIMITS[limit.kind]}:</b> '
        + escape(limit.sentence)
        for number, limit in limits.items()
    }
    return layer_table("limits", run, columns, text)


def path_table(run: RunFigures) -> str:
    """Critical-path cycles of each layer by kind."""
    names = {"dma": "DMA", "blk": "blocks", "vec": "vector unit", "sequencer": "sequencer"}

    def column(kind: str) -> Column:
        return Column(names[kind], lambda layer: _number(layer.path[kind]))

    return layer_table("path", run, [column(kind) for kind in KINDS])


def stall_tables(run: RunFigures) -> tuple[str, str]:
    """The whole run, unit by unit, and row cycles of each layer."""
    rows: list[str] = []
    causes = list(next(iter(run.result.queues.values())))
    for name, values in run.result.queues.items():
        cells = "".join(_td(*_number(float(values[cause].mean()))) for cause in causes)
        rows.append(f'<tr><td class="s">{name} queue</td>{cells}{_td(*_number(run.cycles))}</tr>')
    heads = "".join(_head(cause.replace("_", " "), cause) for cause in causes)
    queues = _table("queues", _head("unit, cycles", "", "s") + heads + _head("sum", ""), rows)
    return queues + _row_table(run), layer_table("stalls", run, _cause_columns())


def row_causes(run: RunFigures, part: str) -> dict[str, float]:
    """Row cycles of all ``lc`` or ``mac`` parts over the whole run; ``stopped``: no convolution runs."""
    names = LC_CAUSES if part == "lc" else MAC_CAUSES
    sums = {cause: run.sum(f"{part}_{cause}_row_cycles") for cause in names}
    whole = run.cycles * run.arch.rows * run.arch.blocks
    return sums | {"stopped": whole - sum(sums.values())}


def _row_table(run: RunFigures) -> str:
    heads = [*dict.fromkeys((*LC_CAUSES, *MAC_CAUSES)), "stopped"]
    whole = run.cycles * run.arch.rows * run.arch.blocks
    rows: list[str] = []
    for part in ("lc", "mac"):
        sums = row_causes(run, part)
        cells = "".join(_td(*_share(sums[c], whole)) if c in sums else "<td></td>" for c in heads)
        name = f"{part.upper()} parts of {run.arch.rows * run.arch.blocks} rows"
        rows.append(f'<tr><td class="s">{name}</td>{cells}{_td(*_share(whole, whole))}</tr>')
    head = _head("unit, share of all cycles", "", "s")
    head += "".join(_head(name.replace("_", " "), "") for name in heads) + _head("sum", "")
    return _table("rows", head, rows)


def _cause_columns() -> list[Column]:
    columns: list[Column] = []
    for queue in Queue:
        for cause in ("busy", "wait_dma", "wait_blk", "wait_vec", "wait_dispatch"):
            if cause != f"wait_{queue.text}":
                name = cause.replace("_", " ")
                columns.append(json_column(f"{queue.text} {name}", f"{queue.text}_{cause}_cycles"))
    for part, causes in (("lc", LC_CAUSES), ("mac", MAC_CAUSES)):
        for cause in causes:
            columns.append(
                json_column(f"{part.upper()} {cause.replace('_', ' ')}", f"{part}_{cause}_row_cycles")
            )
    return columns


def traffic_table(run: RunFigures) -> str:
    """Bytes to and from both memories, and the most of the SRAM in use while a layer runs."""
    columns = [
        json_column(f"{memory.upper()} {way}, B", f"{memory}_{way}_bytes")
        for memory in ("dram", "sram")
        for way in ("read", "write")
    ]
    capacity = run.arch.sram_bytes
    columns.append(Column("SRAM in use, peak B", lambda layer: _number(layer.sram_peak)))
    columns.append(Column("of it", lambda layer: _share(layer.sram_peak, capacity)))
    return layer_table("traffic", run, columns)


def work_table(run: RunFigures) -> str:
    """Operations, densities, utilisation."""

    def matches(layer: LayerFigures) -> Cell:
        share = match_density(layer)
        return ("", None) if share is None else _share(share, 1)

    def used(what: str) -> Callable[[LayerFigures], Cell]:
        def cell(layer: LayerFigures) -> Cell:
            share = utilisation(run, layer, what)
            return ("", None) if share < 0 else _share(share, 1)

        return cell

    columns = [
        json_column("dense MACs", "dense_macs_ops"),
        json_column("multiplications", "products_ops"),
        json_column("additions", "additions_ops"),
        share_column("activations", "activation_density_ratio"),
        share_column("coefficients", "coefficient_density_ratio"),
        Column("matches", matches),
        Column("multipliers used", used("multipliers")),
        Column("adders used", used("adders")),
    ]
    return layer_table("work", run, columns)


def energy_tables(run: RunFigures) -> tuple[str, str]:
    """Energy of the run by component, and of each layer by component."""
    total = run.sum(energy_key(run, "total"))
    rows: list[str] = []
    for group, (_, components) in ENERGY_GROUPS.items():
        for component in components:
            value = float(run.result.energy[component].mean())
            name = component.replace("_", " ")
            cells = _td(*_number(value)) + _td(*_share(value, total))
            rows.append(f'<tr><td class="s">{name}</td><td class="s">{group}</td>{cells}</tr>')
    unit = run.timed.table.unit
    heads = _head("component", "", "s") + _head("group", "", "s") + _head(f"energy, {unit}", "energy")
    columns = [json_column(name.replace("_", " "), energy_key(run, name)) for name in COMPONENTS]
    return _table("components", heads + _head("share", ""), rows), layer_table("energy", run, columns)


def region_table(run: RunFigures) -> str:
    """The regions of the SRAM."""
    heads = _head("what", "", "s") + "".join(
        _head(name, "") for name in ("first byte", "last byte", "bytes", "from cycle", "to cycle")
    )
    rows: list[str] = []
    for region in run.regions:
        values = (region.low, region.high - 1, region.high - region.low, region.start, region.end)
        cells = "".join(_td(*_number(value)) for value in values)
        rows.append(f'<tr><td class="s">{escape(what(run, region))}</td>{cells}</tr>')
    return _table("regions", heads, rows)


def _table(ident: str, heads: str, rows: list[str]) -> str:
    body = "\n".join(rows)
    return (
        f'<div class="scroll"><table id="{ident}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _head(text: str, key: str, style: str = "") -> str:
    marks = (f' data-key="{escape(key)}"' if key else "") + (f' class="{style}"' if style else "")
    return f"<th{marks}>{escape(text)}</th>"


def _td(text: str, value: float | None) -> str:
    """A cell; the exact value stands beside a text that does not show it."""
    if value is None or text == f"{value:,}":
        return f"<td>{text}</td>"
    exact = repr(int(value)) if float(value).is_integer() else repr(value)
    return f"<td>{text}</td>" if text.replace(",", "") == exact else f'<td data-v="{exact}">{text}</td>'


def _number(value: float | str) -> Cell:
    if isinstance(value, str):
        return escape(value), None
    return (count(value) if value else "0"), float(value)


def _share(part: float, whole: float) -> Cell:
    return (percent(part, whole), round(part / whole, 6)) if whole else ("", None)
