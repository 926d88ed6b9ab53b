"""``python -m benchmarks.linear``: the cost of a run grows linearly in images, positions and non-zeros.

One convolution (3 x 3, 28 x 28, 32 or 128 channels, six bases, 40 % of the codes and half of the activations
not zero), of which one thing is varied at a time; every image is timed. CPU seconds of `simulate`, the best
of ``--repeat`` runs. What a run costs whatever its size is the part a straight line has at 0; ``off the
line`` is the largest distance of a point from the line of least squares, as a share of the largest cost.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import click
import numpy as np

from benchmarks.layers import layer_images, layer_program
from benchmarks.shapes import Layer
from escc.backend_sim.simulator import simulate
from escc.backend_sim.simulator.timing import make_engine

BASE = Layer(128, 128, 28)
SMALL = replace(BASE, chans=32, outs=32)


@dataclass(frozen=True)
class Series:
    """What is varied: a name, its unit, and (size, layer, images) of every point."""

    name: str
    points: tuple[tuple[float, Layer, int], ...]


SERIES = (
    Series("images", tuple((n, SMALL, n) for n in (1, 2, 4, 8, 16))),
    Series("positions", tuple((n * n, replace(SMALL, side=n), 1) for n in (28, 40, 56, 80, 112))),
    Series(
        "non-zero activations, %",
        tuple((n, replace(BASE, activations=n / 100), 1) for n in (5, 10, 20, 40, 80)),
    ),
    Series(
        "non-zero codes, %", tuple((n, replace(BASE, coefficients=n / 100), 1) for n in (5, 10, 20, 40, 80))
    ),
)


def seconds(layer: Layer, images: int, engine: str, repeat: int) -> tuple[float, int]:
    """(CPU seconds, cycles of the first image) of a simulation with all images timed."""
    program, batch = layer_program(layer), layer_images(layer, images)
    taken: list[float] = []
    cycles = 0
    for _ in range(repeat):
        started = time.process_time()
        cycles = int(simulate(program, batch, timing_images=images, engine=engine).cycles[0])
        taken.append(time.process_time() - started)
    return min(taken), cycles


def fit(sizes: Sequence[float], costs: Sequence[float]) -> tuple[float, float, float]:
    """(cost at 0, cost per unit, largest distance from the line as a share of the largest cost)."""
    slope, start = np.polyfit(sizes, costs, 1)
    distance = np.abs(start + slope * np.array(sizes) - np.array(costs)).max()
    return float(start), float(slope), float(distance / max(costs))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--engine", default="auto", show_default=True, help="native, numpy or auto.")
@click.option("--repeat", default=5, show_default=True, type=click.IntRange(1), help="Runs of each point.")
def command(engine: str, repeat: int) -> None:
    """Print the cost of one layer by images, positions and non-zeros, with straight lines through them."""
    click.echo(f"engine {make_engine(engine).name}, CPU milliseconds")
    for series in SERIES:
        sizes = [size for size, _, _ in series.points]
        found = [seconds(layer, images, engine, repeat) for _, layer, images in series.points]
        costs = [1e3 * taken for taken, _ in found]
        start, slope, distance = fit(sizes, costs)
        line = "  ".join(f"{size:g}: {cost:.1f}" for size, cost in zip(sizes, costs, strict=True))
        click.echo(f"{series.name:24} {line}")
        click.echo(f"{'':24} = {start:.1f} + {slope:.4g} each; off the line by at most {distance:.1%}")


if __name__ == "__main__":
    sys.exit(command.main(prog_name="python -m benchmarks.linear"))
