"""Closing and cutting: what dies, what stays, and that a smaller network computes what the masked one did."""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tests.training.small_networks import Chain, Mobile, at, context, decompose_randomly, graph, mask_randomly
from torch import Tensor, fx, nn

from escc.errors import EsccError
from escc.frontend import zoo
from escc.frontend.importer import import_exported
from escc.ir.base import map_shape, module_path
from escc.ir.passes import PassContext, run_pipeline
from escc.passes.fold_batch_norm import FoldBatchNorm
from escc.passes.shrink_channels import ShrinkChannels
from escc.training.closure import close_channels
from escc.training.cutting import layers, sizes
from escc.training.freezing import BIAS_MASK, MASK, set_mask
from escc.training.graph import apply_structure, export, structure
from escc.training.modules import DecomposedConv2d
from escc.training.shrinking import shrink

CIFAR, SMALL = (3, 32, 32), (3, 16, 16)


@cache
def captured(name: str) -> fx.GraphModule:
    """A network as trained graph, captured once; in double precision."""
    shape = CIFAR if name == "vgg16_cifar" else SMALL
    net = Mobile() if name == "mobile" else zoo.build(name)
    # the statistics of random weights in 16 layers matter little here and cost much
    return graph(net, shape, settle=name != "vgg16_cifar").double()


def images(shape: tuple[int, int, int] = SMALL) -> Tensor:
    return torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def outputs(model: fx.GraphModule, x: Tensor) -> Tensor:
    return model.eval()(x)


def check_shrinking(name: str, seed: int, rule: str, share: float) -> dict[str, Any]:
    """Closed, masked, then cut: the same outputs in double precision; resumed: the same bits."""
    shape = CIFAR if name == "vgg16_cifar" else SMALL
    model = copy.deepcopy(captured(name))
    torch.manual_seed(seed)
    decompose_randomly(model, 3)
    model.double()
    mask_randomly(model, seed, share)
    x = images(shape)
    before = outputs(model, x)
    masked = copy.deepcopy(model)
    close_channels(masked, context(shape), rule=rule)
    wanted = outputs(masked, x)
    if rule == "exact":
        torch.testing.assert_close(wanted, before, rtol=0, atol=1e-6 * max(1.0, float(before.abs().max())))
    figures = shrink(model, context(shape), rule=rule)
    assert figures["cut"], figures
    found = outputs(model, x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11 * max(1.0, float(wanted.abs().max())))
    fresh = copy.deepcopy(captured(name))
    apply_structure(fresh, json.loads(json.dumps(structure(model))))
    fresh.double().load_state_dict(model.state_dict())
    assert torch.equal(outputs(fresh, x), found)
    return figures


@given(st.integers(0, 2**31 - 1), st.sampled_from(["exact", "penni"]), st.sampled_from([0.05, 0.3]))
@settings(max_examples=5, deadline=None, derandomize=True, phases=[Phase.generate])
def test_networks_with_gates_and_concatenations_keep_outputs(seed: int, rule: str, share: float) -> None:
    figures = check_shrinking("mobile", seed, rule, share)
    if share == 0.3:
        assert figures["live_channels"] < figures["channels"]


@pytest.mark.parametrize(
    ("name", "rule"), [("resnet8", "exact"), ("resnet20", "penni"), ("vgg16_cifar", "exact")]
)
def test_networks_of_the_zoo_keep_their_outputs(name: str, rule: str) -> None:
    figures = check_shrinking(name, 1, rule, 0.3)
    assert figures["live_channels"] < figures["channels"]
    assert figures["live_bases"] < figures["bases"]


def test_whole_numbers_stay_the_same_to_the_bit() -> None:
    """Where no sum rounds, the order of additions cannot matter: then masked and cut networks are equal."""
    model = copy.deepcopy(captured("resnet8"))
    torch.manual_seed(3)
    decompose_randomly(model, 3)
    model.double()
    with torch.no_grad():
        for layer in layers(model).values():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eps = 0.0
                nn.init.ones_(layer.weight)
                for numbers in (layer.bias, layer.running_mean):
                    assert numbers is not None
                    numbers.copy_(torch.randint(-3, 4, numbers.shape))
                assert layer.running_var is not None
                layer.running_var.fill_(1.0)
            elif isinstance(layer, nn.Linear):
                layer.weight.copy_(torch.randint(-2, 3, layer.weight.shape))
    mask_randomly(model, 4, 0.2)
    x = torch.randint(-4, 5, (2, *SMALL)).double()
    close_channels(model, context(SMALL))
    wanted = outputs(model, x)
    # the means at the end divide by 16, a power of two
    assert float(wanted.abs().max()) < 2.0**48
    assert torch.equal(wanted * 16, (wanted * 16).round())
    assert shrink(model, context(SMALL))["cut"]
    assert torch.equal(outputs(model, x), wanted)


def live(model: fx.GraphModule, path: str) -> int:
    return int(sizes(model)["layers"][path][0])


@pytest.mark.parametrize(
    ("rule", "padding", "bias", "left"),
    # after the ReLU a channel without weights is max(bias, 0)
    [("exact", 0, 1.0, 3), ("exact", 1, 1.0, 4), ("exact", 1, -1.0, 3), ("penni", 1, 1.0, 3)],
)
def test_what_a_norm_adds_to_an_empty_channel(rule: str, padding: int, bias: float, left: int) -> None:
    model = graph(Chain(padding), SMALL)
    first, norm = at(model, "first"), at(model, "norm")
    with torch.no_grad():
        first.weight[1] = 0
        norm.running_mean[1] = 0
        norm.bias[1] = bias
    x = images().float()
    before = outputs(model, x)
    silenced = copy.deepcopy(model)
    with torch.no_grad():
        at(silenced, "norm").weight[1] = at(silenced, "norm").bias[1] = 0
    wanted = before if rule == "exact" else outputs(silenced, x)
    assert shrink(model, context(SMALL), rule=rule)["cut"]
    assert (live(model, "first"), live(model, "norm")) == (left, left)
    torch.testing.assert_close(outputs(model, x), wanted)


def test_closing_leaves_masks_everywhere_and_is_a_fixed_point() -> None:
    model = copy.deepcopy(captured("resnet8"))
    torch.manual_seed(6)
    decompose_randomly(model, 2)
    model.double()
    # the shortcuts pad 8 and 16 channels of zeros before the stream: one channel all the way
    stream = {"conv1": 5, "layer1.0.conv2": 5, "layer2.0.conv2": 13, "layer3.0.conv2": 29}
    for name, dead in stream.items():
        layer = at(model, name)
        kept = torch.ones_like(layer.coefficients)
        kept[dead] = 0
        if name == "layer2.0.conv2":
            kept[[3, 20]] = 0  # others write into the sums that these channels belong to
        set_mask(layer, MASK, kept)
    figures = close_channels(model, context(SMALL))
    assert figures["channels"] - figures["live_channels"] == len(stream)
    for name, dead in stream.items():
        assert not at(model, name).mask[dead].any()
        norm = at(model, name.replace("conv", "bn"))
        assert norm.weight[dead] == norm.bias[dead] == norm.running_mean[dead] == 0
        assert torch.count_nonzero(norm.weight) == len(norm.weight) - 1
    for name, dead in {"layer1.0.conv1": 5, "layer2.0.conv1": 5, "layer3.0.conv1": 13}.items():
        assert not at(model, name).mask[:, dead].any()
    assert not at(model, "linear").mask[:, 29].any()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert close_channels(model, context(SMALL)) == figures
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())


def test_the_compiler_removes_the_same_channels() -> None:
    model = copy.deepcopy(captured("mobile")).float()
    torch.manual_seed(7)
    decompose_randomly(model, 3)
    mask_randomly(model, 8, 0.2)
    close_channels(model, context(SMALL))
    module = import_exported(export(model, context(SMALL).example()))
    run_pipeline(module, [FoldBatchNorm(), ShrinkChannels()], PassContext())
    compiled = {module_path(op): map_shape(op.out)[2] for op in module.layers}
    shrink(model, context(SMALL))
    for name, layer in layers(model).items():
        if not isinstance(layer, nn.BatchNorm2d):
            assert compiled[name] == live(model, name)


@pytest.mark.parametrize("rule", ["twn", "ttq", "fixed"])
def test_ternary_layers_keep_their_codes(rule: str) -> None:
    """Closing a channel must not move the threshold of the others."""
    model = graph(Chain(1), SMALL)
    decompose_randomly(model, 2, rule=rule)
    first = at(model, "first")
    assert isinstance(first, DecomposedConv2d)
    with torch.no_grad():
        first.coefficients.normal_()
        # too small for a code, but what a mean is taken over
        first.coefficients[1] = 0.01
        first.coefficients[2] = 0
    set_mask(first, MASK, (torch.arange(4) != 2)[:, None, None].expand_as(first.coefficients))
    x = images().float()
    codes = first.codes()[0].clone()
    assert shrink(model, context(SMALL))["cut"]
    assert first.out_channels == (3 if rule == "twn" else 2)
    kept = torch.tensor([0, 1, 3] if rule == "twn" else [0, 3])
    assert torch.equal(first.codes()[0], codes[kept])
    assert outputs(model, x).shape == (2, 5, 14, 14)


class Padded(nn.Module):
    """Channels padded twice in a row: the importer makes one padding of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(8, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pad(self.first(x), (0, 0, 0, 0, 1, 1))
        return self.second(functional.pad(x, (0, 0, 0, 0, 1, 1)))


class Twice(nn.Module):
    """One convolution called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.relu(self.conv(x)))


def test_a_graph_that_cannot_be_cut_keeps_its_masks_and_says_why() -> None:
    model = graph(Padded(), SMALL)
    with torch.no_grad():
        at(model, "second").weight[:, 3] = 0
    x = images().float()
    before, code = outputs(model, x), model.code
    figures = shrink(model, context(SMALL))
    assert not figures["cut"]
    assert figures["reason"] == "paddings of channels follow each other"
    assert figures["live_channels"] == figures["channels"] - 1
    assert model.code == code
    assert not at(model, "first").mask[1].any()
    assert at(model, "first").bias_mask.tolist() == [1, 0, 1, 1]
    torch.testing.assert_close(outputs(model, x), before)


def test_layers_called_twice_and_unknown_rules_are_refused() -> None:
    with pytest.raises(EsccError, match=r"^conv: is called twice"):
        shrink(graph(Twice(), SMALL), context(SMALL))
    with pytest.raises(EsccError, match="'all' is no rule"):
        close_channels(graph(Chain(0), SMALL), context(SMALL), rule="all")


def test_sizes_of_another_network_are_refused() -> None:
    model, other = copy.deepcopy(captured("mobile")), graph(Chain(0), SMALL)
    with pytest.raises(EsccError, match="no layer of that kind and size"):
        apply_structure(other, structure(model))
    record = structure(model)
    record["sizes"]["layers"]["stem.0"][0] = 9
    with pytest.raises(EsccError, match=r"^stem\.0: .*no layer"):
        apply_structure(model, record)


def test_a_cut_network_learns_on() -> None:
    model = copy.deepcopy(captured("mobile"))
    set_mask(at(model, "hidden"), MASK, (torch.arange(16) > 3)[:, None].expand(16, 56))
    set_mask(at(model, "hidden"), BIAS_MASK, torch.arange(16) > 3)
    assert shrink(model, context(SMALL))["live_channels"] == sum(
        len(at(layer, "").weight) for layer in layers(model).values() if not isinstance(layer, nn.BatchNorm2d)
    )
    assert at(model, "hidden").weight.shape == (12, 56)
    assert not hasattr(at(model, "hidden"), MASK)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    functional.cross_entropy(model.train()(images()), torch.tensor([0, 1])).backward()
    assert all(item.grad is not None for item in model.parameters())
    optimizer.step()
