"""Combining first and convolving then gives the same integers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.passes.networks import Net

from escc.errors import EsccError
from escc.ir.base import map_shape
from escc.ir.module import Module
from escc.ir.passes import PassContext, run_pipeline
from escc.isa.arch import Arch
from escc.passes.calibrate import Calibrate
from escc.passes.quantize_hybrid import QuantizeHybrid
from escc.passes.reference.integer_graph import evaluate_integer
from escc.passes.reorder_linear_combination import ReorderLinearCombination


def network(seed: int = 0, channels: int = 8, bases: int = 4, groups: int = 1) -> Module:
    """Ternary, dense and depthwise layers, a residual, a table."""
    net = Net(6, 7, channels, seed)
    x = net.random_decomposed(net.x, channels, bases, groups=groups, activation="relu")
    y = net.random_decomposed(x, channels, bases, residual=x, activation="silu", stride=(1, 1))
    y = net.random_conv(y, channels, 3, groups=channels)
    y = net.random_decomposed(y, 2 * channels, bases, stride=(2, 1), padding=(0, 1, 2, 0))
    return net.finish(net.random_conv(y, 5, 1))


def images(channels: int = 8) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(12, channels, 6, 7)).astype(np.float32)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(8, 1), (6, 2), (70, 1), (4, 4)]), st.integers(1, 9))
def test_both_orders_give_the_same_integers(seed: int, size: tuple[int, int], bases: int) -> None:
    module, x = network(seed, size[0], bases, size[1]), images(size[0])
    run_pipeline(module, [Calibrate(images=8), QuantizeHybrid()], PassContext(calibration=x))
    before = evaluate_integer(module, x)[0]
    run_pipeline(module, [ReorderLinearCombination()], PassContext())
    assert np.array_equal(evaluate_integer(module, x)[0], before)
    assert np.array_equal(evaluate_integer(module, x, literal=False)[0], before)
    assert len(np.unique(before)) > 10


def test_what_a_layer_becomes() -> None:
    module = network()
    arch = dataclasses.replace(Arch.load(None), z_bits=18)
    context = PassContext(arch=arch, calibration=images())
    run_pipeline(module, [Calibrate(), QuantizeHybrid()], context)
    kinds = [op.out.type for op in module.layers]
    paths = [op.location for op in module.layers]
    run_pipeline(module, [ReorderLinearCombination()], context)
    parts = ["escalate.combine", "escalate.convolve", "escalate.requantize"]
    forms = [3, 3, 2, 3, 2]
    assert [op.name for op in module.layers] == [name for count in forms for name in parts[-count:]]
    assert [op.out.type for op in module.layers if op.name == parts[2]] == kinds
    assert [op.location for op in module.layers if op.name == parts[2]] == paths
    combine, convolve, requantize = list(module.layers)[3:6]
    assert str(combine.out.type) == "!escalate.stream<6x7x8x4xi18>"
    assert str(convolve.out.type) == "!escalate.sums<6x7x8xi32>"
    assert map_shape(convolve.x) == map_shape(combine.out)
    assert len(requantize.operands) == 2
    assert requantize.symbol("table") is not None
    assert Module.from_text(module.to_text(), module.store).to_text() == module.to_text()


def test_needs_the_quantised_level() -> None:
    with pytest.raises(EsccError, match="needs quantized first"):
        run_pipeline(network(), [ReorderLinearCombination()], PassContext())


def test_a_combination_beyond_its_width_is_noticed() -> None:
    """A module whose stream is too narrow for its data (no pass makes one) is refused on evaluation."""
    module = network()
    run_pipeline(module, [Calibrate(), QuantizeHybrid()], PassContext(calibration=images()))
    narrow = PassContext(arch=dataclasses.replace(Arch.load(None), z_bits=8))
    run_pipeline(module, [ReorderLinearCombination()], narrow)
    with pytest.raises(EsccError, match="combination exceeds 127"):
        evaluate_integer(module, images())
