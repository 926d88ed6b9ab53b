"""Small random layers."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from escc.backend_sim.baselines import ConvWork


@st.composite
def works(draw: st.DrawFn, most_chans: int = 5, most_outs: int = 7) -> ConvWork:
    """Layers with strides, padding, dilation and groups, zeros anywhere from none to all."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    chans, outs = draw(st.integers(1, most_chans)), draw(st.integers(1, most_outs))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.tuples(*[st.integers(0, 2)] * 4))
    least = [(size - 1) * step + 1 for size, step in zip(kernel, dilation, strict=True)]
    height, width = (draw(st.integers(size, size + 7)) for size in least)
    densities = st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0])
    x = generator.random((chans * groups, height, width)) < draw(densities)
    weight = generator.random((outs * groups, chans, *kernel)) < draw(densities)
    return ConvWork(
        "layer",
        x.astype(np.uint8),
        weight.astype(np.int8),
        draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        padding,
        dilation,
        groups,
    )


def layer(chans: int, side: int, outs: int, kernel: int = 3, density: float = 0.5, **more: int) -> ConvWork:
    """A square layer with padding (kernel - 1) / 2; ``more``: stride, groups, seed."""
    generator = np.random.default_rng(more.get("seed", 0))
    groups, stride, pad = more.get("groups", 1), more.get("stride", 1), kernel // 2
    x = generator.random((chans, side, side)) < density
    weight = generator.random((outs, chans // groups, kernel, kernel)) < density
    return ConvWork(
        "layer",
        x.astype(np.uint8),
        weight.astype(np.int8),
        (stride, stride),
        (pad, pad, pad, pad),
        groups=groups,
    )
