"""What a convolution costs: bits as stored, and operations in either order of the decomposed form.

One multiplication with its addition is one MAC. Sizes follow the operand streams of the machine: a mask bit
per coefficient and a sign bit per non-zero, each output's row padded to whole bytes; int8 bases; a 32-bit
multiplier and an 8-bit shift per output channel as its scale. Biases cost the same in every form: left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SCALE_BITS = 40


@dataclass(frozen=True)
class ConvolutionShape:
    """What the costs depend on.

    Attributes:
        outputs: K.
        inputs: C per group.
        groups: number of groups.
        kernel: (R, S).
        input_size, output_size: (height, width) of the maps.
    """

    outputs: int
    inputs: int
    groups: int
    kernel: tuple[int, int]
    input_size: tuple[int, int]
    output_size: tuple[int, int]

    @property
    def parameters(self) -> int:
        """Weights, without bias."""
        return self.outputs * self.inputs * prod(self.kernel)

    @property
    def dense_macs(self) -> int:
        """MACs of the plain convolution."""
        return prod(self.output_size) * self.parameters


@dataclass(frozen=True)
class Operations:
    """Work of one layer: multiply-accumulates, and additions of the linear combinations."""

    macs: int
    adds: int


def convolve_first(shape: ConvolutionShape, bases: int, nonzeros: int) -> Operations:
    """PENNI's order: every input channel is convolved with every basis, then one operation per non-zero
    coefficient and output position (its published counts charge unused planes too)."""
    positions = prod(shape.output_size)
    planes = shape.inputs * shape.groups * bases
    return Operations(positions * planes * prod(shape.kernel), positions * nonzeros)


def combine_first(shape: ConvolutionShape, bases: int, nonzeros: int) -> Operations:
    """ESCALATE's order: one addition per non-zero coefficient and input position, then one convolution per
    output channel and basis."""
    macs = prod(shape.output_size) * shape.outputs * bases * prod(shape.kernel)
    return Operations(macs, prod(shape.input_size) * nonzeros)


@dataclass(frozen=True)
class Storage:
    """Bits of one decomposed layer."""

    masks: int
    signs: int
    padding: int
    bases: int
    scales: int

    @property
    def bits(self) -> int:
        """All of them."""
        return self.masks + self.signs + self.padding + self.bases + self.scales


def decomposed_storage(bases: Array, coefficients: Array) -> Storage:
    """Bits of bases (M, R, S) as int8 and ternary coefficients (K, C/groups, M) as mask and sign stream."""
    nonzeros = np.count_nonzero(coefficients, axis=(1, 2))
    masks = coefficients[0].size
    return Storage(
        coefficients.size,
        int(nonzeros.sum()),
        int((-(masks + nonzeros) % 8).sum()),
        8 * bases.size,
        SCALE_BITS * len(coefficients),
    )


def dense_bits(shape: ConvolutionShape, bits: int = 8) -> int:
    """Bits of the plain weight; 32-bit floats have no scales."""
    return bits * shape.parameters + (SCALE_BITS * shape.outputs if bits < 32 else 0)


def entropy_bits(coefficients: Array) -> float:
    """Least bits in which a code without memory could store the coefficients (Shannon): their number times
    the entropy of -1, 0 and 1."""
    counts = np.unique(np.asarray(coefficients), return_counts=True)[1]
    return float(sum(count * log2(coefficients.size / count) for count in counts.tolist()))
