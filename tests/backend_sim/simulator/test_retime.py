"""A recording gives, on any machine, what the simulator gives: cycles to the cycle, energy to 1e-12."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from benchmarks.golden import golden_program
from tests.backend_sim.timing.engines import native_is_there

from escc.backend_sim.simulator import EnergyTable, simulate
from escc.backend_sim.simulator.retime import Recording
from escc.backend_sim.simulator.timing import make_engine
from escc.errors import EsccError
from escc.isa.program import Program

ENGINES = ["numpy", *(["native"] if native_is_there() else [])]


@cache
def program(name: str) -> tuple[Program, Any]:
    return golden_program(name)


def changes(seed: int) -> dict[str, Any]:
    """Parameters of a machine, all but those a program holds for good."""
    random = np.random.default_rng(seed)

    def between(low: int, high: int) -> int:
        return int(random.integers(low, high + 1))

    return {
        "blocks": between(1, 20),
        "rows": between(1, 20),
        "macs": between(1, 16),
        "units": between(1, 8),
        "lanes": between(1, 20),
        "ring_entries": between(1, 20),
        "fifo_positions": between(1, 4),
        "startup_cycles": between(0, 40),
        "policy": ("window", "gather", "none")[between(0, 2)],
        "look_ahead": between(0, 4),
        "look_aside": between(0, 3),
        "vector_lanes": between(4, 99),
        "vector_startup_cycles": between(0, 20),
        "queue_depth": between(1, 20),
        "dram_gbps": float(between(1, 30)),
        "dram_latency_cycles": between(0, 200),
        "mhz": float(between(100, 1000)),
    }


@pytest.mark.parametrize(
    ("engine", "name", "count"),
    [("numpy", "resnet8", 1), *[("native", "resnet8", 6), ("native", "mobilenet_v2", 2)] * len(ENGINES[1:])],
)
def test_what_the_simulator_says(engine: str, name: str, count: int) -> None:
    made, images = program(name)
    recording = Recording(made, images, engine=make_engine(engine))
    np.testing.assert_array_equal(recording.outputs[0], simulate(made, images).outputs[0])
    for seed in range(count):
        # twice with the same concentration, then once more with that of the program
        same = {"lanes": 8, "units": 6, "policy": "window"} if seed % 2 else {}
        arch = made.arch.replace(**(changes(seed) | same))
        result = simulate(replace(made, arch=arch), images)
        point = recording.measure(arch)
        assert point.cycles == int(result.cycles[0])
        energy = {component: float(values[0]) for component, values in result.energy.items()}
        assert point.energy == pytest.approx(energy, rel=1e-12)
        assert point.energy_total == pytest.approx(result.energy_pj, rel=1e-12)


def test_another_table_and_other_bands() -> None:
    made, images = program("resnet8")
    recording = Recording(made, images)
    table = EnergyTable.load("eyeriss65")
    result = simulate(made, images, energy_table=table)
    point = recording.measure(made.arch, table)
    assert point.energy == pytest.approx({name: float(value[0]) for name, value in result.energy.items()})
    assert recording.bands == [conv.registers.bands for conv in recording.convs]
    # one band: fewer rows are read twice, fewer blocks have work
    alone = recording.measure(made.arch, bands=[1] * len(recording.convs))
    assert alone.layer_bands == (1,) * len(recording.convs)
    assert alone.energy["ring_buffer"] < recording.measure(made.arch).energy["ring_buffer"]
    assert alone.cycles != recording.measure(made.arch).cycles
    assert recording.measure(made.arch).cycles == int(simulate(made, images).cycles[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk": 32}, "compiled for chunk 64, not 32"),
        ({"sram_kib": 256}, "compiled for sram_kib 1024, not 256"),
        ({"z_bits": 19}, "compiled for z_bits 20, not 19"),
        ({"psum_entries": 8}, "partial sums in a row of the array, which holds 8"),
    ],
)
def test_machines_the_program_does_not_run_on(change: dict[str, Any], message: str) -> None:
    made, images = program("resnet8")
    with pytest.raises(EsccError, match=message):
        Recording(made, images).measure(made.arch.replace(**change))
