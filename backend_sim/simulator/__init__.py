"""The simulator: runs a program's instruction words and operand streams, and nothing else."""

from __future__ import annotations

from escc.backend_sim.simulator.energy import EnergyTable
from escc.backend_sim.simulator.host import quantize_input, random_images
from escc.backend_sim.simulator.result import LayerResult, SimResult
from escc.backend_sim.simulator.runner import simulate

__all__ = ["EnergyTable", "LayerResult", "SimResult", "quantize_input", "random_images", "simulate"]
