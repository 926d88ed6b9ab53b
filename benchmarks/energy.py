"""``python -m benchmarks.energy``: energy of an operation beside that of published machines.

Layers like those of AlexNet and VGG16 on the default machine: their shapes, six bases, drawn codes of which a
tenth or four tenths are not zero, activations as dense as those networks' (Eyeriss' table of zeros for
AlexNet; the VGG-16 column of Deep Compression). An operation is an addition of an activation or a product
that is really done; the published machines do multiply-accumulates, Eyeriss all of a layer's, SparTen those
of two non-zeros. They are other machines (node, word, sparsity): their figures bound what is plausible and
are no comparison; that is `escc compare`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import click

from benchmarks.layers import layer_images, layer_program
from benchmarks.shapes import Layer
from escc.backend_sim.simulator import simulate

NODE_65_TO_45 = 1.8
"""65 nm over 45 nm, the mean over sizes of SRAM that CACTI 7 gives for both."""
DENSITIES = (0.1, 0.4)


@dataclass(frozen=True)
class Published:
    """Energy of a multiply-accumulate that is done, on chip, DRAM left out, in pJ; ``at_45``: at 45 nm."""

    machine: str
    workload: str
    source: str
    picojoules: float
    at_45: float


def _chip(milliwatts: float, per_second: float, gmacs: float) -> float:
    """pJ a multiply-accumulate: mW / (1/s) is mJ an image, over GMAC it is pJ."""
    return milliwatts / per_second / gmacs


EYERISS_ALEXNET = _chip(278, 34.7, 0.666)
EYERISS_VGG16 = _chip(236, 0.7, 15.35)
# a cluster of 32 units at 800 MHz; a unit takes one pair of non-zeros a cycle
SPARTEN = 118.3e9 / 800e6 / 32

PUBLISHED = (
    Published(
        "Eyeriss, 65 nm, 16 bits",
        "AlexNet, convolutions",
        "278 mW at 34.7 images/s, 0.666 GMAC: Chen et al., JSSC 2017",
        EYERISS_ALEXNET,
        EYERISS_ALEXNET / NODE_65_TO_45,
    ),
    Published(
        "Eyeriss, 65 nm, 16 bits",
        "VGG16, convolutions",
        "236 mW at 0.7 images/s, 15.35 GMAC: ibid.",
        EYERISS_VGG16,
        EYERISS_VGG16 / NODE_65_TO_45,
    ),
    Published(
        "SparTen, 45 nm, 8 bits",
        "a cluster, all units busy",
        "118.3 mW for 32 units at 800 MHz: Gondimalla et al., MICRO 2019",
        SPARTEN,
        SPARTEN,
    ),
)
BARE = 0.25
"""An 8-bit multiplication and a 16-bit addition at 45 nm and nothing else, in pJ: Horowitz, ISSCC 2014."""

ALEXNET = {
    "conv2": Layer(96, 256, 27, 5, activations=0.96),
    "conv3": Layer(256, 384, 13, activations=0.60),
    "conv4": Layer(384, 384, 13, activations=0.53),
    "conv5": Layer(384, 256, 13, activations=0.52),
}
VGG16 = {
    "conv2_2": Layer(128, 128, 112, activations=0.79),
    "conv3_3": Layer(256, 256, 56, activations=0.63),
    "conv4_3": Layer(512, 512, 28, activations=0.50),
    "conv5_3": Layer(512, 512, 14, activations=0.32),
}
NETWORKS = {"AlexNet": ALEXNET, "VGG16": VGG16}


@dataclass(frozen=True)
class Energy:
    """Picojoules of a layer, its operations (additions and products done) and the dense layer's MACs."""

    chip: float
    dram: float
    operations: int
    macs: int


def energy(layer: Layer, engine: str = "auto") -> Energy:
    """Simulate a layer."""
    result = simulate(layer_program(layer), layer_images(layer, 1), engine=engine)
    parts = {name: float(values[0]) for name, values in result.energy.items()}
    dram = parts.pop("dram")
    done = sum(int(item.figure(what)[0]) for item in result.layers for what in ("additions", "products"))
    return Energy(sum(parts.values()), dram, done, layer.macs)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--engine", default="auto", show_default=True, help="native, numpy or auto.")
def command(engine: str) -> None:
    """Print the energy of an operation and of a dense multiply-accumulate, published and simulated."""
    click.echo("| published, on chip | workload | pJ a MAC | at 45 nm | from |\n|---|---|---:|---:|---|")
    for row in PUBLISHED:
        cells = f"{row.picojoules:.2f} | {row.at_45:.2f} | {row.source}"
        click.echo(f"| {row.machine} | {row.workload} | {cells} |")
    heads = ("MACs an operation", "chip, pJ an operation", "chip, pJ a MAC", "DRAM, pJ a MAC")
    click.echo("\n| simulated | activations | codes | " + " | ".join(heads) + " |")
    click.echo("|---" + "|---:" * (2 + len(heads)) + "|")
    for network, layers in NETWORKS.items():
        for name, layer in layers.items():
            for share in DENSITIES:
                found = energy(replace(layer, coefficients=share), engine)
                cells = [
                    f"{network} {name}",
                    f"{layer.activations:.0%}",
                    f"{share:.0%}",
                    f"{found.macs / found.operations:.1f}",
                    f"{found.chip / found.operations:.2f}",
                    f"{found.chip / found.macs:.2f}",
                    f"{found.dram / found.macs:.2f}",
                ]
                click.echo("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    sys.exit(command.main(prog_name="python -m benchmarks.energy"))
