"""The native inner loops of the functional path against numpy's, on views of larger arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.backend_sim.timing.engines import narrow_engines

from escc.backend_sim.simulator.meter import nonzero_counts
from escc.backend_sim.simulator.numerics import Finish, Requantizer, Residual, rescale_table_f64
from escc.backend_sim.simulator.timing import NativeMaps
from escc.backend_sim.simulator.windows import Axis, gather
from escc.backend_sim.simulator.workspace import Workspace

MAPS = [engine.maps for engine in narrow_engines() if engine.maps is not None]
pytestmark = pytest.mark.skipif(not MAPS, reason="no compiler, hence no native engine")
SEEDS = st.integers(0, 2**32 - 1)
sizes = st.tuples(*[st.integers(1, 4)] * 3, st.integers(1, 150))


@settings(max_examples=40, deadline=None)
@given(sizes, SEEDS)
def test_counts(shape: tuple[int, int, int, int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    images, rows, cols, chans = shape
    held = generator.integers(0, 256, (images, rows + 1, cols + 2, chans + 3), np.uint8)
    held[generator.random(held.shape) < generator.random()] = 0
    for view in (held, held[:, 1:, 1:-1, 2:-1], held[:, ::-1, :, :1]):
        for maps in MAPS:
            assert nonzero_counts(view, maps) == np.count_nonzero(view, axis=(1, 2, 3)).tolist()


def test_counts_beyond_a_byte() -> None:
    ones = np.full((1, 40, 30, 64), 255, np.uint8)
    assert all(maps.count_nonzeros(ones[0]) == ones.size for maps in MAPS)


@st.composite
def axes(draw: st.DrawFn) -> Axis:
    """A window along one axis, of which some inputs may be missing."""
    taps, stride = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    pad, dilation = draw(st.integers(0, 4)), draw(st.integers(1, 2))
    extent, first = draw(st.integers(1, 8)), draw(st.integers(0, 3))
    return Axis(first, draw(st.integers(1, 6)), taps, stride, pad, dilation, extent, 0, extent)


@settings(max_examples=100, deadline=None)
@given(axes(), axes(), st.integers(1, 3), st.integers(1, 70), st.booleans(), SEEDS)
def test_padded_inputs(rows: Axis, cols: Axis, images: int, chans: int, signed: bool, seed: int) -> None:
    generator = np.random.default_rng(seed)
    held = generator.integers(0, 256, (images, rows.held, cols.held, chans + 2), np.uint8)[..., 1:-1]
    x = held.view(np.int8) if signed else held
    wanted = gather(x, rows, cols, np.empty((images, rows.size, cols.size, chans), np.float32))
    for maps in MAPS:
        got = np.full_like(wanted, np.nan)
        maps.fill(x[:, rows.source, cols.source], (*rows.inside, *cols.inside), got)
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_sums_that_lie_in_a_larger_array(seed: int, kind: type[np.floating]) -> None:
    """Maps of several rows and columns, sums cut from larger ones, residuals with other pitches."""
    generator = np.random.default_rng(seed)
    images, rows, cols, outs = (int(generator.integers(1, high)) for high in (3, 5, 6, 90))
    held = generator.integers(-(1 << 23), 1 << 23, (images, rows + 2, cols + 1, outs)).astype(kind)
    sums = held[:, 1:-1, :cols]
    multiplier = generator.integers(1 << 30, 1 << 31, outs)
    shift = generator.integers(44, 50, outs)
    requantizer = Requantizer(generator.integers(-5000, 5000, outs), multiplier, shift)
    second = None
    if seed % 2:
        scaled = rescale_table_f64(int(generator.integers(1 << 30, 1 << 31)), 31, bool(seed % 4 == 1))
        values = generator.integers(0, 256, (images, rows, cols + 1, outs + 4), np.uint8)[:, :, 1:, 2:-2]
        second = Residual(values, scaled, int(np.abs(scaled).max()))
    table = generator.integers(0, 256, 256, np.uint8) if seed % 3 == 0 else None
    low = int(generator.choice([-128, 0, 5]))
    finish = Finish(low, 127 if low < 0 else 255, table)

    def applied(maps: NativeMaps | None) -> np.ndarray:
        out = np.zeros((images, rows, cols, outs), np.uint8)
        typed = out.view(np.int8) if low < 0 else out
        requantizer.apply(sums, 1 << 23, finish, second, typed, Workspace(maps))
        return out

    wanted = applied(None)
    assert len(np.unique(wanted)) > 1 or wanted.size < 20
    for maps in MAPS:
        np.testing.assert_array_equal(applied(maps), wanted)
