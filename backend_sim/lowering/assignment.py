"""What the memory passes decided, read back from the attributes of the IR."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from escc.backend_sim.lowering.allocator import align
from escc.backend_sim.lowering.layers import MachineLayer, Range, Shape
from escc.backend_sim.lowering.tiling import Order, channel_tiles, row_tiles
from escc.backend_sim.lowering.values import shape_of
from escc.errors import EsccError
from escc.ir.module import Module
from escc.ir.xdsl import SSAValue
from escc.isa.maps import position_pitch

SCHEDULE = ("tile_rows", "tile_outs", "order", "bands")
"""Attributes of the pass schedule; with them go ``<role>_at`` and ``<role>_bytes`` of every buffer."""


@dataclass(frozen=True)
class Home:
    """Where a map lives: its memory, its absolute address and its shape."""

    sram: bool
    address: int
    shape: Shape

    @property
    def pos_pitch(self) -> int:
        """Bytes from one position to the next."""
        return position_pitch(self.shape[2])

    @property
    def row_pitch(self) -> int:
        """Bytes from one row to the next."""
        return self.shape[1] * self.pos_pitch

    @property
    def size(self) -> int:
        """Bytes of the whole map."""
        return self.shape[0] * self.row_pitch

    def at(self, row: int, channel: int) -> int:
        """Address of a channel of the first position of a row."""
        return self.address + row * self.row_pitch + channel


@dataclass(frozen=True)
class Assignment:
    """The schedule of one layer: tile sizes, loop order and the addresses of its buffers by role."""

    layer: MachineLayer
    rows: int
    outs: int
    order: Order
    bands: int
    buffers: Mapping[str, tuple[int, ...]]
    buffer_bytes: Mapping[str, int]

    def tiles(self) -> list[tuple[Range, Range]]:
        """(output rows, output channels) of every tile in order."""
        rows, channels = row_tiles(self.layer, self.rows), channel_tiles(self.layer, self.outs)
        if self.order == "rows":
            return [(row, channel) for row in rows for channel in channels]
        return [(row, channel) for channel in channels for row in rows]

    @property
    def cut_channels(self) -> bool:
        """Whether output channels are cut, so that shared streams have a buffer of their own."""
        return self.outs < self.layer.outs

    def ranges(self) -> list[Range]:
        """SRAM byte ranges of all buffers."""
        return [
            (address, address + align(self.buffer_bytes[role]))
            for role, addresses in self.buffers.items()
            for address in addresses
        ]


def read_homes(module: Module, layers: list[MachineLayer], map_base: int) -> dict[SSAValue, Home]:
    """The home of every map; DRAM addresses start at ``map_base``.

    Raises:
        EsccError: plan-memory has not run.
    """
    homes: dict[SSAValue, Home] = {}
    for index, value in enumerate(module.inputs):
        offset = module.input_value(index, "address")
        homes[value] = Home(False, _number(offset, f"input {index}") + map_base, shape_of(value))
    for layer in layers:
        op = layer.anchor
        inside = op.value("place") == "sram"
        address = _number(op.value("address"), layer.name)
        homes[op.out] = Home(inside, address if inside else address + map_base, layer.shape)
    return homes


def read_assignment(layer: MachineLayer) -> Assignment:
    """The schedule of a layer.

    Raises:
        EsccError: schedule has not run, or an attribute makes no sense.
    """
    op = layer.anchor
    rows, outs, bands = (_number(op.value(name), layer.name) for name in ("tile_rows", "tile_outs", "bands"))
    order = op.value("order")
    if order not in ("rows", "channels") or min(rows, outs, bands) < 1 or outs % layer.unit:
        raise EsccError("its schedule makes no sense", where=layer.name, hint="run the pass schedule")
    buffers: dict[str, tuple[int, ...]] = {}
    sizes: dict[str, int] = {}
    for name in list(op.attributes):
        if name.endswith("_at"):
            role = name.removesuffix("_at")
            buffers[role] = op.ints(name)
            sizes[role] = _number(op.value(f"{role}_bytes"), layer.name)
    return Assignment(layer, min(rows, layer.shape[0]), min(outs, layer.outs), order, bands, buffers, sizes)


def check_memory(assignments: list[Assignment], homes: dict[SSAValue, Home], sram_bytes: int) -> None:
    """Buffers of a layer and resident maps alive at it must not share SRAM bytes.

    Raises:
        EsccError: two of them overlap or one lies outside the SRAM.
    """
    lifetimes: dict[SSAValue, Range] = {}
    for index, assignment in enumerate(assignments):
        lifetimes[assignment.layer.anchor.out] = (index, index)
        for operand in assignment.layer.operands:
            lifetimes[operand.value] = (lifetimes.get(operand.value, (-1, -1))[0], index)
    for index, assignment in enumerate(assignments):
        used = assignment.ranges()
        result, residual = assignment.layer.anchor.out, assignment.layer.residual
        for value, (first, last) in lifetimes.items():
            # a result may take the place of its layer's residual
            replaced = value is residual and last == index and homes[value] == homes[result]
            if homes[value].sram and first <= index <= last and not replaced:
                used.append((homes[value].address, homes[value].address + homes[value].size))
        outside = any(low < 0 or high > align(sram_bytes) for low, high in used)
        if outside or any(a[0] < b[1] and b[0] < a[1] for a, b in combinations(used, 2)):
            raise EsccError(
                "its buffers and maps overlap in SRAM or do not fit into it",
                where=assignment.layer.name,
                hint="run plan-memory and schedule again",
            )


def _number(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise EsccError(
            "has no place or schedule", where=where, hint="run the passes plan-memory and schedule first"
        )
    return value
