"""split-channels: a map that a depthwise convolution reads is made and read in slices that fit on the chip.

A depthwise convolution keeps channels apart, so that it and the convolution in front of it can be done for
some channels after the other. The expanded map between them is the largest of an inverted residual (Sandler
et al., MobileNetV2, CVPR 2018): in slices it need not go through DRAM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from escc.ir.base import LayerOp, Symbol, map_shape, replace_op
from escc.ir.escalate import Concat, QuantizedConv2d
from escc.ir.module import Module
from escc.ir.passes import Pass, PassContext
from escc.ir.types import MapType
from escc.isa.arch import Arch
from escc.passes.convolutions import keep_array, needed, users

SPARE = 1 / 64
"""Share of the SRAM that is left for weights."""
_GEOMETRY = ("form", "kernel", "stride", "padding", "dilation", "low", "high")


@dataclass
class SplitChannels(Pass):
    """Cut a convolution and the depthwise one behind it by channels where the map between does not fit."""

    name: ClassVar[str] = "split-channels"
    requires: ClassVar[frozenset[str]] = frozenset({"quantized"})

    def run(self, module: Module, context: PassContext) -> None:
        """Rewrite the module at the level "quantized"; what it computes stays the same."""
        if context.arch is None:
            return
        for op in module.layers:
            first = (
                op.x.owner if isinstance(op, QuantizedConv2d) and op.value("form") == "depthwise" else None
            )
            if not isinstance(first, QuantizedConv2d) or len(users(first.out)) != 1:
                continue
            if first.value("groups") != 1 or len(first.operands) > 1 or len(op.operands) > 1:
                continue
            size = slice_of(context.arch, map_shape(first.x), map_shape(op.x), map_shape(op.out))
            if size:
                _split(module, first, op, size)


def slice_of(arch: Arch, x: tuple[int, ...], middle: tuple[int, ...], result: tuple[int, ...]) -> int | None:
    """Channels of a slice: as many groups of rows of the array as fit. None to leave the layers whole.

    They stay whole when the map between fits beside its neighbour on either side, and when not even a slice
    would: with the input and the results so far, and with the results put together.
    """
    room = int(arch.sram_bytes * (1 - SPARE))
    if max(_bytes(x), _bytes(result)) + _bytes(middle) <= room or result[2] != middle[2]:
        return None
    if 2 * _bytes(result) > room:
        return None
    height, width, channels = middle
    for size in range(channels // arch.rows * arch.rows, 0, -arch.rows):
        if size < channels and _bytes(x) + _bytes((height, width, size)) + _bytes(result) <= room:
            return size
    return None


def _bytes(shape: tuple[int, ...]) -> int:
    """SRAM bytes of a map: a value and a mask bit for every channel."""
    height, width, channels = shape
    return height * width * (channels + -(-channels // 8))


def _split(module: Module, first: LayerOp, second: LayerOp, size: int) -> None:
    channels = map_shape(second.x)[2]
    new: list[LayerOp] = []
    parts: list[Any] = []
    for low in range(0, channels, size):
        high = min(low + size, channels)
        for op in (first, second):
            source = first.x if op is first else new[-1].out
            new.append(_slice(module, op, source, low, high))
        parts.append(new[-1].out)
    kind = second.out.type
    assert isinstance(kind, MapType)
    smallest, largest = kind.limits
    copied = keep_array(module, second, "copied", np.zeros((len(parts), 2), np.int32))
    new.append(Concat.make(parts, kind, rescale=copied, low=smallest, high=largest))
    new[-1].attributes.update(second.attributes)
    replace_op(second, new)
    first.detach()
    first.erase()


def _slice(module: Module, op: LayerOp, x: Any, low: int, high: int) -> LayerOp:
    """The convolution for its outputs ``low`` .. ``high - 1``."""
    suffix = f"{low}_{high}"

    def cut(name: str) -> Symbol:
        return keep_array(module, op, f"{name}_{suffix}", needed(module, op, name)[low:high])

    depthwise = op.value("form") == "depthwise"
    ternary = op.symbol("coefficients") is not None
    kind = op.out.type
    assert isinstance(kind, MapType)
    height, width, _ = map_shape(op.out)
    table = op.symbol("table")
    values: dict[str, Any] = {name: op.value(name) for name in _GEOMETRY}
    made = QuantizedConv2d.make(
        [x],
        MapType.of((height, width, high - low), kind.signed, kind.scale_value),
        bases=Symbol(op.weight_name("bases")) if ternary else cut("bases"),
        coefficients=cut("coefficients") if ternary else None,
        requant=cut("requant"),
        outputs=high - low,
        groups=high - low if depthwise else 1,
        table=Symbol(table) if table else None,
        **values,
    )
    made.attributes.update(op.attributes)
    made.location = op.location
    return made
