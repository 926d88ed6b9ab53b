"""Networks as graphs that learn: names, outputs, statistics, decomposition, structure, export."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import escc
from escc.driver import compile_module, import_model
from escc.errors import EsccError
from escc.frontend import zoo
from escc.frontend.capture import capture
from escc.frontend.open_file import open_model
from escc.passes.decompose_kernels import DecomposeKernels
from escc.passes.math.ternary import fit_ternary
from escc.training.decomposition import starting_point
from escc.training.graph import apply_structure, decompose, export, frozen, structure, trainable
from escc.training.modules import RULES, Conv2d, DecomposedConv2d, Linear
from escc.training.quantize import quantize_weights

CIFAR = (3, 16, 16)


class Net(nn.Module):
    """What the zoo has not: numbers that no layer owns, layers used twice, named padding, averaging norms."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, padding="same", bias=False)
        self.norm = nn.BatchNorm2d(16, momentum=None)
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(inplace=True), nn.Dropout(0.5))
        self.gain = nn.Parameter(torch.rand(16, 1, 1) + 0.5)
        self.unused = nn.Parameter(torch.rand(3))
        self.shift = nn.Buffer(torch.rand(16, 1, 1), persistent=False)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = self.body(self.body(x)) * self.gain + self.shift
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def small() -> tuple[nn.Module, torch.export.ExportedProgram]:
    model = zoo.settle(zoo.build("resnet8", seed=3), CIFAR)
    return model, capture(model, input_shape=CIFAR)


@pytest.mark.parametrize("name", ["resnet8", "vgg16_cifar", "squeezenet1_1", "mobilenet_v2", "senet_tiny"])
def test_a_graph_of_a_zoo_network_is_the_network(name: str) -> None:
    shape = zoo.default_shape(name) if zoo.default_shape(name)[1] < 40 else (3, 48, 48)
    model = zoo.build(name, num_classes=10)
    check_same(model, trainable(model, input_shape=shape), shape)


def test_a_graph_of_odd_layers_is_the_network() -> None:
    model = Net().eval()
    graph = trainable(model, input_shape=(3, 8, 8))
    assert isinstance(graph.get_submodule("stem"), Conv2d)
    assert isinstance(graph.get_submodule("head"), Linear)
    check_same(model, graph, (3, 8, 8))


def check_same(model: nn.Module, graph: fx.GraphModule, shape: tuple[int, ...]) -> None:
    state = graph.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert not graph.training
    x = torch.randn(3, *shape)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x), rtol=0, atol=0)
    for trained in (model.train(), graph.train()):
        torch.manual_seed(7)  # dropout
        trained(x).square().mean().backward()
    for (name, ours), (_, theirs) in zip(graph.named_buffers(), model.named_buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)
    gradients = {name: parameter.grad for name, parameter in graph.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, msg=name)


def test_an_exported_program_of_a_fixed_batch_takes_any() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).view(x.shape[0], 8)

    model = Flat().eval()
    graph = trainable(torch.export.export(model, (torch.randn(2, 1, 4, 4),)))
    x = torch.randn(5, 1, 4, 4)
    assert torch.equal(graph(x), model(x))


def test_a_model_in_training_mode_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    exported = torch.export.export(model, (torch.randn(2, 3, 8, 8),))
    with pytest.raises(EsccError, match="changes its buffers"):
        trainable(exported)


# -- decomposition ------------------------------------------------------------------------------------------


def test_the_compiler_chooses_the_same_layers(small: tuple[nn.Module, Any]) -> None:
    module = import_model(small[0], input_shape=CIFAR)
    pipeline = "fold-batch-norm,fuse-requantize,decompose-kernels{bases=3 iterations=2}"
    compile_module(module, passes=pipeline, stop_after="decompose-kernels")
    chosen = {op.location.desc.data for op in module.layers if op.name == "escalate.decomposed_conv2d"}  # pyright: ignore[reportAttributeAccessIssue]
    graph = trainable(small[1])
    found = decompose(graph, bases=3, iterations=2)
    assert {layer.path for layer in found} == chosen
    assert "conv1" not in chosen
    assert isinstance(graph.get_submodule("linear"), Linear)


def test_all_bases_lose_nothing(small: tuple[nn.Module, Any]) -> None:
    graph = trainable(small[1])
    layers = decompose(graph, bases=9, method="svd")
    assert len(layers) == 6
    assert max(layer.error for layer in layers) < 1e-12
    x = torch.randn(2, *CIFAR)
    torch.testing.assert_close(graph(x), small[0](x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rule", RULES)
def test_exact_codes_are_reproduced_under_every_rule(rule: str) -> None:
    weight = np.random.default_rng(5).standard_normal((8, 6, 3, 3)).astype(np.float32)
    fit = fit_ternary(weight, 4, iterations=3)
    latents, bases = starting_point(fit, rule)
    layer = DecomposedConv2d(6, 8, (3, 3), 4, rule=rule)
    layer.coefficients.data.copy_(torch.from_numpy(latents))
    layer.bases.data.copy_(torch.from_numpy(bases))
    codes, used = layer.codes()
    np.testing.assert_array_equal(codes.numpy(), fit.coefficients)
    np.testing.assert_array_equal(used.numpy(), fit.bases)


@pytest.mark.parametrize("rule", ["fixed", "twn"])
def test_real_coefficients_start_with_the_codes_of_ternary_weight_networks(rule: str) -> None:
    weight = np.random.default_rng(6).standard_normal((8, 6, 3, 3)).astype(np.float32)
    pass_ = DecomposeKernels(bases=4, method="svd")
    latents, bases = starting_point(pass_.fit(weight), rule)
    expected = DecomposeKernels(bases=4, method="svd-twn").fit(weight)
    layer = DecomposedConv2d(6, 8, (3, 3), 4, rule=rule)
    layer.coefficients.data.copy_(torch.from_numpy(latents))
    layer.bases.data.copy_(torch.from_numpy(bases))
    np.testing.assert_array_equal(layer.codes()[0].numpy(), expected.coefficients)
    np.testing.assert_allclose(layer.codes()[1].numpy(), expected.bases, rtol=1e-5, atol=1e-7)


def test_options_of_single_layers(small: tuple[nn.Module, Any]) -> None:
    graph = trainable(small[1])
    layers = {"conv1": {"bases": 2, "rule": "ttq"}, "layer2.*": {"method": "svd", "bases": 3}}
    found = decompose(graph, bases=5, iterations=2, keep_dense=["layer1.*", "layer3.0.conv2"], layers=layers)
    assert [layer.path for layer in found] == ["conv1", "layer2.0.conv1", "layer2.0.conv2", "layer3.0.conv1"]
    made = [cast("DecomposedConv2d", graph.get_submodule(layer.path)) for layer in found]
    assert [layer.rule for layer in made] == ["ttq", "none", "none", "fixed"]
    assert [len(layer.bases) for layer in made] == [2, 3, 3, 5]
    for bad, text in (({"x": {"rank": 3}}, "unknown options rank"), ({"x": {"rule": "odd"}}, "unknown rule")):
        with pytest.raises(EsccError, match=text):
            decompose(graph, layers=bad)
    with pytest.raises(EsccError, match="bases=0"):
        decompose(graph, bases=0)


def test_scales_learn_where_no_batch_norm_follows() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Conv2d(16, 16, 3) for _ in range(4))
            self.norm = nn.BatchNorm2d(16)

        def forward(self, x: Tensor) -> Tensor:
            return self.d(self.c(self.norm(self.b(self.a(x)))))

    graph = trainable(Two().eval(), input_shape=(16, 12, 12))
    decompose(graph, bases=3, iterations=1, max_error=1.0)
    made = {path: cast("DecomposedConv2d", graph.get_submodule(path)) for path in ("b", "c")}
    assert {path: isinstance(layer.scale, nn.Parameter) for path, layer in made.items()} == {
        "b": False,
        "c": True,
    }


# -- structure and export -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compressed(small: tuple[nn.Module, Any]) -> fx.GraphModule:
    graph = trainable(small[1])
    decompose(graph, bases=4, iterations=2, layers={"layer3.*": {"method": "svd", "bases": 2}})
    quantize_weights(graph)
    cast("Any", graph.get_submodule("conv1")).register_buffer("mask", torch.ones(16, 3, 3, 3))
    cast("Any", graph.get_submodule("bn1")).register_buffer("mask", torch.zeros(16))
    return graph


def test_structure_goes_through_json(small: tuple[nn.Module, Any], compressed: fx.GraphModule) -> None:
    found = structure(compressed)
    fresh = trainable(small[1])
    apply_structure(fresh, json.loads(json.dumps(found)))
    fresh.load_state_dict(compressed.state_dict())
    assert structure(fresh) == found
    x = torch.randn(2, *CIFAR)
    assert torch.equal(fresh(x), compressed(x))
    assert structure(trainable(small[1]))["decomposed"] == {}


def test_structures_of_other_networks_are_refused(small: tuple[nn.Module, Any]) -> None:
    base = structure(trainable(small[1]))
    dense = {"bases": 2, "rule": "none", "basis_bits": 0, "learn_scale": False}
    for change, text in (
        ({"format": 2}, "format 2"),
        ({"decomposed": {"layer9.conv": dense}}, "no such layer"),
        ({"decomposed": {"linear": dense}}, "not a convolution"),
        ({"weight_bits": {"bn1": 8}}, "not a convolution or linear"),
        ({"masks": ["conv1.bias_mask"]}, "no bias to mask"),
        ({"activations": [{"after": "relu_99", "name": "x", "signed": True}]}, "no operation 'relu_99'"),
    ):
        with pytest.raises(EsccError, match=text):
            apply_structure(trainable(small[1]), {**copy.deepcopy(base), **change})


def test_export_keeps_the_structure_and_the_numbers(compressed: fx.GraphModule, tmp_path: Path) -> None:
    x = torch.randn(3, *CIFAR)
    exported = export(compressed, x[:1])
    wanted = compressed(x)
    torch.testing.assert_close(cast("Any", exported.module())(x), wanted)
    torch.testing.assert_close(frozen(compressed)(x), wanted)
    nodes = [node for node in exported.graph.nodes if "decomposed_conv2d" in str(node.target)]
    assert len(nodes) == len(structure(compressed)["decomposed"])
    for path in ("layer1.0.conv1.coefficients", "layer3.0.conv1.coefficients"):
        ternary = path.startswith("layer1")
        assert exported.state_dict[path].dtype == (torch.int8 if ternary else torch.float32)
    path = tmp_path / "model.pt2"
    torch.export.save(exported, path)
    opened = cast("Any", open_model(path).model)
    assert torch.equal(opened.module()(x), cast("Any", exported.module())(x))
    assert isinstance(compressed.get_submodule("layer1.0.conv1"), DecomposedConv2d)


def test_a_learning_network_can_be_saved_as_it_is(compressed: fx.GraphModule, tmp_path: Path) -> None:
    x = torch.randn(2, *CIFAR)
    escc.save(compressed, x, tmp_path / "model.pt2")
    opened = cast("Any", open_model(tmp_path / "model.pt2").model)
    torch.testing.assert_close(opened.module()(x), compressed(x))
