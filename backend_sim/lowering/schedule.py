"""Pass schedule: how every layer is cut into tiles, and where its buffers are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from escc.backend_sim.lowering.allocator import align, clashes, pack
from escc.backend_sim.lowering.assignment import SCHEDULE, Assignment, read_assignment, read_homes
from escc.backend_sim.lowering.layers import MachineLayer, Range
from escc.backend_sim.lowering.operators import extract_layers
from escc.backend_sim.lowering.planner import Planner
from escc.backend_sim.lowering.tiling import Tiling
from escc.errors import EsccError
from escc.ir.base import to_attribute
from escc.ir.module import Module
from escc.ir.passes import Pass, PassContext
from escc.ir.xdsl import SSAValue

SRAM_USED = "escc.sram_used"
LOOK_BACK = 4
"""Layers that may still run while the buffers of a layer are filled."""


@dataclass
class Schedule(Pass):
    """Cuts every layer into tiles of output rows and output channels and places their buffers in SRAM.

    Sets on the operation that computes a layer's map ``tile_rows``, ``tile_outs``, ``order`` (the outer
    loop: "rows" or "channels"), ``bands``, and for every buffer role ``<role>_at`` (one address, or two
    when it is double buffered) and ``<role>_bytes``. Roles: ``weights``, ``shared``, ``in0``, ``in1``, ...,
    ``out``.
    The module gets the SRAM high-water mark ``escc.sram_used``.

    Options:
        prefetch: place buffers so that they can be filled while the layer before still runs.
    """

    name: ClassVar[str] = "schedule"
    requires: ClassVar[frozenset[str]] = frozenset({"planned"})
    establishes: ClassVar[frozenset[str]] = frozenset({"scheduled"})

    prefetch: bool = True

    def run(self, module: Module, context: PassContext) -> None:
        """Schedule all layers of ``module``.

        Raises:
            EsccError: the maps that plan-memory keeps on chip leave no room for a layer.
        """
        arch = context.need_arch(self.name)
        planner = Planner(module, extract_layers(module, arch), arch)
        homes = read_homes(module, planner.layers, 0)
        resident = {value: home.address for value, home in homes.items() if home.sram}
        history: list[list[Range]] = []
        top = 0
        for index, layer in enumerate(planner.layers):
            gaps = planner.gaps(index, resident)
            tiling = self._choose(planner, index, resident)
            addresses = _place(tiling, gaps, history if self.prefetch else [])
            assignment = annotate(layer, tiling, addresses)
            history = [[*assignment.ranges(), *planner.alive(index, resident)], *history][:LOOK_BACK]
            top = max([top, *(high for _, high in history[0])])
        module.op.attributes[SRAM_USED] = to_attribute(min(top, arch.sram_bytes))

    def _choose(self, planner: Planner, index: int, resident: dict[SSAValue, int]) -> Tiling:
        """The cheapest tiling, counting the wait for the next layer's weights where it leaves no room."""
        gaps = planner.gaps(index, resident)
        placement = planner.placement(index, resident)
        best = planner.choose(index, placement, gaps)
        if best is None:
            raise EsccError(
                "the maps kept on chip leave no room for its tiles",
                where=planner.layers[index].name,
                hint="run plan-memory for this architecture",
            )
        if not self.prefetch or index + 1 == len(planner.layers):
            return best
        after = planner.choose(
            index + 1, planner.placement(index + 1, resident), planner.gaps(index + 1, resident)
        )
        first_load = 0 if after is None else next((s[0] for role, s in after.buffers if role == "weights"), 0)
        wait = planner.model(index).transfer(first_load)

        def total(tiling: Tiling) -> float:
            room = pack([*tiling.sizes, first_load], gaps) is not None
            return tiling.cost + (max(0.0, wait - tiling.cycles) if room else wait)

        fitting = [
            tiling
            for tiling in planner.tilings(index, placement)
            if tiling.cost < best.cost + wait and pack(tiling.sizes, gaps) is not None
        ]
        return min([best, *fitting], key=total)


def _place(tiling: Tiling, gaps: list[Range], history: list[list[Range]]) -> list[int]:
    """Addresses of a layer's buffers: clear of what as many layers before as possible use (nearest first),
    so that they can be filled while those run."""
    sizes = tiling.sizes
    for depth in range(len(history), 0, -1):
        avoid = [span for spans in history[:depth] for span in spans]
        addresses = pack(sizes, gaps, avoid)
        assert addresses is not None
        spans = [(address, address + align(size)) for address, size in zip(addresses, sizes, strict=True)]
        if depth == 1 or not clashes(spans, avoid):
            return addresses
    addresses = pack(sizes, gaps)
    assert addresses is not None
    return addresses


def annotate(layer: MachineLayer, tiling: Tiling, addresses: list[int]) -> Assignment:
    """Write a tiling with the addresses of its buffers to the layer's operation."""
    op = layer.anchor
    for name in list(op.attributes):
        if name in SCHEDULE or name.endswith(("_at", "_bytes")):
            op.set_value(name, None)
    op.set_value("tile_rows", tiling.rows)
    op.set_value("tile_outs", tiling.outs)
    op.set_value("order", tiling.order)
    op.set_value("bands", tiling.bands)
    remaining = iter(addresses)
    for role, sizes in tiling.buffers:
        op.set_value(f"{role}_at", tuple(next(remaining) for _ in sizes))
        op.set_value(f"{role}_bytes", align(sizes[0]))
    return read_assignment(layer)
