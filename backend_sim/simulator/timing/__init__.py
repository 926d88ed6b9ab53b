"""Exact time inside a convolution instruction: concentration, queues and events from the real bits."""

from __future__ import annotations

from escc.backend_sim.simulator.timing.conv_timing import Convolution, conv_timing
from escc.backend_sim.simulator.timing.engines import Codec, Engine, NumpyEngine, make_engine
from escc.backend_sim.simulator.timing.native_maps import NativeMaps
from escc.backend_sim.simulator.timing.work import ConvTiming, ConvWork, RowStreams, Ternary, TimingArch

__all__ = [
    "Codec",
    "ConvTiming",
    "ConvWork",
    "Convolution",
    "Engine",
    "NativeMaps",
    "NumpyEngine",
    "RowStreams",
    "Ternary",
    "TimingArch",
    "conv_timing",
    "make_engine",
]
