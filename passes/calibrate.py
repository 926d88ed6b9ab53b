"""calibrate: value ranges from images, and repair of the statistics that compression has shifted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from escc.errors import EsccError
from escc.ir.activations import ACTIVATIONS
from escc.ir.base import LayerOp, Symbol, describe, map_shape, module_path, to_attribute
from escc.ir.escalate import DecomposedConv2d
from escc.ir.module import Module
from escc.ir.passes import Pass, PassContext
from escc.ir.pins import input_pin, pin_of, pre_pin_of
from escc.ir.xdsl import StringAttr
from escc.passes.convolutions import ORIGINAL_WEIGHT
from escc.passes.math.ranges import Distribution, best_scale, scale_range
from escc.passes.pinned import fully_pinned, has_table_input
from escc.passes.reference.side_by_side import (
    Affine,
    Maps,
    batched,
    calibration_batches,
    channel_statistics,
    image_limit,
    walk,
)
from escc.passes.signs import activation_of, non_negative_values

CALIBRATION = "escc.calibration"
"""Module attribute: where scales come from. "images", "synthetic" when there were none and random numbers
stood in for them, or "pinned" when training has fixed all of them."""


def scales_from(module: Module) -> str | None:
    """Where the scales of a module come from (:data:`CALIBRATION`); None before calibrate."""
    found = module.op.attributes.get(CALIBRATION)
    return found.data if isinstance(found, StringAttr) else None


METHODS = ("mse", "percentile", "max")
_SAMPLES = 2**18
_NOISE = 2**20
"""Values of noise that stand in for images: more of it says no more about ranges."""
_LEAST_NOISE = 4
_LARGEST_GAIN = 4.0


@dataclass
class Calibrate(Pass):
    """Record the range of every value on calibration images; without images on standard normal noise.

    Values whose scale is pinned keep it; where all are, nothing is run. Every other operation gets ``range``
    (smallest, largest real value its 8-bit map has to hold), operations that end in a table also
    ``pre_range`` (the same for the table's input), inputs get ``escc.range``.

    Options:
        method: "mse" clips where the mean error of 8 bits is least, "percentile" leaves out
            100 - percentile percent of the values, "max" clips nothing. Inputs and outputs are never clipped.
        percentile: for that method.
        correct_statistics: give every output channel of a compressed layer the mean and standard deviation it
            had before compression (batch-norm re-estimation after folding). Layers that came decomposed keep
            their weights.
        images: at most that many images, evenly spaced; fewer when a gigabyte does not hold their maps.
        seed: for the noise.
    """

    name: ClassVar[str] = "calibrate"
    requires: ClassVar[frozenset[str]] = frozenset({"fused"})
    establishes: ClassVar[frozenset[str]] = frozenset({"calibrated"})

    method: str = "mse"
    percentile: float = 99.99
    correct_statistics: bool = True
    images: int = 512
    seed: int = 0

    def run(self, module: Module, context: PassContext) -> None:
        """Annotate the module, and rescale compressed layers.

        Raises:
            EsccError: a bad option, images of another shape, a value that is not finite.
        """
        if self.method not in METHODS or not 0 < self.percentile <= 100 or self.images < 1:
            raise EsccError(
                f"bad options: method={self.method} percentile={self.percentile} images={self.images}",
                where=self.name,
                hint=f"methods: {', '.join(METHODS)}",
            )
        corrects = self.correct_statistics and any(ORIGINAL_WEIGHT in op.attributes for op in module.layers)
        if not corrects and fully_pinned(module):
            module.op.attributes[CALIBRATION] = to_attribute("pinned")
            return
        inputs = self._inputs(module, context)
        module.op.attributes[CALIBRATION] = to_attribute(
            "synthetic" if context.calibration is None else "images"
        )
        for index, batches in enumerate(inputs):
            if input_pin(module, index) is not None:
                continue
            low, high = _extremes(batches, module.input_ports[index].name)
            module.set_input_value(index, "range", (low, high))
        unsigned = non_negative_values(module)
        outputs = set(module.outputs)
        total, done = sum(1 for _ in module.layers), 0

        def observe(op: LayerOp, before: Maps, after: Maps) -> None:
            nonlocal done
            method = "max" if op.out in outputs else self.method
            if pin_of(op) is None:
                op.set_value("range", self._range(op, after, method, op.out not in unsigned))
            if has_table_input(op) and pre_pin_of(op) is None:
                kind, arguments = activation_of(op)
                assert kind is not None
                function = ACTIVATIONS[kind].function
                op.set_value(
                    "pre_range",
                    self._range(op, before, self.method, True, lambda x: function(x, *arguments)),
                )
            done += 1
            context.progress(self.name, done, total)

        def correct(op: LayerOp, ours: Maps, original: Maps) -> Affine:
            answer = matching(ours, original)
            absorb(module, op, answer)
            return answer

        walk(module, inputs, observe, correct if self.correct_statistics else None)

    def _inputs(self, module: Module, context: PassContext) -> list[Maps]:
        """Batches of images for each input."""
        if context.calibration is not None:
            return calibration_batches(module, context.calibration, self.images, self.name)
        random = np.random.default_rng(self.seed)
        values = max(math.prod(port.torch_shape) for port in module.input_ports)
        count = min(image_limit(module, self.images), 64, max(_LEAST_NOISE, _NOISE // values))
        return [
            batched(random.standard_normal((count, *port.torch_shape)).astype(np.float32))
            for port in module.input_ports
        ]

    def _range(
        self,
        op: LayerOp,
        maps: Maps,
        method: str,
        signed: bool,
        function: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
    ) -> tuple[float, float]:
        low, high = _extremes(maps, describe(op))
        if method == "max":
            return low, high
        data = Distribution.of(_samples(maps), low, high)
        if method == "percentile":
            below, above = data.percentile(self.percentile)
        else:
            below, above = scale_range(best_scale(data, signed, function), signed)
        return max(low, below), min(high, above)


def _extremes(maps: Maps, where: str) -> tuple[float, float]:
    low = min(float(item.min()) for item in maps)
    high = max(float(item.max()) for item in maps)
    if not np.isfinite(low) or not np.isfinite(high):
        raise EsccError("the calibration images lead to values that are not finite", where=where)
    return low, high


def _samples(maps: Maps) -> list[NDArray[np.float32]]:
    """About 2**18 values, taken at a stride that visits every channel and position."""
    size = maps[0][0].numel()
    stride = max(1, sum(item.numel() for item in maps) // _SAMPLES)
    while np.gcd(stride, size) > 1:
        stride += 1
    return [item.reshape(-1)[::stride].numpy() for item in maps]


def matching(ours: Maps, original: Maps) -> Affine:
    """The affine map per channel that gives ``ours`` the mean and standard deviation of ``original``.

    A channel that hardly varies keeps its gain: noise is not amplified more than four times.
    """
    mean, deviation = channel_statistics(ours)
    wanted_mean, wanted_deviation = channel_statistics(original)
    alive = deviation > 1e-6 * np.maximum(np.abs(mean), wanted_deviation)
    gain = np.where(alive, wanted_deviation / np.where(alive, deviation, 1.0), 1.0)
    gain = np.minimum(gain, _LARGEST_GAIN)
    return Affine(gain, wanted_mean - gain * mean)


def absorb(module: Module, op: LayerOp, affine: Affine) -> None:
    """Put y' = gain * y + offset into a convolution's scale (or weight) and bias."""
    path = module_path(op) or op.name
    symbol = op.symbol("bias")
    bias = np.zeros(map_shape(op.out)[2]) if symbol is None else module.store[symbol].astype(np.float64)
    new = (affine.gain * bias + affine.offset).astype(np.float32)
    op.set_value("bias", Symbol(module.store.add(f"{path}.bias", new)))
    name = "scale" if isinstance(op, DecomposedConv2d) else "weight"
    old = module.store[op.weight_name(name)]
    gain = affine.gain.reshape(-1, *[1] * (old.ndim - 1))
    op.set_value(name, Symbol(module.store.add(f"{path}.{name}", (gain * old).astype(np.float32))))
