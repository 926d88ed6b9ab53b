"""Pass plan-memory: every map gets a home in SRAM or DRAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from escc.backend_sim.lowering.allocator import Block, place_blocks
from escc.backend_sim.lowering.operators import extract_layers
from escc.backend_sim.lowering.planner import Planner, value_bytes
from escc.ir.base import to_attribute
from escc.ir.module import Module
from escc.ir.passes import Pass, PassContext
from escc.ir.xdsl import SSAValue

SRAM_MAPS = "escc.sram_maps"
DRAM_MAPS = "escc.dram_maps"


@dataclass
class PlanMemory(Pass):
    """Keeps maps on chip where that is estimated to pay, and gives every map its address.

    A map stays in SRAM for its whole lifetime or lives in DRAM. Sets on the operation that computes a map
    ``place`` ("sram" or "dram") and ``address``: an SRAM address, or the offset into the map area of DRAM,
    which lies behind the data section. Inputs get ``escc.address``. The module gets the high-water marks
    ``escc.sram_maps`` and ``escc.dram_maps`` in bytes.

    Options:
        keep_on_chip: false sends every map through DRAM.
    """

    name: ClassVar[str] = "plan-memory"
    requires: ClassVar[frozenset[str]] = frozenset({"reordered"})
    establishes: ClassVar[frozenset[str]] = frozenset({"planned"})
    invalidates: ClassVar[frozenset[str]] = frozenset({"scheduled"})

    keep_on_chip: bool = True

    def run(self, module: Module, context: PassContext) -> None:
        """Place all maps of ``module``.

        Raises:
            EsccError: a layer does not fit into the SRAM even when it has all of it.
        """
        arch = context.need_arch(self.name)
        planner = Planner(module, extract_layers(module, arch), arch)
        for index in range(len(planner.layers)):
            if planner.choose(index, planner.placement(index, ()), [(0, arch.sram_bytes)]) is None:
                raise planner.refuse(index)
        resident = _residents(planner) if self.keep_on_chip else {}
        dram = [value for value in planner.lifetimes if value not in resident]
        end = len(planner.layers)
        pinned = {*module.inputs, *module.outputs}
        blocks = [
            Block(value_bytes(value), -1, end) if value in pinned else planner.block(value) for value in dram
        ]
        addresses = place_blocks(blocks, None) or []
        offsets = dict(zip(dram, addresses, strict=True))
        for index, value in enumerate(module.inputs):
            module.set_input_value(index, "address", offsets[value])
        for layer in planner.layers:
            inside = layer.anchor.out in resident
            layer.anchor.set_value("place", "sram" if inside else "dram")
            home = resident if inside else offsets
            layer.anchor.set_value("address", home[layer.anchor.out])
        marks = {SRAM_MAPS: resident, DRAM_MAPS: offsets}
        for name, homes in marks.items():
            top = max((address + value_bytes(value) for value, address in homes.items()), default=0)
            module.op.attributes[name] = to_attribute(top)


def _residents(planner: Planner) -> dict[SSAValue, int]:
    """SRAM addresses of the maps worth keeping on chip: the best of the greedy choices in two orders, with
    every result in a place of its own first: what is written in place is one more thing to wait for."""
    kept_out = {*planner.module.inputs, *planner.module.outputs}
    candidates = [
        value
        for value in planner.lifetimes
        if value not in kept_out and value_bytes(value) <= planner.arch.sram_bytes
    ]
    uses = {
        value: sum(operand.value is value for layer in planner.layers for operand in layer.operands)
        for value in candidates
    }

    def merit(value: SSAValue) -> tuple[float, int]:
        """Transfers saved per step that the map occupies its bytes, small maps first."""
        first, last = planner.lifetimes[value]
        return -(1 + uses[value]) / (last - first + 1), value_bytes(value)

    orders = [sorted(candidates, key=merit), candidates]
    found = [_greedy(planner, order, in_place=False) for order in orders]
    if planner.in_place and max(len(resident) for _, resident in found) < len(candidates):
        found += [_greedy(planner, order, in_place=True) for order in orders]
    return min(found, key=lambda choice: choice[0])[1]


def _greedy(
    planner: Planner, candidates: list[SSAValue], *, in_place: bool
) -> tuple[float, dict[SSAValue, int]]:
    """(estimated cost, SRAM addresses) when maps are taken in this order, each one only where the estimated
    cost of the whole network falls."""
    resident: dict[SSAValue, int] = {}
    costs = planner.costs(resident)
    assert costs is not None
    best = sum(costs)
    for value in candidates:
        trial = planner.place([*resident, value], in_place=in_place)
        if trial is None:
            continue
        costs = planner.costs(trial)
        if costs is not None and sum(costs) < best:
            resident, best = trial, sum(costs)
    return best, resident
