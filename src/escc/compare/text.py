"""Tables of a comparison as cells: command line, HTML page and Markdown page show the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from escc.backend_sim.report.text import duration, energy, size
from escc.compare.comparison import MEASURES, TARGETS, Comparison, Measure, NetworkResult
from escc.compare.machines import OURS
from escc.compare.measure import Figures

LOST_SHOWN = 0.02
"""Causes below this share of the multiplier cycles are left out."""


@dataclass(frozen=True)
class Table:
    """Heads and rows of text; the first ``left`` columns are names."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1

    def plain(self) -> str:
        """Columns side by side."""
        widths = [max(map(len, column)) for column in zip(self.heads, *self.rows, strict=True)]
        lines = [
            "   ".join(
                (cell.ljust if place < self.left else cell.rjust)(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (self.heads, *self.rows)
        ]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])

    def markdown(self) -> str:
        """A Markdown table."""
        marks = "|---" * self.left + "|---:" * (len(self.heads) - self.left) + "|"
        return "\n".join([_row(self.heads), marks, *map(_row, self.rows)])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def times(value: float | None) -> str:
    """A ratio: 17.9x, 0.83x."""
    if value is None or value != value:
        return ""
    return f"{value:.0f}x" if value >= 99.5 else f"{value:.1f}x" if value >= 9.95 else f"{value:.2f}x"


def basis_title(basis: str) -> str:
    """Heading of a basis."""
    return "equal area" if basis == "area" else "equal multipliers"


def figures_of(net: NetworkResult, basis: str) -> tuple[Figures, ...]:
    """The figures of a network at a basis."""
    return net.areas if basis == "area" else net.equal


def results_table(comparison: Comparison, basis: str = "multipliers") -> Table:
    """Networks x machines: what each takes."""
    heads = (
        "network", "machine", "multipliers", "cycles", "latency", "energy", "DRAM", "busy",
        "MACs/mult./cycle", "escc faster", "escc frugal",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for net in comparison.networks:
        for item in figures_of(net, basis):
            ours = item.machine == OURS
            rows.append(
                (
                    net.title,
                    comparison.title(item.machine),
                    f"{item.multipliers:,}",
                    f"{item.cycles:,.0f}",
                    duration(item.latency_us),
                    energy(item.energy_total, comparison.table.unit),
                    size(item.dram_bytes),
                    f"{item.busy:.0%}",
                    f"{item.macs_per_multiplier:.2f}",
                    *("" if ours else times(net.ratio(item.machine, name, basis)) for name in MEASURES),
                )
            )
    return Table(heads, tuple(rows), 2)


def ratio_table(comparison: Comparison, measure: Measure, basis: str = "multipliers") -> Table:
    """How many times escc is better: machines x networks, with geometric means."""
    rivals = [name for name in comparison.rivals if basis != "area" or comparison.kinds[name] != "reference"]
    rows = [
        (
            comparison.title(name),
            *(times(net.ratio(name, measure, basis)) for net in comparison.networks),
            times(comparison.mean(name, measure, basis)),
            _target(name, measure),
        )
        for name in rivals
    ]
    if any(comparison.kinds[name] == "sparse" for name in rivals):
        rows.append(
            (
                "both sparse ones",
                *("" for _ in comparison.networks),
                times(comparison.mean("sparse", measure, basis)),
                _target("sparse", measure),
            )
        )
    titles = tuple(net.title for net in comparison.networks)
    return Table(("escc against", *titles, "geometric mean", "target"), tuple(rows))


def _target(name: str, measure: Measure) -> str:
    return times(TARGETS.get(name, {}).get(measure))


def machine_table(comparison: Comparison) -> Table:
    """The machines as they were run."""
    rows = tuple(
        (
            info.title,
            info.basis,
            f"{info.multipliers:,}",
            f"{float(info.parameters.get('mhz', info.parameters.get('clock_mhz', 0.0))):g}",
            f"{info.mm2:.2f}",
            info.about,
        )
        for info in comparison.machines
    )
    return Table(("machine", "at equal", "multipliers", "MHz", "mm2", "how"), rows)


def lost_table(comparison: Comparison, basis: str = "multipliers") -> Table:
    """What the multipliers of the other machines do: busy, then the causes of lost cycles, largest first."""
    rows: list[tuple[str, ...]] = []
    for net in comparison.networks:
        for item in figures_of(net, basis):
            if item.machine != OURS:
                causes = [
                    f"{cause.replace('_', ' ')} {share:.0%}"
                    for cause, share in item.lost.items()
                    if share >= LOST_SHOWN
                ]
                rows.append(
                    (net.title, comparison.title(item.machine), f"{item.busy:.0%}", ", ".join(causes))
                )
    return Table(("network", "machine", "busy", "lost to"), tuple(rows), 2)


def network_table(comparison: Comparison) -> Table:
    """The networks: what they were drawn with, and what came out."""
    rows: list[tuple[str, ...]] = []
    for net in comparison.networks:
        stated = net.stated
        rows.append(
            (
                net.title,
                "synthetic" if net.synthetic else "trained",
                f"{net.macs / 1e6:,.1f}",
                *(
                    _stated(stated.get(key, {}).get("value"), net.reached.get(name))
                    for key, name in (("coefficients", "coefficients"), ("weights", "weights"))
                ),
                "" if not stated else f"{stated['inner']['value']:.2f} / {stated['joined']['value']:.2f}",
                f"{net.reached['activations']:.3f}",
                net.digest,
            )
        )
    heads = (
        "network", "numbers", "dense MMAC", "codes stated / reached", "pruned weights stated / reached",
        "activations stated: in a block / behind an addition", "activations reached", "checksum of inputs",
    )  # fmt: skip
    return Table(heads, tuple(rows))


def _stated(stated: float | None, reached: float | None) -> str:
    if reached is None:
        return ""
    return f"{reached:.3f}" if stated is None else f"{stated:.3f} / {reached:.3f}"


def sensitivity_table(comparison: Comparison) -> Table:
    """Geometric means after one assumption has changed."""
    keys = ("latency eyeriss", "latency sparse", "energy eyeriss", "energy sparse")
    rows = tuple(
        (row.name, row.change, *(times(row.means[key]) for key in keys)) for row in comparison.sensitivity
    )
    heads = (
        "assumption", "changed to", "latency, Eyeriss-like", "latency, sparse", "energy, Eyeriss-like",
        "energy, sparse",
    )  # fmt: skip
    return Table(heads, rows, 2)
