"""reorder-linear-combination: combine channels first, convolve with few kernels then (ESCALATE, MICRO 2021).

Convolution is linear, so sum_c sum_m T[k, c, m] * (B[m] conv X[c]) equals sum_m B[m] conv Z[k, m] with
Z[k, m] = sum_c T[k, c, m] * X[c]: the combination needs adders only, and no layer has more than M kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

from escc.ir.base import LayerOp, Symbol, map_shape, replace_op
from escc.ir.escalate import Combine, Convolve, QuantizedConv2d, Requantize
from escc.ir.module import Module
from escc.ir.passes import Pass, PassContext
from escc.ir.types import MapType, StreamType, SumsType
from escc.passes.quantize_hybrid import DEFAULT_Z_BITS

_GEOMETRY = ("form", "kernel", "outputs", "stride", "padding", "dilation", "groups")
_FINISH = ("residual_multiplier", "residual_shift", "low", "high")


@dataclass
class ReorderLinearCombination(Pass):
    """Split every quantised convolution into combine (ternary form only), convolve and requantize."""

    name: ClassVar[str] = "reorder-linear-combination"
    requires: ClassVar[frozenset[str]] = frozenset({"quantized"})
    establishes: ClassVar[frozenset[str]] = frozenset({"reordered"})

    def run(self, module: Module, context: PassContext) -> None:
        """Rewrite the module to the level "reordered"."""
        z_bits = context.arch.z_bits if context.arch is not None else DEFAULT_Z_BITS
        for op in module.layers:
            if isinstance(op, QuantizedConv2d):
                replace_op(op, _split(module, op, z_bits))


def _split(module: Module, op: LayerOp, z_bits: int) -> list[LayerOp]:
    new: list[LayerOp] = []
    x = op.x
    if op.value("form") == "ternary":
        name = op.weight_name("coefficients")
        outputs, _, bases = module.store[name].shape
        height, width, _ = map_shape(x)
        stream = StreamType.of((height, width, outputs, bases), z_bits)
        combine = Combine.make(
            [x],
            stream,
            coefficients=Symbol(name),
            outputs=outputs,
            bases=bases,
            groups=int(op.value("groups")),
        )
        new.append(combine)
        x = new[-1].out
    geometry: dict[str, Any] = {item: op.value(item) for item in _GEOMETRY}
    sums = SumsType.of(map_shape(op.out))
    new.append(Convolve.make([x], sums, bases=Symbol(op.weight_name("bases")), **geometry))
    result = cast("MapType", op.out.type)
    new[-1].attributes.update(op.attributes)
    finish: dict[str, Any] = {item: op.value(item) for item in _FINISH}
    table = op.symbol("table")
    new.append(
        Requantize.make(
            [new[-1].out, *op.operands[1:]],
            result,
            requant=Symbol(op.weight_name("requant")),
            table=Symbol(table) if table else None,
            **finish,
        )
    )
    return new
