"""The page docs/results/design-space.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill

import numpy as np

from escc.isa.arch import PARAMETERS, Arch
from escc.sweep.journal import Entry
from escc.sweep.output import to_svg
from escc.sweep.run import Outcome, meets

PLOT = "design-space.svg"


@dataclass(frozen=True)
class Machine:
    """A machine measured in full: ``figures`` (latency in us, energy in uJ) by network; ``gaps``: the same in
    full over fast."""

    name: str
    arch: Arch
    area_mm2: float
    figures: dict[str, tuple[float, float]]
    gaps: dict[str, tuple[float, float]]

    def mean(self, index: int) -> float:
        """Geometric mean over the networks: 0 latency, 1 energy."""
        return geometric([pair[index] for pair in self.figures.values()])


def _paragraph(text: str) -> str:
    return fill(text, 118, break_long_words=False, break_on_hyphens=False)


def geometric(values: Sequence[float]) -> float:
    """Geometric mean."""
    return float(np.exp(np.mean(np.log(values))))


def product(entry: Entry) -> float:
    """Energy x latency: what the choice minimises."""
    return entry.figures["energy_uj"] * entry.figures["latency_us"]


CHUNK, SRAM_KIB = 64, 1024
"""What the choice takes of the memory search."""
CLOSE = 1.05
"""Products this near the least one count as equal: smaller is better then."""


def ranked(outcome: Outcome, area_mm2: float) -> list[Entry]:
    """Points of at most that area whose energy x latency is close to the least one, the smallest first."""
    fitting = [e for e in outcome.entries if meets(outcome.space, e) and e.figures["area_mm2"] <= area_mm2]
    least = min(map(product, fitting))
    close = [entry for entry in fitting if product(entry) <= CLOSE * least]
    return sorted(close, key=lambda entry: entry.figures["area_mm2"])


def page(
    outcomes: Mapping[str, Outcome], machines: Sequence[Machine], winograd: Sequence[str]
) -> tuple[str, dict[str, str]]:
    """The text, and the figures by file name."""
    start, chosen = machines
    lines = [*_head(outcomes), *_choice(outcomes, start, chosen), *_why(outcomes["grid"])]
    lines += [*_memory(outcomes["memory"]), *_codes(outcomes["codes"]), *_winograd(winograd)]
    lines += [*_gap(machines)]
    named = [(name, entry) for name, entry in _named(outcomes, start, chosen)]
    figure = to_svg(outcomes["array"], "Machines of at most 1,024 multipliers, four networks", named)
    return "\n".join(lines) + "\n", {PLOT: figure}


def _named(outcomes: Mapping[str, Outcome], *machines: Machine) -> Iterator[tuple[str, Entry]]:
    for item in machines:
        figures = {
            "latency_us": item.mean(0),
            "energy_uj": item.mean(1),
            "area_mm2": item.area_mm2,
        }
        yield item.name, Entry({}, "full", figures, {})


def _head(outcomes: Mapping[str, Outcome]) -> Iterator[str]:
    space = outcomes["array"].space
    networks = ", ".join(spec.name for spec in space.workloads)
    counts = ", ".join(f"{name} {len(outcome.entries)}" for name, outcome in outcomes.items())
    yield "# The design space of the default machine"
    yield ""
    yield _paragraph(
        "`python -m benchmarks.design_space` carries the searches of `benchmarks/design_space/` "
        "out (they go on where they were) and writes this page. Points measured: " + counts + "."
    )
    yield ""
    yield _paragraph(
        f"Networks: {networks}. `demo` is the shipped ResNet-20 with a real image; the others are "
        "drawn with the statistics that `escc compare` states, as there are no trained weights to "
        "ship. Latency and energy are geometric means over them. Area is that of the [area "
        "model](../sweep.md#area), 45 nm."
    )
    yield ""


def _choice(outcomes: Mapping[str, Outcome], start: Machine, chosen: Machine) -> Iterator[str]:
    yield "## The choice"
    yield ""
    yield _paragraph(
        "The rule: at no more than 1,024 multipliers, and with no more area than the "
        "machine the search began with, the smallest machine whose energy x latency is within 5 % of the "
        "least."
    )
    yield ""
    changed = [p for p in PARAMETERS if getattr(start.arch, p.name) != getattr(chosen.arch, p.name)]
    yield f"| | `{start.name}` | `{chosen.name}` | |"
    yield "|---|---|---|---|"
    for p in changed:
        yield f"| {p.section}.{p.key} | {getattr(start.arch, p.name)} | {getattr(chosen.arch, p.name)} | |"
    yield f"| multipliers | {start.arch.multipliers} | {chosen.arch.multipliers} | |"
    yield _row("area, mm2", start.area_mm2, chosen.area_mm2)
    for index, what in enumerate(("latency, us", "energy, uJ")):
        for network in start.figures:
            yield _row(f"{what}: {network}", start.figures[network][index], chosen.figures[network][index])
        yield _row(f"**{what}: geometric mean**", start.mean(index), chosen.mean(index))
    yield ""
    yield _paragraph(
        "Compiled for each machine and simulated in full. The last column is the second over the first."
    )
    yield ""
    yield f"![Front of latency, energy and area]({PLOT})"
    yield ""
    yield _paragraph(
        "Every point of the evolution; ringed ones are beaten by no other. "
        "The points of the grid within 5 %, by area:"
    )
    yield ""
    grid = outcomes["grid"]
    names = [axis.name for axis in grid.space.axes]
    yield (
        "| "
        + " | ".join([*(n.partition(".")[2] for n in names), "latency us", "energy uJ", "area mm2"])
        + " |"
    )
    yield "|" + "---|" * (len(names) + 3)
    for entry in ranked(grid, start.area_mm2)[:8]:
        cells = [str(entry.point[name]) for name in names]
        cells += [f"{entry.figures[f]:.1f}" for f in ("latency_us", "energy_uj", "area_mm2")]
        yield "| " + " | ".join(cells) + " |"
    yield ""


def _row(title: str, before: float, after: float) -> str:
    return f"| {title} | {before:.1f} | {after:.1f} | {after / before:.2f}x |"


def _why(grid: Outcome) -> Iterator[str]:
    yield "## What each parameter does"
    yield ""
    yield _paragraph(
        "Of the grid: geometric means over everything else, relative to the first value of each parameter."
    )
    yield ""
    yield "| parameter | value | latency | energy | area |"
    yield "|---|---|---|---|---|"
    entries = [entry for entry in grid.entries if not entry.refused]
    for axis in grid.space.axes:
        first: list[float] = []
        for value in axis.values:
            chosen = [entry for entry in entries if entry.point[axis.name] == value]
            means = [
                geometric([entry.figures[figure] for entry in chosen])
                for figure in ("latency_us", "energy_uj", "area_mm2")
            ]
            first = first or means
            cells = [f"{mean / base:.3f}" for mean, base in zip(means, first, strict=True)]
            yield f"| {axis.name} | {value} | " + " | ".join(cells) + " |"
    yield ""
    yield _paragraph(
        "More rows in a block share one ring: the input is read from SRAM once for every 16 outputs instead "
        "of every 7. With 28 rows four blocks have too little to share out. Half the units with twice the "
        "lanes do the same additions with half the gathers, and the gathers are what is large. A deeper ring "
        "buys nothing: rows hardly drift apart. The value gather is faster than the window, for more energy "
        "and an array that is larger by two fifths."
    )
    yield ""


def _memory(outcome: Outcome) -> Iterator[str]:
    yield "## Chunk and SRAM"
    yield ""
    networks = ", ".join(spec.name for spec in outcome.space.workloads)
    yield _paragraph(
        f"On {networks}, the array of `benchmarks/design_space/memory.toml`. Each row is compiled anew."
    )
    yield ""
    yield "| chunk | SRAM KiB | latency us | energy uJ | area mm2 | energy x latency, the choice = 1 |"
    yield "|---|---|---|---|---|---|"
    taken = {"array.chunk": CHUNK, "memory.sram_kib": SRAM_KIB}
    unit = next(product(entry) for entry in outcome.entries if entry.point == taken)
    for entry in outcome.entries:
        cells = [str(entry.point["array.chunk"]), str(entry.point["memory.sram_kib"])]
        if entry.refused:
            cells += ["does not fit", "", "", ""]
        else:
            cells += [f"{entry.figures[f]:.1f}" for f in ("latency_us", "energy_uj", "area_mm2")]
            cells += [f"{product(entry) / unit:.2f}"]
        yield "| " + " | ".join(cells) + " |"
    yield ""
    yield _paragraph(
        "Most of what more SRAM gains is ResNet-50's, whose maps then stay on the chip; with 1 MiB, about "
        "what SCNN and SparTen have for maps in the [comparison](comparison.md), all but the first ones do. "
        "Chunks of 128 channels gain next to nothing for the area of their gathers; chunks of 32 are the way "
        "to a small machine."
    )
    yield ""


def _codes(outcome: Outcome) -> Iterator[str]:
    yield "## More bases with sparser codes"
    yield ""
    spec = outcome.space.workloads[0]
    yield _paragraph(
        f"The shipped ResNet-20 on `start`, accuracy on {spec.accuracy_images} test "
        "images by the integer reference. `*`: no other row is better in latency, energy and "
        "accuracy at once."
    )
    yield ""
    yield "| bases | penalty | latency us | energy uJ | accuracy | |"
    yield "|---|---|---|---|---|---|"
    best = {id(entry) for entry in outcome.front}
    for entry in outcome.entries:
        f = entry.figures
        yield (
            f"| {entry.point['compile.bases']} | {entry.point['compile.penalty']} | {f['latency_us']:.2f} | "
            f"{f['energy_uj']:.2f} | {f['accuracy']:.2%} | {'*' if id(entry) in best else ''} |"
        )
    yield ""
    yield _paragraph(
        "Each step is on the front: four, six or eight bases trade accuracy for time, and a higher penalty "
        "does the same in smaller steps. Six stay the default: eight buy 0.3 points for a third more time."
    )
    yield ""


def _winograd(rows: Sequence[str]) -> Iterator[str]:
    yield "## Winograd in the combined domain"
    yield ""
    yield _paragraph(
        "F(2,3) needs 16 products for 4 outputs of a 3 x 3 kernel instead of 36, and its input "
        "transform commutes with the ternary combination. `python -m benchmarks.winograd` counts "
        "both orders on the activations and coefficients that the networks have (3 x 3 layers of "
        "stride 1). Assumed: the transform is done once per input channel (32 additions a tile) "
        "and stored as SparseMaps without cost; transformed numbers are 2 bits wider, transformed "
        "bases 12 bits; nothing else of the machine changes."
    )
    yield ""
    yield from rows
    yield ""
    yield _paragraph(
        "A tile has 16 numbers to combine for 4 positions, and fewer of them are zero: the "
        "additions grow five- to eightfold, the products halve. Additions are what the machine "
        "waits for wherever it waits for the array at all, so it is not built. It would pay where "
        "every input is dense and the multipliers are the limit."
    )
    yield ""


def _gap(machines: Sequence[Machine]) -> Iterator[str]:
    yield "## Fast points against full ones"
    yield ""
    yield _paragraph(
        "A fast point keeps the tiles of the machine the search began with ([what a point "
        "is](../sweep.md#what-a-point-is)); full over fast:"
    )
    yield ""
    yield "| machine | network | latency | energy |"
    yield "|---|---|---|---|"
    for item in machines:
        for network, (latency, energy) in item.gaps.items():
            yield f"| {item.name} | {network} | {latency:.3f} | {energy:.3f} |"
    yield ""
