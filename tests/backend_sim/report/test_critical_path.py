"""The critical path tiles the run, is made of what really ran, and explains every begin."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from tests.backend_sim.report.runs import SEEDS, random_result
from tests.backend_sim.simulator.networks import network

from escc.backend_sim.report.critical_path import Segment, critical_path
from escc.backend_sim.simulator import random_images, simulate
from escc.backend_sim.simulator.result import TimedResult
from escc.backend_sim.simulator.timeline import run_timeline


def check_path(timed: TimedResult, path: list[Segment], image: int) -> None:
    total = int(timed.timeline.total[image])
    assert path[0].start == 0
    assert path[-1].end == total
    assert all(one.end == other.start for one, other in itertools.pairwise(path))
    for segment in path:
        assert segment.end > segment.start
        if segment.kind != "sequencer":
            step = timed.steps[segment.step]
            assert (segment.kind, segment.layer) == (step.queue.text, step.layer)
            assert segment.start == timed.timeline.start[segment.step, image]
            assert segment.end == timed.timeline.end[segment.step, image]


@pytest.mark.parametrize("seed", SEEDS)
def test_random_networks(seed: int) -> None:
    timed = random_result(seed).timed
    assert timed is not None
    for image in range(2):
        check_path(timed, critical_path(timed, image), image)


def test_longer_on_the_path_is_a_longer_run() -> None:
    """An instruction of the path made 7 cycles longer makes the run 7 cycles longer; others never do more."""
    program = network()
    images = random_images(program.inputs[0], 1, 0)
    timed = simulate(program, images).timed
    assert timed is not None
    durations = timed.timeline.end - timed.timeline.start
    on_path = {segment.step for segment in critical_path(timed) if segment.kind != "sequencer"}
    words = int(timed.steps[-1].executed) + 2
    base = run_timeline(timed.steps, words, durations, timed.arch.queue_depth).total
    assert len(on_path) >= 4
    off = 0
    for index, step in enumerate(timed.steps):
        if step.registers is None:
            continue
        longer = durations.copy()
        longer[index] += 7
        total = run_timeline(timed.steps, words, longer, timed.arch.queue_depth).total
        if index in on_path:
            assert total == base + 7
        else:
            off += 1
            assert np.all(total <= base + 7)
    assert off + len(on_path) == sum(step.registers is not None for step in timed.steps)
