"""Which maps of a float network can never be negative, and so fit unsigned integers."""

from __future__ import annotations

from escc.ir.activations import is_non_negative
from escc.ir.base import LayerOp
from escc.ir.module import Module
from escc.ir.pins import input_pin, pin_of
from escc.ir.xdsl import SSAValue

_FOLLOWS_OPERANDS = frozenset(
    f"nn.{name}"
    for name in ("activation", "add", "mul", "max_pool", "avg_pool", "adaptive_avg_pool", "concat", "pad")
)
"""Operations whose result is not negative when no operand is (their activation, if any, keeps the sign)."""


def non_negative_values(module: Module) -> set[SSAValue]:
    """The values of a float module that are never negative, whatever the data.

    Results by the structure of the network, inputs by their calibrated range (they saturate at its end), both
    by their pinned scale where they have one.
    """
    found: set[SSAValue] = set()
    for index, value in enumerate(module.inputs):
        pin, span = input_pin(module, index), module.input_value(index, "range")
        if not pin.signed if pin is not None else span is not None and span[0] >= 0:
            found.add(value)
    for op in module.layers:
        pin = pin_of(op)
        if pin is not None:
            if not pin.signed:
                found.add(op.out)
            continue
        kind, arguments = activation_of(op)
        follows = op.name in _FOLLOWS_OPERANDS and all(value in found for value in op.operands)
        if kind is None:
            positive = follows
        else:
            positive = is_non_negative(kind, arguments) or (
                follows and not (kind == "clamp" and arguments[1] < 0)
            )
        if positive:
            found.add(op.out)
    return found


def activation_of(op: LayerOp) -> tuple[str | None, tuple[float, ...]]:
    """The activation an operation ends with (fused or stand-alone): kind or None, and its numbers."""
    if op.name == "nn.activation":
        return op.value("kind"), op.floats("args")
    return op.value("activation"), op.floats("activation_args")
