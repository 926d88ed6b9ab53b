"""fold-batch-norm and fuse-requantize: the network computes what it computed before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.passes.networks import Net

from escc.errors import EsccError
from escc.ir import nn
from escc.ir.base import make_location, map_shape
from escc.ir.module import Module
from escc.ir.passes import Pass, PassContext, run_pipeline
from escc.ir.xdsl import SSAValue
from escc.passes.fold_batch_norm import FoldBatchNorm
from escc.passes.fuse_requantize import FuseRequantize
from escc.passes.reference.float_graph import evaluate


def norm(net: Net, x: SSAValue, *, shift: bool = True, positive: bool = True) -> SSAValue:
    """Batch norm with random statistics; without ``shift`` it only scales."""
    channels = map_shape(x)[2]
    weight = net.random.uniform(0.5, 2.0, channels) * (
        1 if positive else net.random.choice([-1, 1], channels)
    )
    mean = net.random.normal(size=channels) if shift else np.zeros(channels)
    return net.op(
        nn.BatchNorm,
        [x],
        weight=net.keep(weight.astype(np.float32)),
        bias=net.keep((net.random.normal(size=channels) if shift else np.zeros(channels)).astype(np.float32)),
        mean=net.keep(mean.astype(np.float32)),
        var=net.keep(net.random.uniform(0.3, 3.0, channels).astype(np.float32)),
        eps=1e-5,
    )


def act(net: Net, x: SSAValue, kind: str = "relu", *args: float) -> SSAValue:
    op = nn.Activation.make([x], None, make_location(f"act{net.count}"), kind=kind, args=args or None)
    net.module.body.add_op(op)
    return op.out


def names(module: Module) -> list[str]:
    return [op.name for op in module.layers]


def check(module: Module, *passes: Pass, seed: int = 0) -> Module:
    """The module after the passes, having checked that its outputs stayed the same."""
    height, width, channels = map_shape(module.inputs[0])
    images = np.random.default_rng(seed).standard_normal((3, channels, height, width)).astype(np.float32)
    module.set_facts(set())
    changed = module.clone()
    run_pipeline(changed, passes, PassContext())
    for wanted, found in zip(evaluate(module, images), evaluate(changed, images), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4 * max(1.0, float(np.abs(wanted).max())))
    return changed


def test_folds_into_the_convolution_before() -> None:
    net = Net(6, 5, 3)
    x = norm(net, norm(net, net.random_conv(net.x, 4, 3)), positive=False)
    module = check(net.finish(act(net, x)), FoldBatchNorm())
    assert names(module) == ["nn.conv2d", "nn.activation"]
    (conv,) = (op for op in module.layers if op.name == "nn.conv2d")
    assert conv.weight_name("weight").startswith("layer1.folded_weight")
    assert module.facts == {"batch-norm-folded"}


def test_folds_into_decomposed_convolutions_with_positive_scales() -> None:
    net = Net(6, 6, 8)
    x = net.random_decomposed(net.x, 6, 3)
    module = check(net.finish(norm(net, x, positive=False)), FoldBatchNorm())
    (conv,) = module.layers
    assert (module.store[conv.weight_name("scale")] >= 0).all()
    assert module.store[conv.weight_name("coefficients")].dtype == np.int8


@pytest.mark.parametrize(
    ("shift", "padding", "folds"), [(True, 0, True), (True, 1, False), (False, 1, True)], ids=str
)
def test_folds_forward_only_where_no_shifted_zero_is_padded(shift: bool, padding: int, folds: bool) -> None:
    net = Net(6, 6, 3)
    x = norm(net, act(net, net.random_conv(net.x, 4, 3)), shift=shift, positive=False)
    a = net.random_conv(x, 5, 3, padding=(padding,) * 4)
    b = net.random_conv(x, 4, 3, padding=(padding,) * 4, groups=2)
    module = check(net.finish(a, b), FoldBatchNorm())
    assert names(module).count("nn.conv2d") == (3 if folds else 4)
    if not folds:
        kept = list(module.layers)[2]
        assert kept.value("groups") == 4
        assert kept.symbol("bias")


def test_stays_a_depthwise_convolution_when_the_value_has_other_uses() -> None:
    net = Net(6, 6, 3)
    conv = net.random_conv(net.x, 4, 3)
    module = check(net.finish(conv, norm(net, conv)), FoldBatchNorm())
    assert [op.value("groups") for op in module.layers] == [1, 4]


@pytest.mark.parametrize("kind", ["max", "average", "padded average", "adaptive"])
def test_passes_poolings_it_commutes_with(kind: str) -> None:
    net = Net(6, 6, 3)
    x = norm(net, act(net, net.random_conv(net.x, 4, 3)))
    window: dict[str, Any] = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1, 1, 1)}
    if kind == "max":
        x = net.op(nn.MaxPool, [x], **window)
    elif kind == "adaptive":
        x = net.op(nn.AdaptiveAvgPool, [x], size=(2, 2))
    else:
        x = net.op(nn.AvgPool, [x], count_include_pad=kind == "padded average", **window)
    module = check(net.finish(net.random_conv(x, 5, 1)), FoldBatchNorm())
    assert names(module).count("nn.conv2d") == (3 if kind == "padded average" else 2)


def test_max_pool_does_not_commute_with_a_negative_factor() -> None:
    net = Net(6, 6, 3)
    x = norm(net, act(net, net.random_conv(net.x, 8, 3)), positive=False)
    x = net.op(nn.MaxPool, [x], kernel=(2, 2), stride=(2, 2), padding=(0, 0, 0, 0))
    module = check(net.finish(net.random_conv(x, 5, 1)), FoldBatchNorm())
    assert names(module) == ["nn.conv2d", "nn.activation", "nn.conv2d", "nn.max_pool", "nn.conv2d"]


def test_norm_of_the_input_and_before_an_output() -> None:
    net = Net(5, 5, 3)
    x = norm(net, net.x)
    module = check(net.finish(x, net.random_conv(x, 2, 3)), FoldBatchNorm())
    assert names(module) == ["nn.conv2d", "nn.conv2d"]


def test_residual_and_activation_join_the_later_convolution() -> None:
    net = Net(6, 6, 4)
    long = net.random_conv(net.random_conv(net.x, 4, 3), 4, 3)
    short = net.random_conv(net.x, 4, 1)
    module = check(
        net.finish(act(net, net.op(nn.Add, [long, short]), "clamp", 0.0, 6.0)),
        FoldBatchNorm(),
        FuseRequantize(),
    )
    assert names(module) == ["nn.conv2d"] * 3
    last = list(module.layers)[-1]
    assert last.ints("kernel") == (1, 1)
    assert len(last.operands) == 2
    assert (last.value("activation"), last.floats("activation_args")) == ("clamp", (0.0, 6.0))


def test_convolution_moves_behind_a_later_residual() -> None:
    net = Net(6, 6, 4)
    main = net.random_conv(net.x, 4, 3)
    side = net.op(
        nn.AvgPool, [net.x], kernel=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1), count_include_pad=True
    )
    module = check(net.finish(net.op(nn.Add, [main, side])), FoldBatchNorm(), FuseRequantize())
    assert names(module) == ["nn.avg_pool", "nn.conv2d"]


def test_an_activation_before_the_addition_keeps_it_apart() -> None:
    net = Net(6, 6, 4)
    x = act(net, net.random_conv(net.x, 4, 3))
    module = check(net.finish(act(net, net.op(nn.Add, [x, net.x]))), FoldBatchNorm(), FuseRequantize())
    assert names(module) == ["nn.conv2d", "nn.add"]
    assert [op.value("activation") for op in module.layers] == ["relu", "relu"]


def test_values_with_other_users_stay_visible() -> None:
    net = Net(6, 6, 4)
    conv = net.random_conv(net.x, 4, 3)
    total = net.op(nn.Add, [conv, net.x])
    module = check(net.finish(conv, total, act(net, total)), FoldBatchNorm(), FuseRequantize())
    assert names(module) == ["nn.conv2d", "nn.add", "nn.activation"]
    twice = Net(6, 6, 4)
    conv = twice.random_conv(twice.x, 4, 3)
    module = check(twice.finish(twice.op(nn.Add, [conv, conv])), FoldBatchNorm(), FuseRequantize())
    assert names(module) == ["nn.conv2d", "nn.add"]


def test_a_second_activation_stays() -> None:
    net = Net(6, 6, 4)
    x = act(net, act(net, net.random_conv(net.x, 4, 3), "leaky_relu", 0.1), "sigmoid")
    module = check(net.finish(x), FoldBatchNorm(), FuseRequantize())
    assert names(module) == ["nn.conv2d", "nn.activation"]


def test_fusing_needs_folding_first() -> None:
    net = Net(4, 4, 2)
    module = net.finish(norm(net, net.x))
    module.set_facts(set())
    with pytest.raises(EsccError, match=r"needs batch-norm-folded first.*fold-batch-norm"):
        run_pipeline(module, [FuseRequantize()], PassContext())


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_random_networks_keep_their_outputs(seed: int) -> None:
    net = Net(7, 6, 4, seed)
    values = [net.x]
    pick = lambda: values[int(net.random.integers(len(values)))]  # noqa: E731
    for _ in range(12):
        x = pick()
        same = [value for value in values if map_shape(value) == map_shape(x)]
        kind = int(net.random.integers(6))
        if kind <= 1:
            pad = int(net.random.integers(2))
            if min(map_shape(x)[:2]) + 2 * pad >= 3:
                x = net.random_conv(x, 4, 3, padding=(pad,) * 4, groups=int(net.random.choice([1, 2, 4])))
        elif kind == 2:
            x = norm(net, x, shift=bool(net.random.integers(2)), positive=bool(net.random.integers(2)))
        elif kind == 3:
            x = act(net, x, "relu")
        elif kind == 4:
            x = net.op(nn.Add, [x, same[int(net.random.integers(len(same)))]])
        else:
            pool = {"kernel": (2, 2), "stride": (1, 1), "padding": (1, 0, 0, 1)}
            x = net.op(nn.MaxPool, [x], **pool)
        values.append(x)
    module = check(net.finish(values[-1], pick()), FoldBatchNorm(), FuseRequantize(), seed=seed)
    assert "nn.batch_norm" not in names(module)
