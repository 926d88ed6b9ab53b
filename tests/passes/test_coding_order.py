"""Trained layers, real inputs: coding that knows the inputs beats exact coding, which beats thresholds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from escc.demo.assets import INPUT_SHAPE, load_data, load_network
from escc.driver import import_model
from escc.ir.base import LayerOp, module_path
from escc.ir.passes import PassContext, parse_pipeline, run_pipeline
from escc.passes.convolutions import needed
from escc.passes.math.covariance import code_layer
from escc.passes.math.quadratic import layer_quadratic
from escc.passes.math.ternary import Decomposition, fit_ternary, svd_ternary
from escc.passes.reference.float_graph import run
from escc.passes.refine_coefficients import layer_samples

BASES = 6
LAYERS = ("layer1.1.conv2", "layer2.2.conv1", "layer3.1.conv2")
"""One layer of each width of the demo's network."""


@dataclass(frozen=True)
class Layer:
    """A trained layer: its weight, patches to calibrate with and others to judge by."""

    name: str
    weight: NDArray[np.float32]
    patches: NDArray[np.float32]
    held_out: NDArray[np.float32]

    def error(self, weight: NDArray[np.float32]) -> float:
        """Error of the layer's sums on the held-out patches (a bias takes the mean), relative."""
        rows = (self.weight - weight).reshape(len(weight), -1)
        original = self.weight.reshape(len(weight), -1)
        lost, wanted = self.held_out @ rows.T, self.held_out @ original.T
        return float(np.square(lost - lost.mean(0)).sum() / np.square(wanted - wanted.mean(0)).sum())


@pytest.fixture(scope="module")
def layers() -> list[Layer]:
    module = import_model(load_network(), input_shape=INPUT_SHAPE)
    run_pipeline(module, parse_pipeline("fold-batch-norm,fuse-requantize"), PassContext())
    ops = {module_path(op): op for op in module.layers}
    values = run(module, load_data().calibration[::4])

    def patches(op: LayerOp, half: int) -> NDArray[np.float32]:
        inputs, sums = (values[value][half::2] for value in (op.operands[0], op.out))
        return layer_samples(op, [[inputs]], [sums], 4000, np.random.default_rng(0))[0]

    return [
        Layer(name, needed(module, ops[name], "weight"), patches(ops[name], 0), patches(ops[name], 1))
        for name in LAYERS
    ]


def aware(layer: Layer, start: Decomposition, penalty: float) -> Decomposition:
    flat = layer.weight.reshape(len(layer.weight), -1)
    quadratic = layer_quadratic(layer.patches, layer.patches @ flat.T, flat, 9, 0.01)
    bases = start.bases.reshape(BASES, -1).astype(np.float64)
    found = code_layer([quadratic], (bases, start.scale.astype(np.float64), start.coefficients), penalty)
    return Decomposition(
        found.bases.reshape(start.bases.shape).astype(np.float32),
        found.codes,
        found.scale.astype(np.float32),
    )


def test_inputs_then_exact_codes_then_thresholds(layers: list[Layer]) -> None:
    """Less error of the sums at fewer non-zeros, layer by layer."""
    for layer in layers:
        thresholds = svd_ternary(layer.weight, BASES)
        exact = fit_ternary(layer.weight, BASES, 0.02)
        informed = aware(layer, exact, 0.02)
        ranking = [informed, exact, thresholds]
        densities = [method.density for method in ranking]
        errors = [layer.error(method.weight()) for method in ranking]
        assert densities == sorted(densities), layer.name
        assert errors[0] < 0.8 * errors[1] < 0.8 * 0.85 * errors[2], (layer.name, errors)
