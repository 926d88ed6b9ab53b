"""What synthetic networks are made to look like, and where each figure comes from.

No trained ImageNet weights ship with escc. Weights are drawn (:mod:`escc.compare.synthesis`) so that the
statistics that decide cycles and energy have the values below: densities, spectra, and how both vary over
channels. A user's own trained network replaces all of this.

Marks: [measured] by this project, [read] in a published text or file, [derived] from a published figure,
[recalled] from the literature without its text at hand, [assumed] where nothing was found.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from escc.errors import EsccError

BASES = 5
"""Bases of a k x k layer: PENNI uses 5 for every layer [read], and counts its compression so."""

PLANES = 3
"""Ternary planes of a 1 x 1 layer: 27 levels, 4.75 bits. 4-bit weights lose about a point [read]; fewer
planes would be faster and are not claimed."""

SPECTRUM_DECAY = 0.72
"""Energy of each basis direction over that of the one before it. Five directions then leave out 14.9 % of the
energy of 3 x 3 kernels and six 9.2 %: measured on trained layers 14.9 % and 8.7 % [measured]."""

CHANNEL_SPREAD = 0.2
"""Standard deviation of the logarithm of the weights' scale over input channels, and over output channels. It
gives the variation of coefficient density that the shipped ResNet-20 has, 0.05 to 0.1 at 0.45 [measured]."""

ACTIVATION_SPREAD = 0.12
"""Standard deviation of activation density over the channels of a map: the shipped ResNet-20 [measured]."""


@dataclass(frozen=True)
class Stated:
    """A figure with the place it comes from."""

    value: float
    source: str


@dataclass(frozen=True)
class Statistics:
    """What a synthetic network is drawn with.

    Attributes:
        coefficients: share of non-zero ternary coefficients of a k x k layer.
        weights: share of weights that magnitude pruning keeps: what SCNN and SparTen run, and what the
            planes of a 1 x 1 layer code.
        inner: share of non-zero activations behind a ReLU (also ReLU6) inside a block.
        joined: the same behind a ReLU after a residual addition.
        profile: the same for each convolution with such an activation, in order, where it is known layer by
            layer; taken in front of a convolution, that is behind a pooling in between.
        profile_source: where the profile comes from.
        bases, planes: of k x k and 1 x 1 layers.
    """

    coefficients: Stated
    weights: Stated
    inner: Stated
    joined: Stated
    profile: tuple[float, ...] = ()
    profile_source: str = ""
    bases: int = BASES
    planes: int = PLANES

    def scaled(
        self, *, coefficients: float = 1.0, weights: float = 1.0, activations: float = 1.0
    ) -> Statistics:
        """The same with densities multiplied; none above 1, activations not above 0.95."""

        def times(stated: Stated, factor: float, most: float = 1.0) -> Stated:
            if factor == 1.0:
                return stated
            return Stated(min(most, stated.value * factor), f"{factor:g} times: {stated.source}")

        return dataclasses.replace(
            self,
            coefficients=times(self.coefficients, coefficients),
            weights=times(self.weights, weights),
            inner=times(self.inner, activations, 0.95),
            joined=times(self.joined, activations, 0.95),
            profile=tuple(min(0.95, value * activations) for value in self.profile),
        )


def even_statistics(density: float = 0.5) -> Statistics:
    """One density for everything."""
    stated = Stated(density, "the same for everything")
    return Statistics(stated, stated, stated, stated)


@dataclass(frozen=True)
class Network:
    """A network of the comparison: ``zoo`` names its definition, ``shape`` is its image."""

    name: str
    title: str
    zoo: str
    statistics: Statistics
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


_PENNI = "[derived] from the {} of MACs that PENNI (ICML 2020) saves{}, 5 bases, no channel cut"

_VGG_PROFILE = (0.50, 0.89, 0.79, 0.81, 0.63, 0.69, 0.71, 0.50, 0.45, 0.39, 0.33, 0.32)
_SHIPPED = "[measured] on the shipped ResNet-20"

NETWORKS: tuple[Network, ...] = (
    Network(
        "vgg16-cifar",
        "VGG16, 32 x 32",
        "vgg16_cifar",
        Statistics(
            coefficients=Stated(0.073, _PENNI.format("93.26 %", " on CIFAR-10")),
            weights=Stated(0.05, "[recalled] SNIP (ICLR 2019): VGG-D at 95 % zeros loses nothing"),
            inner=Stated(0.32, "[read] last entry of the profile"),
            joined=Stated(0.32, "no additions"),
            profile=(*_VGG_PROFILE, 0.32),
            profile_source="[read] VGG-16 on ImageNet, inputs of conv1_2 to conv5_3 in the configuration "
            "of a public SCNN simulator; networks for CIFAR-10 are sparser in their last layers",
        ),
    ),
    Network(
        "resnet18-cifar",
        "ResNet-18, 32 x 32",
        "resnet18_cifar",
        Statistics(
            coefficients=Stated(0.075, _PENNI.format("92 %", " on CIFAR-10")),
            weights=Stated(
                0.10,
                "[recalled] gradual magnitude pruning at 90 % zeros; [read] arXiv:2606.12278: within 0.1 "
                "points of the dense network up to 85 % zeros on CIFAR-10",
            ),
            inner=Stated(0.40, _SHIPPED),
            joined=Stated(0.55, _SHIPPED),
        ),
    ),
    Network(
        "mobilenetv2-cifar",
        "MobileNetV2, 32 x 32",
        "mobilenet_v2_cifar",
        Statistics(
            coefficients=Stated(1.0, "no k x k layers but depthwise ones, which are not decomposed"),
            weights=Stated(0.25, "[assumed] half of what its ImageNet form keeps"),
            inner=Stated(0.50, "[recalled] ReLU6 networks have about half of their activations zero"),
            joined=Stated(0.50, "additions without an activation: nothing is zero"),
        ),
    ),
    Network(
        "resnet18",
        "ResNet-18, 224 x 224",
        "resnet18",
        Statistics(
            coefficients=Stated(
                0.16, "[assumed] ResNet-50's 0.106 times 1.5, by which its pruned weights are denser, too"
            ),
            weights=Stated(0.30, "[recalled] about 70 % zeros within 1 point of the dense network"),
            inner=Stated(0.45, "[assumed] a little denser than the shipped ResNet-20 (0.40)"),
            joined=Stated(0.60, "[recalled] about 60 % of ResNet-18's activations are not zero"),
        ),
    ),
    Network(
        "resnet50",
        "ResNet-50, 224 x 224",
        "resnet50",
        Statistics(
            coefficients=Stated(0.106, _PENNI.format("90.1 %", " on ImageNet, with 1 x 1 layers")),
            weights=Stated(0.20, "[recalled] Gale et al. 2019: 80 % zeros lose less than a point"),
            inner=Stated(0.40, _SHIPPED),
            joined=Stated(0.60, "[recalled] as for ResNet-18"),
        ),
    ),
    Network(
        "mobilenetv2",
        "MobileNetV2, 224 x 224",
        "mobilenet_v2",
        Statistics(
            coefficients=Stated(1.0, "no k x k layers but depthwise ones, which are not decomposed"),
            weights=Stated(0.50, "[recalled] Zhu and Gupta 2017: MobileNet at 50 % zeros loses a point"),
            inner=Stated(0.50, "[recalled] ReLU6 networks have about half of their activations zero"),
            joined=Stated(0.50, "additions without an activation: nothing is zero"),
        ),
    ),
)


def network_names() -> list[str]:
    """The synthetic networks, in the order of the tables."""
    return [network.name for network in NETWORKS]


def find_network(name: str) -> Network:
    """One of :data:`NETWORKS`.

    Raises:
        EsccError: no such network.
    """
    for network in NETWORKS:
        if network.name == name:
            return network
    known = network_names()
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}; or give a --model"
    raise EsccError(f"no network {name!r} to compare on", hint=hint)


def tail_energy(directions: int, taps: int) -> float:
    """Share of a kernel's energy beyond its first ``directions`` of ``taps`` basis directions."""
    energy = [SPECTRUM_DECAY**index for index in range(taps)]
    return math.fsum(energy[directions:]) / math.fsum(energy)


def geometric_mean(values: Sequence[float]) -> float:
    """exp of the mean logarithm of positive values; nan of none."""
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if values else math.nan
