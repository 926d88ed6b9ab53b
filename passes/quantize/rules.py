"""What the quantisation rules share: their table, scales of results, factors, clamps and lookup tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from escc.errors import EsccError
from escc.ir.activations import ACTIVATIONS, clamp_limits
from escc.ir.base import LayerOp, Symbol, describe, map_shape, module_path
from escc.ir.module import Module
from escc.ir.pins import pin_of, pre_pin_of
from escc.ir.types import MapType
from escc.ir.xdsl import SSAValue
from escc.passes.math.fixed_point import byte_values, fixed_point, integer_dtype, limits, round_half_away
from escc.passes.math.ranges import map_scale
from escc.passes.signs import activation_of


@dataclass(frozen=True)
class Finish:
    """How an operation ends: sums in steps of ``scale`` are clamped to [low, high] or go through a table."""

    scale: float
    low: int
    high: int
    table: Symbol | None


@dataclass
class Quantizer:
    """State of one run of quantize-hybrid.

    Attributes:
        module: the network; operations before the current one are integer already.
        unsigned: float values that are never negative.
        z_bits: width of an intermediate sum of the machine.
        dense_planes: write 1x1 int8 layers as ternary planes.
    """

    module: Module
    unsigned: set[SSAValue]
    z_bits: int
    dense_planes: bool = False

    def array(self, op: LayerOp, name: str) -> NDArray[np.float64] | None:
        """A weight array in double precision; None when the operation has none."""
        symbol = op.symbol(name)
        return None if symbol is None else self.module.store[symbol].astype(np.float64)

    def needed_array(self, op: LayerOp, name: str) -> NDArray[np.float64]:
        """A weight array that must be there."""
        return self.module.store[op.weight_name(name)].astype(np.float64)

    def add_array(self, op: LayerOp, suffix: str, array: NDArray[Any]) -> Symbol:
        """Store an array under ``<layer's path>.<suffix>``."""
        path = module_path(op) or op.name
        return Symbol(self.module.store.add(f"{path}.{suffix}", array))

    def result_type(self, op: LayerOp) -> MapType:
        """The integer map of a result: as pinned, else unsigned when never negative, scale from its range."""
        pin = pin_of(op)
        if pin is not None:
            return MapType.of(map_shape(op.out), pin.signed, pin.scale)
        signed = op.out not in self.unsigned
        low, high = _range(op, "range")
        return MapType.of(map_shape(op.out), signed, map_scale(low, high, signed))

    def finish(self, op: LayerOp, result: MapType) -> Finish:
        """The end of an operation that may have a fused activation."""
        kind, arguments = activation_of(op)
        smallest, largest = result.limits
        if kind is None:
            return Finish(result.scale_value, smallest, largest, None)
        clamp = clamp_limits(kind, arguments)
        if clamp is None:
            pin = pre_pin_of(op)
            scale = pin.scale if pin is not None else map_scale(*_range(op, "pre_range"), signed=True)
            return Finish(scale, smallest, largest, self.table(op, scale, True, result))
        low, high = (
            int(np.clip(round_half_away(np.clip(bound / result.scale_value, -1e9, 1e9)), smallest, largest))
            for bound in clamp
        )
        return Finish(result.scale_value, low, high, None)

    def table(self, op: LayerOp, scale: float, signed: bool, result: MapType) -> Symbol:
        """The 256 entries of the operation's activation, for bytes that stand for values of this scale."""
        kind, arguments = activation_of(op)
        if kind is None:
            raise EsccError("has no activation", where=describe(op))
        real = ACTIVATIONS[kind].function(byte_values(signed) * scale, *arguments)
        entries = np.clip(round_half_away(real / result.scale_value), *limits(result.signed))
        return self.add_array(op, "table", entries.astype(integer_dtype(result.signed)))

    def factor(self, op: LayerOp, value: float) -> tuple[int, int]:
        """Multiplier and shift of a real factor, or an error that names the layer."""
        try:
            return fixed_point(value)
        except ValueError as error:
            raise EsccError(
                f"scales too far apart: {error}", where=describe(op), hint="check the calibration images"
            ) from None


def operand_type(op: LayerOp, index: int = 0) -> MapType:
    """The integer type of an operand (its producer is quantised already)."""
    kind = op.operands[index].type
    if not isinstance(kind, MapType):
        raise EsccError(f"operand {index} is not quantised: {kind}", where=describe(op))
    return kind


def _range(op: LayerOp, name: str) -> tuple[float, float]:
    span = op.floats(name)
    if len(span) != 2 or not all(np.isfinite(span)) or span[0] > span[1]:
        found = f"an unusable {name} {list(span)}" if span else f"no calibrated {name}"
        raise EsccError(f"has {found}", where=describe(op), hint="run calibrate again")
    return span[0], span[1]


Rule = Callable[[Quantizer, LayerOp], LayerOp]
"""Builds the integer operation for a float operation whose operands are integer already."""

RULES: dict[str, Rule] = {}


def rule(name: str) -> Callable[[Rule], Rule]:
    """Register the rule of a float operation."""

    def register(function: Rule) -> Rule:
        RULES[name] = function
        return function

    return register
