"""What the float passes share: the arrays of convolutions, and who uses a value."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from escc.ir.base import LayerOp, Symbol, module_path
from escc.ir.module import Module
from escc.ir.xdsl import Operation, SSAValue
from escc.passes.math.basis import reconstruct

Array = NDArray[Any]

ORIGINAL_WEIGHT = "original_weight"
"""Discardable attribute of a compressed layer: the weight (K, C/groups, R, S) it had before."""


def stored(module: Module, op: LayerOp, name: str) -> Array | None:
    """The array a symbol property refers to, or None."""
    symbol = op.symbol(name)
    return None if symbol is None else module.store[symbol]


def needed(module: Module, op: LayerOp, name: str) -> Array:
    """The array of a symbol property that must be there."""
    return module.store[op.weight_name(name)]


def keep_array(module: Module, op: LayerOp, suffix: str, array: Array) -> Symbol:
    """Store ``array`` as ``<module path>.<suffix>``; floats become float32."""
    path = module_path(op) or op.name
    kept = array.astype(np.float32) if np.issubdtype(array.dtype, np.floating) else array
    return Symbol(module.store.add(f"{path}.{suffix}", kept))


def set_array(module: Module, op: LayerOp, name: str, suffix: str, array: Array) -> None:
    """Make the symbol property ``name`` refer to a new array."""
    op.set_value(name, keep_array(module, op, suffix, array))


def dense_weight(module: Module, op: LayerOp) -> Array:
    """The weight (K, C/groups, R, S) of nn.conv2d or escalate.decomposed_conv2d, float64."""
    if op.symbol("weight") is not None:
        return needed(module, op, "weight").astype(np.float64)
    bases = needed(module, op, "bases").astype(np.float64)
    return reconstruct(bases, needed(module, op, "coefficients"), needed(module, op, "scale"))


def users(value: SSAValue) -> list[Operation]:
    """The operations that use a value, once per use (the return of ``@main`` is one)."""
    return [use.operation for use in value.uses]


def producer(value: SSAValue) -> LayerOp | None:
    """The operation that makes a value; None for an input of the network."""
    return value.owner if isinstance(value.owner, LayerOp) else None
