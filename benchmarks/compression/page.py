"""The results as a page: a table per network, the command of every row, two plots."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.compression.experiments import Experiments, Network, Row
from benchmarks.compression.measure import Task, compile_command
from benchmarks.compression.plot import Point, scatter
from escc.files import atomic_write

ALONE = "single points"
ORDERS = ("convolve_first", "convolve_first_used", "combine_first")


@dataclass(frozen=True)
class Line:
    """A row with what was measured, one result per seed; ``missing`` tells why there is none."""

    network: Network
    row: Row
    tasks: tuple[Task, ...]
    results: tuple[Mapping[str, Any], ...]
    missing: str = ""

    def mean(self, *path: str) -> float | None:
        """The mean over seeds of an entry, None where it has none."""
        values: list[float] = []
        for result in self.results:
            value: Any = result
            for name in path:
                value = value[name]
            if value is None:
                return None
            values.append(float(value))
        return fmean(values)

    @property
    def spread(self) -> float:
        """Half the distance between best and worst seed."""
        shares = [float(result["accuracy"]) for result in self.results]
        return (max(shares) - min(shares)) / 2


COLUMNS = (
    "method", "accuracy %", "vs fp32", "MACs saved (convolve-first) %", "... used planes only %",
    "MACs saved (combine-first) %", "weight bytes", "against fp32", "bits/weight", "density %",
    "entropy bound", "cycles", "energy uJ", "compile s",
)  # fmt: skip

EXPLANATION = """\
Accuracy: all test images; programs in the integer reference (every program gives exactly its outputs:
checked on the timed images), float rows in 32-bit floats. MACs saved: convolutions without the
classifier against the dense network, a multiplication with its addition and a lone addition each counted
as one; convolve-first is how PENNI counts (every plane, and used planes only), combine-first is what the
machine runs. Weight bytes: everything stored for all layers: masks, signs, padding, kernels, scales and
biases (float rows: weights as sparse or dense 32-bit floats, whichever is less). Against fp32: 4 bytes a
weight of the dense network, over those. Bits/weight: decomposed layers only, masks, signs, padding,
kernels and scales over the weights of these layers in the dense network. Entropy bound: weight bytes,
without biases, if coefficients took no more than their entropy. Cycles and energy: one image on the
default machine, mean of the timed images.
"""


def table(lines: Sequence[Line]) -> list[str]:
    """Rows of one network as Markdown."""
    dense = lines[0].mean("accuracy") if lines and lines[0].results else None
    text = ["| " + " | ".join(COLUMNS) + " |", "|---" + "|---:" * (len(COLUMNS) - 1) + "|"]
    text += ["| " + " | ".join(cells(line, dense)) + " |" for line in lines if line.results]
    return text


def cells(line: Line, dense: float | None) -> list[str]:
    """One row of the table, already rounded for reading."""
    accuracy, bound = line.mean("accuracy"), line.mean("entropy_bytes")
    bits, density = line.mean("bits_per_weight"), line.mean("density")
    cycles, energy = line.mean("cycles"), line.mean("energy_pj")
    assert accuracy is not None
    spread = f" ± {100 * line.spread:.2f}" if len(line.results) > 1 else ""
    saved = [line.mean("reductions", "without_classifier", order) or 0.0 for order in ORDERS]
    return [
        line.row.label,
        f"{100 * accuracy:.2f}{spread}",
        "" if dense is None else f"{100 * (accuracy - dense):+.2f}",
        *(f"{100 * share:.1f}" for share in saved),
        f"{line.mean('weight_bytes') or 0:,.0f}",
        f"{line.mean('ratio') or 0:.1f}x",
        "" if bits is None else f"{bits:.2f}",
        "" if density is None else f"{100 * density:.1f}",
        "" if bound is None else f"{bound:,.0f}",
        "" if cycles is None else f"{cycles:,.0f}",
        "" if energy is None else f"{energy / 1e6:.1f}",
        f"{line.mean('seconds') or 0:.0f}" if line.row.evaluate == "integer" else "",
    ]


def write_page(
    path: Path, experiments: Experiments, lines: Sequence[Line], invocation: Sequence[str]
) -> None:
    """The page and its plots beside it.

    Args:
        path: Markdown file.
        experiments: what was asked for.
        lines: all rows; those without results are named as missing.
        invocation: the command line that runs an experiment file, to which ``--row`` is added.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = ["# Compression methods side by side", ""]
    parts += ["Written by `" + shlex.join([*invocation, "--page", path.name]) + "`: do not edit.", ""]
    parts += [experiments.text.strip(), "", EXPLANATION] if experiments.text else [EXPLANATION]
    for network in experiments.networks:
        own = [line for line in lines if line.network.name == network.name]
        if own:
            parts += section(path, network, own, invocation)
    atomic_write(path, ("\n".join(parts).rstrip() + "\n").encode())


def section(path: Path, network: Network, lines: Sequence[Line], invocation: Sequence[str]) -> list[str]:
    """One network: notes, table, plots, commands."""
    parts = [f"## {network.title}", ""]
    if network.notes:
        parts += [network.notes.strip(), ""]
    done = [line for line in lines if line.results]
    if done:
        images = done[0].results[0]["images"]
        timed = max(int(result["timed_images"]) for line in done for result in line.results)
        parts += [f"{images:,} test images, {timed} timed.", "", *table(lines), ""]
        for measure, label in (("weight_bytes", "weight bytes"), ("cycles", "cycles of one image")):
            name = f"{path.stem}-{network.name}-{measure.partition('_')[0]}.svg"
            points = plotted(done, measure)
            if points:
                title = f"{network.title}: accuracy against {label}"
                drawn = scatter(points, title=title, x_label=label, y_label="accuracy %")
                atomic_write(path.with_name(name), drawn.encode())
                parts += [f"![{title}]({name})"]
        parts += ["", "Every row again, with the compilation it is made of:", ""]
    for line in lines:
        task, name = line.tasks[0], line.row.label
        again = shlex.join([*invocation, "--row", f"{network.name}/{line.row.name}", "--again"])
        if not line.results:
            parts += [f"- {name}: not measured ({line.missing})", f"  `{again}`"]
            continue
        parts += [f"- {name}: `{again}`"]
        if line.row.evaluate == "integer":
            parts += ["  `escc " + shlex.join(compile_command(task, "CALIBRATION.npy", "FOLDER")) + "`"]
        if task.obtain:
            parts += [f"  from `{task.obtain}`"]
    return [*parts, ""]


def plotted(lines: Sequence[Line], measure: str) -> list[Point]:
    """Points of the rows that have this measure."""
    found: list[Point] = []
    for line in lines:
        x, y = line.mean(measure), line.mean("accuracy")
        if x and y is not None:
            label = line.row.name
            found.append(Point(x, 100 * y, label, line.row.family or ALONE, bool(line.row.family)))
    return found
