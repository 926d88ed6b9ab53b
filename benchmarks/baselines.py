"""``python -m benchmarks.baselines``: the machines escc is compared with, against their own papers.

Markdown tables of `escc.backend_sim.baselines.validation`; ``--page docs/baselines.md`` writes them there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks.commands import run_command
from benchmarks.page import replace_section
from escc.backend_sim.baselines import Scnn, Sparten, validation
from escc.backend_sim.baselines.validation import Figure

MARKS = (
    "<!-- written by python -m benchmarks.baselines: begin -->",
    "<!-- written by python -m benchmarks.baselines: end -->",
)
CLUMP = 5
"""Rows and columns of a clump of non-zero inputs, in the columns that say so."""
BARRIERS = {
    "as compared": Scnn(),
    "no bank queues": Scnn(banks_queued=False),
    "barrier per channel": Scnn(barrier="channel"),
    "neither": Scnn(banks_queued=False, barrier="channel"),
}
BALANCES = {
    "GB-H": Sparten(),
    "GB-S": Sparten(balance="gb-s"),
    "no balancing": Sparten(balance="none"),
    "GB-H, lead 1": Sparten(lead=1),
}


def render() -> str:
    """All tables."""
    parts = ["Eyeriss, AlexNet, batch of 4, published mappings:", ""]
    columns = validation.eyeriss()
    parts += _heading(
        "layer", *(f"{what} {side}" for what in columns for side in ("paper", "model", "ratio"))
    )
    for row in zip(*columns.values(), strict=True):
        cells = [cell for figure in row for cell in _cells(figure, 1)]
        parts.append(_row(row[0].what, *cells))
    parts += ["", "SCNN, speed-up over DCNN:", ""]
    first, *others = (validation.scnn(machine) for machine in BARRIERS.values())
    others.append(validation.scnn(clump=CLUMP))
    parts += _heading("network", "paper", "model", "ratio", *list(BARRIERS)[1:], "inputs in clumps")
    for figure, *rest in zip(first, *others, strict=True):
        parts.append(_row(figure.what, *_cells(figure, 2), *(f"{other.ours:.2f}" for other in rest)))
    parts += ["", "SparTen, speed-up, geometric means over layers:", ""]
    tables = {name: validation.sparten(machine) for name, machine in BALANCES.items()}
    tables["inputs in clumps"] = validation.sparten(clump=CLUMP)
    chosen, *other_tables = tables.values()
    parts += _heading("over", "layers of", "paper", "model", "ratio", *list(tables)[1:])
    for over, figures in chosen.items():
        for number, figure in enumerate(figures):
            rest = (f"{table[over][number].ours:.2f}" for table in other_tables)
            parts.append(_row(over, figure.what, *_cells(figure, 2), *rest))
    return "\n".join(parts)


def _cells(figure: Figure, digits: int) -> tuple[str, str, str]:
    if figure.published is None or figure.ratio is None:
        return "", f"{figure.ours:.{digits}f}", ""
    return f"{figure.published:.{digits}f}", f"{figure.ours:.{digits}f}", f"{figure.ratio:.2f}"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _heading(*cells: str) -> list[str]:
    return [_row(*cells), "|---" + "|---:" * (len(cells) - 1) + "|"]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--page", type=click.Path(path_type=Path), help="Write the tables between the marks of a page.")
def command(page: Path | None) -> None:
    """Print the baseline machines' figures beside the published ones."""
    text = render()
    if page is None:
        click.echo(text)
    else:
        replace_section(page, text, MARKS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(command, "benchmarks.baselines", arguments)


if __name__ == "__main__":
    sys.exit(main())
