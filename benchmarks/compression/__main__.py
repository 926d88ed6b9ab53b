"""``python -m benchmarks.compression``, from the root of the repository."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from benchmarks.commands import run_command
from benchmarks.compression.experiments import DENSE, Experiments, Network, Row, load_experiments
from benchmarks.compression.measure import Data, Task, is_model, load_data, measure, retime
from benchmarks.compression.page import COLUMNS, Line, cells, write_page
from escc.cli import run
from escc.errors import EsccError

HERE = Path(__file__).parent
DEFAULT = HERE / "experiments.toml"
WORK = "build/compression"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path(path_type=Path), default=DEFAULT, metavar="[EXPERIMENTS.toml]")
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(WORK),
    show_default=True,
    help="Folder of models, programs and results.",
)
@click.option("--row", "rows", multiple=True, metavar="NETWORK[/ROW]", help="Only these; repeat.")
@click.option("--again", is_flag=True, help="Measure again what is there already.")
@click.option("--obtain", is_flag=True, help="Make missing models with the commands of the file (trains).")
@click.option("--data", "sources", multiple=True, metavar="NAME=PATH", help="Another place of a data set.")
@click.option("--images", type=click.IntRange(1), help="Fewer test images.")
@click.option("--timed", type=click.IntRange(1), help="Another number of simulated images.")
@click.option(
    "--page", type=click.Path(dir_okay=False, path_type=Path), help="Write this page with its plots."
)
@click.option("--list", "only_list", is_flag=True, help="What is there and what is missing; run nothing.")
def command(
    file: Path,
    work: Path,
    rows: tuple[str, ...],
    again: bool,
    obtain: bool,
    sources: tuple[str, ...],
    images: int | None,
    timed: int | None,
    page: Path | None,
    only_list: bool,
) -> None:
    """Measure every row of an experiment file that has not been measured, and print the table.

    Each row is kept as soon as it is done: stopped at any moment, the same command goes on where it was. A
    row is measured again when its model, its options or its data change, not when the code does (--again);
    when only the machine has changed, its program is scheduled and timed anew.
    """
    experiments = _changed(load_experiments(file), sources, images, timed)
    chosen = _chosen(experiments, rows)
    loaded: dict[str, Data] = {}

    def data_of(network: Network) -> Data:
        if network.data not in loaded:
            loaded[network.data] = load_data(network.data, experiments.data[network.data], work)
        return loaded[network.data]

    lines: list[Line] = []
    for network, row in chosen:
        tasks = _tasks(experiments, network, row, work)
        if only_list:
            states = ["done" if task.kept() else "to do" if task.is_there else "no model" for task in tasks]
            click.echo(f"{network.name}/{row.name}: {', '.join(states)}")
            continue
        lines.append(_line(network, row, tasks, data_of, again=again, obtain=obtain))
        _show(lines)
    if page is not None and not only_list:
        invocation = ["python", "-m", "benchmarks.compression"]
        invocation += [] if file == DEFAULT else [str(file)]
        invocation += [] if str(work) == WORK else ["--work", str(work)]
        write_page(page, experiments, lines, invocation)
        click.echo(f"wrote {page}")


def _changed(
    experiments: Experiments, sources: Sequence[str], images: int | None, timed: int | None
) -> Experiments:
    data = dict(experiments.data)
    for text in sources:
        name, _, path = text.partition("=")
        if name not in data or not path:
            raise EsccError(f"--data {text}: expected NAME=PATH with a name of {', '.join(data)}")
        data[name] = replace(data[name], source=path)
    for name, source in data.items():
        data[name] = replace(source, test=images or source.test, timed=timed or source.timed)
    return replace(experiments, data=data)


def _chosen(experiments: Experiments, rows: Sequence[str]) -> list[tuple[Network, Row]]:
    found = [(network, row) for network in experiments.networks for row in (network.dense, *network.rows)]
    if not rows:
        return found
    names = {f"{network.name}/{row.name}" for network, row in found}
    for name in rows:
        if name not in names | {network.name for network in experiments.networks}:
            raise EsccError(f"--row {name}: no such row", hint=f"rows: {', '.join(sorted(names))}")
    return [
        (network, row)
        for network, row in found
        if network.name in rows or f"{network.name}/{row.name}" in rows
    ]


def _tasks(experiments: Experiments, network: Network, row: Row, work: Path) -> tuple[Task, ...]:
    source = experiments.data[network.data]
    return tuple(Task(network, row, source, work, seed) for seed in row.seeds or (None,))


def _line(
    network: Network,
    row: Row,
    tasks: tuple[Task, ...],
    data_of: Callable[[Network], Data],
    *,
    again: bool,
    obtain: bool,
) -> Line:
    """Measure the tasks of a row, or take what is kept; a row whose model is missing has no results."""
    for task in tasks:
        if obtain and not is_model(task.model) and task.obtain:
            Path(task.model).parent.mkdir(parents=True, exist_ok=True)
            name, *words = shlex.split(task.obtain)
            if name != "escc" or run(words) != 0:
                raise EsccError(f"did not make {task.model}: {task.obtain}", where=task.name)
        if not task.is_there:
            return Line(network, row, tasks, (), f"no {task.model}")
    results: list[dict[str, Any]] = []
    for task in tasks:
        result = None if again else task.kept()
        for take in (measure,) if again else (retime, measure):
            result = result or take(task, data_of(network), _speaker(task.name))
        assert result is not None
        results.append(result)
    return Line(network, row, tasks, tuple(results))


def _speaker(name: str) -> Callable[[str], None]:
    return lambda text: click.echo(f"{name}: {text}", err=True)


def _show(lines: Sequence[Line]) -> None:
    """The newest row, under a heading where its network begins."""
    line = lines[-1]
    first = next(item for item in lines if item.network.name == line.network.name)
    if line is first:
        click.echo(f"{line.network.title}\n" + " | ".join(COLUMNS))
    if not line.results:
        click.echo(f"{line.row.label}: {line.missing}")
        return
    dense = first.mean("accuracy") if first.results and first.row.name == DENSE else None
    click.echo(" | ".join(cells(line, dense)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; failures a user can act on are one line."""
    return run_command(command, "benchmarks.compression", arguments, "; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
