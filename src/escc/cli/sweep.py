"""``escc sweep``: search architecture and compression parameters."""

from __future__ import annotations

import sys
from pathlib import Path
from time import monotonic

import click

from escc.cli.progress import progress_bars


@click.command("sweep")
@click.argument("space", type=click.Path())
@click.option(
    "--work",
    type=click.Path(file_okay=False),
    help="Folder of journal and results; default: SPACE with the suffix .sweep. A sweep there goes on.",
)
@click.option("--restart", is_flag=True, help="Forget what the folder holds.")
@click.option(
    "--workers", default=1, show_default=True, type=click.IntRange(1, 1024), help="Processes that measure."
)
@click.option("--dask", metavar="ADDRESS", help="Measure on the Dask cluster of this scheduler instead.")
def sweep_command(space: str, work: str | None, restart: bool, workers: int, dask: str | None) -> None:
    """Search SPACE (TOML): parameters of machine and compression against latency, energy, area and accuracy.

    Killed at any moment, the same command goes on where it was. Prints the Pareto front; leaves result.json,
    points.csv and front.svg in the folder.
    """
    from escc.files import atomic_write
    from escc.sweep.output import table, to_csv, to_json, to_svg
    from escc.sweep.pools import make_pool
    from escc.sweep.run import sweep
    from escc.sweep.space import load_space

    source = Path(space)
    chosen = load_space(source)
    folder = (Path(work) if work is not None else source.with_suffix(".sweep")).absolute()
    pool = make_pool(workers, dask)
    started = monotonic()
    try:
        with progress_bars() as progress:
            outcome = sweep(chosen, folder, pool, restart=restart, progress=progress)
    finally:
        pool.close()
    atomic_write(folder / "result.json", to_json(outcome).encode())
    atomic_write(folder / "points.csv", to_csv(outcome).encode())
    atomic_write(folder / "front.svg", to_svg(outcome, source.stem).encode())
    for line in table(outcome):
        click.echo(line)
    seconds = monotonic() - started
    click.echo(
        f"{len(outcome.entries)} points, {outcome.new} measurements in {seconds:.0f} s, "
        f"{outcome.refused} refused, {len(outcome.front)} on the front; wrote {folder}",
        file=sys.stderr,
    )
