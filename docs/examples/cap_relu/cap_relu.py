"""A pass for escc: put a lid on every ReLU."""

from __future__ import annotations

from dataclasses import dataclass

from escc import EsccError, Module, Pass, PassContext


@dataclass
class CapRelu(Pass):
    """Replace relu(x) by clamp(x, 0, high), so that a rare large value does not coarsen the 8-bit scale.

    Before:  %1 = nn.activation %0 kind "relu" : ...
    After:   %1 = nn.activation %0 kind "clamp" args [0.0, 6.0] : ...
    """

    name = "cap-relu"
    invalidates = frozenset({"calibrated"})

    high: float = 6.0

    def run(self, module: Module, context: PassContext) -> None:
        if self.high <= 0:
            raise EsccError(f"high must be positive, not {self.high}", where=self.name)
        if "quantized" in module.facts:
            raise EsccError("needs the float network", where=self.name, hint="put it before quantize-hybrid")
        for op in module.layers:
            # a layer of its own, or already part of the convolution or sum before it
            if op.name == "nn.activation":
                kind, arguments = "kind", "args"
            else:
                kind, arguments = "activation", "activation_args"
            if op.value(kind) == "relu":
                op.set_value(kind, "clamp")
                op.set_value(arguments, (0.0, self.high))
