"""What more SRAM does to the cycles of a program compiled for it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from benchmarks.golden import drawn_images, drawn_network, golden, golden_pipeline

from escc.backend_sim.simulator import simulate
from escc.driver import compile_module, machine_passes
from escc.errors import EsccError
from escc.isa.arch import Arch

SIZES = (32, 64, 128, 256, 512, 1024, 2048)
MOST_LOST = 0.05
"""Share of the cycles that twice the SRAM may cost.

It is not none. A program is compiled for its size, tiles are chosen by estimates, and a wider tile that has
just come to fit may take longer than they say. Among the networks of the zoo, at the sizes of the golden
metrics, ResNet-18 for CIFAR loses most: 3.8 % with 512 KiB after 256 (142,008 cycles and 136,760); ResNet-20
and AlexNet lose 1.0 % with 128 KiB after 64. Tiny machines lose more: docs/performance.md has 40 % on one.
"""


def cycles_by_size(name: str) -> dict[int, int]:
    """Cycles of a network of the zoo on the default machine with every size of SRAM, KiB, that it fits."""
    chosen = golden(name)
    module = drawn_network(name, chosen)
    images = drawn_images(module, chosen.seed)
    last = {item.name for item in machine_passes()}
    first = [item for item in golden_pipeline() if item.name not in last]
    compile_module(module, calibration=images, passes=first, stop_after=first[-1].name)
    found: dict[int, int] = {}
    for size in SIZES:
        arch = Arch.default().replace(sram_kib=size)
        try:
            done = compile_module(module.clone(), arch=arch, passes=machine_passes())
        except EsccError:
            assert not found, "a network that fits an SRAM fits a larger one"
            continue
        assert done.program is not None
        found[size] = int(simulate(done.program, images).cycles[0])
    return found


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "resnet18_cifar", "alexnet"])
def test_twice_the_sram_hardly_costs_a_cycle(name: str) -> None:
    found = cycles_by_size(name)
    assert len(found) >= 5
    for (small, before), (large, after) in pairwise(found.items()):
        assert after <= before * (1 + MOST_LOST), f"{small} KiB: {before}, {large} KiB: {after}"
    # and it is worth something
    assert found[max(found)] < 0.9 * found[min(found)]
