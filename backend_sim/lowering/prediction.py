"""What the cost model expects of a scheduled network, to be held against the cycles that it takes."""

from __future__ import annotations

from collections.abc import Mapping

from escc.backend_sim.lowering.assignment import Assignment, Home
from escc.backend_sim.lowering.cost import CostModel
from escc.backend_sim.lowering.tiling import Cuts, Placement, tiling_of
from escc.ir.xdsl import SSAValue
from escc.isa.arch import Arch


def predicted_cycles(assignment: Assignment, homes: Mapping[SSAValue, Home], arch: Arch) -> float:
    """Cycles that the cost model gives a layer as it was scheduled: what its tiling was chosen by."""
    layer = assignment.layer
    placement = Placement(
        tuple(homes[operand.value].sram for operand in layer.operands), homes[layer.anchor.out].sram
    )
    single = {role for role, addresses in assignment.buffers.items() if len(addresses) == 1}
    cuts = Cuts(layer, CostModel(layer, arch))
    tiling = tiling_of(layer, placement, cuts, assignment.rows, assignment.outs, assignment.order, single)
    return tiling.cycles
