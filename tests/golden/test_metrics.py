"""Cycles, bytes and energy of every network of the zoo change only on purpose."""

from __future__ import annotations

import pytest
from benchmarks.golden import COMMAND, MARGIN, differences, drawn_bytes, load, measure, snapped

from escc.errors import EsccError
from escc.frontend import zoo
from escc.passes.math.ranges import map_scale


@pytest.mark.parametrize("name", zoo.names())
def test_metrics_are_those_of_the_file(name: str) -> None:
    lines = differences(name, load().get(name, {}), measure(name))
    assert not lines, "\n".join(
        ["not what tests/golden/metrics.json says:", *lines, f"on purpose: {COMMAND}"]
    )


def test_file_has_every_network_and_no_other() -> None:
    assert list(load()) == zoo.names()


@pytest.mark.parametrize("name", zoo.names())
def test_the_cost_model_is_within_a_tenth(name: str) -> None:
    metrics = load()[name]
    assert abs(metrics["predicted_cycles"] / metrics["cycles"] - 1) <= 0.1


def test_every_difference_is_named() -> None:
    old = {"cycles": 100, "energy_pj": 5.0, "gone": 1}
    new = {"cycles": 101, "energy_pj": 5.0 + 1e-10, "new": 2}
    assert differences("net", old, new) == [
        "net: cycles: 100 -> 101 (+1.000%)",
        "net: gone: 1 -> None",
        "net: new: None -> 2",
    ]
    assert differences("net", {"energy_pj": 5.0}, {"energy_pj": 5.0 + 1e-7})
    assert not differences("net", new, dict(new))


def test_drawn_numbers_are_the_same_everywhere() -> None:
    assert drawn_bytes(1, 2, 3).tolist() == [[255, 228, 34], [121, 243, 189]]


def test_scales_are_powers_of_two_that_no_float_error_can_change() -> None:
    low, high = snapped(-1.0, 3.0, True, None)
    assert map_scale(low, high, True) == 2.0**-5
    assert low <= -1.0
    assert high >= 3.0
    near = 127 * 2.0**-5 * (1 + MARGIN / 4)
    with pytest.raises(EsccError, match="too near a power of two"):
        snapped(-near, near, True, "a layer")
    assert snapped(0.0, near, False, "a layer") == (0.0, 255 * 2.0**-6)
