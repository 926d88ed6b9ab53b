"""8-bit activations in training are rounded where, and as, the compiled network rounds them."""

from __future__ import annotations

import json
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from escc.driver import CompileOptions, default_pipeline
from escc.errors import EsccError
from escc.frontend import zoo
from escc.frontend.importer import import_exported
from escc.ir.module import Module
from escc.ir.passes import PassContext, run_pipeline
from escc.passes.reference.integer_graph import evaluate_integer
from escc.training.graph import (
    apply_structure,
    decompose,
    export,
    quantize_activations,
    quantize_weights,
    structure,
    trainable,
)
from escc.training.modules import ActivationQuantizer

SHAPE = (3, 16, 16)
IMAGES = np.random.default_rng(0).standard_normal((8, *SHAPE)).astype(np.float32)


class Mixed(nn.Module):
    """Clamps, a table behind a convolution, pooling of both kinds, a concatenation, a sum of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left = nn.Conv2d(8, 8, 3, padding=1)
        self.right = nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(nn.functional.relu6(self.stem(x)), 2)
        left, right = nn.functional.silu(self.norm(self.left(x))), torch.relu(self.right(x))
        both = torch.cat([left + right, right], 1)
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(both, 1), 1))


def integer_form(graph: fx.GraphModule) -> Module:
    module = import_exported(export(graph, torch.from_numpy(IMAGES[:2])))
    kept = [
        item
        for item in default_pipeline(CompileOptions(refine=False))
        if item.name not in ("reorder-linear-combination", "plan-memory", "schedule")
    ]
    run_pipeline(module, kept, PassContext(calibration=IMAGES))
    return module


def test_maps_are_rounded_where_the_compiled_network_rounds_them() -> None:
    graph = trainable(Mixed().eval(), input_shape=SHAPE)
    found = quantize_activations(graph, IMAGES)
    # nothing inside a fused operation but the input of a table, nothing behind max pooling
    assert [item.node for item in found] == [
        "x",
        "relu6",
        "batch_norm",
        "silu",
        "relu",
        "add",
        "cat",
        "adaptive_avg_pool2d",
        "linear",
    ]
    signed = {item.node for item in found if item.signed}
    assert signed == {"x", "batch_norm", "silu", "add", "cat", "adaptive_avg_pool2d", "linear"}
    reads = [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]
    assert reads.count("activation_quantizers.relu6") == 1
    with pytest.raises(EsccError, match="quantised already"):
        quantize_activations(graph, IMAGES)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return zoo.settle(zoo.build("resnet8", seed=2), SHAPE)


@pytest.fixture(scope="module")
def quantized(network: nn.Module) -> fx.GraphModule:
    graph = trainable(network, input_shape=SHAPE)
    decompose(graph, bases=4, iterations=2)
    quantize_weights(graph)
    quantize_activations(graph, torch.from_numpy(IMAGES))
    return graph


def test_the_program_gives_the_integers_of_the_trained_network(quantized: fx.GraphModule) -> None:
    """Sums and residuals are rounded one by one in the machine: hence a step at most."""
    module = integer_form(quantized)
    quantizers = {
        (float(item.scale), item.signed)
        for item in quantized.modules()
        if isinstance(item, ActivationQuantizer)
    }
    maps = [cast("Any", value.type) for value in (*module.inputs, *(op.out for op in module.layers))]
    assert {(kind.scale_value, kind.signed) for kind in maps} == quantizers
    with torch.no_grad():
        wanted = quantized(torch.from_numpy(IMAGES)).numpy() / maps[-1].scale_value
    (integers,) = evaluate_integer(module, IMAGES, literal=False)
    assert np.abs(wanted).max() > 60
    assert np.abs(integers - np.rint(wanted)).max() <= 2
    assert np.abs(integers - np.rint(wanted)).mean() < 0.5


def test_structure_brings_the_quantizers_back(network: nn.Module, quantized: fx.GraphModule) -> None:
    fresh = trainable(network, input_shape=SHAPE)
    apply_structure(fresh, json.loads(json.dumps(structure(quantized))))
    fresh.load_state_dict(quantized.state_dict())
    x = torch.from_numpy(IMAGES)
    assert torch.equal(fresh(x), quantized(x))
    assert structure(fresh) == structure(quantized)


def test_a_quantized_network_learns(quantized: fx.GraphModule) -> None:
    quantized.zero_grad()
    quantized.train()(torch.from_numpy(IMAGES)).square().mean().backward()
    quantized.eval()
    gradients = {name: parameter.grad for name, parameter in quantized.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    for name in ("conv1.weight", "layer2.0.conv1.bases", "layer2.0.conv1.coefficients", "linear.weight"):
        assert cast("Tensor", gradients[name]).any(), name
