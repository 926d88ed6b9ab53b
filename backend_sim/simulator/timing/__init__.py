"""Exact time inside a convolution instruction: concentration, queues and events from the real bits."""

from __future__ import annotations

from escc.backend_sim.simulator.timing.conv_timing import conv_timing
from escc.backend_sim.simulator.timing.work import ConvTiming, ConvWork, TimingArch

__all__ = ["ConvTiming", "ConvWork", "TimingArch", "conv_timing"]
