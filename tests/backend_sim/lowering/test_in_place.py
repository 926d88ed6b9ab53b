"""A result in the place of its layer's residual, where the SRAM has no room for both."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from tests.backend_sim.lowering.builders import NetBuilder, small_arch
from tests.backend_sim.lowering.running import check_equal

from escc.backend_sim.lowering import lower
from escc.backend_sim.lowering.plan_memory import PlanMemory
from escc.backend_sim.lowering.schedule import Schedule
from escc.errors import EsccError
from escc.ir.base import LayerOp
from escc.ir.module import Module
from escc.ir.passes import PassContext, run_pipeline
from escc.ir.xdsl import SSAValue
from escc.isa.verify import verify

SIDE, CHANNELS = 8, 16
MAP_BYTES = SIDE * SIDE * (CHANNELS + 2)


def blocks(seed: int, count: int = 2, *, again: bool = False, twice: bool = False) -> Module:
    """Residual blocks of two convolutions. ``again``: the first residual is read once more behind; ``twice``:
    a convolution reads its own residual."""
    net = NetBuilder(np.random.default_rng(seed))
    (x,) = net.start(((SIDE, SIDE, CHANNELS), False))
    first = last = net.conv(x, CHANNELS, form="ternary")
    for _ in range(count):
        inner: SSAValue = last if twice else net.conv(last, CHANNELS, form="ternary")
        last = net.conv(inner, CHANNELS, form="ternary", residual=last)
    if again:
        last = net.conv(last, CHANNELS, form="ternary", residual=first)
    return net.finish(net.conv(last, 4))


def planned(module: Module, sram_kib: int) -> list[LayerOp]:
    """The operations that carry the place of each map."""
    arch = small_arch(sram_kib)
    run_pipeline(module, [PlanMemory(), Schedule()], PassContext(arch=arch))
    program = lower(module, arch)
    verify(program)
    check_equal(module, program)
    return [op for op in module.layers if op.value("place") is not None]


def homes(module: Module, sram_kib: int) -> list[int | str]:
    """SRAM addresses of the maps in order, "dram" for those that are not there."""
    return [
        op.value("address") if op.value("place") == "sram" else "dram" for op in planned(module, sram_kib)
    ]


def test_with_room_every_map_has_its_own_place() -> None:
    found = homes(blocks(0), 16)
    # maps 0, 2 and 4 are residuals and results in turn
    assert found[0] != found[2] != found[4]
    assert "dram" not in found[:-1]


@pytest.mark.parametrize("seed", range(4))
def test_without_room_a_result_takes_the_place_of_its_residual(seed: int) -> None:
    # a residual and what is added to it, but not the result beside them
    assert 2 * MAP_BYTES < 3 * 1024 < 3 * MAP_BYTES
    found = homes(blocks(seed), 3)
    assert any(found[i] == found[i + 2] != "dram" and found[i + 1] != "dram" for i in (0, 2))


@pytest.mark.parametrize("seed", range(2))
def test_a_map_that_is_read_again_stays(seed: int) -> None:
    for kib in (3, 4, 5):
        found = homes(blocks(seed, 1, again=True), kib)
        assert found[0] != found[2] or found[0] == "dram"


def test_a_map_that_the_layer_reads_otherwise_stays() -> None:
    for kib in (3, 4, 5):
        found = homes(blocks(0, 2, twice=True), kib)
        assert all(a != b or a == "dram" for a, b in pairwise(found))


def test_another_overlap_is_refused() -> None:
    module = blocks(0)
    arch = small_arch(16)
    run_pipeline(module, [PlanMemory(), Schedule()], PassContext(arch=arch))
    maps = [op for op in module.layers if op.value("place") == "sram"]
    maps[2].set_value("address", maps[1].value("address"))
    with pytest.raises(EsccError, match="overlap in SRAM"):
        lower(module, arch)
