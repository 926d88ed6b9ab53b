"""How long the timing of whole networks takes: `python benchmarks/timing.py [network ...]`.

Random bits of the stated densities on the default machine; only the time inside convolutions is computed (no
outputs, no DRAM). A step is one (output, basis, position, chunk). Peak memory is that of the whole process,
so it only grows from line to line; name one network to see it alone.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from escc.backend_sim.simulator.timing import ConvWork, conv_timing
from escc.isa.arch import Arch

ACTIVE, NON_ZERO, BASES = 0.5, 0.4, 6


@dataclass(frozen=True)
class Network:
    """Convolutions, how many images, and the densities of activations and coefficients."""

    layers: list[ConvWork]
    images: int = 1


def conv(size: int, chans: int, outs: int, kernel: int = 3, stride: int = 1, bases: int = BASES) -> ConvWork:
    """A square convolution with padding; four bands spread the smaller layers over the blocks."""
    out = (size - 1) // stride + 1
    return ConvWork(
        "combine" if bases else "dense",
        outs=outs,
        chans=chans,
        height=size,
        width=size,
        y_rows=out,
        y_cols=out,
        bases=bases or 1,
        kernel_h=kernel,
        kernel_w=kernel,
        stride_h=stride,
        stride_w=stride,
        pad_top=kernel // 2,
        pad_left=kernel // 2,
        bands=4,
    )


def depthwise(size: int, chans: int, stride: int) -> ConvWork:
    return replace(conv(size, chans, chans, 3, stride, 0), form="depthwise")


def resnet20(size: int) -> list[ConvWork]:
    layers = [conv(size, 3, 16, bases=0)] + [conv(size, 16, 16)] * 6
    for chans in (16, 32):
        layers.append(conv(size, chans, 2 * chans, stride=2))
        size = (size - 1) // 2 + 1
        layers += [conv(size, 2 * chans, 2 * chans)] * 5
    return layers


def resnet18() -> list[ConvWork]:
    layers = [conv(224, 3, 64, 7, 2, 0)] + [conv(56, 64, 64)] * 4
    for chans, size in ((64, 56), (128, 28), (256, 14)):
        layers += [conv(size, chans, 2 * chans, stride=2), conv(size, chans, 2 * chans, 1, 2)]
        layers += [conv(size // 2, 2 * chans, 2 * chans)] * 3
    return layers


def resnet50() -> list[ConvWork]:
    layers, chans = [conv(224, 3, 64, 7, 2, 0)], 64
    for blocks, inner, size in ((3, 64, 56), (4, 128, 28), (6, 256, 14), (3, 512, 7)):
        for block in range(blocks):
            stride = 2 if block == 0 and inner > 64 else 1
            before = size * stride
            layers += [conv(before, chans, inner, 1), conv(before, inner, inner, 3, stride)]
            layers.append(conv(size, inner, 4 * inner, 1))
            if block == 0:
                layers.append(conv(before, chans, 4 * inner, 1, stride))
            chans = 4 * inner
    return layers


def mobilenet() -> list[ConvWork]:
    layers, size, chans = [conv(224, 3, 32, 3, 2, 0)], 112, 32
    for outs, stride in (
        (64, 1),
        (128, 2),
        (128, 1),
        (256, 2),
        (256, 1),
        (512, 2),
        *[(512, 1)] * 5,
        (1024, 2),
    ):
        layers.append(depthwise(size, chans, stride))
        size //= stride
        layers.append(conv(size, chans, outs, 1))
        chans = outs
    return layers


NETWORKS: dict[str, Callable[[], Network]] = {
    "resnet20-28": lambda: Network(resnet20(28), 8),
    "resnet20-32": lambda: Network(resnet20(32), 8),
    "resnet18-224": lambda: Network(resnet18()),
    "resnet50-224": lambda: Network(resnet50()),
    "mobilenet-224": lambda: Network(mobilenet()),
}


def operands(network: Network) -> Iterator[tuple[ConvWork, np.ndarray, np.ndarray | None]]:
    generator = np.random.default_rng(0)
    for work in network.layers:
        x = generator.random((network.images, work.height, work.width, work.chans), dtype=np.float32) < ACTIVE
        mask = generator.random((work.outs, work.chans, work.bases), dtype=np.float32) < NON_ZERO
        yield work, x, mask if work.form == "combine" else None


def main(names: list[str]) -> None:
    machine = Arch.default()
    print(f"activations {ACTIVE:.0%}, coefficients {NON_ZERO:.0%} non-zero, M = {BASES}, {machine.policy}")
    print(
        f"{'network':14} {'images':>6} {'layers':>6} {'Msteps':>7} "
        f"{'wall s':>7} {'CPU s':>7} {'ns/step':>7} {'MiB':>5}"
    )
    for name in names or NETWORKS:
        network = NETWORKS[name]()
        wall = cpu = 0.0
        steps = cycles = 0
        for work, x, mask in operands(network):
            begin = time.perf_counter(), time.process_time()
            timing = conv_timing(machine, work, x, mask)
            wall += time.perf_counter() - begin[0]
            cpu += time.process_time() - begin[1]
            steps += int(timing.dilution_words.sum())
            cycles += int(timing.cycles[0])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{name:14} {network.images:6} {len(network.layers):6} {steps / 1e6:7.1f} {wall:7.3f} {cpu:7.3f} "
            f"{1e9 * cpu / max(steps, 1):7.2f} {peak:5.0f}   {cycles} cycles for the first image"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
