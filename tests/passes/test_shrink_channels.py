"""shrink-channels: what goes, what stays, and that the outputs do not change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.passes.networks import Net

from escc.errors import EsccError
from escc.ir import nn
from escc.ir.base import make_location, map_shape
from escc.ir.module import Module
from escc.ir.passes import PassContext, run_pipeline
from escc.ir.xdsl import SSAValue
from escc.passes.math.liveness import Link, constant_sums, live_channels, tied_groups
from escc.passes.reference.float_graph import evaluate
from escc.passes.shrink_channels import ShrinkChannels

NO_PADDING = (0, 0, 0, 0)


def shrink(module: Module, seed: int = 0) -> Module:
    """The smaller module, having checked that its outputs stayed the same."""
    height, width, channels = map_shape(module.inputs[0])
    images = np.random.default_rng(seed).standard_normal((2, channels, height, width)).astype(np.float32)
    smaller = module.clone()
    run_pipeline(smaller, [ShrinkChannels()], PassContext())
    assert "shrunk" in smaller.facts
    for wanted, found in zip(evaluate(module, images), evaluate(smaller, images), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * max(1.0, float(np.abs(wanted).max())))
    return smaller


def channels(module: Module) -> list[int]:
    return [map_shape(op.out)[2] for op in module.layers]


def dense(net: Net, outputs: int, inputs: int, kernel: int = 3) -> NDArray[Any]:
    return net.random.standard_normal((outputs, inputs, kernel, kernel)) / inputs


def activate(net: Net, x: SSAValue, kind: str, *args: float) -> SSAValue:
    op = nn.Activation.make([x], None, make_location("act"), kind=kind, args=args or None)
    net.module.body.add_op(op)
    return op.out


def test_input_channels_nobody_weighs_go_and_free_what_made_them() -> None:
    net = Net(6, 6, 3)
    first, second, third = dense(net, 8, 3), dense(net, 8, 8), dense(net, 4, 8)
    third[:, 5] = 0
    second[:, [1, 2]] = 0
    second[5, 3] = 1  # the only user of channel 3 is an output that goes
    second[np.arange(8) != 5, 3] = 0
    x = net.conv(net.x, first, np.ones(8), activation="relu")
    x = net.conv(x, second, np.ones(8), activation="relu")
    smaller = shrink(net.finish(net.conv(x, third)))
    assert channels(smaller) == [5, 7, 4]


@pytest.mark.parametrize(("padding", "value", "goes"), [(0, 0.7, True), (1, 0.7, False), (1, -0.7, True)])
def test_constant_outputs_go_where_the_constant_can_be_folded(padding: int, value: float, goes: bool) -> None:
    net = Net(6, 6, 3)
    first = dense(net, 8, 3)
    first[2] = 0
    bias = np.full(8, 0.1)
    bias[2] = value  # after ReLU: 0.7 or 0
    x = net.conv(net.x, first, bias, activation="relu")
    module = net.finish(net.conv(x, dense(net, 4, 8), padding=(padding,) * 4))
    smaller = shrink(module)
    assert channels(smaller) == [7 if goes else 8, 4]
    assert (list(smaller.layers)[1].symbol("bias") is not None) == (goes and value > 0)


def test_a_constant_passes_activations_pools_and_sums_on_its_way() -> None:
    net = Net(8, 8, 3)
    first, second = dense(net, 4, 3), dense(net, 4, 3)
    first[1] = second[1] = 0
    a, b = net.conv(net.x, first, np.full(4, -0.3)), net.conv(net.x, second, np.full(4, 0.5))
    x = activate(net, net.op(nn.Add, [a, b]), "silu")
    x = net.op(nn.MaxPool, [x], kernel=(3, 3), stride=(2, 2), padding=(1, 1, 1, 1))
    x = net.op(nn.AvgPool, [x], kernel=(2, 2), stride=(1, 1), padding=(1, 0, 0, 1), count_include_pad=False)
    x = net.op(nn.AdaptiveAvgPool, [x], size=(2, 2))
    smaller = shrink(net.finish(net.conv(x, dense(net, 5, 4, 2), padding=NO_PADDING)))
    assert channels(smaller) == [3, 3, 3, 3, 3, 3, 3, 5]


@pytest.mark.parametrize(("counted", "left"), [(True, 4), (False, 3)])
def test_padding_that_counts_in_a_mean_makes_a_constant_vary(counted: bool, left: int) -> None:
    net = Net(6, 6, 3)
    first = dense(net, 4, 3)
    first[1] = 0
    x = net.conv(net.x, first, np.full(4, 0.5))
    x = net.op(nn.AvgPool, [x], kernel=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1), count_include_pad=counted)
    smaller = shrink(net.finish(net.conv(x, dense(net, 5, 4), padding=NO_PADDING)))
    assert channels(smaller) == [left, left, 5]


def test_residual_channels_go_together_or_stay() -> None:
    for both in (True, False):
        net = Net(6, 6, 3)
        stem, branch, after = dense(net, 6, 3), dense(net, 6, 6), dense(net, 6, 6)
        after[:, 2] = 0
        if both:
            branch[:, 2] = 0
        stem_out = net.conv(net.x, stem, activation="relu")
        inner = net.conv(stem_out, branch, residual=stem_out, activation="relu")
        smaller = shrink(net.finish(net.conv(inner, after)))
        assert channels(smaller) == ([5, 5, 6] if both else [6, 6, 6])


def test_concatenation_padding_depthwise_and_gates() -> None:
    net = Net(6, 6, 3)
    left, right, last = dense(net, 4, 3), dense(net, 4, 3), dense(net, 3, 12)
    last[:, [1, 6, 11]] = 0  # one of left, one of right, one padded
    both = net.op(nn.Concat, [net.conv(net.x, left), net.conv(net.x, right)])
    wide = net.op(nn.Pad, [both], padding=(0, 1, 0, 0), channels=(0, 4))
    wide = net.random_conv(wide, 12, 3, groups=12)
    gate = net.op(nn.AdaptiveAvgPool, [wide], size=(1, 1))
    wide = net.op(nn.Mul, [wide, activate(net, gate, "sigmoid")])
    smaller = shrink(net.finish(net.conv(wide, last)))
    assert channels(smaller) == [3, 3, 6, 9, 9, 9, 9, 9, 3]
    assert next(op for op in smaller.layers if op.name == "nn.pad").ints("channels") == (0, 3)
    assert next(op for op in smaller.layers if op.value("groups") == 9) is not None


def test_decomposed_layers_lose_outputs_inputs_and_bases() -> None:
    net = Net(6, 6, 8)
    codes = net.random.integers(-1, 2, (8, 8, 4)).astype(np.int8)
    codes[:, :, 1] = 0
    codes[3] = 0
    x = net.decomposed(net.x, net.random.standard_normal((4, 3, 3)), codes, np.full(8, 0.1), np.full(8, -1.0))
    x = activate(net, x, "relu")
    second = net.random.integers(-1, 2, (5, 8, 3)).astype(np.int8)
    second[:, 6] = 0
    module = net.finish(net.decomposed(x, net.random.standard_normal((3, 3, 3)), second, np.full(5, 0.1)))
    smaller = shrink(module)
    first, _, last = smaller.layers
    assert smaller.store[first.weight_name("coefficients")].shape == (6, 8, 3)
    assert smaller.store[first.weight_name("bases")].shape == (3, 3, 3)
    assert smaller.store[first.weight_name("scale")].shape == (6,)
    assert smaller.store[last.weight_name("coefficients")].shape == (5, 6, 3)


def test_a_dead_branch_keeps_one_channel() -> None:
    net = Net(6, 6, 3)
    inner = net.conv(net.x, dense(net, 8, 3), activation="relu")
    branch = net.conv(inner, np.zeros((4, 8, 3, 3)), np.ones(4))
    module = net.finish(net.op(nn.Add, [branch, net.conv(net.x, dense(net, 4, 3))]))
    assert channels(shrink(module)) == [1, 4, 4, 4]


def test_grouped_convolutions_inputs_and_outputs_stay() -> None:
    net = Net(6, 6, 4)
    first, grouped = dense(net, 4, 4), dense(net, 4, 2)
    first[:, 1] = first[2] = 0
    grouped[:, 0] = 0
    module = net.finish(net.conv(net.conv(net.x, first), grouped, groups=2))
    assert channels(shrink(module)) == [4, 4]
    assert map_shape(shrink(module).inputs[0]) == (6, 6, 4)


def test_integer_networks_are_refused() -> None:
    from tests.passes.networks import quantized

    net = Net(6, 6, 4)
    module = quantized(net.finish(net.random_conv(net.x, 4, 3)), np.ones((2, 4, 6, 6), dtype=np.float32))
    with pytest.raises(EsccError, match="float levels"):
        run_pipeline(module, [ShrinkChannels()], PassContext())


@given(st.integers(1, 60), st.integers(0, 80), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_groups_are_the_connected_components(count: int, pairs: int, seed: int) -> None:
    ties = np.random.default_rng(seed).integers(0, count, (pairs, 2))
    reach = np.eye(count, dtype=bool)
    reach[ties[:, 0], ties[:, 1]] = reach[ties[:, 1], ties[:, 0]] = True
    for _ in range(count):
        reach = reach @ reach
    np.testing.assert_array_equal(tied_groups(count, ties), reach.argmax(axis=1))


def test_liveness_by_hand() -> None:
    # 0,1,2 -> 3,4 -> 5; channel 4 is needed by nobody, so 2 (needed by 4 alone) goes as well; 0 is tied to 5
    links = [
        Link(np.array([0, 1, 2]), np.array([3, 4]), np.array([[False, True, False], [True, True, True]])),
        Link(np.array([3, 4]), np.array([5]), np.array([[True, False]])),
    ]
    pinned = np.arange(6) == 5
    maps = [np.array([0, 1, 2]), np.array([3, 4]), np.array([5])]
    live = live_channels(6, np.array([[0, 5]]), links, pinned, maps)
    assert live.tolist() == [True, True, False, True, False, True]


def test_constants_by_hand() -> None:
    nonzero = np.array([[True, False], [False, True], [False, False]])
    sums, bias, inputs = np.full((3, 2), 2.0), np.array([1.0, 2.0, 3.0]), np.array([0.5, np.nan])
    np.testing.assert_array_equal(constant_sums(nonzero, sums, bias, inputs, False), [2.0, np.nan, 3.0])
    np.testing.assert_array_equal(constant_sums(nonzero, sums, bias, inputs, True), [np.nan, np.nan, 3.0])


def sparse(net: Net, *shape: int) -> NDArray[Any]:
    """Weights of which whole rows, columns and many kernels are zero."""
    weight = net.random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    weight[net.random.random(shape[0]) < 0.3] = 0
    weight[:, net.random.random(shape[1]) < 0.3] = 0
    weight[net.random.random(shape[:2]) < 0.4] = 0
    return weight


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_random_masked_networks_keep_their_outputs(seed: int) -> None:
    net = Net(6, 5, 4, seed)
    draw = net.random
    values = [net.x]
    for _ in range(14):
        x = values[int(draw.integers(max(0, len(values) - 4), len(values)))]
        height, width, size = map_shape(x)
        same = [value for value in values if map_shape(value) == map_shape(x)]
        kind, pad = int(draw.integers(9)), int(draw.integers(2))
        padding = (pad, pad, pad, 0) if min(height, width) + pad >= 3 else (1, 1, 1, 1)
        bias = draw.normal(size=6) * draw.integers(0, 2, 6)
        if kind <= 2:
            x = net.conv(
                x, sparse(net, 6, size, 3, 3), bias, padding=padding, activation="relu" if pad else None
            )
        elif kind == 3:
            codes = draw.integers(-1, 2, (6, size, 4)) * (sparse(net, 6, size, 1, 1)[..., 0] != 0)
            codes *= draw.integers(0, 2, 4)
            bases = draw.normal(size=(4, 3, 3))
            x = net.decomposed(
                x, bases, codes.astype(np.int8), draw.normal(size=6) / 8, bias, padding=padding
            )
        elif kind == 4:
            x = net.op(nn.Add, [x, same[int(draw.integers(len(same)))]], activation="relu" if pad else None)
        elif kind == 5:
            x = activate(net, x, ["relu", "hardswish", "sigmoid", "gelu"][int(draw.integers(4))])
        elif kind == 6:
            weight = draw.normal(size=(size, 1, 3, 3)) * draw.integers(0, 2, (size, 1, 1, 1))
            x = net.conv(x, weight, draw.normal(size=size), groups=size, padding=padding)
        elif kind == 7:
            x = net.op(nn.Pad, [x], padding=(0, pad, 0, 0), channels=(pad, 1))
        else:
            gate = net.op(nn.AdaptiveAvgPool, [x], size=(1, 1))
            x = net.op(nn.Mul, [x, net.conv(gate, sparse(net, size, size, 1, 1), draw.normal(size=size))])
        values.append(x)
    tail = net.op(nn.Concat, [value for value in values if map_shape(value)[:2] == map_shape(values[-1])[:2]])
    smaller = shrink(net.finish(net.conv(tail, sparse(net, 5, map_shape(tail)[2], 1, 1))), seed)
    assert map_shape(smaller.outputs[0])[2] == 5
