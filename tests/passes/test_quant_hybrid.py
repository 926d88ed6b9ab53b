"""quantize-hybrid: forms, scales, tables, proofs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.passes.networks import Net, layer, quantized, sqnr

from escc.errors import EsccError
from escc.ir import nn
from escc.ir.base import LayerOp
from escc.ir.module import Module
from escc.ir.passes import PassContext, run_pipeline
from escc.ir.types import MapType
from escc.ir.xdsl import SSAValue
from escc.isa.arch import Arch
from escc.passes.calibrate import Calibrate
from escc.passes.quantize_hybrid import QuantizeHybrid
from escc.passes.reference.float_graph import evaluate, run
from escc.passes.reference.integer_graph import evaluate_integer, recomposed_weight

CONV = "escalate.quantized_conv2d"


def images(channels: int, side: int = 7, count: int = 40) -> NDArray[np.float32]:
    return np.random.default_rng(3).normal(size=(count, channels, side, side)).astype(np.float32)


def kind(value: SSAValue) -> MapType:
    assert isinstance(value.type, MapType)
    return value.type


def real(module: Module, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """The first output of an integer module as real numbers."""
    return evaluate_integer(module, x)[0] * kind(module.outputs[0]).scale_value


def layer_noise(module: Module, integer: Module, x: NDArray[np.float32]) -> list[float]:
    """SQNR of every operation's result against the float network."""
    values = run(module, x)
    wanted = [values[op.out].numpy() for op in module.layers]
    found: list[NDArray[Any]] = []
    evaluate_integer(
        integer, x, lambda op, maps: found.append(maps.numpy().astype(np.float64) * kind(op.out).scale_value)
    )
    return [sqnr(a, b) for a, b in zip(wanted, found, strict=True)]


# -- forms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "outputs", "groups", "form"),
    [
        (6, 5, 1, "dense"),
        (6, 8, 2, "dense"),
        (6, 6, 6, "depthwise"),
        (6, 18, 6, "depthwise"),
        (1, 4, 1, "dense"),
    ],
)
def test_dense_weights_have_one_scale_per_output(channels: int, outputs: int, groups: int, form: str) -> None:
    net = Net(7, 7, channels)
    x = images(channels)
    module = net.finish(net.random_conv(net.x, outputs, 3, groups=groups, activation="relu"))
    integer = quantized(module, x)
    op = layer(integer, CONV)
    weight = integer.store[op.weight_name("bases")]
    original = module.store[layer(module, "nn.conv2d").weight_name("weight")]
    assert op.value("form") == form
    assert weight.dtype == np.int8
    assert weight.shape == (outputs, channels // groups, 3, 3)
    assert (np.abs(weight.astype(int)).max((1, 2, 3)) == 127).all()
    steps = np.abs(original).max((1, 2, 3), keepdims=True) / 127
    assert np.abs(weight * steps - original).max() <= 0.5001 * steps.max()
    assert sqnr(evaluate(module, x)[0], real(integer, x)) > 35


@pytest.mark.parametrize("groups", [1, 2])
def test_ternary_layers_keep_coefficients_and_share_one_basis_scale(groups: int) -> None:
    net = Net(7, 7, 6)
    x = images(6)
    module = net.finish(net.random_decomposed(net.x, 8, 4, groups=groups, activation="relu"))
    integer = quantized(module, x)
    op, source = layer(integer, CONV), layer(module, "escalate.decomposed_conv2d")
    bases, coefficients = (integer.store[op.weight_name(name)] for name in ("bases", "coefficients"))
    scale = module.store[source.weight_name("scale")]
    given = module.store[source.weight_name("coefficients")]
    assert op.value("form") == "ternary"
    assert np.abs(bases.astype(int)).max() == 127
    assert (scale < 0).any(), "the case must have negative scales"
    assert np.array_equal(coefficients, given * np.sign(scale).astype(np.int8)[:, None, None])
    assert (integer.store[op.weight_name("requant")][:, 1] > 0).all()
    assert sqnr(evaluate(module, x)[0], real(integer, x)) > 35


def test_real_coefficients_become_dense_weights() -> None:
    net = Net(7, 7, 6)
    random, x = np.random.default_rng(0), images(6)
    bases, coefficients = random.normal(size=(3, 3, 3)), random.normal(size=(5, 6, 3)).astype(np.float32)
    module = net.finish(net.decomposed(net.x, bases, coefficients, random.normal(size=5)))
    integer = quantized(module, x)
    assert layer(integer, CONV).value("form") == "dense"
    assert sqnr(evaluate(module, x)[0], real(integer, x)) > 35


def test_planes_are_lossless() -> None:
    """Five ternary planes give exactly the integers that a dense layer with the same weights would give."""
    net = Net(1, 1, 12)
    x = images(12, side=1)
    module = net.finish(net.random_conv(net.x, 9, 1))
    integer = quantized(module, x, dense_planes=True)
    op = layer(integer, CONV)
    assert op.value("form") == "ternary"
    assert integer.store[op.weight_name("bases")].ravel().tolist() == [1, 3, 9, 27, 81]
    weight = recomposed_weight(integer, op)
    original = module.store[layer(module, "nn.conv2d").weight_name("weight")]
    steps = np.abs(original).max((1, 2, 3), keepdims=True) / 121
    assert np.array_equal(weight, np.rint(original / steps).astype(int))
    assert sqnr(evaluate(module, x)[0], real(integer, x)) > 35


def test_planes_leave_other_layers_alone() -> None:
    net = Net(7, 7, 4)
    y = net.random_conv(net.random_conv(net.x, 4, 3), 4, 1, groups=4)
    integer = quantized(net.finish(y), images(4), dense_planes=True)
    assert [op.value("form") for op in integer.layers] == ["dense", "depthwise"]


# -- channels without weights, large biases -----------------------------------------------------------------


@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
def test_dead_channels_give_their_bias(ternary: bool, activation: str | None) -> None:
    """Scale 0, coefficients all 0, weights all 0: the result comes from bias and residual alone."""
    net = Net(7, 7, 6)
    random, x = np.random.default_rng(0), images(6)
    bias = np.array([0.7, -0.3, 1.1, 0.0, 0.2])
    residual = net.random_conv(net.x, 5, 1)
    if ternary:
        coefficients = random.integers(-1, 2, size=(5, 6, 3)).astype(np.int8)
        coefficients[1] = 0
        scale = np.array([0.0, 1.0, 0.1, 0.1, -0.1])
        y = net.decomposed(
            net.x, random.normal(size=(3, 3, 3)), coefficients, scale, bias, residual, activation=activation
        )
    else:
        weight = random.normal(size=(5, 6, 3, 3)) * 0.1
        weight[:2] = 0
        y = net.conv(net.x, weight, bias, residual, activation=activation)
    module = net.finish(y)
    wanted, found = evaluate(module, x)[0], real(quantized(module, x), x)
    assert np.abs(found - wanted)[:, :2].max() < 3 * np.abs(wanted).max() / 127
    assert sqnr(wanted, found) > 28


@pytest.mark.parametrize("ternary", [False, True])
def test_bias_far_above_the_weights(ternary: bool) -> None:
    """Weights around 1e-12 beside a bias of 0.5 (batch norms that died in training): the bias survives."""
    net = Net(7, 7, 6)
    random, x = np.random.default_rng(0), images(6)
    size, bias = np.array([1e-12, 0.1, 1e-30, 0.1]), np.array([0.5, 0.1, -0.7, 0.0])
    if ternary:
        coefficients = random.integers(-1, 2, size=(4, 6, 3)).astype(np.int8)
        y = net.decomposed(net.x, random.normal(size=(3, 3, 3)), coefficients, size, bias)
    else:
        y = net.conv(net.x, random.normal(size=(4, 6, 3, 3)) * size[:, None, None, None], bias)
    module = net.finish(y)
    assert sqnr(evaluate(module, x)[0], real(quantized(module, x), x)) > 28


# -- activations --------------------------------------------------------------------------------------------


def test_clamps_become_limits() -> None:
    net = Net(7, 7, 4)
    x = images(4) * 20
    values = [
        net.random_conv(net.x, 4, 3, activation="relu"),
        net.random_conv(net.x, 4, 3, activation="clamp", activation_args=(0.0, 6.0)),
        net.random_conv(net.x, 4, 3, activation="clamp", activation_args=(-1.0, 2.0)),
        net.random_conv(net.x, 4, 3),
    ]
    module = net.finish(*values)
    integer = quantized(module, x)
    limits = [(op.value("low"), op.value("high"), kind(op.out).signed) for op in integer.layers]
    assert limits == [(0, 255, False), (0, 255, False), (-64, 127, True), (-128, 127, True)]
    scales = [kind(op.out).scale_value for op in integer.layers]
    assert scales[1:3] == pytest.approx([6 / 255, 2 / 127])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("leaky_relu", (0.1,)),
        ("sigmoid", ()),
        ("hardsigmoid", ()),
        ("silu", ()),
        ("hardswish", ()),
        ("tanh", ()),
        ("gelu", ()),
        ("elu", (0.7,)),
        ("relu", ()),
        ("clamp", (-0.5, 1.0)),
    ],
)
def test_every_activation_fused_and_alone(name: str, arguments: tuple[float, ...]) -> None:
    net = Net(7, 7, 4)
    x, numbers = images(4), arguments or None
    fused = net.random_conv(net.x, 4, 3, activation=name, activation_args=numbers)
    alone = net.activation(net.random_conv(net.x, 4, 3), name, args=numbers)
    summed = net.op(nn.Add, [fused, alone], activation=name, activation_args=numbers)
    module = net.finish(summed, fused, alone)
    integer = quantized(module, x)
    noise = layer_noise(module, integer, x)
    assert min(noise) > 26, noise
    signs = {kind(value).signed for value in integer.outputs}
    assert signs == {name not in ("sigmoid", "hardsigmoid", "relu")}
    tables = [op for op in integer.layers if op.symbol("table")]
    assert len(tables) == (1 if name in ("relu", "clamp") else 3)


def test_table_is_indexed_by_the_byte() -> None:
    net = Net(7, 7, 4)
    module = net.finish(net.activation(net.random_conv(net.x, 4, 3), "tanh"))
    integer = quantized(module, images(4))
    op = list(integer.layers)[1]
    table = integer.store[op.weight_name("table")]
    scale, step = kind(op.out).scale_value, kind(op.x).scale_value
    assert table.shape == (256,)
    assert table.dtype == np.int8
    for value in (-128, -5, 0, 9, 127):
        assert table[value & 0xFF] == np.rint(np.clip(np.tanh(value * step) / scale, -128, 127))


# -- other operations ---------------------------------------------------------------------------------------


def test_every_other_operation_is_close() -> None:
    net = Net(9, 8, 4)
    x = np.random.default_rng(3).normal(size=(40, 4, 9, 8)).astype(np.float32)
    a = net.random_conv(net.x, 6, 3, activation="relu")
    b = net.random_conv(net.x, 6, 3)
    window = {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 1, 1, 0)}
    values = [
        net.op(nn.Add, [a, b]),
        net.op(nn.Mul, [a, b]),
        net.op(nn.Mul, [b, net.activation(net.op(nn.AdaptiveAvgPool, [b], size=(1, 1)), "sigmoid")]),
        net.op(nn.Concat, [a, b, a]),
        net.op(nn.MaxPool, [b], **window),
        net.op(nn.AvgPool, [b], **window, count_include_pad=True),
        net.op(nn.AvgPool, [b], **window, count_include_pad=False),
        net.op(nn.AdaptiveAvgPool, [b], size=(4, 3)),
        net.op(nn.Pad, [b], padding=(0, 1, 2, 3), channels=(1, 2)),
        net.random_conv(a, 6, 3, residual=b),
    ]
    module = net.finish(*values)
    integer = quantized(module, x)
    noise = layer_noise(module, integer, x)
    assert min(noise) > 28, noise
    include, exclude = [op for op in integer.layers if op.name == "escalate.avg_pool"]
    assert counts(integer, include) == [6]
    assert counts(integer, exclude) == [2, 3, 4, 6]
    adaptive = [op for op in integer.layers if op.name == "escalate.adaptive_avg_pool"]
    assert [counts(integer, op) for op in adaptive] == [[72], [9, 12]]
    for op in adaptive:
        for count, multiplier, shift in integer.store[op.weight_name("divisors")].tolist():
            ratio = kind(op.x).scale_value / kind(op.out).scale_value / count
            assert multiplier / 2**shift == pytest.approx(ratio, rel=1e-9)


def counts(module: Module, op: LayerOp) -> list[int]:
    return module.store[op.weight_name("divisors")][:, 0].tolist()


def test_equal_scales_are_copied_by_concatenation() -> None:
    net = Net(7, 7, 4)
    a = net.random_conv(net.x, 4, 3, activation="relu")
    b = net.random_conv(net.x, 4, 1, activation="relu")
    module = net.finish(net.op(nn.Concat, [a, b, a]))
    run_pipeline(module, [Calibrate()], PassContext(calibration=images(4)))
    first, second, last = module.layers
    last.set_value("range", first.floats("range"))
    second.set_value("range", (0.0, 2 * first.floats("range")[1]))
    run_pipeline(module, [QuantizeHybrid()], PassContext())
    op = layer(module, "escalate.concat")
    assert module.store[op.weight_name("rescale")].tolist() == [[0, 0], [2**30, 29], [0, 0]]


def test_inputs_are_unsigned_exactly_when_never_negative() -> None:
    for x, signed in ((images(4), True), (np.abs(images(4)), False)):
        net = Net(7, 7, 4)
        integer = quantized(net.finish(net.random_conv(net.x, 4, 3)), x)
        assert kind(integer.inputs[0]).signed is signed
        assert kind(integer.inputs[0]).scale_value == pytest.approx(
            np.abs(x).max() / (255 - 128 * signed), rel=0.02
        )


def test_notes_of_other_passes_and_places_stay() -> None:
    net = Net(7, 7, 4)
    module = net.finish(net.random_conv(net.x, 4, 3))
    layer(module, "nn.conv2d").set_value("density", 0.25)
    op = layer(quantized(module, images(4)), CONV)
    assert op.value("density") == 0.25
    assert op.value("range") is None
    assert op.location == layer(module, "nn.conv2d").location


# -- proofs and errors --------------------------------------------------------------------------------------


def quantize(module: Module, x: NDArray[np.float32], arch: Arch | None = None) -> None:
    run_pipeline(module, [Calibrate(), QuantizeHybrid()], PassContext(arch=arch, calibration=x))


def all_ones(channels: int) -> Module:
    """One ternary layer that adds up all its channels, behind a relu."""
    net = Net(2, 2, channels)
    coefficients = np.ones((3, channels, 2), np.int8)
    y = net.decomposed(net.activation(net.x, "relu"), np.ones((2, 1, 1)), coefficients, np.ones(3))
    return net.finish(y)


def test_combinations_are_proven_to_fit() -> None:
    """255 * 2056 stays below 2^19 and is accepted, 255 * 2057 is not; a wider machine takes it."""
    fits, too_many = (np.zeros((1, channels, 2, 2), np.float32) for channels in (2056, 2057))
    quantize(all_ones(2056), fits)
    with pytest.raises(EsccError, match=r"layer1.*can reach 524535, beyond 20 bits \(keep this layer dense"):
        quantize(all_ones(2057), too_many)
    quantize(all_ones(2057), too_many, dataclasses.replace(Arch.load(None), z_bits=21))
    with pytest.raises(EsccError, match="beyond 12 bits"):
        quantize(all_ones(20), fits[:, :20], dataclasses.replace(Arch.load(None), z_bits=12))


def test_accumulator_is_proven_to_fit() -> None:
    """255 * 127 * n exceeds 2^31 from n = 66,311 on."""
    for channels, side, fails in ((7000, 3, False), (7400, 3, True)):
        net = Net(side, side, channels)
        weight = np.ones((2, channels, 3, 3))
        module = net.finish(net.conv(net.activation(net.x, "relu"), weight, padding=(0, 0, 0, 0)))
        x = np.zeros((1, channels, side, side), np.float32)
        if fails:
            with pytest.raises(
                EsccError, match=r"layer1.*output channel 0 can exceed the 32-bit accumulator"
            ):
                quantize(module, x)
        else:
            quantize(module, x)


def test_missing_ranges_and_wrong_coefficients() -> None:
    net = Net(7, 7, 4)
    module = net.finish(net.random_conv(net.x, 4, 3, activation="silu"))
    module.set_facts(module.facts | {"calibrated"})
    with pytest.raises(EsccError, match=r"input 'image': has no calibrated range \(run calibrate first\)"):
        run_pipeline(module.clone(), [QuantizeHybrid()], PassContext())
    module.set_input_value(0, "range", (-1.0, 1.0))
    with pytest.raises(EsccError, match=r"layer1: has no calibrated range"):
        run_pipeline(module.clone(), [QuantizeHybrid()], PassContext())
    op = layer(module, "nn.conv2d")
    op.set_value("range", (-1.0, 1.0))
    with pytest.raises(EsccError, match=r"has no calibrated pre_range"):
        run_pipeline(module.clone(), [QuantizeHybrid()], PassContext())
    op.set_value("range", (1.0, -1.0))
    with pytest.raises(EsccError, match=r"has an unusable range"):
        run_pipeline(module.clone(), [QuantizeHybrid()], PassContext())

    net = Net(7, 7, 4)
    y = net.decomposed(net.x, np.ones((2, 3, 3)), np.full((3, 4, 2), 2, np.int8), np.ones(3))
    with pytest.raises(EsccError, match=r"must be -1, 0 or 1"):
        quantize(net.finish(y), images(4))


def test_operations_of_other_levels_are_refused() -> None:
    net = Net(7, 7, 4)
    ones = net.keep(np.ones(4, np.float32))
    y = net.op(nn.BatchNorm, [net.x], mean=ones, var=ones, eps=1e-5)
    module = net.finish(y)
    module.set_facts({"fused"})
    with pytest.raises(EsccError, match=r"nn.batch_norm at layer1: has no integer form"):
        quantize(module, images(4))
