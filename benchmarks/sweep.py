"""How many points of a sweep a core measures in a second: ``python -m benchmarks.sweep [NETWORK]``.

The network (of ``escc compare``, drawn with its stated statistics) is compiled and recorded once. Then
machines are drawn at random: with another ring, FIFO, number of MACs, blocks, DRAM, clock and vector unit
only; with other rows too, sorted as a sweep sorts them; and with another concentration each. CPU seconds of
this process.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.commands import run_command
from escc.backend_sim.simulator import EnergyTable
from escc.isa.arch import Arch
from escc.sweep.measure import Family
from escc.sweep.workloads import SYNTHETIC, WorkloadSpec, load_prepared, prepare

QUEUES: dict[str, list[Any]] = {
    "ring_entries": [2, 4, 8, 16, 32],
    "fifo_positions": [1, 2, 4],
    "macs": [6, 9, 12],
    "blocks": [8, 12, 16, 20],
    "startup_cycles": [8, 16],
    "vector_lanes": [32, 64, 128],
    "dram_gbps": [6.4, 12.8, 25.6],
    "mhz": [600.0, 800.0, 1000.0],
}
ROWS = [4, 6, 7, 8, 12, 14, 16, 28]
CONCENTRATION: dict[str, list[Any]] = {
    "units": [2, 3, 6],
    "lanes": [4, 8, 16],
    "policy": ["window", "gather"],
}


def machines(base: Arch, count: int, more: dict[str, list[Any]]) -> list[Arch]:
    """Random machines, those with the same concentration and rows side by side."""
    source = random.Random(1)
    choices = QUEUES | more
    drawn = [base.replace(**{k: source.choice(v) for k, v in choices.items()}) for _ in range(count)]
    return sorted(drawn, key=lambda arch: (arch.policy, arch.units, arch.lanes, arch.rows))


def rate(family: Family, drawn: Sequence[Arch]) -> tuple[float, float]:
    """CPU milliseconds a point, and points a second."""
    table = EnergyTable.load()
    started = time.process_time()
    for arch in drawn:
        family.measure(arch, table)
    seconds = (time.process_time() - started) / len(drawn)
    return 1e3 * seconds, 1 / seconds


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("network", default="resnet50")
@click.option("--points", default=60, show_default=True, type=click.IntRange(4))
def command(network: str, points: int) -> None:
    """Points a second and core on NETWORK."""
    spec = WorkloadSpec(network, SYNTHETIC + network)
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        prepare(spec, {}, Path(folder), Path(folder))
        compiled = time.process_time() - started
        prepared = load_prepared(spec, {}, Path(folder))
    started = time.process_time()
    family = Family(prepared, Arch.default())
    recorded = time.process_time() - started
    recording = family.recordings[0]
    click.echo(
        f"{network}: {len(recording.steps)} steps, {len(recording.convs)} convolutions, "
        f"{recording.engine.name}; compiled in {compiled:.1f} s, lowered and recorded in {recorded:.1f} s"
    )
    click.echo(f"{'another ...':44}{'ms/point':>10}{'points/s':>10}")
    for title, more, count in (
        ("ring, FIFO, MACs, blocks, DRAM, clock", {}, points),
        ("... and rows", {"rows": ROWS}, points),
        ("... and units, lanes, policy", {"rows": ROWS} | CONCENTRATION, points),
    ):
        drawn = machines(family.arch, count, more)
        family.measure(drawn[0])
        cost, each = rate(family, drawn)
        click.echo(f"{title:44}{cost:10.1f}{each:10.1f}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; failures a user can act on are one line."""
    return run_command(command, "benchmarks.sweep", arguments)


if __name__ == "__main__":
    sys.exit(main())
