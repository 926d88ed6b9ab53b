"""Reading map values of the IR."""

from __future__ import annotations

from escc.backend_sim.lowering.layers import Operand, RowRule, Shape
from escc.errors import EsccError
from escc.ir.base import LayerOp, describe, map_shape
from escc.ir.types import MapType
from escc.ir.xdsl import SSAValue


def map_type(value: SSAValue, where: LayerOp) -> MapType:
    """The type of a value that must be a quantised map.

    Raises:
        EsccError: it is not one.
    """
    kind = value.type
    if not isinstance(kind, MapType):
        raise EsccError(f"a value is {kind}, not an !escalate.map", where=describe(where))
    return kind


def shape_of(value: SSAValue) -> Shape:
    """(H, W, C) of a map."""
    height, width, channels = map_shape(value)
    return height, width, channels


def operand_of(value: SSAValue, rule: RowRule, where: LayerOp) -> Operand:
    """An input map as an operand.

    Raises:
        EsccError: the value is not a quantised map.
    """
    return Operand(value, shape_of(value), map_type(value, where).signed, rule)
