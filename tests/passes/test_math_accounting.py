"""Costs by hand, the published reference counts of whole networks, and the limits of the number format."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from math import log2

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.passes.networks import Net

from escc.backend_sim.lowering.streams import coefficient_stream, row_nonzeros
from escc.frontend.capture import capture
from escc.frontend.importer import import_exported
from escc.frontend.zoo import ZOO, build
from escc.ir.escalate import DecomposedConv2d
from escc.ir.passes import PassContext, make_pass, run_pipeline
from escc.isa.arch import Arch
from escc.isa.sparsemap import TWO_LEVEL_BASES
from escc.passes.convolutions import needed, set_array
from escc.passes.costs import LayerCost, bits_per_weight, if_decomposed, layer_costs, network_cost
from escc.passes.math.accounting import (
    SCALE_BITS,
    TWO_LEVEL_PLANES,
    ConvolutionShape,
    Operations,
    combine_first,
    convolve_first,
    decomposed_storage,
    dense_storage,
    entropy_bits,
    float_storage,
    used_intermediates,
    used_planes,
)


def test_a_layer_by_hand() -> None:
    shape = ConvolutionShape(8, 4, 1, (3, 3), (10, 10), (5, 5))
    assert shape.parameters == 8 * 4 * 9
    assert shape.dense_macs == 25 * 8 * 4 * 9
    assert convolve_first(shape, 5, 60) == Operations(25 * 4 * 5 * 9, 25 * 60)
    assert convolve_first(shape, 5, 60, planes=7) == Operations(25 * 7 * 9, 25 * 60)
    assert combine_first(shape, 5, 60) == Operations(25 * 8 * 5 * 9, 100 * 60)
    assert combine_first(shape, 5, 60, intermediates=11) == Operations(25 * 11 * 9, 100 * 60)
    assert dense_storage(shape).bits == 8 * 288 + 8 * SCALE_BITS
    assert combine_first(shape, 5, 60).total == 25 * 8 * 5 * 9 + 6000


def test_kinds_of_layers() -> None:
    assert ConvolutionShape(8, 4, 1, (1, 1), (4, 4), (4, 4)).kind == "pointwise"
    assert ConvolutionShape(8, 4, 1, (1, 1), (1, 1), (1, 1)).kind == "fully-connected"
    assert ConvolutionShape(8, 4, 1, (6, 6), (6, 6), (1, 1)).kind == "fully-connected"
    assert ConvolutionShape(8, 4, 1, (3, 3), (3, 3), (3, 3)).kind == "spatial"


def test_both_sides_mean_the_same_streams() -> None:
    assert TWO_LEVEL_PLANES == TWO_LEVEL_BASES


def test_storage_by_hand() -> None:
    codes = np.zeros((2, 3, 5), dtype=np.int8)
    codes[0, 0] = [1, -1, 0, 0, 1]
    codes[1, 2, 0] = -1
    storage = decomposed_storage(np.zeros((5, 3, 3)), codes)
    # rows of 3 mask bits, 5 for the one channel that has codes, and 3 or 1 sign bits: 2 bytes each
    assert (storage.masks, storage.values, storage.padding) == (16, 4, 12)
    assert storage.bits == 8 * 4 + 8 * 45 + 2 * SCALE_BITS
    full = codes.copy()
    full[:, :, 0] = 1
    storage = decomposed_storage(np.zeros((5, 3, 3)), full)
    # every channel has codes: rows of 15 mask bits, and 5 or 3 sign bits, fill 3 bytes each
    assert (storage.masks, storage.values, storage.padding) == (30, 8, 10)
    assert entropy_bits(codes) == pytest.approx(26 * log2(30 / 26) + 2 * 2 * log2(30 / 2))
    assert entropy_bits(np.zeros((2, 2))) == 0.0
    # of the planes (channel, basis) these are used: (0, 0), (0, 1), (0, 4), (2, 0)
    assert used_planes(codes) == 4
    # and of the combinations (output, basis): (0, 0), (0, 1), (0, 4), (1, 0)
    assert used_intermediates(codes) == 4
    # in two groups of one output each, the same codes concern six input channels
    assert used_planes(np.ones((2, 3, 5)), groups=2) == 30
    # floats: a mask and four values against thirty values, and a full tensor without a mask
    assert float_storage(codes, 45).bits == 30 + 32 * 4 + 32 * 45
    assert float_storage(np.ones((2, 3, 5))).bits == 32 * 30


def test_costs_of_a_module() -> None:
    net = Net(6, 6, 4)
    x = net.random_conv(net.x, 6, 3, stride=(2, 2))
    module = net.finish(net.random_decomposed(x, 5, 4))
    dense, decomposed = layer_costs(module)
    assert (dense.bases, dense.shape.dense_macs) == (0, 9 * 6 * 4 * 9)
    assert dense.combine_first == dense.convolve_first == Operations(9 * 6 * 4 * 9, 0)
    assert layer_costs(module, floats=True)[0].bits == 32 * 6 * 4 * 9
    (op,) = [op for op in module.layers if isinstance(op, DecomposedConv2d)]
    codes = needed(module, op, "coefficients").copy()
    codes[2] = 0
    codes[:, :, 1] = 0
    set_array(module, op, "coefficients", "sparser", codes)
    decomposed = layer_costs(module)[1]
    assert decomposed.bases == 4
    nonzeros = int(np.count_nonzero(codes))
    assert nonzeros == round(decomposed.density * 5 * 6 * 4) > 0
    assert decomposed.combine_first.macs == 9 * 9 * used_intermediates(codes) <= 9 * 9 * 4 * 3
    assert decomposed.combine_first.adds == 9 * nonzeros
    assert decomposed.convolve_first == Operations(9 * 9 * 6 * 4, 9 * nonzeros)
    assert decomposed.convolve_first_used == Operations(9 * 9 * used_planes(codes), 9 * nonzeros)
    assert decomposed.convolve_first_used.macs <= 9 * 9 * 6 * 3
    assert decomposed.entropy_bits < decomposed.bits
    # bits over the weights the layer had before its channels were removed
    larger = [dense, replace(decomposed, shape=replace(decomposed.shape, outputs=10))]
    assert bits_per_weight([dense, decomposed], larger) == decomposed.bits / (10 * 6 * 9)
    assert bits_per_weight([dense], larger) is None


def test_counting_follows_the_removal_of_channels() -> None:
    """A dead channel costs masks and planes until shrink-channels takes it out."""
    net = Net(6, 6, 16)
    middle = net.random_decomposed(net.x, 8, 3)
    module = net.finish(net.random_decomposed(middle, 5, 3))
    first, second = (op for op in module.layers if isinstance(op, DecomposedConv2d))
    dead = needed(module, second, "coefficients").copy()
    dead[:, 3:] = 0
    set_array(module, second, "coefficients", "dead", dead)
    assert first.symbol("bias") is not None
    before = layer_costs(module)
    module.set_facts(module.facts | {"batch-norm-folded", "fused", "decomposed", "pruned"})
    run_pipeline(module, [make_pass("shrink-channels")], PassContext(Arch.default()))
    after = layer_costs(module)
    assert [cost.shape.outputs for cost in after] == [3, 5]
    # two levels: a bit for each of 8 channels, 3 for each of the 3 that have codes
    assert before[1].storage.masks == 5 * (8 + 3 * 3)
    assert after[1].storage.masks == 5 * 3 * 3
    assert after[1].convolve_first_used == before[1].convolve_first_used
    assert after[1].convolve_first.macs < before[1].convolve_first.macs
    assert network_cost(after).bits < network_cost(before).bits


# -- counts of published networks ---------------------------------------------------------------------------


@cache
def costs(name: str) -> list[LayerCost]:
    example = torch.zeros(2, *ZOO[name].shape)
    return layer_costs(import_exported(capture(build(name), example=example)))


@pytest.mark.parametrize(
    ("name", "parameters", "macs", "basis", "combine", "pointwise", "ratio"),
    [
        ("vgg16_cifar", 14.710e6, 313.20e6, 8.34e6, 174.00e6, 0, 0.582),
        ("resnet18_cifar", 11.159e6, 555.42e6, 20.97e6, 305.07e6, 6.29e6, 0.598),
        ("resnet20", 0.268e6, 40.55e6, 7.60e6, 22.53e6, 0, 0.743),
        ("resnet56", 0.848e6, 125.49e6, 23.09e6, 69.71e6, 0, 0.740),
        ("alexnet", 2.469e6, 655.57e6, 17.65e6, 248.44e6, 0, 0.406),
        ("resnet50", 23.455e6, 4087.1e6, 71.31e6, 1039.7e6, 2119e6, 0.790),
        ("resnet18", 11.167e6, 1813.6e6, 73.01e6, 943.3e6, 19.3e6, 0.571),
    ],
)
def test_reference_counts(
    name: str, parameters: float, macs: float, basis: float, combine: float, pointwise: float, ratio: float
) -> None:
    """Convolutions only, five bases for every k x k kernel, every coefficient present: PENNI's networks."""
    dense = network_cost(costs(name), classifier=False)
    assert dense.parameters == pytest.approx(parameters, rel=5e-4, abs=600)
    assert dense.dense_macs == pytest.approx(macs, rel=1e-4)
    assert dense.convolve_first == dense.combine_first == Operations(dense.dense_macs, 0)
    layers = [if_decomposed(cost, 5) for cost in costs(name)]
    spatial = network_cost([cost for cost in layers if cost.kind == "spatial"])
    assert spatial.convolve_first.macs == pytest.approx(basis, rel=1e-3)
    assert spatial.convolve_first.adds == pytest.approx(combine, rel=1e-4)
    rest = network_cost([cost for cost in layers if cost.kind == "pointwise"])
    assert rest.convolve_first.total == pytest.approx(pointwise, rel=2e-3)
    whole = network_cost(layers, classifier=False).convolve_first.total
    assert whole / dense.dense_macs == pytest.approx(ratio, abs=6e-4)


@pytest.mark.parametrize(
    ("name", "density", "macs", "reduction"),
    [
        ("vgg16_cifar", 0.073, 21.1e6, 0.9326),
        ("resnet18_cifar", 0.075, 44.4e6, 0.92),
        ("resnet56", 0.040, 25.9e6, 0.794),
        ("alexnet", 0.71, 194e6, 0.704),
        ("resnet50", 0.106, 404.6e6, 0.901),
    ],
)
def test_densities_that_give_the_published_reductions(
    name: str, density: float, macs: float, reduction: float
) -> None:
    """PENNI's FLOP reductions, by coefficients alone."""
    layers = [if_decomposed(cost, 5, density) for cost in costs(name)]
    total = network_cost(layers, classifier=False)
    assert total.convolve_first.total == pytest.approx(macs, rel=7e-3)
    assert 1 - total.convolve_first.total / total.dense_macs == pytest.approx(reduction, abs=1.5e-3)


def test_the_classifier_is_counted_apart() -> None:
    linear = {"vgg16_cifar": 512 * 10, "alexnet": 9216 * 4096 + 4096 * 4096 + 4096 * 1000}
    for name, weights in linear.items():
        whole, without = network_cost(costs(name)), network_cost(costs(name), classifier=False)
        assert whole.parameters - without.parameters == weights
        assert whole.dense_macs - without.dense_macs == weights


@pytest.mark.parametrize("outputs", [16, 64, 512])
def test_ratio_before_pruning(outputs: int) -> None:
    """d / k^2 + d / O, so decomposition alone never beats 5/9."""
    shape = ConvolutionShape(outputs, 32, 1, (3, 3), (8, 8), (8, 8))
    total = convolve_first(shape, 5, outputs * 32 * 5).total
    assert total / shape.dense_macs == pytest.approx(5 / 9 + 5 / outputs)
    assert total > shape.dense_macs * 5 / 9


# -- what the number format can save at all -----------------------------------------------------------------


@pytest.mark.parametrize(("bases", "density"), [(5, 0.022), (6, 0.018)])
def test_density_at_which_an_entropy_code_reaches_325(bases: int, density: float) -> None:
    """One layer so large that bases and scales do not matter."""
    count = 10**6
    codes = np.zeros(count * bases, dtype=np.int8)
    nonzeros = round(density * codes.size)
    codes[: nonzeros // 2], codes[nonzeros // 2 : nonzeros] = 1, -1
    assert 32 * 9 * count / entropy_bits(codes) == pytest.approx(325, rel=0.02)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 9), st.floats(0, 1), st.integers(0, 99))
def test_storage_is_what_the_machine_stores(
    outputs: int, inputs: int, bases: int, density: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    size = (outputs, inputs, bases)
    codes = random.choice([-1, 1], size) * (random.random(size) < density)
    storage = decomposed_storage(np.zeros((bases, 3, 3)), codes)
    stream, _ = coefficient_stream(codes.astype(np.int8), row_nonzeros(codes), chunk=64)
    assert 8 * stream.size == storage.masks + storage.values + storage.padding
    assert stream.size == stream.encode(0, outputs).size
    assert storage.padding < 8 * outputs
    assert (storage.masks + storage.values + storage.padding) % 8 == 0
    # masks and signs are a code: none can need less than the entropy of the values
    assert entropy_bits(codes) <= storage.masks + storage.values + 1e-6
    assert used_planes(codes) <= min(inputs * bases, np.count_nonzero(codes))
    assert used_intermediates(codes) <= min(outputs * bases, np.count_nonzero(codes))
