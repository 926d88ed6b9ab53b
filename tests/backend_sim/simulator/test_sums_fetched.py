"""Partial sums that move between the registers under the window and the memory of a row."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from escc.backend_sim.simulator.windows import Axis

small = st.integers(1, 4)


def fetches(axis: Axis) -> int:
    """Row by row over the input: an output that was touched before comes back."""
    seen: set[int] = set()
    found = 0
    for row in range(axis.extent):
        for out in range(axis.first, axis.first + axis.count):
            begin = out * axis.stride - axis.pad
            if row in (begin + tap * axis.dilation for tap in range(axis.taps)):
                found += out in seen
                seen.add(out)
    return found


@given(st.integers(0, 3), small, st.integers(1, 7), small, st.integers(0, 3), small, st.integers(1, 12))
def test_a_sum_comes_back_with_every_further_input_row(
    first: int, count: int, taps: int, stride: int, pad: int, dilation: int, extent: int
) -> None:
    axis = Axis(first, count, taps, stride, pad, dilation, extent, 0, extent)
    assert sum(max(0, taps - 1) for taps in axis.taps_inside) == fetches(axis)


def test_by_hand() -> None:
    # 3 x 3, padding 1, four rows: the outer outputs have two input rows, the inner ones three
    assert Axis(0, 4, 3, 1, 1, 1, 4, 0, 4).taps_inside == [2, 3, 3, 2]
    assert Axis(0, 4, 1, 1, 0, 1, 4, 0, 4).taps_inside == [1, 1, 1, 1]
