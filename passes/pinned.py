"""Which 8-bit scales of a float network are still open, and which training has pinned."""

from __future__ import annotations

from escc.ir.activations import clamp_limits
from escc.ir.base import LayerOp
from escc.ir.module import Module
from escc.ir.pins import KEEPS_SCALE, input_pin, pin_of, pre_pin_of
from escc.passes.signs import activation_of


def fully_pinned(module: Module) -> bool:
    """Whether every scale of a fused float network is pinned."""
    inputs = (input_pin(module, index) for index in range(len(module.inputs)))
    return all(pin is not None for pin in inputs) and all(
        (op.name in KEEPS_SCALE or pin_of(op) is not None)
        and not (has_table_input(op) and pre_pin_of(op) is None)
        for op in module.layers
    )


def has_table_input(op: LayerOp) -> bool:
    """Whether a fused activation reads 8 bits of its own (a clamp acts on the sums)."""
    kind, arguments = activation_of(op)
    return kind is not None and clamp_limits(kind, arguments) is None and op.name != "nn.activation"
