"""Costs by hand, and the published reference counts of whole networks."""

from __future__ import annotations

from math import log2

import numpy as np
import pytest
import torch
from tests.passes.networks import Net

from escc.frontend.capture import capture
from escc.frontend.importer import import_exported
from escc.frontend.zoo import ZOO, build
from escc.passes.costs import layer_costs
from escc.passes.math.accounting import (
    SCALE_BITS,
    ConvolutionShape,
    Operations,
    combine_first,
    convolve_first,
    decomposed_storage,
    dense_bits,
    entropy_bits,
)


def test_a_layer_by_hand() -> None:
    shape = ConvolutionShape(8, 4, 1, (3, 3), (10, 10), (5, 5))
    assert shape.parameters == 8 * 4 * 9
    assert shape.dense_macs == 25 * 8 * 4 * 9
    assert convolve_first(shape, 5, 60) == Operations(25 * 4 * 5 * 9, 25 * 60)
    assert combine_first(shape, 5, 60) == Operations(25 * 8 * 5 * 9, 100 * 60)
    assert dense_bits(shape) == 8 * 288 + 8 * SCALE_BITS
    assert dense_bits(shape, 32) == 32 * 288


def test_storage_by_hand() -> None:
    codes = np.zeros((2, 3, 5), dtype=np.int8)
    codes[0, 0] = [1, -1, 0, 0, 1]
    codes[1, 2, 0] = -1
    storage = decomposed_storage(np.zeros((5, 3, 3)), codes)
    # rows of 15 mask bits and 3 or 1 sign bits fill 3 and 2 bytes
    assert (storage.masks, storage.signs, storage.padding) == (30, 4, 6)
    assert storage.bits == 8 * 5 + 8 * 45 + 2 * SCALE_BITS
    assert entropy_bits(codes) == pytest.approx(26 * log2(30 / 26) + 2 * 2 * log2(30 / 2))
    assert entropy_bits(np.zeros((2, 2))) == 0.0


def test_costs_of_a_module() -> None:
    net = Net(6, 6, 4)
    x = net.random_conv(net.x, 6, 3, stride=(2, 2))
    module = net.finish(net.random_decomposed(x, 5, 4))
    dense, decomposed = layer_costs(module)
    assert (dense.bases, dense.shape.dense_macs) == (0, 9 * 6 * 4 * 9)
    assert decomposed.bases == 4
    nonzeros = round(decomposed.density * 5 * 6 * 4)
    assert decomposed.combine_first == Operations(9 * 5 * 4 * 9, 9 * nonzeros)
    assert decomposed.entropy_bits < decomposed.bits


@pytest.mark.parametrize(
    ("name", "parameters", "macs", "basis_macs", "combine"),
    [
        ("resnet20", 0.268e6, 40.55e6, 7.60e6, 22.53e6),
        ("resnet56", 0.848e6, 125.49e6, 23.09e6, 69.71e6),
        ("vgg16_cifar", 14.710e6, 313.20e6, 8.34e6, 174.00e6),
    ],
)
def test_reference_counts(
    name: str, parameters: float, macs: float, basis_macs: float, combine: float
) -> None:
    """Convolutions only, five bases everywhere, every coefficient present (counts of the PENNI networks)."""
    module = import_exported(capture(build(name), example=torch.zeros(2, *ZOO[name].shape)))
    shapes = [cost.shape for cost in layer_costs(module) if cost.shape.kernel != (1, 1)]
    full = [convolve_first(shape, 5, shape.outputs * shape.inputs * 5) for shape in shapes]
    assert sum(shape.parameters for shape in shapes) == pytest.approx(parameters, rel=2e-3)
    assert sum(shape.dense_macs for shape in shapes) == pytest.approx(macs, rel=1e-3)
    assert sum(item.macs for item in full) == pytest.approx(basis_macs, rel=1e-3)
    assert sum(item.adds for item in full) == pytest.approx(combine, rel=1e-3)
