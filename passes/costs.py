"""Costs of a float network's convolutions, layer by layer: what compression saved."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from escc.ir.base import LayerOp, map_shape, module_path
from escc.ir.escalate import DecomposedConv2d
from escc.ir.module import Module
from escc.ir.nn import ConvolutionLike
from escc.passes.convolutions import needed
from escc.passes.math.accounting import (
    ConvolutionShape,
    Operations,
    combine_first,
    convolve_first,
    decomposed_storage,
    dense_bits,
    entropy_bits,
)


@dataclass(frozen=True)
class LayerCost:
    """One convolution.

    Attributes:
        name: module path.
        shape: its sizes.
        bases: M, 0 for a dense layer.
        density: share of non-zero coefficients (1 for a dense layer).
        bits: stored: int8 weights when dense, streams when ternary, 32-bit floats for real coefficients.
        entropy_bits: bound for the coefficients, with bases and scales as stored; ``bits`` where not ternary.
        combine_first, convolve_first: operations in either order; the plain ones for a dense layer.
    """

    name: str
    shape: ConvolutionShape
    bases: int
    density: float
    bits: int
    entropy_bits: float
    combine_first: Operations
    convolve_first: Operations


def layer_costs(module: Module) -> list[LayerCost]:
    """The convolutions of a module of the float levels, in order."""
    return [_cost(module, op) for op in module.layers if isinstance(op, ConvolutionLike)]


def _cost(module: Module, op: LayerOp) -> LayerCost:
    rows, columns = op.ints("kernel")
    input_height, input_width, channels = map_shape(op.x)
    height, width, outputs = map_shape(op.out)
    groups = int(op.value("groups"))
    shape = ConvolutionShape(
        outputs, channels // groups, groups, (rows, columns), (input_height, input_width), (height, width)
    )
    if not isinstance(op, DecomposedConv2d):
        plain, bits = Operations(shape.dense_macs, 0), dense_bits(shape)
        return LayerCost(module_path(op), shape, 0, 1.0, bits, float(bits), plain, plain)
    bases, coefficients = needed(module, op, "bases"), needed(module, op, "coefficients")
    nonzeros = int(np.count_nonzero(coefficients))
    storage = decomposed_storage(bases, coefficients)
    bits, bound = storage.bits, storage.bases + storage.scales + entropy_bits(coefficients)
    if coefficients.dtype != np.int8:
        bits = 32 * (bases.size + coefficients.size + len(coefficients))
        bound = float(bits)
    return LayerCost(
        module_path(op),
        shape,
        len(bases),
        nonzeros / coefficients.size,
        bits,
        bound,
        combine_first(shape, len(bases), nonzeros),
        convolve_first(shape, len(bases), nonzeros),
    )
