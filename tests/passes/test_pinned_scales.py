"""Scales and codes that training has fixed, through every float pass and quantisation."""

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
from escc.ir.base import LayerOp, map_shape
from escc.ir.module import Module
from escc.ir.passes import PassContext, make_pass, run_pipeline
from escc.ir.pins import PRE_SCALE, TRAINED, Pin, set_input_pin, set_pin
from escc.ir.types import MapType
from escc.ir.xdsl import SSAValue
from escc.passes.calibrate import scales_from
from escc.passes.convolutions import ORIGINAL_WEIGHT
from escc.passes.math.grids import grid_steps
from escc.passes.reference.float_graph import evaluate
from escc.passes.reference.integer_graph import evaluate_integer

SCALES = st.floats(1e-12, 1e6, allow_nan=False)


def owner(value: SSAValue) -> LayerOp:
    assert isinstance(value.owner, LayerOp)
    return value.owner


def passes(module: Module, *names: str, images: NDArray[np.float32] | None = None) -> Module:
    run_pipeline(module, [make_pass(name) for name in names], PassContext(calibration=images))
    return module


def random_network(seed: int) -> Module:
    """Layers in numbers that double precision holds exactly, so that the same rounding happens before and
    after any exact rewriting; scales pinned here and there."""
    net = Net(6, 5, 4, seed)
    draw = net.random
    values = [net.x]

    def few(*shape: int) -> NDArray[Any]:
        kept = draw.random(shape[0]) < 0.7
        return draw.integers(-3, 4, shape) / 8 * kept.reshape(-1, *[1] * (len(shape) - 1))

    for _ in range(10):
        x = values[int(draw.integers(max(0, len(values) - 3), len(values)))]
        height, width, size = map_shape(x)
        same = [value for value in values if map_shape(value) == map_shape(x)]
        kind = int(draw.integers(8))
        if kind <= 1:
            x = net.conv(x, few(6, size, 3, 3), few(6))
        elif kind == 2:
            codes = draw.integers(-1, 2, (6, size, 3)) * (draw.random((6, 1, 1)) < 0.7)
            x = net.decomposed(x, few(3, 3, 3), codes.astype(np.int8), 2.0 ** draw.integers(-2, 2, 6))
        elif kind == 3:
            x = net.op(nn.Add, [x, same[int(draw.integers(len(same)))]])
        elif kind <= 5:
            x = net.activation(x, ["relu", "relu", "hardswish", "silu"][int(draw.integers(4))])
        elif kind == 6:
            signs = draw.choice([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0], size)
            x = net.op(
                nn.BatchNorm, [x], weight=net.keep(signs), bias=net.keep(few(size)), mean=net.keep(few(size)),
                var=net.keep(np.ones(size)), eps=0.0,
            )  # fmt: skip
        elif min(height, width) >= 4:
            kernel = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0, 0, 0)}
            x = net.op(nn.AvgPool, [x], **kernel, count_include_pad=False)
        if kind >= 1 and draw.random() < 0.5 and isinstance(x.owner, LayerOp):
            set_pin(x.owner, Pin(float(2.0 ** draw.integers(-6, 0)), bool(draw.integers(2))))
        values.append(x)
    if draw.random() < 0.5:
        set_input_pin(net.module, 0, Pin(0.03125, True))
    module = net.finish(values[-1])
    module.set_facts(set())
    return module


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_exact_passes_round_where_training_did(seed: int) -> None:
    module = random_network(seed)
    images = np.random.default_rng(seed).integers(-8, 9, (3, 4, 6, 5)) / 8
    wanted = evaluate(module, images)[0]
    for name in ("fold-batch-norm", "fuse-requantize", "shrink-channels"):
        passes(module, name)
        # a smooth function's values differ in their last bits with the order of sums
        np.testing.assert_allclose(evaluate(module, images)[0], wanted, rtol=0, atol=1e-9, err_msg=name)
    assert Module.from_text(module.to_text(), module.store).to_text() == module.to_text()


@given(SCALES, SCALES, SCALES, st.booleans(), st.booleans())
@settings(max_examples=20, deadline=None)
def test_pinned_scales_come_out_bit_for_bit(
    first: float, second: float, third: float, a: bool, b: bool
) -> None:
    net = Net(4, 4, 3)
    # weights such that the factors between scales stay within reach
    x = net.conv(net.x, net.random.normal(size=(4, 3, 1, 1)) * second / first, activation="relu")
    y = net.conv(x, net.random.normal(size=(4, 4, 1, 1)) * third / second)
    set_input_pin(net.module, 0, Pin(first, a))
    set_pin(owner(x), Pin(second, b))
    set_pin(owner(y), Pin(third, True))
    module = Module.from_text(net.finish(y).to_text(), net.module.store)
    passes(module, "calibrate", "quantize-hybrid")
    assert scales_from(module) == "pinned"
    found = [value.type for value in (*module.inputs, *(op.out for op in module.layers))]
    assert all(isinstance(kind, MapType) for kind in found)
    assert [(kind.scale_value, kind.signed) for kind in found if isinstance(kind, MapType)] == [
        (first, a), (second, b), (third, True),
    ]  # fmt: skip


def test_only_what_is_open_is_measured() -> None:
    net = Net(6, 6, 3)
    images = np.random.default_rng(2).normal(size=(8, 3, 6, 6)).astype(np.float32)
    x = net.random_conv(net.x, 4, 3, activation="relu")
    y = net.op(nn.MaxPool, [x], kernel=(2, 2), stride=(2, 2), padding=(0, 0, 0, 0))
    z = net.random_conv(y, 4, 3, activation="silu")
    set_pin(owner(x), Pin(0.001, False))  # saturates: what follows sees that
    module = passes(net.finish(z), "calibrate", images=images)
    assert scales_from(module) == "images"
    assert owner(x).floats("range") == ()
    assert owner(y).floats("range")[1] == pytest.approx(0.255)
    assert len(owner(z).floats("range")) == 2 == len(owner(z).floats("pre_range"))
    integer = passes(module.clone(), "quantize-hybrid")
    kinds = [op.out.type for op in integer.layers]
    assert isinstance(kinds[0], MapType)
    assert isinstance(kinds[1], MapType)
    assert kinds[0].scale_value == kinds[1].scale_value == 0.001
    set_pin(owner(z), Pin(0.5, True))
    set_input_pin(module, 0, Pin(0.25, True))
    assert scales_from(passes(module.clone(), "calibrate")) == "synthetic"
    owner(z).set_value(PRE_SCALE, 0.01)
    assert scales_from(passes(module, "calibrate")) == "pinned"


def test_a_table_reads_the_pinned_bits() -> None:
    """conv -> round -> silu -> round in one operation, exactly as trained."""
    net = Net(4, 4, 3)
    weight = net.random.integers(-127, 128, (5, 3, 1, 1)) / 64
    x = net.conv(net.x, weight)
    set_pin(owner(x), Pin(0.0625, True))
    y = net.activation(x, "silu")
    set_pin(owner(y), Pin(0.03125, True))
    set_input_pin(net.module, 0, Pin(0.25, True))
    module = net.finish(y)
    images = net.random.integers(-5, 6, (4, 3, 4, 4)) / 4
    wanted = evaluate(module, images)[0]
    module.set_facts({"batch-norm-folded"})
    passes(module, "fuse-requantize", "calibrate", "quantize-hybrid")
    assert [op.name for op in module.layers] == ["escalate.quantized_conv2d"]
    np.testing.assert_array_equal(evaluate_integer(module, images)[0] * 0.03125, wanted)


@pytest.mark.parametrize("attributes", [{"pinned_scale": 0.0, "pinned_signed": True}, {"pinned_scale": 0.5}])
def test_bad_pins_in_text(attributes: dict[str, Any]) -> None:
    net = Net(4, 4, 3)
    x = net.random_conv(net.x, 4, 3)
    for name, value in attributes.items():
        owner(x).set_value(name, value)
    with pytest.raises(EsccError, match=r"nn\.conv2d at layer1: bad pin"):
        passes(net.finish(x), "calibrate")


# -- codes from training ------------------------------------------------------------------------------------


def trained(real: bool) -> Module:
    """Two decomposed layers as they come from training around a dense one."""
    net = Net(8, 8, 8, 3)
    x = net.random_decomposed(net.x, 16, 3, activation="relu")
    y = net.random_conv(x, 16, 3, activation="relu")
    z = net.random_decomposed(y, 16, 3)
    for value in (x, z):
        op = owner(value)
        op.set_value(TRAINED, True)
        if real:
            codes = net.module.store[op.weight_name("coefficients")]
            op.set_value("coefficients", net.keep((codes * 0.3 + 0.01).astype(np.float32)))
    return net.finish(net.random_conv(z, 4, 1))


def arrays(module: Module) -> list[tuple[str, ...]]:
    return [tuple(op.symbols().values()) for op in module.layers]


@pytest.mark.parametrize("real", [False, True])
def test_no_pass_fits_trained_layers_anew(real: bool) -> None:
    images = np.random.default_rng(1).normal(size=(16, 8, 8, 8)).astype(np.float32)
    module = trained(real)
    before = arrays(module)
    passes(
        module, "decompose-kernels", "prune-coefficients", "refine-coefficients", "calibrate", images=images
    )
    assert arrays(module) == before


def test_a_layer_on_request_and_the_trained_ones_stay() -> None:
    images = np.random.default_rng(1).normal(size=(16, 8, 8, 8)).astype(np.float32)
    module = trained(False)
    before = arrays(module)
    named = make_pass("decompose-kernels", {"layers": "layer2:bases=3"})
    run_pipeline(module, [named, make_pass("calibrate")], PassContext(calibration=images))
    after = arrays(module)
    assert after[0] == before[0]
    assert ORIGINAL_WEIGHT in list(module.layers)[1].attributes
    # what its error does to the layer behind is not put right there
    assert after[2] == before[2]
    assert after[3] != before[3]


def test_trained_layers_are_pruned_on_request() -> None:
    module = trained(True)
    passes(module, "decompose-kernels")
    counts = [np.count_nonzero(array) for array in module.store.values() if array.ndim == 3]
    run_pipeline(module, [make_pass("prune-coefficients", {"trained": "true"})], PassContext())
    left = [op.value("density") for op in module.layers if op.value(TRAINED)]
    assert min(counts) > 0
    assert all(density is not None and density < 0.7 for density in left)


def test_an_output_of_scale_zero_is_dead() -> None:
    net = Net(6, 6, 4)
    codes = np.ones((5, 4, 2), np.int8)
    scale = np.array([1.0, 0.0, 1.0, 1.0, 1.0])
    x = net.decomposed(net.x, net.random.normal(size=(2, 3, 3)), codes, scale)
    module = passes(net.finish(net.random_conv(x, 3, 3)), "shrink-channels")
    assert [map_shape(op.out)[2] for op in module.layers] == [4, 3]


# -- grids --------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(4, 127), st.floats(1e-6, 1e3))
@settings(max_examples=60, deadline=None)
def test_rows_on_a_grid_keep_it(seed: int, most: int, step: float) -> None:
    draw = np.random.default_rng(seed)
    integers = draw.integers(-most, most + 1, (6, 40))
    integers[:, 0], integers[:, 1:4] = most, [1, -1, most - 1]
    integers[5] = 0
    rows = (integers * step).astype(np.float32) * np.float32(1.7)
    steps = grid_steps(rows, 127)
    assert steps[5] == 0
    written = rows[:5] / steps[:5, None]
    # a finer grid may hold them too, but they are whole numbers up to the limit on it
    assert np.abs(written - np.rint(written)).max() < 1e-3
    assert np.abs(written).max() <= 127.001


def test_other_rows_use_the_whole_range() -> None:
    rows = np.random.default_rng(0).normal(size=(20, 30))
    np.testing.assert_allclose(grid_steps(rows, 127), np.abs(rows).max(axis=1) / 127)
    assert grid_steps(np.zeros((2, 0)), 127).tolist() == [0, 0]
