"""Every operator rule against torch's own numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.frontend.helpers import Many, Probe, assert_same, fixed_batch, imported, names, probe_of, randomise
from torch import nn

from escc.frontend.capture import capture
from escc.frontend.importer import import_exported
from escc.ir.base import LayerOp, module_path, source_place
from escc.ir.module import Module
from escc.passes.reference.float_graph import evaluate

Function = Callable[[Any, Any], Any]

ACTIVATIONS: dict[str, tuple[Function, str]] = {
    "relu": (lambda p, x: F.relu(x), "relu"),
    "clamp_min": (lambda p, x: x.clamp_min(0), "relu"),
    "clamp from zero": (lambda p, x: x.clamp(min=0), "relu"),
    "relu6": (lambda p, x: F.relu6(x), "clamp"),
    "hardtanh": (lambda p, x: F.hardtanh(x, -0.5, 0.75), "clamp"),
    "clamp": (lambda p, x: x.clamp(-0.25, 1.5), "clamp"),
    "silu": (lambda p, x: F.silu(x), "silu"),
    "silu by hand": (lambda p, x: x * torch.sigmoid(x), "silu"),
    "hardswish": (lambda p, x: F.hardswish(x), "hardswish"),
    "hardswish by hand": (lambda p, x: F.hardsigmoid(x) * x, "hardswish"),
    "hardsigmoid": (lambda p, x: F.hardsigmoid(x), "hardsigmoid"),
    "sigmoid": (lambda p, x: torch.sigmoid(x), "sigmoid"),
    "tanh": (lambda p, x: torch.tanh(x), "tanh"),
    "leaky_relu": (lambda p, x: F.leaky_relu(x, 0.2), "leaky_relu"),
    "prelu": (lambda p, x: F.prelu(x, torch.full((1,), 0.3)), "leaky_relu"),
    "gelu": (lambda p, x: F.gelu(x), "gelu"),
    "elu": (lambda p, x: F.elu(x, 0.7), "elu"),
}


OPERATORS: dict[str, tuple[Function, list[str]]] = {
    "padding same": (lambda p, x: F.conv2d(x, p.conv.weight, padding="same"), ["conv2d"]),
    "padding same, even kernel": (
        lambda p, x: F.conv2d(x, p.conv.weight[..., :2], padding="same"),
        ["conv2d"],
    ),
    "padding valid": (lambda p, x: F.conv2d(x, p.conv.weight, padding="valid"), ["conv2d"]),
    "masked weights": (lambda p, x: F.conv2d(x, p.conv.weight * p.mask), ["conv2d"]),
    "batch norm": (lambda p, x: p.norm(x), ["batch_norm"]),
    "conv relu norm": (lambda p, x: p.norm(F.relu(p.conv(x))), ["conv2d", "activation", "batch_norm"]),
    "norm conv": (lambda p, x: p.conv(F.relu(p.norm(x))), ["batch_norm", "activation", "conv2d"]),
    "scale and shift": (lambda p, x: (x - 0.5) / 2 + 1, ["batch_norm"] * 3),
    "per channel": (lambda p, x: x * p.mask + p.mask, ["batch_norm"] * 2),
    "from a number": (lambda p, x: 1 - x, ["batch_norm"]),
    "sum": (lambda p, x: F.relu(x) + x, ["activation", "add"]),
    "product": (lambda p, x: torch.tanh(x) * x, ["activation", "mul"]),
    "gates": (
        lambda p, x: x * torch.sigmoid(F.adaptive_avg_pool2d(x, 1)),
        ["adaptive_avg_pool", "activation", "mul"],
    ),
    "gates first": (lambda p, x: x.mean((2, 3), keepdim=True) * x, ["adaptive_avg_pool", "mul"]),
    "gates unsqueezed": (lambda p, x: x.mean((2, 3))[:, :, None, None] * x, ["adaptive_avg_pool", "mul"]),
    "max pool": (lambda p, x: F.max_pool2d(x, 3, 2, 1), ["max_pool"]),
    "max pool, indices dropped": (lambda p, x: F.max_pool2d(x, 2, return_indices=True)[0], ["max_pool"]),
    "average without padding": (lambda p, x: F.avg_pool2d(x, (2, 3)), ["avg_pool"]),
    "adaptive average": (lambda p, x: F.adaptive_avg_pool2d(x, (3, None)), ["adaptive_avg_pool"]),
    "adaptive average of the same size": (lambda p, x: F.adaptive_avg_pool2d(x, 8), []),
    "adaptive maximum": (lambda p, x: F.adaptive_max_pool2d(x, (4, 1)), ["max_pool"]),
    "adaptive maximum, overlapping": (lambda p, x: F.adaptive_max_pool2d(x[:, :, :], (8, 2)), ["max_pool"]),
    "mean over one side": (lambda p, x: x.mean(2), ["adaptive_avg_pool"]),
    "mean in two steps": (lambda p, x: x.mean(-1).mean(-1), ["adaptive_avg_pool"] * 2),
    "mean of a view": (lambda p, x: x.flatten(2).mean(2), ["adaptive_avg_pool"]),
    "maximum over the map": (lambda p, x: x.amax((2, 3)), ["max_pool"]),
    "concatenation": (lambda p, x: torch.cat([x, F.relu(x), x], 1), ["activation", "concat"]),
    "concatenated features": (
        lambda p, x: torch.cat([x.mean((2, 3)), x.amax((2, 3))], -1),
        ["adaptive_avg_pool", "max_pool", "concat"],
    ),
    "linear over the map": (
        lambda p, x: F.linear(x.flatten(1), torch.linspace(-1, 1, 512).view(2, 256)),
        ["conv2d"],
    ),
    "linear after squeeze": (
        lambda p, x: p.linear(F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1)),
        ["adaptive_avg_pool", "conv2d"],
    ),
    "matrix product": (lambda p, x: x.mean((2, 3)) @ p.linear.weight.t(), ["adaptive_avg_pool", "conv2d"]),
    "addmm": (
        lambda p, x: torch.addmm(p.linear.bias, x.mean((2, 3)), p.linear.weight.t()),
        ["adaptive_avg_pool", "conv2d"],
    ),
    "flatten and back": (
        lambda p, x: p.conv(F.relu(x.flatten(1)).unflatten(1, (4, 8, 8))),
        ["activation", "conv2d"],
    ),
    "a view of ones": (
        lambda p, x: p.linear(F.adaptive_avg_pool2d(x, 1).permute(0, 2, 3, 1).reshape(-1, 4)),
        ["adaptive_avg_pool", "conv2d"],
    ),
    "zeros around": (lambda p, x: F.pad(x, (1, 2, 0, 3)), ["pad"]),
    "zero channels": (lambda p, x: F.pad(x, (0, 0, 0, 0, 1, 2)), ["pad"]),
    "zeros in two steps": (lambda p, x: F.pad(F.pad(x, (1, 0)), (0, 1, 2, 0)), ["pad"]),
    "no zeros": (lambda p, x: F.pad(x, (0, 0)), []),
    "every other pixel": (lambda p, x: x[:, :, ::2, ::2], ["max_pool"]),
    "every third row": (lambda p, x: x[:, :, ::3], ["max_pool"]),
    "option A": (lambda p, x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)), ["max_pool", "pad"]),
    "nothing at all": (lambda p, x: F.dropout(x, 0.5, False).contiguous().clone().detach().float(), []),
    "two outputs": (lambda p, x: (F.relu(x), x.mean((2, 3))), ["activation", "adaptive_avg_pool"]),
    "the same output twice": (lambda p, x: [x, x], []),
    "unused layers": (lambda p, x: (p.conv(x), F.relu(x))[1], ["activation"]),
}


@dataclass
class Translated:
    """What became of one probe: its operations, and imported beside torch's outputs."""

    ops: list[LayerOp]
    outputs: list[tuple[NDArray[Any], torch.Tensor]]

    def assert_same_numbers(self) -> None:
        for found, expected in self.outputs:
            assert found.shape == tuple(expected.shape)
            scale = max(1.0, float(expected.abs().max()))
            assert float(np.abs(found - expected.numpy()).max()) <= 1e-4 * scale


@pytest.fixture(scope="module")
def translated() -> dict[str, Translated]:
    """All probes, imported and run together."""
    torch.manual_seed(0)
    functions = {name: entry[0] for name, entry in (ACTIVATIONS | OPERATORS).items()}
    model = Many(functions)
    randomise(model)
    module = import_exported(fixed_batch(model))
    x = torch.randn(3, 4, 8, 8)
    found = iter(evaluate(module, x.numpy()))
    result: dict[str, Translated] = {}
    for name, probe in model.probes.items():
        with torch.no_grad():
            outputs = probe(x.clone())
        expected = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
        ops = [op for op in module.layers if probe_of(module_path(op)) == name]
        result[name] = Translated(ops, [(next(found), tensor) for tensor in expected])
    assert next(found, None) is None
    return result


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str, translated: dict[str, Translated]) -> None:
    translated[name].assert_same_numbers()
    assert [op.value("kind") for op in translated[name].ops] == [ACTIVATIONS[name][1]]


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name: str, translated: dict[str, Translated]) -> None:
    translated[name].assert_same_numbers()
    assert [op.name for op in translated[name].ops] == [f"nn.{op}" for op in OPERATORS[name][1]]


IN_PLACE: dict[str, Function] = {
    "fresh memory": lambda p, x: F.relu_(p.norm(p.conv(x))),
    "chain": lambda p, x: F.silu(F.relu_(p.conv(x)).add_(1)),
    "seen by another reader": lambda p, x: (lambda y: F.relu_(y) + y)(p.conv(x)),
    "read before": lambda p, x: (lambda y: y.mean((2, 3), keepdim=True) * F.relu_(y))(p.conv(x)),
    "through a view": lambda p, x: (lambda y, z: (F.relu_(z), y)[1])(
        *(lambda y: (y, y.view(-1, 144)))(p.conv(x))
    ),
    "the input itself": lambda p, x: p.conv(F.relu_(x)),
    "shortcut of an in-place block": lambda p, x: (lambda y: p.norm(F.relu_(y)) + y)(p.norm(x)),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_operators_keep_their_meaning(name: str) -> None:
    torch.manual_seed(0)
    assert_same(randomise(Probe(IN_PLACE[name])))


# -- geometry -----------------------------------------------------------------------------------------------

PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    kernel=PAIR,
    stride=PAIR,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=PAIR,
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
)
def test_convolution_geometry(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    bias: bool,
) -> None:
    assume(all(size[i] + 2 * padding[i] > dilation[i] * (kernel[i] - 1) for i in (0, 1)))
    layer = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups, bias)
    module = assert_same(nn.Sequential(layer).eval(), (4, *size))
    (op,) = module.layers
    assert op.symbols().keys() == ({"weight", "bias"} if bias else {"weight"})


@QUICK
@given(
    size=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    kernel=PAIR,
    stride=PAIR,
    halves=st.tuples(st.booleans(), st.booleans()),
    ceil_mode=st.booleans(),
    include=st.booleans(),
    maximum=st.booleans(),
)
def test_pooling_geometry(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    halves: tuple[bool, bool],
    ceil_mode: bool,
    include: bool,
    maximum: bool,
) -> None:
    padding = (kernel[0] // 2 * halves[0], kernel[1] // 2 * halves[1])
    layer: nn.Module
    if maximum:
        layer = nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil_mode)
    else:
        assume(not (ceil_mode and include and padding != (0, 0)))
        layer = nn.AvgPool2d(kernel, stride, padding, ceil_mode, include)
    assert_same(nn.Sequential(layer).eval(), (2, *size))


@QUICK
@given(
    border=st.tuples(*[st.integers(0, 2)] * 4),
    layer=st.sampled_from(["conv", "average", "average without zeros", "maximum", "maximum of relu"]),
    own=st.integers(0, 1),
)
def test_padding_moves_into_its_reader_where_that_is_exact(
    border: tuple[int, int, int, int], layer: str, own: int
) -> None:
    pad = nn.ZeroPad2d(border)
    nets = {
        "conv": nn.Sequential(pad, nn.Conv2d(4, 3, 3, padding=own)),
        "average": nn.Sequential(pad, nn.AvgPool2d(3, 2, own)),
        "average without zeros": nn.Sequential(pad, nn.AvgPool2d(3, 2, own, count_include_pad=False)),
        "maximum": nn.Sequential(pad, nn.MaxPool2d(3, 2, own)),
        "maximum of relu": nn.Sequential(nn.ReLU(), pad, nn.MaxPool2d(3, 2, own)),
    }
    module = assert_same(nets[layer].eval())
    folds = {
        "conv": True,
        "average": max(border) + own < 3,
        "average without zeros": max(border) + own < 3 and own == 0,
        "maximum": False,
        "maximum of relu": max(border) + own < 3,
    }[layer]
    assert ("nn.pad" not in names(module)) == (folds or not any(border))


@QUICK
@given(size=st.integers(1, 12), count=st.integers(1, 12))
def test_adaptive_maximum_is_exact_or_refused(size: int, count: int) -> None:
    from escc.frontend.windows import uniform_window

    starts = [i * size // count for i in range(count)]
    ends = [-(-(i + 1) * size // count) for i in range(count)]
    found = uniform_window(size, count)
    if found is not None:
        length, step = found
        assert [(i * step, i * step + length) for i in range(count)] == list(zip(starts, ends, strict=True))
        assert count == 1 or (size - length) // step + 1 == count


# -- names, places, ports -----------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        self.unused = nn.Conv2d(4, 4, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return F.relu(self.left(image) + image)


def only(module: Module, name: str) -> LayerOp:
    (op,) = [op for op in module.layers if op.name == name]
    return op


def test_operations_say_where_they_come_from() -> None:
    module = imported(nn.Sequential(nn.Identity(), Residual()).eval())
    conv, add = only(module, "nn.conv2d"), only(module, "nn.add")
    assert module_path(conv) == "1.left.0"
    assert module_path(add) == "1"
    assert source_place(add).rpartition(":")[0].endswith("tests/frontend/test_importer.py")
    with open(__file__, encoding="utf-8") as stream:
        line = stream.read().splitlines()[int(source_place(add).rpartition(":")[2]) - 1]
    assert "self.left(image) + image" in line
    assert conv.symbols() == {"weight": "1.left.0.weight", "bias": "1.left.0.bias"}
    assert set(module.store) == {"1.left.0.weight", "1.left.0.bias"}


def test_text_round_trip() -> None:
    module = imported(nn.Sequential(Residual(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 3)).eval())
    text = module.to_text()
    assert Module.from_text(text, module.store).to_text() == text


def test_ports_keep_torch_s_shapes() -> None:
    module = imported(Probe(lambda p, x: (p.conv(x).flatten(1), x.mean((2, 3)))).eval())
    assert [port.torch_shape for port in module.input_ports] == [(4, 8, 8)]
    assert [port.name for port in module.input_ports] == ["x"]
    assert [port.torch_shape for port in module.output_ports] == [(4 * 6 * 6,), (4,)]


def test_a_linear_layer_over_a_map_is_reordered() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 5 * 4, 7), nn.ReLU(), nn.BatchNorm1d(7), nn.Linear(7, 2)
    )
    module = assert_same(randomise(model), (3, 5, 4))
    first = next(iter(module.layers))
    assert first.ints("kernel") == (5, 4)
    assert module.store[first.weight_name("weight")].shape == (7, 3, 5, 4)


def test_shared_weights_are_stored_once() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    module = assert_same(nn.Sequential(conv, nn.ReLU(), conv).eval())
    assert len({op.symbol("weight") for op in module.layers if op.name == "nn.conv2d"}) == 1


def test_other_number_types_become_float32() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).double().eval()
    module = import_exported(capture(model, input_shape=(3, 6, 6)))
    assert {array.dtype.name for array in module.store.values()} == {"float32"}


def test_a_fixed_batch_is_as_good_as_a_free_one() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2)).eval()
    program = torch.export.export(model, (torch.zeros(1, 3, 6, 6),))
    fixed = import_exported(capture(program))
    assert fixed.to_text(locations=False) == imported(model, (3, 6, 6)).to_text(locations=False)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, image: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return self.conv(image) * torch.sigmoid(gate)[:, :, None, None]


def test_two_inputs() -> None:
    model = TwoInputs().eval()
    example = (torch.randn(3, 3, 6, 6), torch.randn(3, 4))
    module = import_exported(capture(model, example=example))
    assert [port.name for port in module.input_ports] == ["image", "gate"]
    found = evaluate(module, [tensor.numpy() for tensor in example])[0]
    torch.testing.assert_close(torch.tensor(found), model(*example).detach(), atol=1e-5, rtol=1e-4)
