"""A readable table of what the memory passes decided."""

from __future__ import annotations

from escc.backend_sim.lowering.assignment import read_assignment, read_homes
from escc.backend_sim.lowering.cost import CostModel
from escc.backend_sim.lowering.operators import extract_layers
from escc.ir.base import shape_text
from escc.ir.module import Module
from escc.isa.arch import Arch

HEADER = (
    "layer",
    "operation",
    "output",
    "inputs from",
    "output to",
    "rows",
    "outs",
    "tiles",
    "order",
    "bands",
    "SRAM bytes",
    "weight bytes",
    "dense bytes",
    "est. cycles",
)


def explain(module: Module, arch: Arch) -> str:
    """One line per layer: tile sizes, loop order, homes of its maps, SRAM and weight bytes.

    Double-buffered roles are marked ``x2`` behind the SRAM bytes.

    Raises:
        EsccError: the module is not scheduled.
    """
    layers = extract_layers(module, arch)
    homes = read_homes(module, layers, 0)
    table: list[tuple[str, ...]] = [HEADER]
    for layer in layers:
        assignment = read_assignment(layer)
        model = CostModel(layer, arch)
        tiles = assignment.tiles()
        cycles = sum(model.tile(rows[1] - rows[0], outs[1] - outs[0]).cycles for rows, outs in tiles)
        double = [role for role, addresses in assignment.buffers.items() if len(addresses) > 1]
        used = sum(high - low for low, high in assignment.ranges())
        table.append(
            (
                layer.name,
                layer.operation.removeprefix("escalate."),
                shape_text(layer.shape),
                "+".join("sram" if homes[operand.value].sram else "dram" for operand in layer.operands),
                "sram" if homes[layer.anchor.out].sram else "dram",
                str(assignment.rows),
                str(assignment.outs),
                str(len(tiles)),
                assignment.order,
                str(assignment.bands),
                f"{used} ({', '.join(double)} x2)" if double else str(used),
                str(layer.weight_bytes()),
                str(layer.dense_bytes),
                f"{cycles:.0f}",
            )
        )
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )
