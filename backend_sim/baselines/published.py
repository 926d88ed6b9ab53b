"""What the papers of the baseline machines report, and the layers they report it for.

Densities are shares of non-zero values. Figures without a second source are recalled, not looked up again;
docs/baselines.md says which.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from escc.backend_sim.baselines.eyeriss import Mapping
from escc.backend_sim.baselines.workload import ConvWork


@dataclass(frozen=True)
class Layer:
    """A square convolution; ``weights``, ``inputs``, ``outputs``: densities."""

    name: str
    chans: int
    side: int
    outs: int
    kernel: int
    weights: float
    inputs: float
    outputs: float
    stride: int = 1
    padding: int = 0
    groups: int = 1

    def work(self, seed: int, density: float | None = None, clump: int = 1) -> ConvWork:
        """The layer with values drawn independently at its densities, or all at ``density``.

        ``clump``: above 1, the inputs are where noise averaged over so many rows and columns is largest,
        half of it common to all channels: the same density, in clumps that channels partly share.
        """
        rng = np.random.default_rng(seed)
        shape = (self.outs, self.chans // self.groups, self.kernel, self.kernel)
        side = self.side + clump - 1
        noise = rng.random((self.chans + (clump > 1), side, side), dtype=np.float32)
        share = density or self.inputs
        if clump > 1:
            sums = np.pad(noise, ((0, 0), (1, 0), (1, 0))).cumsum(1, dtype=np.float64).cumsum(2)
            sums = sums[:, clump:] - sums[:, :-clump]
            noise = sums[:, :, clump:] - sums[:, :, :-clump]
            noise = noise[:-1] + noise[-1]
            x = noise <= np.quantile(noise, share)
        else:
            x = noise < share
        weight = rng.random(shape, dtype=np.float32) < (density or self.weights)
        work = ConvWork(
            self.name,
            x.astype(np.uint8),
            weight.astype(np.int8),
            (self.stride, self.stride),
            (self.padding, self.padding, self.padding, self.padding),
            groups=self.groups,
        )
        outputs = int(np.prod(work.output_shape) * (density or self.outputs))
        return replace(work, output_nonzeros=outputs)


@dataclass(frozen=True)
class EyerissLayer:
    """A row of the JSSC paper's AlexNet table, batch of 4: time, MB moved in global buffer and DRAM."""

    layer: Layer
    mapping: Mapping
    processing_ms: float
    buffer_mb: float
    dram_mb: float


# weights: Han et al., Learning both Weights and Connections, NIPS 2015, Table 4; inputs: its activations,
# a layer later
ALEXNET = (
    Layer("conv1", 3, 227, 96, 11, 0.84, 1.00, 0.88, stride=4),
    Layer("conv2", 96, 27, 256, 5, 0.38, 0.88, 0.52, padding=2, groups=2),
    Layer("conv3", 256, 13, 384, 3, 0.35, 0.52, 0.37, padding=1),
    Layer("conv4", 384, 13, 384, 3, 0.37, 0.37, 0.40, padding=1, groups=2),
    Layer("conv5", 384, 13, 256, 3, 0.37, 0.40, 0.34, padding=1, groups=2),
)

_VGG_SHAPES = (
    ("conv1_1", 3, 224, 64), ("conv1_2", 64, 224, 64), ("conv2_1", 64, 112, 128), ("conv2_2", 128, 112, 128),
    ("conv3_1", 128, 56, 256), ("conv3_2", 256, 56, 256), ("conv3_3", 256, 56, 256),
    ("conv4_1", 256, 28, 512), ("conv4_2", 512, 28, 512), ("conv4_3", 512, 28, 512),
    ("conv5_1", 512, 14, 512), ("conv5_2", 512, 14, 512), ("conv5_3", 512, 14, 512),
)  # fmt: skip
_VGG_WEIGHTS = (57, 21, 33, 35, 53, 22, 41, 32, 26, 34, 35, 29, 36)
_VGG_INPUTS = (100, 50, 89, 79, 81, 63, 69, 71, 50, 45, 39, 33, 32, 32)
VGG16 = tuple(
    Layer(name, chans, side, outs, 3, w / 100, x / 100, y / 100, padding=1)
    for (name, chans, side, outs), w, x, y in zip(
        _VGG_SHAPES, _VGG_WEIGHTS, _VGG_INPUTS, _VGG_INPUTS[1:], strict=False
    )
)


def _inception(
    name: str,
    chans: int,
    side: int,
    widths: tuple[int, ...],
    weights: tuple[int, ...],
    inputs: tuple[int, ...],
) -> tuple[Layer, ...]:
    """The six convolutions of an inception module; widths in the order of its branches."""
    parts = ("1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool_proj")
    sources = (chans, chans, widths[1], chans, widths[3], chans)
    kernels = (1, 1, 3, 1, 5, 1)
    return tuple(
        Layer(f"{name}/{part}", source, side, outs, kernel, w / 100, x / 100, 0.5, padding=kernel // 2)
        for part, source, outs, kernel, w, x in zip(
            parts, sources, widths, kernels, weights, inputs, strict=True
        )
    )


# two of the nine modules: densities of the others are not at hand
GOOGLENET = (
    *_inception("3a", 192, 28, (64, 96, 128, 16, 32, 32), (38, 42, 45, 36, 35, 43), (71, 71, 67, 71, 77, 96)),
    *_inception(
        "5b", 832, 7, (384, 192, 384, 48, 128, 128), (32, 33, 37, 33, 36, 32), (31, 31, 30, 31, 46, 57)
    ),
)

NETWORKS = {"AlexNet": ALEXNET, "VGG-16": VGG16, "GoogLeNet 3a, 5b": GOOGLENET}

# AlexNet as Eyeriss measured it: shares of non-zero inputs of the network that was not pruned
_UNPRUNED = (1.00, 0.96, 0.60, 0.53, 0.52)
_TWO_SETS = Mapping(e=13, p=16, q=3, r=2, t=2, n=4)
EYERISS_ALEXNET = tuple(
    EyerissLayer(replace(layer, weights=1.0, inputs=density, outputs=0.5), mapping, ms, buffer_mb, dram_mb)
    for layer, density, mapping, ms, buffer_mb, dram_mb in zip(
        ALEXNET,
        _UNPRUNED,
        (Mapping(e=7, p=16, q=1, r=1, t=2), Mapping(e=27, p=16, q=2, r=1, t=1), *[_TWO_SETS] * 3),
        (16.5, 39.2, 21.8, 16.0, 10.0),
        (18.5, 77.6, 50.2, 37.4, 24.9),
        (5.0, 4.0, 3.0, 2.1, 1.3),
        strict=True,
    )
)

SCNN_SPEEDUP = {"AlexNet": 2.37, "VGG-16": 3.52, "GoogLeNet 3a, 5b": 2.19}
SCNN_DENSE_SPEED = 0.79
SCNN_BREAK_EVEN = 0.85
SPARTEN_SPEEDUP = {"dense": 4.7, "one-sided": 1.8, "SCNN": 3.0}
