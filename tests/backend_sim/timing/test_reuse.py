"""Concentration done once: other rows, rings, FIFOs, MACs, blocks and bands give what timing anew gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.backend_sim.timing.cases import Machine, random_case
from tests.backend_sim.timing.engines import engines

from escc.backend_sim.simulator.timing import Ternary, conv_timing
from escc.backend_sim.simulator.timing.engines import Engine
from escc.backend_sim.simulator.timing.reuse import FIGURES, Instruction, reusing
from escc.backend_sim.simulator.timing.work import ConvWork
from escc.errors import EsccError


def instructions(machine: Machine, count: int) -> list[Instruction]:
    """Random convolutions, all for one machine."""
    found: list[Instruction] = []
    for seed in range(count):
        case = random_case(seed)
        ternary = None if case.mask is None else Ternary(case.mask)
        found.append(Instruction(case.work, case.x[0].view(np.uint8), ternary))
    return found


def machines(seed: int) -> list[Machine]:
    """Machines that share what concentration sees."""
    base = random_case(seed).arch
    random = np.random.default_rng(seed)
    return [
        replace(
            base,
            blocks=int(random.integers(1, 5)),
            rows=int(random.integers(1, 9)),
            macs=int(random.integers(1, 12)),
            ring_entries=int(random.integers(1, 20)),
            fifo_positions=int(random.integers(1, 4)),
            startup_cycles=int(random.integers(0, 20)),
        )
        for _ in range(4)
    ]


@pytest.mark.parametrize("engine", engines(), ids=lambda engine: f"{engine.name}")
@pytest.mark.parametrize("seed", range(3))
def test_the_same_as_timing_anew(engine: Engine, seed: int) -> None:
    chosen = machines(seed)
    convolutions = instructions(chosen[0], 20)
    reuse = reusing(engine, chosen[-1], convolutions)
    for number, machine in enumerate([*chosen, chosen[0]]):
        bands = [1 + (index + number) % 3 for index in range(len(convolutions))]
        got = reuse.timings(machine, bands)
        for row, (work, x, ternary), count in zip(got, convolutions, bands, strict=True):
            mask = None if ternary is None else ternary.mask
            wanted = conv_timing(machine, replace(work, bands=count), x[None].view(np.bool_), mask)
            assert dict(zip(FIGURES, row, strict=True)) == {n: int(v[0]) for n, v in vars(wanted).items()}


@pytest.mark.parametrize("engine", engines(), ids=lambda engine: f"{engine.name}")
def test_counts_beyond_a_byte_and_machines_that_make_them_so(engine: Engine) -> None:
    """320 cycles of an entry do not fit what is kept; nor do the MAC cycles of a machine with many MACs."""
    random = np.random.default_rng(1)
    work = ConvWork("combine", outs=5, chans=320, height=1, width=2, y_rows=1, y_cols=2, bases=2)
    mask = random.random((5, 320, 2)) < 0.8
    x = np.ones((1, 2, 320), np.uint8)
    for chunk, macs in ((320, 1), (64, 5000)):
        machine = Machine(lanes=1, chunk=chunk, rows=2)
        reuse = reusing(engine, machine, [Instruction(work, x, Ternary(mask))])
        other = replace(machine, rows=3, macs=macs)
        wanted = conv_timing(other, work, x[None] != 0, mask)
        got = reuse.timings(other, [1])[0]
        assert dict(zip(FIGURES, got, strict=True)) == {n: int(v[0]) for n, v in vars(wanted).items()}


@pytest.mark.parametrize("engine", engines()[:2], ids=lambda engine: f"{engine.name}")
def test_a_machine_that_concentrates_otherwise_is_refused(engine: Engine) -> None:
    machine = Machine()
    reuse = reusing(engine, machine, instructions(machine, 3))
    with pytest.raises(EsccError, match="concentrated for lanes 2, asked for 3"):
        reuse.timings(replace(machine, lanes=3), [1, 1, 1])


@pytest.mark.parametrize("engine", engines()[:2], ids=lambda engine: f"{engine.name}")
def test_arrays_of_another_shape_are_refused(engine: Engine) -> None:
    work = ConvWork("combine", outs=2, chans=4, height=1, width=2, y_rows=1, y_cols=2)
    mask = Ternary(np.ones((2, 4, 2), np.bool_))
    with pytest.raises(EsccError, match="coefficient mask of shape"):
        reusing(engine, Machine(), [Instruction(work, np.ones((1, 2, 4), np.uint8), mask)])
    late = replace(work, x_first=1, height=3, y_rows=3)
    first = Ternary(mask.mask[..., :1])
    with pytest.raises(EsccError, match="needs input row 0"):
        reusing(engine, Machine(), [Instruction(late, np.ones((2, 2, 4), np.uint8), first)])
