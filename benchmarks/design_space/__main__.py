"""``python -m benchmarks.design_space``: carry the searches out and write docs/results/design-space.md.

The searches (the TOML files beside this one) go on where they were in ``--work``; with everything in their
journals only the page is written.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from benchmarks import winograd
from benchmarks.commands import run_command
from benchmarks.design_space.page import Machine, page
from escc.backend_sim.area import area
from escc.cli.progress import progress_bars
from escc.files import atomic_write
from escc.isa.arch import Arch
from escc.progress import Progress
from escc.sweep.measure import Family, full_measure
from escc.sweep.pools import make_pool
from escc.sweep.run import Outcome, sweep
from escc.sweep.space import load_space
from escc.sweep.workloads import WorkloadSpec, load_prepared

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
SEARCHES = ("array", "grid", "memory", "codes")
BEFORE = "start"
CHOSEN = "default"
"""The architecture file of the choice: the default machine."""
START = Arch.load(FOLDER / "start.toml")
"""The machine that the search began with, whatever the default is by now."""


@dataclass(frozen=True)
class Measured:
    """Cycles and energy in picojoules of a network on a machine, fast and in full."""

    fast: tuple[float, float]
    full: tuple[float, float]


def measured(
    specs: Sequence[WorkloadSpec], name: str, arch: Arch, work: Path, networks: Path
) -> dict[str, Measured]:
    """A machine on every network; kept in the folder, as it takes minutes."""
    kept = work / f"{name}-{arch.geometry_hash}.json"
    if kept.exists():
        content = json.loads(kept.read_text())
    else:
        content = {}
        for spec in specs:
            prepared = load_prepared(spec, {}, networks)
            family = Family(prepared, START.replace(chunk=arch.chunk, sram_kib=arch.sram_kib))
            content[spec.name] = (family.measure(arch), full_measure(prepared, arch))
            del family
        atomic_write(kept, json.dumps(content).encode())
    return {net: Measured(tuple(fast), tuple(full)) for net, (fast, full) in content.items()}


def machine(title: str, arch: Arch, specs: Sequence[WorkloadSpec], work: Path, networks: Path) -> Machine:
    """A machine with what the page shows of it."""
    found = measured(specs, title, arch, work, networks)
    return Machine(
        title,
        arch,
        area(arch).total_mm2,
        {net: (m.full[0] / arch.mhz, m.full[1] / 1e6) for net, m in found.items()},
        {net: (m.full[0] / m.fast[0], m.full[1] / m.fast[1]) for net, m in found.items()},
    )


def _winograd(specs: Sequence[WorkloadSpec], networks: Path) -> list[str]:
    kept = networks.parent / "winograd.json"
    if not kept.exists():
        atomic_write(kept, json.dumps(winograd.rows([spec.name for spec in specs], networks)).encode())
    return json.loads(kept.read_text())


def carry_out(work: Path, workers: int, progress: Progress) -> dict[str, Outcome]:
    """The searches by name."""
    found: dict[str, Outcome] = {}
    for name in SEARCHES:
        pool = make_pool(workers, None)
        try:
            found[name] = sweep(load_space(FOLDER / f"{name}.toml"), work / name, pool, progress=progress)
        finally:
            pool.close()
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--work", default=str(ROOT / "build" / "design-space"), help="Folder of the searches.")
@click.option(
    "--workers", default=1, show_default=True, type=click.IntRange(1), help="Processes that measure."
)
def command(work: str, workers: int) -> None:
    """Search the design space and write the page."""
    folder = Path(work)
    with progress_bars() as progress:
        outcomes = carry_out(folder, workers, progress)
        specs = outcomes["array"].space.workloads
        networks = folder / "array"
        machines = [
            machine(BEFORE, START, specs, folder, networks),
            machine(CHOSEN, Arch.load(CHOSEN), specs, folder, networks),
        ]
        text, figures = page(outcomes, machines, _winograd(specs, networks))
    results = ROOT / "docs" / "results"
    atomic_write(results / "design-space.md", text.encode())
    for name, figure in figures.items():
        atomic_write(results / name, figure.encode())
    gaps = np.array([pair for item in machines for pair in item.gaps.values()])
    click.echo(f"wrote {results / 'design-space.md'}; full / fast {gaps.min():.3f} to {gaps.max():.3f}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; failures a user can act on are one line."""
    return run_command(command, "benchmarks.design_space", arguments, "; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
