"""What circuits are made of: adders, multipliers, networks and memories, counted in cells of the table."""

from __future__ import annotations

import math
from dataclasses import dataclass

from escc.backend_sim.area.table import AreaTable

UM2_PER_MM2 = 1e6


@dataclass(frozen=True)
class Part:
    """``count`` equal circuits of a component: ``um2`` each, ``why`` says of what."""

    component: str
    what: str
    count: int
    um2: float
    why: str

    @property
    def mm2(self) -> float:
        """Area of all of them in square millimetres."""
        return self.count * self.um2 / UM2_PER_MM2


@dataclass(frozen=True)
class Area:
    """The parts of a machine; areas in square millimetres at the node of the table.

    Sums of cells and arrays: layout density, wires, clock tree and control are not in it.
    """

    parts: tuple[Part, ...]
    node_nm: float

    @property
    def total_mm2(self) -> float:
        """Area of everything."""
        return sum(part.mm2 for part in self.parts)

    @property
    def components(self) -> dict[str, float]:
        """Area by component in square millimetres, in the order of the parts."""
        found: dict[str, float] = {}
        for part in self.parts:
            found[part.component] = found.get(part.component, 0.0) + part.mm2
        return found


@dataclass(frozen=True)
class Cells:
    """Circuits in square micrometres, by the cells of a table."""

    table: AreaTable

    def adder(self, bits: float) -> float:
        """Adds two numbers of ``bits`` bits."""
        return bits * self.table.um2("add_bit")

    def multiplier(self, bits: float, others: float) -> float:
        """Multiplies ``bits`` by ``others`` bits: an 8 x 8 one in proportion to the partial products."""
        return self.table.um2("multiply8") * bits * others / 64

    def registers(self, bits: float) -> float:
        """Bits that can all be read in a cycle."""
        return bits * self.table.um2("register_bit")

    def logic(self, bits: float) -> float:
        """One gate for each of ``bits`` bits."""
        return bits * self.table.um2("logic_bit")

    def multiplexer(self, inputs: float, bits: float) -> float:
        """Chooses one of ``inputs`` words of ``bits`` bits."""
        return inputs * bits * self.table.um2("crosspoint_bit") if inputs > 1 else 0.0

    def memory(self, bits: float, banks: int = 1) -> float:
        """A memory of which each of ``banks`` equal banks answers one access a cycle.

        A bank is an SRAM array, or registers where those are smaller.
        """
        kib = bits / banks / 8192
        return banks * min(self.registers(bits / banks), self.table.sram_mm2(kib) * UM2_PER_MM2)

    def prefix_count(self, bits: int) -> float:
        """Counts the ones in front of every bit: log2(bits) levels of bits / 2 adders (Sklansky's tree).

        The adders of level l take numbers of l bits.
        """
        levels = int(math.log2(bits))
        return sum(bits / 2 * self.adder(level) for level in range(1, levels + 1))

    def butterfly(self, bits: int, width: int) -> float:
        """A butterfly network for ``bits`` items of ``width`` bits: bits / 2 switches of 2 x 2 a level.

        Hilewitz and Lee 2008: the parallel extract (gather) runs on the inverse butterfly.
        """
        return int(math.log2(bits)) * bits / 2 * 2 * self.multiplexer(2, width)

    def priority_encoder(self, bits: int) -> float:
        """Finds the first one of ``bits`` bits: a prefix OR and a one-hot encoder, both log2(bits) levels."""
        return 2 * math.log2(bits) * self.logic(bits)
