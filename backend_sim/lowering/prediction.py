"""What the cost model expects of a scheduled network, to be held against the cycles that it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from escc.backend_sim.lowering.assignment import Assignment, Home
from escc.backend_sim.lowering.cost import CostModel
from escc.backend_sim.lowering.tiling import Cuts, Placement, Tiling, tiling_of
from escc.ir.xdsl import SSAValue
from escc.isa.arch import Arch


def predicted_cycles(
    assignments: Sequence[Assignment], homes: Mapping[SSAValue, Home], arch: Arch
) -> list[float]:
    """Cycles by which each layer moves the end of the network, by what its tiling was chosen by.

    The DMA is ahead of the array by up to a layer: where transfers set the pace of one layer and computation
    that of the next, both go on meanwhile.
    """
    elapsed: list[float] = []
    began = ended = moved = 0.0
    for assignment in assignments:
        tiling = _tiling(assignment, homes, arch)
        fetched = max(moved, began) + tiling.head
        moved = max(moved, began) + tiling.dma
        began = max(ended, fetched)
        before = ended
        ended = max(began + tiling.compute + tiling.serial, moved)
        elapsed.append(ended - before)
    return elapsed


def _tiling(assignment: Assignment, homes: Mapping[SSAValue, Home], arch: Arch) -> Tiling:
    layer = assignment.layer
    placement = Placement(
        tuple(homes[operand.value].sram for operand in layer.operands), homes[layer.anchor.out].sram
    )
    single = {role for role, addresses in assignment.buffers.items() if len(addresses) == 1}
    cuts = Cuts(layer, CostModel(layer, arch))
    return tiling_of(layer, placement, cuts, assignment.rows, assignment.outs, assignment.order, single)
