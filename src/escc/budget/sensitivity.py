"""How the error of one layer's sums turns into error at the network's output.

One layer at a time gets compressed weights, the rest of the network from there on runs again on calibration
images, and its outputs are compared with the float network's. As the Kullback-Leibler divergence of class
probabilities is quadratic in small changes of the logits, and those are linear in the layer's error, it grows
in proportion to the relative *squared* error of the layer's sums: one number per layer, fitted to two probes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from escc.budget.settings import CachedDecompose, Layer
from escc.ir.base import map_shape
from escc.ir.module import Module
from escc.ir.xdsl import Operation, SSAValue
from escc.passes.convolutions import needed
from escc.passes.math.basis import reconstruct
from escc.passes.reference.float_graph import activate, convolution, linear_part, run
from escc.progress import Progress

PROBES = (4, 6)
"""Bases of the two probes; 1x1 layers take half as many planes."""

MEMORY = 2**30
IMAGES = 256

Maps = dict[SSAValue, torch.Tensor]


def float_maps(module: Module, images: NDArray[np.float32]) -> Maps:
    """All maps of the float network on at most 256 images, fewer when a gigabyte does not hold them."""
    values = [*module.inputs, *(op.out for op in module.layers)]
    each = 4 * sum(prod(map_shape(value)) for value in values)
    count = max(1, min(IMAGES, len(images), MEMORY // each))
    chosen = np.linspace(0, len(images) - 1, count).round().astype(np.int64)
    return run(module, images[chosen])


def divergence(reference: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> float:
    """Distance of outputs (n, ...) from the reference's, mean over images, summed over outputs.

    Kullback-Leibler divergence (nats) of softmax probabilities where an output is one score per class; the
    squared difference relative to the reference's energy for outputs of another kind.
    """
    total = 0.0
    for want, got in zip(reference, outputs, strict=True):
        want, got = want.double(), got.double()
        if want[0].numel() == want.shape[1] > 1:
            p, q = want.flatten(1).log_softmax(1), got.flatten(1).log_softmax(1)
            total += float((p.exp() * (p - q)).sum(1).mean())
        else:
            total += float((want - got).square().sum() / want.square().sum().clamp_min(1e-30))
    return total


def probe(module: Module, layer: Layer, maps: Maps, weight: NDArray[np.float64]) -> tuple[float, float]:
    """Error of the layer's sums with another weight (K, C/groups, R, S), and the divergence at the output.

    The mean of every output channel is put right, as the compiler does.
    """
    changed: Maps = {}
    replaced: set[Operation] = set(layer.ops)
    other = torch.from_numpy(weight.astype(np.float32))
    error = 0.0
    with torch.inference_mode():
        for op in module.layers:
            if op in replaced:
                operands = [changed.get(value, maps[value]) for value in op.operands]
                own = torch.from_numpy(np.array(needed(module, op, "weight"), np.float32))
                want = convolution(module, op, [maps[op.operands[0]]], own)
                got = convolution(module, op, operands[:1], other)
                got = got + (want - got).mean((0, 2, 3), keepdim=True)
                error = float((want - got).square().sum() / _variance(want))
                before = got + operands[1] if len(operands) > 1 else got
                kind, arguments = op.value("activation"), op.floats("activation_args")
            elif any(value in changed for value in op.operands):
                operands = [changed.get(value, maps[value]) for value in op.operands]
                before, kind, arguments = linear_part(module, op, operands)
            else:
                continue
            changed[op.out] = before if kind is None else activate(before, kind, arguments)
        return error, divergence(
            [maps[value] for value in module.outputs],
            [changed.get(value, maps[value]) for value in module.outputs],
        )


def _variance(maps: torch.Tensor) -> torch.Tensor:
    """Sum of squares about the mean of each channel."""
    return (maps - maps.mean((0, 2, 3), keepdim=True)).square().sum().clamp_min(1e-30)


def measure_sensitivity(
    module: Module, layers: Sequence[Layer], maps: Maps, decompose: CachedDecompose, progress: Progress
) -> None:
    """Set every layer's sensitivity: least squares through the origin over its probes."""
    for done, layer in enumerate(layers, start=1):
        weight = needed(module, layer.ops[0], "weight")
        points: list[tuple[float, float]] = []
        for bases in PROBES:
            fit = replace(decompose, bases=bases, planes=bases // 2).fit(weight)
            made = reconstruct(fit.bases.astype(np.float64), fit.coefficients, fit.scale)
            points.append(probe(module, layer, maps, made))
        layer.sensitivity = sum(e * d for e, d in points) / max(sum(e * e for e, _ in points), 1e-30)
        progress("sensitivity of the output", done, len(layers))
