"""Quantisation of pooling."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from escc.ir import escalate
from escc.ir.base import LayerOp, Symbol, map_shape
from escc.ir.types import MapType
from escc.passes.quantize.rules import Quantizer, operand_type, rule


@rule("nn.max_pool")
def max_pool(state: Quantizer, op: LayerOp) -> LayerOp:
    """The largest integer of a window: scale and signedness stay."""
    x = operand_type(op)
    result = MapType.of(map_shape(op.out), x.signed, x.scale_value)
    return escalate.MaxPool.make(
        list(op.operands),
        result,
        kernel=op.ints("kernel"),
        stride=op.ints("stride"),
        padding=op.ints("padding"),
    )


@rule("nn.avg_pool")
def avg_pool(state: Quantizer, op: LayerOp) -> LayerOp:
    """Window sum times 1/count; one divisor for each count that occurs at the borders."""
    shape, out = map_shape(op.x), map_shape(op.out)
    kernel, stride, padding = op.ints("kernel"), op.ints("stride"), op.ints("padding")
    sides: list[set[int]] = []
    for axis in (0, 1):
        starts = [index * stride[axis] - padding[axis] for index in range(out[axis])]
        inside = {min(start + kernel[axis], shape[axis]) - max(start, 0) for start in starts}
        sides.append({kernel[axis]} if op.value("count_include_pad") else inside)
    result = state.result_type(op)
    return escalate.AvgPool.make(
        list(op.operands),
        result,
        divisors=_divisors(state, op, result, sides),
        kernel=kernel,
        stride=stride,
        padding=padding,
        count_include_pad=bool(op.value("count_include_pad")),
    )


@rule("nn.adaptive_avg_pool")
def adaptive_avg_pool(state: Quantizer, op: LayerOp) -> LayerOp:
    """Window sum times 1/count over windows floor(i*H/O) .. ceil((i+1)*H/O)."""
    shape, size = map_shape(op.x), op.ints("size")
    sides = [_adaptive_lengths(shape[axis], size[axis]) for axis in (0, 1)]
    result = state.result_type(op)
    return escalate.AdaptiveAvgPool.make(
        list(op.operands), result, divisors=_divisors(state, op, result, sides), size=size
    )


def _adaptive_lengths(length: int, count: int) -> set[int]:
    """The sizes that the windows of adaptive pooling have along one axis."""
    return {-(-(i + 1) * length // count) - i * length // count for i in range(count)}


def _divisors(state: Quantizer, op: LayerOp, result: MapType, sides: Iterable[set[int]]) -> Symbol:
    """Records (count, multiplier, shift) for every product of window sides, by growing count."""
    rows, columns = sides
    ratio = operand_type(op).scale_value / result.scale_value
    counts = sorted({height * width for height in rows for width in columns})
    records = [(count, *state.factor(op, ratio / count)) for count in counts]
    return state.add_array(op, "divisors", np.array(records, np.int32))
