"""Small float networks written directly in the IR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from escc.ir import nn
from escc.ir.base import LayerOp, Symbol, make_location, map_shape, tensor_type
from escc.ir.escalate import DecomposedConv2d
from escc.ir.module import Module, Port
from escc.ir.passes import PassContext, run_pipeline
from escc.ir.xdsl import SSAValue
from escc.passes.calibrate import Calibrate
from escc.passes.quantize_hybrid import QuantizeHybrid


class Net:
    """Appends operations to one module; every method returns the new value."""

    def __init__(self, height: int, width: int, channels: int, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        port = Port("image", (channels, height, width))
        self.module = Module.create([(port, tensor_type(height, width, channels))])
        self.x: SSAValue = self.module.inputs[0]
        self.count = 0

    def op(self, kind: type[LayerOp], operands: Sequence[SSAValue], **properties: Any) -> SSAValue:
        """Any operation, at a fresh module path ``layerN``."""
        self.count += 1
        op = kind.make(operands, None, make_location(f"layer{self.count}"), **properties)
        self.module.body.add_op(op)
        return op.out

    def activation(self, x: SSAValue, name: str, **properties: Any) -> SSAValue:
        """nn.activation."""
        op = nn.Activation.make(
            [x], None, make_location(f"activation{self.count}"), **{"kind": name, **properties}
        )
        self.module.body.add_op(op)
        return op.out

    def keep(self, array: NDArray[Any]) -> Symbol:
        """An array in the store."""
        return Symbol(self.module.store.add(f"array{len(self.module.store)}", array))

    def conv(
        self,
        x: SSAValue,
        weight: NDArray[Any],
        bias: NDArray[Any] | None = None,
        residual: SSAValue | None = None,
        **properties: Any,
    ) -> SSAValue:
        """nn.conv2d with the given weight (K, C/groups, R, S)."""
        return self.op(
            nn.Conv2d,
            [x] if residual is None else [x, residual],
            weight=self.keep(weight.astype(np.float32)),
            bias=None if bias is None else self.keep(bias.astype(np.float32)),
            **geometry(weight.shape[0], weight.shape[2:], properties),
        )

    def random_conv(self, x: SSAValue, outputs: int, kernel: int, **properties: Any) -> SSAValue:
        """nn.conv2d with random weights that keep the scale of the activations, and a bias."""
        channels = map_shape(x)[2] // properties.get("groups", 1)
        fan = channels * kernel * kernel
        weight = self.random.normal(size=(outputs, channels, kernel, kernel)) * np.sqrt(2 / fan)
        return self.conv(x, weight, self.random.normal(size=outputs) * 0.2, **properties)

    def decomposed(
        self,
        x: SSAValue,
        bases: NDArray[Any],
        coefficients: NDArray[Any],
        scale: NDArray[Any],
        bias: NDArray[Any] | None = None,
        residual: SSAValue | None = None,
        **properties: Any,
    ) -> SSAValue:
        """escalate.decomposed_conv2d."""
        return self.op(
            DecomposedConv2d,
            [x] if residual is None else [x, residual],
            bases=self.keep(bases.astype(np.float32)),
            coefficients=self.keep(coefficients),
            scale=self.keep(scale.astype(np.float32)),
            bias=None if bias is None else self.keep(bias.astype(np.float32)),
            **geometry(len(coefficients), bases.shape[1:], properties),
        )

    def random_decomposed(self, x: SSAValue, outputs: int, bases: int, **properties: Any) -> SSAValue:
        """Ternary layer with random numbers, scales of both signs and a bias."""
        channels = map_shape(x)[2] // properties.get("groups", 1)
        coefficients = self.random.integers(-1, 2, size=(outputs, channels, bases)).astype(np.int8)
        scale = self.random.normal(size=outputs) * 0.3 / np.sqrt(channels * bases)
        return self.decomposed(
            x,
            self.random.normal(size=(bases, 3, 3)),
            coefficients,
            scale,
            self.random.normal(size=outputs) * 0.1,
            **properties,
        )

    def finish(self, *values: SSAValue) -> Module:
        """The verified module with these outputs; it counts as fused."""
        ports = [
            Port(f"out{index}", (shape[2], shape[0], shape[1]))
            for index, shape in enumerate(map(map_shape, values))
        ]
        self.module.set_outputs(list(zip(ports, values, strict=True)))
        self.module.set_facts({"fused", "batch-norm-folded"})
        self.module.verify()
        return self.module


def geometry(outputs: int, kernel: Sequence[int], given: dict[str, Any]) -> dict[str, Any]:
    """Properties of a convolution: stride 1, padding that keeps odd kernels' size, unless given."""
    size = (int(kernel[0]), int(kernel[1]))
    half = (size[0] // 2, size[1] // 2)
    return {
        "kernel": size,
        "outputs": outputs,
        "stride": (1, 1),
        "padding": (*half, *half),
        "dilation": (1, 1),
        "groups": 1,
        **given,
    }


def quantized(module: Module, images: NDArray[np.float32], **options: Any) -> Module:
    """The module after calibrate and quantize-hybrid (a copy; the given one is only calibrated)."""
    run_pipeline(module, [Calibrate()], PassContext(calibration=images))
    integer = module.clone()
    run_pipeline(integer, [QuantizeHybrid(**options)], PassContext())
    return integer


def layer(module: Module, name: str) -> LayerOp:
    """The only operation of that kind."""
    found = [op for op in module.layers if op.name == name]
    assert len(found) == 1, f"{len(found)} operations {name}"
    return found[0]


def sqnr(wanted: NDArray[Any], found: NDArray[Any]) -> float:
    """Signal to quantisation noise ratio in dB."""
    noise = float(np.square(found - wanted, dtype=np.float64).sum())
    signal = float(np.square(wanted, dtype=np.float64).sum())
    return 10 * np.log10(signal / noise) if noise else np.inf
