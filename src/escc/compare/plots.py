"""Figures of a comparison: bars in rows, as in the report of a run, alone in a file or in the page."""

from __future__ import annotations

import re

from escc.backend_sim.report.style import STYLE
from escc.backend_sim.report.svg import Panel, Series, row_chart
from escc.backend_sim.report.text import duration, energy, escape
from escc.compare.comparison import MEASURES, Comparison, Measure
from escc.compare.machines import OURS
from escc.compare.measure import GROUPS
from escc.compare.text import figures_of, times

COLOURS = ("c1", "c2", "c3", "c4", "c5", "c6", "c8")
TITLES = {"latency": "times faster than", "energy": "times less energy than"}


def rivals_shown(comparison: Comparison, basis: str) -> list[str]:
    """Machines that are drawn: references would flatten all the others."""
    return [name for name in comparison.rivals if comparison.kinds[name] != "reference"]


def ratio_chart(comparison: Comparison, basis: str = "multipliers") -> str:
    """How many times escc is better: a row for each network and machine, the geometric means last."""
    rivals = rivals_shown(comparison, basis)
    labels: list[str] = []
    values: dict[Measure, list[float]] = {measure: [] for measure in MEASURES}
    kinds: list[str] = []
    for net in comparison.networks:
        for name in rivals:
            labels.append(_label(net.title, comparison.title(name)))
            kinds.append(name)
            for measure in MEASURES:
                values[measure].append(net.ratio(name, measure, basis) or 0.0)
    for name in rivals:
        labels.append(_label("geometric mean", comparison.title(name)))
        kinds.append(name)
        for measure in MEASURES:
            values[measure].append(comparison.mean(name, measure, basis))
    panels = [
        Panel(
            f"escc is so many {TITLES[measure]}",
            [
                Series(
                    comparison.title(name),
                    COLOURS[place % len(COLOURS)],
                    [x if kind == name else 0.0 for x, kind in zip(values[measure], kinds, strict=True)],
                )
                for place, name in enumerate(rivals)
            ],
            [f"{label}: {times(x)}" for label, x in zip(labels, values[measure], strict=True)],
        )
        for measure in MEASURES
    ]
    return row_chart("Speed-up and energy efficiency of escc over other machines", labels, panels)


def _label(network: str, machine: str) -> str:
    """A row's name, square images by one side: there is little room."""
    short = re.sub(r", ([0-9]+) x [0-9]+$", r" \1", network)
    return f"{short}: {machine}"


def ratio_legend(comparison: Comparison) -> list[tuple[str, str]]:
    """Names and colours of :func:`ratio_chart`."""
    rivals = rivals_shown(comparison, "")
    return [(comparison.title(name), COLOURS[place % len(COLOURS)]) for place, name in enumerate(rivals)]


def energy_legend() -> list[tuple[str, str]]:
    """Names and colours of :func:`energy_chart`."""
    groups = [(name, COLOURS[place]) for place, name in enumerate(GROUPS)]
    return [*groups, ("work", "c8"), ("waits for DRAM", "c7")]


def energy_chart(comparison: Comparison, basis: str = "multipliers") -> str:
    """Where energy and time go, relative to escc's: a row for each network and machine."""
    shown = [OURS, *rivals_shown(comparison, basis)]
    labels: list[str] = []
    hints: list[str] = []
    groups: dict[str, list[float]] = {name: [] for name in GROUPS}
    waits: list[float] = []
    works: list[float] = []
    slow: list[str] = []
    for net in comparison.networks:
        ours = figures_of(net, basis)[0]
        for item in figures_of(net, basis):
            if item.machine not in shown:
                continue
            label = _label(net.title, comparison.title(item.machine))
            labels.append(label)
            parts = ", ".join(f"{k} {energy(v, comparison.table.unit)}" for k, v in item.energy.items())
            hints.append(f"{label}: {parts}")
            for name in GROUPS:
                groups[name].append(item.energy[name] / ours.energy_total)
            wait = sum(layer.wait_dram for layer in item.layers) / item.mhz
            waits.append(wait / ours.latency_us)
            works.append((item.latency_us - wait) / ours.latency_us)
            slow.append(f"{label}: {duration(item.latency_us)}, of it {duration(wait)} for DRAM alone")
    panels = [
        Panel(
            "energy, escc = 1",
            [Series(name, COLOURS[place], groups[name]) for place, name in enumerate(GROUPS)],
            hints,
        ),
        Panel("time, escc = 1", [Series("work", "c8", works), Series("waits for DRAM", "c7", waits)], slow),
    ]
    return row_chart("Energy and time by where they go, relative to escc", labels, panels)


def colours() -> dict[str, str]:
    """The light colours of the page by variable: viewers of files know no variables and no dark mode."""
    return dict(re.findall(r"--(\w+):(#\w+)", STYLE.partition("@media")[0]))


def standalone(svg: str, legend: list[tuple[str, str]]) -> str:
    """A figure of the page as a file of its own: with the page's colours, a paper and a legend below."""
    known = colours()
    style = (
        f"text{{fill:{known['ink']};font-size:11px}}text.l{{text-anchor:end}}.t{{font-weight:600}}"
        f"text.k{{text-anchor:middle;fill:{known['soft']};font-size:10px}}"
        f"text.n{{font-size:9px;fill:{known['soft']}}}"
        f".g{{stroke:{known['line']};fill:none;stroke-width:.7}}.h{{fill:none}}"
        + "".join(f".{name}{{fill:{colour}}}" for name, colour in known.items() if name[1:].isdigit())
    )
    head, _, rest = svg.partition(">")
    box = head.split('viewBox="', 1)[1].split('"', 1)[0].split()
    width, height = float(box[2]), float(box[3])
    marks = "".join(
        f'<rect class="{colour}" x="{20 + 138 * place}" y="{height + 6:g}" width="10" height="10"/>'
        f'<text x="{36 + 138 * place}" y="{height + 15:g}">{escape(name)}</text>'
        for place, (name, colour) in enumerate(legend)
    )
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height + 24:g}" '
        f'width="{width:g}" height="{height + 24:g}" font-family="sans-serif"'
        + head.split('"', 2)[2]
        + f'><style>{style}</style><rect width="100%" height="100%" fill="{known["paper"]}"/>'
    )
    return opening + rest.removesuffix("</svg>") + marks + "</svg>\n"
