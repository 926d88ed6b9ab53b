"""Sign analysis and the choice of 8-bit scales."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.passes.networks import Net

from escc.ir import nn
from escc.passes.math.ranges import (
    Distribution,
    best_scale,
    map_scale,
    scale_range,
)
from escc.passes.signs import non_negative_values


def test_signs_follow_the_structure() -> None:
    net = Net(8, 8, 4)
    plain = net.random_conv(net.x, 4, 3)
    relu = net.random_conv(net.x, 4, 3, activation="relu")
    clamp = net.random_conv(net.x, 4, 3, activation="clamp", activation_args=(0.0, 6.0))
    window = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0, 0, 0)}
    positive = {
        "relu": relu,
        "clamp from zero": clamp,
        "sigmoid": net.activation(plain, "sigmoid"),
        "hardsigmoid": net.activation(plain, "hardsigmoid"),
        "sum": net.op(nn.Add, [relu, clamp]),
        "product": net.op(nn.Mul, [relu, clamp]),
        "concatenation": net.op(nn.Concat, [relu, clamp]),
        "max pool": net.op(nn.MaxPool, [relu], **window),
        "avg pool": net.op(nn.AvgPool, [relu], **window, count_include_pad=True),
        "adaptive pool": net.op(nn.AdaptiveAvgPool, [relu], size=(1, 1)),
        "padding": net.op(nn.Pad, [relu], padding=(1, 1, 1, 1), channels=(0, 2)),
        "silu of positive": net.activation(relu, "silu"),
        "sum with tanh of positives": net.op(nn.Add, [relu, clamp], activation="tanh"),
    }
    any_sign = {
        "input": net.x,
        "convolution": plain,
        "of a positive map": net.random_conv(relu, 4, 3),
        "silu": net.activation(plain, "silu"),
        "clamp from below": net.activation(plain, "clamp", args=(-1.0, 1.0)),
        "clamp under zero": net.activation(relu, "clamp", args=(-2.0, -1.0)),
        "sum with one signed": net.op(nn.Add, [relu, plain]),
        "product with one signed": net.op(nn.Mul, [relu, plain]),
        "concatenation with one signed": net.op(nn.Concat, [relu, plain]),
        "max pool of signed": net.op(nn.MaxPool, [plain], **window),
    }
    module = net.finish(*positive.values(), *[value for name, value in any_sign.items() if name != "input"])
    found = non_negative_values(module)
    assert {name for name, value in positive.items() if value not in found} == set()
    assert {name for name, value in any_sign.items() if value in found} == set()
    module.set_input_value(0, "range", (0.0, 1.0))
    assert module.inputs[0] in non_negative_values(module)


@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.booleans())
def test_scale_covers_the_range_and_no_more(a: float, b: float, signed: bool) -> None:
    low, high = sorted((a, b))
    scale = map_scale(low, high, signed)
    below, above = scale_range(scale, signed)
    tolerance = 1e-12 * (1 + abs(low) + abs(high))
    assert above >= high - tolerance
    if signed:
        assert below <= low + tolerance
    if scale not in (0.0, 1.0):
        tight = [abs(above - high) <= tolerance, signed and abs(below - low) <= tolerance]
        assert any(tight)


@pytest.mark.parametrize("signed", [False, True])
def test_scale_of_a_zero_map(signed: bool) -> None:
    assert map_scale(0.0, 0.0, signed) == 1.0


def exact_error(values: np.ndarray, scale: float, signed: bool) -> float:
    low, high = (-128, 127) if signed else (0, 255)
    return float(np.mean((np.clip(np.rint(values / scale), low, high) * scale - values) ** 2))


@pytest.mark.parametrize("signed", [False, True])
def test_best_scale_clips_a_lone_outlier(signed: bool) -> None:
    """A million normal values and one sixty deviations away."""
    values = np.random.default_rng(0).normal(size=50_000)
    values = values if signed else np.abs(values)
    data = Distribution.of([values] * 20 + [np.array([60.0])], float(values.min()), 60.0)
    chosen, full = best_scale(data, signed), map_scale(data.low, data.high, signed)
    everything = np.append(np.tile(values, 20), 60.0)
    assert chosen < 0.9 * full
    assert exact_error(everything, chosen, signed) < 0.9 * exact_error(everything, full, signed)


def test_best_scale_keeps_a_uniform_map_whole() -> None:
    values = np.random.default_rng(0).uniform(0, 5, 50_000)
    data = Distribution.of([values], float(values.min()), float(values.max()))
    assert best_scale(data, signed=False) >= 0.97 * map_scale(data.low, data.high, signed=False)


def test_best_scale_behind_a_function_ignores_what_the_function_flattens() -> None:
    """relu6-like saturation: values above 6 do not matter, so the scale goes to the others."""
    values = np.random.default_rng(0).normal(0, 20, 50_000)
    data = Distribution.of([values], float(values.min()), float(values.max()))
    clipped = best_scale(data, True, lambda x: np.clip(x, -6.0, 6.0))
    assert clipped * 127 < 12
    assert best_scale(data, True) * 127 > 40


def test_constant_and_empty_maps() -> None:
    constant = Distribution.of([np.full(10, 3.0)], 3.0, 3.0)
    assert best_scale(constant, signed=False) == pytest.approx(3 / 255)
    assert constant.percentile(99.0) == (3.0, 3.0)
    zero = Distribution.of([np.zeros(10)], 0.0, 0.0)
    assert best_scale(zero, signed=True) == 1.0


def test_percentile_leaves_out_the_tails() -> None:
    values = np.random.default_rng(0).normal(size=100_000)
    data = Distribution.of([values], float(values.min()), float(values.max()))
    low, high = data.percentile(99.0)
    assert low == pytest.approx(-2.576, abs=0.05)
    assert high == pytest.approx(2.576, abs=0.05)
    positive = Distribution.of([np.abs(values)], 0.0, float(np.abs(values).max()))
    assert positive.percentile(99.0) == pytest.approx((0.0, 2.576), abs=0.05)
    assert data.percentile(100.0) == pytest.approx((values.min(), values.max()), abs=0.01)
