"""What a sweep leaves: the table of its front, JSON, CSV and a plot."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

from escc.sweep.journal import Entry
from escc.sweep.plot import Mark, plot
from escc.sweep.run import Outcome, meets
from escc.sweep.space import OBJECTIVES

UNITS = {"latency_us": "us", "energy_uj": "uJ", "area_mm2": "mm2", "accuracy": "of images"}
LABELS = {name: f"{name}, {UNITS[column]}" for name, column in OBJECTIVES.items()}


def table(outcome: Outcome) -> Iterator[str]:
    """The front as lines of a Markdown table; differences to the full simulation where there is one."""
    space = outcome.space
    names = [axis.name for axis in space.axes]
    columns = [column for column in OBJECTIVES.values() if _known(outcome.front, column)]
    short = [name.partition(".")[2] for name in names]
    shows_blocks = "array.blocks" not in names
    heads = [*(short if len(set(short)) == len(short) else names), *["blocks"] * shows_blocks]
    heads += [*columns, "full / fast"]
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for entry, full in zip(outcome.front, outcome.confirmed, strict=True):
        cells = [str(entry.point[name]) for name in names]
        if shows_blocks:
            cells.append(str(space.arch(entry.point).blocks))
        shown = full if full is not None and not full.refused else entry
        cells += [f"{shown.figures[column]:.5g}" for column in columns]
        cells.append(_gap(entry, full))
        yield "| " + " | ".join(cells) + " |"


def _gap(entry: Entry, full: Entry | None) -> str:
    """Full over fast: latency, energy."""
    if full is None:
        return "-"
    if full.refused:
        return "does not compile"
    ratios = [full.figures[name] / entry.figures[name] for name in ("latency_us", "energy_uj")]
    return ", ".join(f"{ratio:.3f}" for ratio in ratios)


def _known(entries: Sequence[Entry], column: str) -> bool:
    return all(column in entry.figures for entry in entries)


def to_json(outcome: Outcome) -> str:
    """Everything as JSON; figures carry their unit in their name."""
    space = outcome.space
    front = {id(entry) for entry in outcome.front}
    content = {
        "format": "escc sweep result",
        "version": 1,
        "objectives": list(space.objectives),
        "constraints": [constraint.text for constraint in space.constraints],
        "workloads": [spec.name for spec in space.workloads],
        "points": [
            _record(entry) | {"front": id(entry) in front, "meets": meets(space, entry)}
            for entry in outcome.entries
        ],
        "confirmed": [_record(entry) for entry in outcome.confirmed if entry is not None],
    }
    return json.dumps(content, indent=1) + "\n"


def _record(entry: Entry) -> dict[str, Any]:
    return {
        "point": entry.point,
        "fidelity": entry.fidelity,
        "figures": entry.figures,
        "workloads": entry.workloads,
        "refused": entry.refused,
    }


def to_csv(outcome: Outcome) -> str:
    """A line for each point: parameters, figures over all workloads, each workload's own, why refused."""
    names = [axis.name for axis in outcome.space.axes]
    figures = list(dict.fromkeys(name for entry in outcome.entries for name in entry.figures))
    own = list(
        dict.fromkeys(
            f"{workload}.{name}"
            for entry in outcome.entries
            for workload, values in entry.workloads.items()
            for name in values
        )
    )
    front = {id(entry) for entry in outcome.front}
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [*names, *figures, *own, "front", "refused"], lineterminator="\n")
    writer.writeheader()
    for entry in outcome.entries:
        row: dict[str, Any] = {**entry.point, **entry.figures}
        for workload, values in entry.workloads.items():
            row |= {f"{workload}.{name}": value for name, value in values.items()}
        writer.writerow(row | {"front": int(id(entry) in front), "refused": entry.refused})
    return stream.getvalue()


def to_svg(outcome: Outcome, title: str, named: Sequence[tuple[str, Entry]] = ()) -> str:
    """The points on the first two objectives, the third as colour; ``named`` ones are pointed out."""
    space = outcome.space
    chosen = [*space.objectives, *(name for name in OBJECTIVES if name not in space.objectives)]
    chosen = [name for name in chosen if _known(outcome.front, OBJECTIVES[name])][:3]
    # an accuracy cannot be drawn on a logarithmic axis: it is the colour
    chosen.sort(key=lambda name: name == "accuracy")
    columns = [OBJECTIVES[name] for name in chosen]
    front = {id(entry) for entry in outcome.front}

    def mark(entry: Entry, name: str = "") -> Mark:
        values = [entry.figures[column] for column in columns]
        hint = ", ".join(f"{key} {value}" for key, value in entry.point.items())
        shade = values[2] if len(values) > 2 else None
        return Mark(values[0], values[1], shade, id(entry) in front, name or hint, name)

    marks = [mark(entry) for entry in outcome.entries if meets(space, entry)]
    marks += [mark(entry, name) for name, entry in named]
    labels = [LABELS[name] for name in chosen]
    shade = labels[2] if len(labels) > 2 else ""
    return plot(marks, title=title, x_label=labels[0], y_label=labels[1], shade_label=shade)
