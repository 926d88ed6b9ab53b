"""Other machines, layer by layer on the same data: Eyeriss, a dense array, SCNN, SparTen."""

from __future__ import annotations

from escc.backend_sim.baselines.dense import Dense
from escc.backend_sim.baselines.eyeriss import Eyeriss
from escc.backend_sim.baselines.scnn import Scnn
from escc.backend_sim.baselines.sparten import Sparten
from escc.backend_sim.baselines.workload import Baseline, BufferUse, ConvWork, LayerRun

__all__ = ["Baseline", "BufferUse", "ConvWork", "Dense", "Eyeriss", "LayerRun", "Scnn", "Sparten"]
