"""quantize-hybrid: the float network becomes an integer one, layer by layer in the form that fits it.

Compressed layers keep ternary coefficients and int8 bases, everything else gets 8-bit weights; activations
are 8 bits with zero-point 0. One rule per float operation lives in ``escc.passes.quantize``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from escc.errors import EsccError
from escc.ir.base import describe, map_shape, replace_op
from escc.ir.module import Module
from escc.ir.passes import Pass, PassContext
from escc.ir.pins import PRE_SCALE, SCALE, SIGNED, input_pin
from escc.ir.types import MapType
from escc.passes.convolutions import ORIGINAL_WEIGHT
from escc.passes.math.ranges import map_scale
from escc.passes.quantize import convolution, elementwise, pooling
from escc.passes.quantize.rules import RULES, Quantizer
from escc.passes.signs import non_negative_values

FAMILIES = (convolution, elementwise, pooling)
"""Modules whose import registers the rules."""

DEFAULT_Z_BITS = 20

CONSUMED = frozenset({"range", "pre_range", ORIGINAL_WEIGHT, SCALE, SIGNED, PRE_SCALE})
"""Attributes of float operations that end here; what other passes noted (densities, errors) stays."""


@dataclass
class QuantizeHybrid(Pass):
    """Turn every float operation into its integer form.

    Options:
        dense_planes: write 1x1 int8 layers losslessly as five ternary planes (weights in [-121, 121]).
    """

    name: ClassVar[str] = "quantize-hybrid"
    requires: ClassVar[frozenset[str]] = frozenset({"fused", "calibrated"})
    establishes: ClassVar[frozenset[str]] = frozenset({"quantized"})

    dense_planes: bool = False

    def run(self, module: Module, context: PassContext) -> None:
        """Rewrite the module to the level "quantized".

        Raises:
            EsccError: an operation without calibrated range or rule; a sum that may overflow.
        """
        z_bits = context.arch.z_bits if context.arch is not None else DEFAULT_Z_BITS
        state = Quantizer(module, non_negative_values(module), z_bits, self.dense_planes)
        layers = list(module.layers)
        _quantize_inputs(module, state)
        for index, op in enumerate(layers):
            context.progress(self.name, index, len(layers))
            if op.name not in RULES:
                raise EsccError("has no integer form", where=describe(op))
            new = RULES[op.name](state, op)
            new.attributes.update({key: op.attributes[key] for key in op.attributes.keys() - CONSUMED})
            replace_op(op, [new])
        context.progress(self.name, len(layers), len(layers))
        module.drop_unused_arrays()


def _quantize_inputs(module: Module, state: Quantizer) -> None:
    """Give every input the type of an 8-bit map, unsigned when its calibrated range is not negative; a pin
    decides both."""
    for index, (value, port) in enumerate(zip(module.inputs, module.input_ports, strict=True)):
        pin, span = input_pin(module, index), module.input_value(index, "range")
        if pin is None and span is None:
            raise EsccError(
                "has no calibrated range", where=f"input '{port.name}'", hint="run calibrate first"
            )
        signed = value not in state.unsigned
        scale = pin.scale if pin is not None else map_scale(span[0], span[1], signed)
        kind = MapType.of(map_shape(value), signed, scale)
        replacement = module.body.insert_arg(kind, index)
        value.replace_all_uses_with(replacement)
        module.body.erase_arg(value)
