"""Costs of a float network's convolutions, layer by layer and in all: what compression saved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from escc.ir.base import LayerOp, map_shape, module_path
from escc.ir.escalate import DecomposedConv2d
from escc.ir.module import Module
from escc.ir.nn import ConvolutionLike
from escc.passes.convolutions import needed
from escc.passes.math.accounting import (
    ConvolutionShape,
    Operations,
    Storage,
    combine_first,
    convolve_first,
    decomposed_storage,
    dense_storage,
    entropy_bits,
    float_storage,
    used_intermediates,
    used_planes,
)


@dataclass(frozen=True)
class LayerCost:
    """One convolution or linear layer.

    Attributes:
        name: module path.
        shape: its sizes.
        kind: ``spatial``, ``pointwise`` or ``fully-connected``.
        bases: M, 0 for a dense layer.
        density: share of non-zero coefficients; of non-zero weights for a dense layer.
        storage: int8 weights when dense, streams when ternary, sparse 32-bit floats for real coefficients.
        bits: all of ``storage``.
        entropy_bits: bound for the coefficients, with bases and scales as stored; ``bits`` where not ternary.
        combine_first: as the machine runs: combinations of nothing are not convolved.
        convolve_first: as PENNI's code counts: planes nobody uses are convolved too; a dense 1x1 layer costs
            an operation per non-zero weight, like one with a single basis.
        convolve_first_used: the same, charging used planes only.
    """

    name: str
    shape: ConvolutionShape
    kind: str
    bases: int
    density: float
    storage: Storage
    bits: int
    entropy_bits: float
    combine_first: Operations
    convolve_first: Operations
    convolve_first_used: Operations


@dataclass(frozen=True)
class NetworkCost:
    """Sums over layers; fields as in :class:`LayerCost`."""

    layers: int
    parameters: int
    dense_macs: int
    bits: int
    entropy_bits: float
    combine_first: Operations
    convolve_first: Operations
    convolve_first_used: Operations


def network_cost(costs: Iterable[LayerCost], *, classifier: bool = True) -> NetworkCost:
    """The sums of layers, with or without the fully connected ones (papers differ)."""
    chosen = [cost for cost in costs if classifier or cost.kind != "fully-connected"]
    none = Operations(0, 0)
    return NetworkCost(
        len(chosen),
        sum(cost.shape.parameters for cost in chosen),
        sum(cost.shape.dense_macs for cost in chosen),
        sum(cost.bits for cost in chosen),
        sum(cost.entropy_bits for cost in chosen),
        sum((cost.combine_first for cost in chosen), none),
        sum((cost.convolve_first for cost in chosen), none),
        sum((cost.convolve_first_used for cost in chosen), none),
    )


def bits_per_weight(costs: Sequence[LayerCost], original: Sequence[LayerCost]) -> float | None:
    """Stored bits of the decomposed layers over the weights these layers had in the original network.

    Channels removed since then count as weights that take no bits. None without decomposed layers.
    """
    weights = {cost.name: cost.shape.parameters for cost in original}
    decomposed = [cost for cost in costs if cost.bases]
    if not decomposed:
        return None
    return sum(cost.bits for cost in decomposed) / sum(weights[cost.name] for cost in decomposed)


def layer_costs(module: Module, *, floats: bool = False) -> list[LayerCost]:
    """The convolutions of a module of the float levels, in order.

    Args:
        module: a network of ``nn`` operations and ``escalate.decomposed_conv2d``.
        floats: sizes of dense layers as 32-bit floats, not as the int8 the compiler makes of them.
    """
    return [_cost(module, op, floats) for op in module.layers if isinstance(op, ConvolutionLike)]


def _cost(module: Module, op: LayerOp, floats: bool) -> LayerCost:
    rows, columns = op.ints("kernel")
    input_height, input_width, channels = map_shape(op.x)
    height, width, outputs = map_shape(op.out)
    groups = int(op.value("groups"))
    shape = ConvolutionShape(
        outputs, channels // groups, groups, (rows, columns), (input_height, input_width), (height, width)
    )
    if not isinstance(op, DecomposedConv2d):
        weight = needed(module, op, "weight")
        storage = float_storage(weight) if floats else dense_storage(shape)
        return _dense(module_path(op), shape, int(np.count_nonzero(weight)), storage)
    bases, coefficients = needed(module, op, "bases"), needed(module, op, "coefficients")
    nonzeros = int(np.count_nonzero(coefficients))
    if coefficients.dtype == np.int8:
        storage = decomposed_storage(bases, coefficients)
        bound = storage.bases + storage.scales + entropy_bits(coefficients)
    else:
        storage = float_storage(coefficients, bases.size)
        bound = float(storage.bits)
    return LayerCost(
        module_path(op),
        shape,
        shape.kind,
        len(bases),
        nonzeros / coefficients.size,
        storage,
        storage.bits,
        bound,
        combine_first(shape, len(bases), nonzeros, used_intermediates(coefficients)),
        convolve_first(shape, len(bases), nonzeros),
        convolve_first(shape, len(bases), nonzeros, used_planes(coefficients, groups)),
    )


def _dense(name: str, shape: ConvolutionShape, nonzeros: int, storage: Storage) -> LayerCost:
    plain = Operations(shape.dense_macs, 0)
    penni = Operations(prod(shape.output_size) * nonzeros, 0) if shape.kind == "pointwise" else plain
    density = nonzeros / shape.parameters
    return LayerCost(
        name, shape, shape.kind, 0, density, storage, storage.bits, float(storage.bits), plain, penni, penni
    )


def if_decomposed(cost: LayerCost, bases: int, density: float = 1.0) -> LayerCost:
    """What a dense layer would cost with ``bases`` ternary bases and a share ``density`` of its coefficients.

    The published references count like this: every spatial kernel is decomposed, the first layer's too; 1x1
    layers are not, but lose the same share of their weights; linear and depthwise layers stay as they are. A
    plane and a combination count as used as long as there are any coefficients.
    """
    shape = cost.shape
    if cost.bases or cost.kind == "fully-connected" or (shape.inputs == 1 and shape.groups > 1):
        return cost
    if cost.kind == "pointwise":
        return _dense(cost.name, shape, round(density * shape.parameters), cost.storage)
    coefficients = shape.outputs * shape.inputs * bases
    nonzeros = round(density * coefficients)
    stored = dense_storage(shape)
    storage = Storage(coefficients, nonzeros, 0, 8 * bases * prod(shape.kernel), stored.scales)
    share = [part for part in (1 - density, density / 2, density / 2) if part > 0]
    entropy = -coefficients * sum(part * float(np.log2(part)) for part in share)
    convolved = convolve_first(shape, bases, nonzeros)
    return replace(
        cost,
        bases=bases,
        density=density,
        storage=storage,
        bits=storage.bits,
        entropy_bits=storage.bases + storage.scales + entropy,
        combine_first=combine_first(shape, bases, nonzeros),
        convolve_first=convolved,
        convolve_first_used=convolved,
    )
