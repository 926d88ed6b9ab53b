"""What a convolution costs: bits as stored, and operations in either order of the decomposed form.

One multiplication with its addition is one MAC; batch norm is folded and biases cost the same in every form:
both left out. Counts are for one image. Sizes follow the operand streams of the machine: plain or two-level
masks of the coefficients and a sign bit per non-zero, each output's row padded to whole bytes; int8 bases; a
32-bit multiplier and an 8-bit shift per output channel as its scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SCALE_BITS = 40
FLOAT_BITS = 32
TWO_LEVEL_PLANES = 64
"""Most bases of a stream with two-level masks."""


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

    @property
    def kind(self) -> str:
        """``fully-connected`` (the kernel is the whole map), ``pointwise`` (1x1) or ``spatial``.

        The frontend makes a convolution of every linear layer, with a kernel that covers its map.
        """
        if self.kernel == self.input_size and self.output_size == (1, 1):
            return "fully-connected"
        return "pointwise" if self.kernel == (1, 1) else "spatial"


@dataclass(frozen=True)
class Operations:
    """Work of one layer: multiply-accumulates, and additions of the linear combinations."""

    macs: int
    adds: int

    @property
    def total(self) -> int:
        """Both, an addition counted like a MAC: what papers compare with the dense MACs."""
        return self.macs + self.adds

    def __add__(self, other: Operations) -> Operations:
        return Operations(self.macs + other.macs, self.adds + other.adds)


def convolve_first(
    shape: ConvolutionShape, bases: int, nonzeros: int, planes: int | None = None
) -> Operations:
    """PENNI's order: input channels are convolved with bases, then one operation per non-zero coefficient
    and output position.

    Args:
        shape: of the layer.
        bases: M.
        nonzeros: non-zero coefficients.
        planes: (input channel, basis) pairs that are convolved: :func:`used_planes`. None charges all of
            them, as PENNI's public code does.
    """
    positions = prod(shape.output_size)
    convolved = shape.inputs * shape.groups * bases if planes is None else planes
    return Operations(positions * convolved * prod(shape.kernel), positions * nonzeros)


def combine_first(
    shape: ConvolutionShape, bases: int, nonzeros: int, intermediates: int | None = None
) -> Operations:
    """ESCALATE's order: one addition per non-zero coefficient and input position, then one convolution per
    output channel and basis.

    With a stride the combination still runs at the input's resolution.

    Args:
        shape: of the layer.
        bases: M.
        nonzeros: non-zero coefficients.
        intermediates: (output channel, basis) pairs that are convolved: :func:`used_intermediates`, since
            the machine's multipliers skip combinations of nothing. None charges all of them.
    """
    convolved = shape.outputs * bases if intermediates is None else intermediates
    macs = prod(shape.output_size) * convolved * prod(shape.kernel)
    return Operations(macs, prod(shape.input_size) * nonzeros)


def used_planes(coefficients: Array, groups: int = 1) -> int:
    """(input channel, basis) pairs that some output uses, of coefficients (K, C/groups, M)."""
    grouped = coefficients.reshape(groups, -1, *coefficients.shape[1:])
    return int(np.count_nonzero((grouped != 0).any(axis=1)))


def used_intermediates(coefficients: Array) -> int:
    """(output channel, basis) pairs that combine any input channel, of coefficients (K, C/groups, M)."""
    return int(np.count_nonzero(any_along(coefficients != 0, 1)))


def any_along(values: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    """``values.any(axis)`` by halves: of long rows in memory where the last axis is short."""
    whole, order = np.moveaxis(values, axis, 0), "C" if axis == values.ndim - 1 else "K"
    while len(whole) > 1:
        half = -(-len(whole) // 2)
        folded = whole[:half].copy(order=order)
        folded[: len(whole) - half] |= whole[half:]
        whole = folded
    return whole[0]


@dataclass(frozen=True)
class Storage:
    """Bits of one layer's weight.

    Attributes:
        masks: which coefficients are not zero.
        values: signs of the non-zero ones; their values where they are real, all weights of a dense layer.
        padding: what fills each output's row to whole bytes.
        bases: kernels.
        scales: what multiplies an output channel.
    """

    masks: int
    values: int
    padding: int
    bases: int
    scales: int

    @property
    def bits(self) -> int:
        """All of them."""
        return self.masks + self.values + self.padding + self.bases + self.scales


def decomposed_storage(bases: Array, coefficients: Array) -> Storage:
    """Bits of bases (M, R, S) as int8 and ternary coefficients (K, C/groups, M) as mask and sign stream.

    Masks have a bit for each coefficient; or, where that takes fewer bytes, one for each channel and M for
    each channel that has any coefficient.
    """
    outputs, channels, planes = coefficients.shape
    used = coefficients != 0
    nonzeros = np.count_nonzero(used, axis=(1, 2))
    plain = np.full(outputs, channels * planes)
    two_level = channels + planes * np.count_nonzero(any_along(used, 2), axis=1)
    masks = min(plain, two_level, key=lambda bits: int((-(-(bits + nonzeros) // 8)).sum()))
    if planes > TWO_LEVEL_PLANES:
        masks = plain
    return Storage(
        int(masks.sum()),
        int(nonzeros.sum()),
        int((-(masks + nonzeros) % 8).sum()),
        8 * bases.size,
        SCALE_BITS * outputs,
    )


def float_storage(values: Array, bases: int = 0) -> Storage:
    """Bits of 32-bit floats: a mask and the non-zero ones, or all of them where that is less.

    Args:
        values: weights, or real coefficients (their scale is multiplied in).
        bases: values of the basis kernels.
    """
    nonzeros = int(np.count_nonzero(values))
    sparse = values.size + FLOAT_BITS * nonzeros < FLOAT_BITS * values.size
    masks, kept = (values.size, nonzeros) if sparse else (0, values.size)
    return Storage(masks, FLOAT_BITS * kept, 0, FLOAT_BITS * bases, 0)


def dense_storage(shape: ConvolutionShape) -> Storage:
    """Bits of the plain weight in int8."""
    return Storage(0, 8 * shape.parameters, 0, 0, SCALE_BITS * shape.outputs)


def entropy_bits(coefficients: Array) -> float:
    """Least bits in which a code without memory could store the coefficients (Shannon): their number times
    the entropy of -1, 0 and 1."""
    counts = [np.count_nonzero(coefficients == value) for value in (-1, 0, 1)]
    return float(sum(count * log2(coefficients.size / count) for count in counts if count))
