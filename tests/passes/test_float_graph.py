"""The float reference against torch's own layers, operation by operation and on whole networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from tests.passes.networks import Net, quantized

from escc.errors import EsccError
from escc.frontend.capture import capture
from escc.frontend.importer import import_exported
from escc.frontend.zoo import build
from escc.ir import nn
from escc.ir.activations import ACTIVATIONS
from escc.ir.base import LayerOp, make_location, map_shape
from escc.ir.module import Module
from escc.ir.passes import PassContext, parse_pipeline, run_pipeline
from escc.ir.xdsl import SSAValue
from escc.passes.convolutions import dense_weight
from escc.passes.reference.float_graph import activate, evaluate, run

Array = NDArray[Any]


def images(module: Module, count: int = 2) -> Array:
    height, width, channels = map_shape(module.inputs[0])
    return np.random.default_rng(1).standard_normal((count, channels, height, width)).astype(np.float32)


def same(module: Module, wanted: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x = images(module)
    np.testing.assert_allclose(evaluate(module, x)[0], wanted(torch.as_tensor(x)).numpy(), atol=1e-5)


def one(operation: type[LayerOp], /, *, shape: Sequence[int] = (7, 6, 4), **properties: Any) -> Module:
    """A network of one operation on one map."""
    net = Net(*shape)
    op = operation.make([net.x], None, make_location("layer"), **properties)
    net.module.body.add_op(op)
    return net.finish(op.out)


@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (1, 2, 1, 2), (0, 1, 1, 0), (2, 0, 1, 3)], ids=str)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolution(padding: tuple[int, int, int, int], groups: int) -> None:
    net = Net(7, 6, 4)
    weight, bias = net.random.standard_normal((8, 4 // groups, 3, 2)), net.random.standard_normal(8)
    geometry: dict[str, Any] = {"padding": padding, "stride": (2, 1), "dilation": (1, 2), "groups": groups}
    module = net.finish(net.conv(net.x, weight, bias, **geometry))
    top, left, bottom, right = padding

    def wanted(x: torch.Tensor) -> torch.Tensor:
        padded = functional.pad(x, (left, right, top, bottom))
        arrays = [torch.as_tensor(array, dtype=torch.float32) for array in (weight, bias)]
        return functional.conv2d(padded, *arrays, stride=(2, 1), dilation=(1, 2), groups=groups)

    same(module, wanted)


def test_residual_comes_before_the_activation() -> None:
    net = Net(5, 5, 4)
    weight = net.random.standard_normal((4, 4, 1, 1))
    module = net.finish(
        net.conv(net.x, weight, residual=net.x, activation="clamp", activation_args=(-0.2, 0.9))
    )
    kernel = torch.as_tensor(weight, dtype=torch.float32)
    same(module, lambda x: (functional.conv2d(x, kernel) + x).clamp(-0.2, 0.9))


def test_decomposed_convolution_is_its_dense_weight() -> None:
    net = Net(6, 6, 8)
    module = net.finish(net.random_decomposed(net.x, 6, 4, groups=2, stride=(2, 2)))
    (op,) = module.layers
    bases, coefficients, scale = (
        module.store[op.weight_name(name)] for name in ("bases", "coefficients", "scale")
    )
    weight = np.einsum("k,kcm,mrs->kcrs", scale, coefficients, bases)
    np.testing.assert_allclose(dense_weight(module, op), weight, atol=1e-6)
    kernel, bias = torch.as_tensor(weight), torch.as_tensor(np.array(module.store[op.weight_name("bias")]))
    same(module, lambda x: functional.conv2d(x, kernel.to(x.dtype), bias, stride=2, padding=1, groups=2))


@pytest.mark.parametrize("counted", [True, False])
def test_average_pool_counts_padding_or_not(counted: bool) -> None:
    window: dict[str, Any] = {"kernel": (3, 2), "stride": (2, 2)}
    module = one(nn.AvgPool, padding=(1, 1, 1, 1), count_include_pad=counted, **window)
    same(module, lambda x: functional.avg_pool2d(x, (3, 2), 2, 1, count_include_pad=counted))
    # one side only: torch's own layer cannot do that
    module = one(nn.AvgPool, shape=(2, 2, 1), padding=(0, 0, 1, 0), count_include_pad=counted, **window)
    x = images(module)
    same(module, lambda _: torch.as_tensor(x.sum((2, 3), keepdims=True) / (6 if counted else 4)))


def test_padding_never_wins_a_maximum() -> None:
    module = one(nn.MaxPool, kernel=(3, 3), stride=(2, 2), padding=(1, 1, 1, 1))
    x = -np.abs(images(module)) - 1
    wanted = functional.max_pool2d(torch.as_tensor(x), 3, 2, 1).numpy()
    np.testing.assert_array_equal(evaluate(module, x)[0], wanted)


def test_adaptive_pool_pad_concat_and_products() -> None:
    same(one(nn.AdaptiveAvgPool, size=(3, 4)), lambda x: functional.adaptive_avg_pool2d(x, (3, 4)))
    same(one(nn.Pad, padding=(1, 2, 0, 3), channels=(2, 1)), lambda x: functional.pad(x, (2, 3, 1, 0, 2, 1)))
    net = Net(5, 5, 3)
    gate = net.op(nn.AdaptiveAvgPool, [net.x], size=(1, 1))
    both = net.op(
        nn.Concat, [net.op(nn.Mul, [net.x, gate]), net.op(nn.Add, [net.x, net.x], activation="relu")]
    )
    same(net.finish(both), lambda x: torch.cat([x * x.mean((2, 3), keepdim=True), torch.relu(2 * x)], dim=1))


def test_batch_norm() -> None:
    net = Net(5, 5, 3)
    arrays = {
        name: np.array([0.5, 1.0, 2.0], dtype=np.float32) * k for k, name in enumerate(("mean", "var"), 1)
    }
    symbols = {name: net.keep(array) for name, array in arrays.items()}
    module = net.finish(net.op(nn.BatchNorm, [net.x], eps=0.1, **symbols))
    mean, var = (torch.as_tensor(arrays[name]) for name in ("mean", "var"))
    same(module, lambda x: functional.batch_norm(x, mean, var, eps=0.1))


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_agree_with_the_table_functions(kind: str) -> None:
    arguments = {"clamp": (-0.5, 1.5), "leaky_relu": (0.1,), "elu": (0.7,)}.get(kind, ())
    x = np.linspace(-8, 8, 999)
    wanted = ACTIVATIONS[kind].function(x, *arguments)
    np.testing.assert_allclose(activate(torch.as_tensor(x), kind, arguments).numpy(), wanted, atol=1e-12)
    module = one(nn.Activation, kind=kind, args=arguments or None)
    same(module, lambda y: activate(y, kind, arguments))


def test_precision_follows_the_input() -> None:
    net = Net(6, 6, 3)
    module = net.finish(net.random_conv(net.x, 4, 3))
    x = images(module)
    single, double = evaluate(module, x)[0], evaluate(module, x.astype(np.float64))[0]
    assert (single.dtype, double.dtype) == (np.float32, np.float64)
    np.testing.assert_allclose(single, double, atol=1e-5)


def test_visitors_see_results_and_sums() -> None:
    net = Net(6, 6, 4)
    x = net.random_conv(net.x, 4, 3, activation="relu")
    module = net.finish(net.op(nn.Add, [x, net.x], activation="sigmoid"))
    after: dict[str, torch.Tensor] = {}
    before: dict[str, torch.Tensor] = {}
    values = run(
        module,
        images(module),
        lambda op, y: after.update({op.name: y}),
        lambda op, y: before.update({op.name: y}),
    )
    assert list(after) == list(before) == ["nn.conv2d", "nn.add"]
    for name, kind in (("nn.conv2d", "relu"), ("nn.add", "sigmoid")):
        torch.testing.assert_close(activate(before[name], kind, ()), after[name])
    assert len(values) == 3
    only: dict[SSAValue, torch.Tensor] = run(module, images(module), keep=False)
    assert list(only) == module.outputs


def test_wrong_inputs_and_levels_are_refused() -> None:
    net = Net(6, 6, 3)
    module = net.finish(net.random_conv(net.x, 4, 3))
    with pytest.raises(EsccError, match=r"input 'image' must be N x \[3, 6, 6\], found \[2, 3, 5, 6\]"):
        evaluate(module, np.zeros((2, 3, 5, 6), dtype=np.float32))
    with pytest.raises(EsccError, match="has 1 inputs, 2 given"):
        evaluate(module, [images(module), images(module)])
    integer = quantized(module, images(module))
    with pytest.raises(EsccError, match=r"escalate.quantized_conv2d.*not an operation of the float levels"):
        evaluate(integer, images(integer))


@pytest.mark.parametrize(
    ("name", "size"), [("resnet8", 32), ("senet_tiny", 32), ("mobilenet_v2", 64), ("squeezenet1_1", 64)]
)
def test_networks_equal_torch_through_every_lossless_pass(name: str, size: int) -> None:
    model = build(name)
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    module = import_exported(capture(model, example=x))
    with torch.no_grad():
        wanted = model.eval()(x).numpy()
    tolerance = 1e-4 * max(1.0, float(np.abs(wanted).max()))
    np.testing.assert_allclose(evaluate(module, x)[0], wanted, atol=tolerance)
    lossless = "decompose-kernels{method=svd bases=9 planes=1},prune-coefficients{std=0},shrink-channels"
    for spec in ("fold-batch-norm", "fuse-requantize", lossless):
        run_pipeline(module, parse_pipeline(spec), PassContext())
        np.testing.assert_allclose(evaluate(module, x)[0], wanted, atol=tolerance)
    assert any(op.name == "escalate.decomposed_conv2d" for op in module.layers)
