"""fuse-requantize: what the requantisation of a convolution can do on the way joins the convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from escc.ir.activations import clamp_limits
from escc.ir.base import LayerOp, replace_op
from escc.ir.module import Module
from escc.ir.nn import Activation, Add, ConvolutionLike
from escc.ir.passes import Pass, PassContext
from escc.ir.pins import PRE_SCALE, pin_of, take_over
from escc.ir.xdsl import Attribute, Operation, SSAValue
from escc.passes.convolutions import producer


@dataclass
class FuseRequantize(Pass):
    """Fuse additions and activations into the operation before them: y = act(conv(x) + bias + residual).

    Only where nobody else uses what comes between. Of two convolutions that are added the later one takes the
    sum; it moves down to the addition, so that its residual is always there before it. An activation behind
    an addition that found no convolution joins the addition. Other activations stay as they are. What is
    pinned between the two is rounded there, so that only a table, which reads 8 bits anyway, joins it.
    """

    name: ClassVar[str] = "fuse-requantize"
    requires: ClassVar[frozenset[str]] = frozenset({"batch-norm-folded"})
    establishes: ClassVar[frozenset[str]] = frozenset({"fused"})

    def run(self, module: Module, context: PassContext) -> None:
        """Rewrite the module."""
        layers = list(module.layers)
        order: dict[Operation, int] = {op: index for index, op in enumerate(layers)}
        for index, op in enumerate(layers):
            context.progress(self.name, index + 1, len(layers))
            if isinstance(op, Add):
                _fuse_addition(op, order)
            elif isinstance(op, Activation):
                _fuse_activation(op)


def _fuse_addition(add: Add, order: dict[Operation, int]) -> None:
    candidates = [
        (op, other)
        for value, other in (add.operands, tuple(reversed(tuple(add.operands))))
        if (op := _sum_to_extend(value)) is not None
    ]
    if not candidates:
        return
    convolution, residual = max(candidates, key=lambda pair: order[pair[0]])
    fused = type(convolution).make(
        [convolution.x, residual],
        None,
        convolution.location,
        **{**convolution.properties, **_activation_of(add)},
    )
    fused.attributes.update(convolution.attributes)
    take_over(fused, add)
    order[fused] = order[add]
    replace_op(add, [fused])
    convolution.detach()
    convolution.erase()


def _sum_to_extend(value: SSAValue) -> ConvolutionLike | None:
    """The convolution that makes ``value`` for the addition alone and still has room for a residual."""
    op = producer(value)
    if not isinstance(op, ConvolutionLike) or not value.has_one_use():
        return None
    extends = len(op.operands) == 1 and op.value("activation") is None and pin_of(op) is None
    return op if extends else None


def _activation_of(op: LayerOp) -> dict[str, Attribute]:
    return {key: op.properties[key] for key in ("activation", "activation_args") if key in op.properties}


def _fuse_activation(activation: Activation) -> None:
    before = producer(activation.x)
    if not isinstance(before, ConvolutionLike | Add) or not activation.x.has_one_use():
        return
    if before.value("activation") is not None:
        return
    between = pin_of(before)
    if between is not None:
        kind, arguments = str(activation.value("kind")), activation.floats("args")
        if not between.signed or clamp_limits(kind, arguments) is not None:
            return
        before.set_value(PRE_SCALE, between.scale)
    take_over(before, activation)
    before.set_value("activation", activation.properties["kind"])
    if "args" in activation.properties:
        before.set_value("activation_args", activation.properties["args"])
    activation.out.replace_all_uses_with(before.out)
    activation.detach()
    activation.erase()
