"""``python -m benchmarks.prediction``: the compiler's cost model against the simulator.

Without arguments from tests/golden/metrics.json, which a test holds to what both say today; networks that are
named are compiled and simulated again, layer by layer. Layers overlap (weights of the next are fetched, its
first rows computed), so that only their sum has to agree.
"""

from __future__ import annotations

import sys

import click

from benchmarks.golden import golden_program, load
from escc.backend_sim.simulator import simulate


def row(name: str, predicted: float, cycles: float) -> str:
    """A line of the table."""
    share = f"{predicted / cycles - 1:+.1%}" if cycles else ""
    return f"| {name} | {predicted:,.0f} | {cycles:,.0f} | {share} |"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("networks", nargs=-1)
def command(networks: tuple[str, ...]) -> None:
    """Print predicted and simulated cycles of the zoo, or layer by layer of NETWORKS."""
    click.echo("| network | predicted cycles | simulated | off by |\n|---|---:|---:|---:|")
    for name in networks:
        program, images = golden_program(name)
        result = simulate(program, images)
        layers = (program.debug or {})["layers"]
        for entry, layer in zip(layers, result.layers, strict=False):
            click.echo(row(f"{name}: {entry['name']}", entry["predicted_cycles"], int(layer.cycles[0])))
        click.echo(row(name, sum(entry["predicted_cycles"] for entry in layers), int(result.cycles[0])))
    if not networks:
        for name, metrics in load().items():
            click.echo(row(name, metrics["predicted_cycles"], metrics["cycles"]))


if __name__ == "__main__":
    sys.exit(command.main(prog_name="python -m benchmarks.prediction"))
