"""``python -m benchmarks.stalls``: who waits for whom, by density of the coefficients.

ESCALATE (Li et al., MICRO 2021) sizes its array so that the MACs are fed at the sparsity of networks for
CIFAR; on the denser ones for ImageNet they idle, because the linear combination (LC) takes longer than the
MACs that follow. Shares of all row cycles of one layer; drawn codes, half of the activations zero. *Fed*:
busy cycles over those and the ones in which a MAC part waits for its row's LC. The machine of
``--arch benchmarks/design_space/start.toml`` has a unit for each of six bases, the default one half of them.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import click

from benchmarks.layers import layer_images, layer_program
from benchmarks.shapes import Layer
from escc.backend_sim.simulator import simulate
from escc.isa.arch import Arch

DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
LAYERS = {"CIFAR": Layer(256, 256, 8), "ImageNet": Layer(256, 256, 14)}


def stalls(layer: Layer, engine: str = "auto", arch: Arch | None = None) -> tuple[int, dict[str, float]]:
    """(cycles, share of the row cycles by lc_... and mac_... cause) of the layer."""
    result = simulate(layer_program(layer, arch), layer_images(layer, 1), engine=engine)
    counts: dict[str, int] = {}
    for done in result.layers:
        for name, cycles in done.counts.causes.items():
            counts[name] = counts.get(name, 0) + int(cycles[0])
    parts = {part: sum(v for k, v in counts.items() if k.startswith(part)) for part in ("lc", "mac")}
    return int(result.cycles[0]), {k: v / parts[k.partition("_")[0]] for k, v in counts.items()}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--arch", metavar="FILE", help="Architecture file; default: the default machine.")
@click.option("--engine", default="auto", show_default=True, help="native, numpy or auto.")
@click.option(
    "--activations", default=0.5, show_default=True, type=click.FloatRange(0, 1), help="Non-zero share."
)
def command(arch: str | None, engine: str, activations: float) -> None:
    """Print the stall table of two layers, a row for every density of coefficients."""
    columns = {"LC busy": "lc_busy", "LC waits for the FIFO": "lc_wait_fifo", "LC idle": "lc_idle"}
    columns |= {"MAC busy": "mac_busy", "MAC waits for the LC": "mac_wait_lc", "MAC idle": "mac_idle"}
    for name, layer in LAYERS.items():
        shape = f"{layer.chans} to {layer.outs} channels at {layer.side} x {layer.side}"
        click.echo(f"\n{name}: {shape}, {layer.bases} bases, {activations:.0%} of the activations\n")
        click.echo("| codes not zero | cycles | " + " | ".join(columns) + " | MACs fed |")
        click.echo("|" + "---:|" * (len(columns) + 3))
        for density in DENSITIES:
            chosen = replace(layer, coefficients=density, activations=activations)
            cycles, shares = stalls(chosen, engine, Arch.load(arch))
            cells = [shares.get(column, 0.0) for column in columns.values()]
            busy, starved = shares.get("mac_busy", 0.0), shares.get("mac_wait_lc", 0.0)
            cells.append(busy / (busy + starved))
            click.echo(
                f"| {density:.0%} | {cycles:,} | " + " | ".join(f"{cell:.1%}" for cell in cells) + " |"
            )


if __name__ == "__main__":
    sys.exit(command.main(prog_name="python -m benchmarks.stalls"))
