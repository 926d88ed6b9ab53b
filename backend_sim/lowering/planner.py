"""The question both memory passes ask: given where the maps are, how is each layer cut and does it fit?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from escc.backend_sim.lowering.allocator import Block, align, free_gaps, pack, place_blocks
from escc.backend_sim.lowering.cost import CostModel
from escc.backend_sim.lowering.layers import MachineLayer, Range, map_bytes
from escc.backend_sim.lowering.tiling import Cuts, Placement, Tiling, tilings
from escc.backend_sim.lowering.values import shape_of
from escc.errors import EsccError
from escc.ir.module import Module
from escc.ir.xdsl import SSAValue
from escc.isa.arch import Arch

ROLE_TEXT = {"weights": "weights", "shared": "shared weights", "out": "output rows"}


def value_bytes(value: SSAValue) -> int:
    """Bytes of a whole map in either memory."""
    return map_bytes(*shape_of(value))


@dataclass
class Planner:
    """The layers of a network with the lifetime of every map.

    ``lifetimes``: (producing layer or -1 for an input, last layer that reads it) of each map. ``in_place``:
    results that may take the place of a map, their layer's residual: it is read value by value before the
    result is written, and nobody reads it later.
    """

    module: Module
    layers: list[MachineLayer]
    arch: Arch
    lifetimes: dict[SSAValue, Range] = field(init=False)
    in_place: dict[SSAValue, SSAValue] = field(init=False)
    _cuts: list[Cuts] = field(init=False)
    _tilings: dict[tuple[int, Placement], list[Tiling]] = field(init=False)
    _chosen: dict[tuple[int, Placement, tuple[int, ...]], Tiling | None] = field(init=False)

    def __post_init__(self) -> None:
        self._cuts = [Cuts(layer, CostModel(layer, self.arch)) for layer in self.layers]
        self._tilings, self._chosen = {}, {}
        self.lifetimes = {value: (-1, -1) for value in self.module.inputs}
        for index, layer in enumerate(self.layers):
            self.lifetimes[layer.anchor.out] = (index, index)
            for operand in layer.operands:
                first, last = self.lifetimes[operand.value]
                self.lifetimes[operand.value] = (first, max(last, index))
        self.in_place = {}
        for index, layer in enumerate(self.layers):
            residual = layer.residual
            if residual is not None and self.lifetimes[residual][1] == index:
                self.in_place[layer.anchor.out] = residual

    def place(self, values: Sequence[SSAValue], *, in_place: bool) -> dict[SSAValue, int] | None:
        """SRAM addresses of maps that are kept there, None when they do not fit.

        Args:
            values: the maps.
            in_place: results take the place of residuals wherever they may.
        """
        groups: dict[SSAValue, list[SSAValue]] = {}
        inside = set(values)
        for value in sorted(values, key=lambda item: self.lifetimes[item]):
            root = value
            while in_place and (before := self.in_place.get(root)) in inside and before is not None:
                root = before
            groups.setdefault(root, []).append(value)
        blocks = [
            Block(value_bytes(root), self.lifetimes[root][0], max(self.lifetimes[item][1] for item in group))
            for root, group in groups.items()
        ]
        addresses = place_blocks(blocks, self.arch.sram_bytes)
        if addresses is None:
            return None
        return {
            value: address
            for group, address in zip(groups.values(), addresses, strict=True)
            for value in group
        }

    def block(self, value: SSAValue) -> Block:
        """A map as a buffer with its lifetime."""
        first, last = self.lifetimes[value]
        return Block(value_bytes(value), first, last)

    def placement(self, index: int, resident: Iterable[SSAValue]) -> Placement:
        """Which maps of a layer are in SRAM."""
        layer, inside = self.layers[index], set(resident)
        return Placement(
            tuple(operand.value in inside for operand in layer.operands), layer.anchor.out in inside
        )

    def alive(self, index: int, addresses: Mapping[SSAValue, int]) -> list[Range]:
        """SRAM byte ranges of the resident maps that are alive while a layer runs."""
        ranges: list[Range] = []
        for value, address in addresses.items():
            first, last = self.lifetimes[value]
            if first <= index <= last:
                ranges.append((address, address + align(value_bytes(value))))
        return ranges

    def gaps(self, index: int, addresses: Mapping[SSAValue, int]) -> list[Range]:
        """SRAM that resident maps leave to a layer."""
        return free_gaps(self.alive(index, addresses), self.arch.sram_bytes)

    def tilings(self, index: int, placement: Placement) -> list[Tiling]:
        """The tilings of a layer, cheapest first."""
        key = index, placement
        if key not in self._tilings:
            self._tilings[key] = tilings(self.layers[index], placement, self.arch, self._cuts[index])
        return self._tilings[key]

    def model(self, index: int) -> CostModel:
        """The cost model of a layer."""
        return self._cuts[index].model

    def choose(self, index: int, placement: Placement, gaps: list[Range]) -> Tiling | None:
        """The cheapest tiling whose buffers fit into the gaps, None when there is none."""
        key = index, placement, tuple(sorted(high - low for low, high in gaps))
        if key not in self._chosen:
            largest = max(key[2], default=0)
            self._chosen[key] = next(
                (
                    tiling
                    for tiling in self.tilings(index, placement)
                    if tiling.need <= sum(key[2])
                    and max(tiling.sizes, default=0) <= largest
                    and pack(tiling.sizes, gaps) is not None
                ),
                None,
            )
        return self._chosen[key]

    def costs(self, addresses: Mapping[SSAValue, int]) -> list[float] | None:
        """Estimated cost of every layer with these maps resident, None when a layer does not fit."""
        found: list[float] = []
        for index in range(len(self.layers)):
            tiling = self.choose(index, self.placement(index, addresses), self.gaps(index, addresses))
            if tiling is None:
                return None
            found.append(tiling.cost)
        return found

    def refuse(self, index: int) -> EsccError:
        """The error for a layer that does not fit into an otherwise empty SRAM."""
        layer = self.layers[index]
        smallest = self.tilings(index, self.placement(index, ()))[-1]
        parts = sorted(((sum(sizes), role) for role, sizes in smallest.buffers), reverse=True)
        detail = ", ".join(f"{ROLE_TEXT.get(role, 'input rows')} {size}" for size, role in parts)
        lever = (
            "a smaller input width helps"
            if parts[0][1] not in ("weights", "shared")
            else ("sparser coefficients or fewer bases help" if layer.work else "fewer channels help")
        )
        return EsccError(
            f"the smallest tile needs {smallest.need} bytes of SRAM, the machine has {self.arch.sram_bytes} "
            f"({detail})",
            where=f"{layer.name} ({layer.source})" if layer.source else layer.name,
            hint=f"raise memory.sram_kib to at least {-(-smallest.need // 1024)}; {lever}",
        )
