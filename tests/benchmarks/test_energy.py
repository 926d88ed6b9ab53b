"""Energies lie where those of published machines do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from benchmarks.energy import ALEXNET, BARE, EYERISS_ALEXNET, EYERISS_VGG16, PUBLISHED, SPARTEN, VGG16, energy
from benchmarks.shapes import Layer


def test_published_figures_by_hand() -> None:
    # 278 mW / 34.7 images/s = 8.01 mJ an image, over 0.666e9 MACs 12.0 pJ; 236 mW / 0.7 = 337 mJ, over
    # 15.35e9 22.0 pJ; 118.3 mW over 32 units and 0.8e9 cycles a second
    found = (EYERISS_ALEXNET, EYERISS_VGG16, SPARTEN)
    assert found == pytest.approx((12.03, 21.96, 4.62), abs=0.01)


@pytest.mark.parametrize("layer", [ALEXNET["conv5"], VGG16["conv5_3"]], ids=["AlexNet", "VGG16"])
@pytest.mark.parametrize("coefficients", [0.1, 0.4])
def test_an_operation_costs_more_than_its_arithmetic_and_less_than_on_dense_machines(
    layer: Layer, coefficients: float
) -> None:
    # a quarter of the outputs: the same but for what all of them share
    found = energy(replace(layer, outs=layer.outs // 4, coefficients=coefficients))
    assert BARE < found.chip / found.operations < max(row.at_45 for row in PUBLISHED)
