"""The memory plan: by hand for a small program; in random ones everything that is used lies in a region."""

from __future__ import annotations

import pytest
from tests.backend_sim.report.runs import SEEDS, random_result
from tests.backend_sim.simulator.networks import network

from escc.backend_sim.report.memory_plan import COMPUTED, LOADED, OPERANDS, Region, memory_plan, occupancy
from escc.backend_sim.simulator import random_images, simulate
from escc.isa.access import SRAM, accesses


def test_by_hand() -> None:
    """Addresses and sizes as ``network`` places them; 6 x 6 x 8 take 36 * 9 bytes less one of mask."""
    program = network()
    timed = simulate(program, random_images(program.inputs[0], 1, 0)).timed
    assert timed is not None
    plan = memory_plan(timed)
    maps = [(r.layer, r.low, r.high, list(r.readers)) for r in plan if r.kind == COMPUTED]
    assert maps == [
        (0, 200, 200 + 36 * 9 - 1, [1]),  # stem; read twice by the ternary layer: input and residual
        (1, 600, 600 + 36 * 9 - 1, [2]),
        (2, 1000, 1000 + 36 * 9 - 1, [3]),
        (3, 1400, 1400 + 9 * 9 - 1, [4]),  # pooled; the stores after the last mark read it too
        (4, 1500, 1508, [4]),
    ]
    assert [(r.low, r.high) for r in plan if r.kind == LOADED] == [(0, 36 * 4 - 1)]
    assert {role for r in plan if r.kind == OPERANDS for role in r.roles} == {
        *("kernels", "requantisation", "coefficients", "divisors"),
    }
    times = {step.instruction.mnemonic: index for index, step in enumerate(timed.steps)}
    stem = next(r for r in plan if r.kind == COMPUTED and r.layer == 0)
    assert stem.start == timed.timeline.start[times["conv_dense"], 0]
    assert stem.end == timed.timeline.end[times["conv_combine"], 0]


@pytest.mark.parametrize("seed", SEEDS)
def test_random_networks(seed: int) -> None:
    timed = random_result(seed).timed
    assert timed is not None
    plan = memory_plan(timed)
    for index, step in enumerate(timed.steps):
        if step.registers is None:
            continue
        start, end = int(timed.timeline.start[index, 0]), int(timed.timeline.end[index, 0])
        for access in accesses(step.instruction.mnemonic, step.registers).accesses:
            if access.memory == SRAM:
                holds = [r for r in plan if r.low < access.end and access.base < r.high]
                assert any(r.start <= start and end <= r.end for r in holds), (index, access)
    levels = occupancy(plan)
    assert 0 < max(used for _, used in levels) <= timed.arch.sram_bytes
    assert levels[-1][1] == 0
    assert [time for time, _ in levels] == sorted({time for time, _ in levels})


def test_occupancy_counts_shared_bytes_once() -> None:
    regions = [
        Region(0, COMPUTED, 0, 10, 0, 5),
        Region(1, LOADED, 5, 20, 3, 8),
        Region(2, LOADED, 40, 41, 6, 6),
    ]
    assert occupancy(regions) == [(0, 10), (3, 20), (5, 15), (8, 0)]
