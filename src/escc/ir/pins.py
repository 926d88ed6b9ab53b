"""Pinned scales: where training has fixed the 8-bit scale of a map.

A map with a pin is rounded as ``escc::fake_quantize`` rounds: clamp(round(x / scale), limits) * scale, halves
away from zero, where it is made. An operation carries the pin of its result (behind its residual and its
activation) as the attributes ``pinned_scale`` and ``pinned_signed``, an input as ``escc.pinned_scale`` and
``escc.pinned_signed``. ``pinned_pre_scale`` is a second, signed pin: that of the input of a fused activation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeGuard

from escc.errors import EsccError
from escc.ir.base import LayerOp, describe
from escc.ir.module import Module

SCALE, SIGNED, PRE_SCALE = "pinned_scale", "pinned_signed", "pinned_pre_scale"

TRAINED = "trained"
"""Attribute of a decomposed convolution that came as such: nothing is to be fitted there."""

KEEPS_SCALE = frozenset({"nn.max_pool", "nn.pad"})
"""Operations whose result has the scale of their input: they have no pin of their own."""

GRAPH_NODE = "graph_node"
"""Attribute: name of the node of a captured graph whose value the result is (where training asked for it)."""


@dataclass(frozen=True)
class Pin:
    """The 8-bit scale of a map: real value of integer 1, and int8 rather than uint8."""

    scale: float
    signed: bool

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest integer."""
        return (-128, 127) if self.signed else (0, 255)

    def describe(self) -> str:
        """``0.0125 signed``."""
        return f"{self.scale:.6g} {'signed' if self.signed else 'unsigned'}"


def is_scale(value: object) -> TypeGuard[float]:
    """Whether a value can be a scale: a finite number above zero."""
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def pin_of(op: LayerOp) -> Pin | None:
    """The pin of an operation's result.

    Raises:
        EsccError: half a pin, or a scale that is not a positive number.
    """
    return _pin(op.value(SCALE), op.value(SIGNED), describe(op))


def set_pin(op: LayerOp, pin: Pin | None) -> None:
    """Pin an operation's result; None takes its pin away."""
    op.set_value(SCALE, None if pin is None else pin.scale)
    op.set_value(SIGNED, None if pin is None else pin.signed)


def take_over(new: LayerOp, old: LayerOp) -> None:
    """Note that the result of ``new`` is what that of ``old`` was: its pin, its graph node."""
    set_pin(new, pin_of(old))
    new.set_value(GRAPH_NODE, old.value(GRAPH_NODE))


def pre_pin_of(op: LayerOp) -> Pin | None:
    """The pin of the input of an operation's fused activation, always signed."""
    scale = op.value(PRE_SCALE)
    return None if scale is None else _pin(scale, True, describe(op))


def input_pin(module: Module, index: int) -> Pin | None:
    """The pin of an input of the network."""
    where = f"input '{module.input_ports[index].name}'"
    return _pin(module.input_value(index, SCALE), module.input_value(index, SIGNED), where)


def set_input_pin(module: Module, index: int, pin: Pin) -> None:
    """Pin an input of the network."""
    module.set_input_value(index, SCALE, pin.scale)
    module.set_input_value(index, SIGNED, pin.signed)


def came_trained(module: Module) -> bool:
    """Whether training compressed or quantised the network: a map is pinned, or a layer came decomposed."""
    return any(op.value(TRAINED) or pin_of(op) is not None for op in module.layers) or any(
        input_pin(module, index) is not None for index in range(len(module.inputs))
    )


def _pin(scale: object, signed: object, where: str) -> Pin | None:
    if scale is None and signed is None:
        return None
    if not is_scale(scale) or not isinstance(signed, bool):
        raise EsccError(f"bad pin: {SCALE} {scale}, {SIGNED} {signed}", where=where)
    return Pin(float(scale), signed)
