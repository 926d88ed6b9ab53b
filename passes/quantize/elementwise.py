"""Quantisation of element-wise operations and of those that only move values."""

from __future__ import annotations

import numpy as np

from escc.ir import escalate
from escc.ir.base import LayerOp, map_shape
from escc.ir.types import MapType
from escc.passes.quantize.rules import Quantizer, operand_type, rule


@rule("nn.add")
def add(state: Quantizer, op: LayerOp) -> LayerOp:
    """Both maps are brought to the scale of the sum, then clamp or table."""
    result = state.result_type(op)
    finish = state.finish(op, result)
    a, b = (state.factor(op, operand_type(op, index).scale_value / finish.scale) for index in (0, 1))
    return escalate.Add.make(
        list(op.operands),
        result,
        a_multiplier=a[0],
        a_shift=a[1],
        b_multiplier=b[0],
        b_shift=b[1],
        low=finish.low,
        high=finish.high,
        table=finish.table,
    )


@rule("nn.mul")
def mul(state: Quantizer, op: LayerOp) -> LayerOp:
    """The product of the integers, rescaled once."""
    result = state.result_type(op)
    product = operand_type(op, 0).scale_value * operand_type(op, 1).scale_value
    multiplier, shift = state.factor(op, product / result.scale_value)
    low, high = result.limits
    return escalate.Mul.make(
        list(op.operands), result, multiplier=multiplier, shift=shift, low=low, high=high
    )


@rule("nn.activation")
def activation(state: Quantizer, op: LayerOp) -> LayerOp:
    """A stand-alone activation is a table over the bytes of its input."""
    result, x = state.result_type(op), operand_type(op)
    return escalate.Lookup.make(
        list(op.operands), result, table=state.table(op, x.scale_value, x.signed, result)
    )


@rule("nn.concat")
def concat(state: Quantizer, op: LayerOp) -> LayerOp:
    """Every map is brought to the common scale; one that has it already is copied (multiplier 0, shift 0)."""
    result = state.result_type(op)
    rows: list[tuple[int, int]] = []
    for index in range(len(op.operands)):
        same = operand_type(op, index).scale_value == result.scale_value
        ratio = operand_type(op, index).scale_value / result.scale_value
        rows.append((0, 0) if same else state.factor(op, ratio))
    low, high = result.limits
    rescale = state.add_array(op, "rescale", np.array(rows, np.int32))
    return escalate.Concat.make(list(op.operands), result, rescale=rescale, low=low, high=high)


@rule("nn.pad")
def pad(state: Quantizer, op: LayerOp) -> LayerOp:
    """Zeros are exact in every scale, so the map keeps its own."""
    x = operand_type(op)
    result = MapType.of(map_shape(op.out), x.signed, x.scale_value)
    return escalate.Pad.make(
        list(op.operands), result, padding=op.ints("padding"), channels=op.ints("channels")
    )
