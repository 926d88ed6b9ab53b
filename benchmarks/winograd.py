"""Winograd in the combined domain, on paper with measured sums: ``python -m benchmarks.winograd``.

F(2,3) computes 2 x 2 outputs of a 3 x 3 convolution of stride 1 from a 4 x 4 tile of its input with 16
products instead of 36 (Lavin and Gray, 2016). Its input transform is linear, so it commutes with the ternary
combination Z = sum of T x: transform the input once per input channel, combine 16 numbers of a tile instead
of its 4 positions, multiply by the transformed bases, add them up, transform back once per output.

So a tile of 4 new positions has 16 numbers to combine, and zeros of the activations do not survive the
transform: both are measured here, on the activations and coefficients that a network really has.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.commands import run_command
from escc.backend_sim.simulator import EnergyTable
from escc.backend_sim.simulator.retime import Recording
from escc.isa.arch import Arch
from escc.sweep.measure import Family
from escc.sweep.workloads import DEMO, SYNTHETIC, WorkloadSpec, load_prepared, prepare

INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
"""B^T of F(2,3): the input transform is INPUT @ tile @ INPUT.T, whole numbers, two bits wider."""
TRANSFORM_ADDS = 32
"""Additions of the input transform of a tile: 4 x (4 + 4)."""
BACK_ADDS = 24
"""Additions of the output transform of a tile: 4 + 2 rows of 4."""
TAPS = 9


@dataclass
class Work:
    """Operations in one order: adds of the combination, products (each added to a sum), other adds."""

    adds: float = 0.0
    products: float = 0.0
    others: float = 0.0

    def energy(self, table: EnergyTable, z_bits: float) -> float:
        """Microjoules: adds in the lanes with their sum Z, products of z_bits, other 16-bit adds."""
        cost = {name: row.value for name, row in table.costs.items()}
        lanes = self.adds * cost["add16"]
        return (
            1e-6 * (lanes + self.products * (cost["multiply8"] * z_bits / 8 + cost["add32"]))
            + 1e-6 * self.others * cost["add16"]
        )


@dataclass
class Found:
    """The 3 x 3 layers of stride 1 of a network, in both orders, and densities of their inputs."""

    plain: Work
    winograd: Work
    plain_density: float
    winograd_density: float
    layers: int


def tiles(x: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(tiles, chans, 4, 4) of a map (rows, cols, chans) padded by one, moved on by two."""
    rows, cols, chans = x.shape
    padded = np.zeros((rows + 3 + rows % 2, cols + 3 + cols % 2, chans), np.int64)
    padded[1 : rows + 1, 1 : cols + 1] = x
    view = np.lib.stride_tricks.sliding_window_view(padded, (4, 4), axis=(0, 1))[::2, ::2]
    return view.reshape(-1, chans, 4, 4)


def count(recording: Recording) -> Found:
    """Both orders of the layers that F(2,3) can do."""
    found = Found(Work(), Work(), 0, 0, 0)
    seen = [0, 0, 0, 0]
    for work, x, ternary in recording.instructions:
        fits = work.form == "combine" and (work.kernel_h, work.kernel_w) == (3, 3)
        strides = (work.stride_h, work.stride_w, work.dil_h, work.dil_w)
        if not fits or strides != (1, 1, 1, 1) or ternary is None:
            continue
        weights = np.count_nonzero(ternary.values, axis=(0, 2))
        active = np.count_nonzero(x, axis=(0, 1))
        moved = INPUT @ tiles(x) @ INPUT.T
        transformed = np.count_nonzero(moved, axis=(0, 2, 3))
        # Z that have a match in any chunk; every one of them meets nine taps
        hits = (x != 0).reshape(-1, work.chans).astype(np.float32) @ _flat(ternary.mask)
        met = (moved != 0).transpose(0, 2, 3, 1).reshape(-1, work.chans).astype(np.float32)
        shared = met @ _flat(ternary.mask)
        found.plain.adds += float(active @ weights)
        found.plain.products += TAPS * float(np.count_nonzero(hits))
        found.winograd.adds += float(transformed @ weights)
        found.winograd.products += float(np.count_nonzero(shared))
        found.winograd.others += len(moved) * (work.chans * TRANSFORM_ADDS + work.outs * BACK_ADDS)
        found.layers += 1
        for index, number in enumerate((active.sum(), x.size, transformed.sum(), moved.size)):
            seen[index] += int(number)
    if found.layers:
        found.plain_density, found.winograd_density = seen[0] / seen[1], seen[2] / seen[3]
    return found


def _flat(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    return mask.transpose(1, 0, 2).reshape(mask.shape[1], -1).astype(np.float32)


def rows(names: Sequence[str], work: Path) -> list[str]:
    """A table row for each network."""
    lines = [
        "| network | instructions | density of x | transformed | adds | products | energy of both |",
        "|---|---|---|---|---|---|---|",
    ]
    table = EnergyTable.load()
    for name in names:
        spec = WorkloadSpec(name, DEMO if name == DEMO else SYNTHETIC + name)
        if name == DEMO:
            spec = WorkloadSpec(name, DEMO, DEMO, DEMO, DEMO, accuracy_images=1)
        prepare(spec, {}, Path(), work)
        arch = Arch.default()
        found = count(Family(load_prepared(spec, {}, work), arch).recordings[0])
        # two bits more in the transform; the transformed bases (2G)g(2G)' take four more bits than g
        ratio = found.winograd.energy(table, (arch.z_bits + 2) * 1.5) / found.plain.energy(table, arch.z_bits)
        lines.append(
            f"| {name} | {found.layers} | {found.plain_density:.2f} | {found.winograd_density:.2f} | "
            f"{found.winograd.adds / found.plain.adds:.2f}x | "
            f"{found.winograd.products / found.plain.products:.2f}x | {ratio:.2f}x |"
        )
    return lines


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("networks", nargs=-1)
@click.option(
    "--work", type=click.Path(file_okay=False), help="Folder of networks that a sweep has compiled."
)
def command(networks: tuple[str, ...], work: str | None) -> None:
    """Winograd against the direct order on the 3 x 3 layers of NETWORKS."""
    chosen = networks or (DEMO, "vgg16-cifar", "resnet18", "resnet50")
    with tempfile.TemporaryDirectory() as folder:
        for line in rows(chosen, Path(work or folder)):
            click.echo(line)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; failures a user can act on are one line."""
    return run_command(command, "benchmarks.winograd", arguments)


if __name__ == "__main__":
    sys.exit(main())
