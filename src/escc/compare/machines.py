"""The machines of the comparison, at a number of multipliers or at an area."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from escc.backend_sim.area import AreaTable
from escc.backend_sim.area.cells import UM2_PER_MM2, Cells
from escc.backend_sim.baselines.counting import near_square
from escc.backend_sim.baselines.dense import Dense
from escc.backend_sim.baselines.eyeriss import Eyeriss
from escc.backend_sim.baselines.scnn import Scnn
from escc.backend_sim.baselines.sparten import Sparten
from escc.backend_sim.baselines.workload import REGISTER_KIB, BufferUse, ConvWork
from escc.compare.workload import Workload
from escc.errors import EsccError
from escc.isa.arch import Arch

Kind = Literal["dense", "sparse", "reference"]
Machine = Eyeriss | Dense | Scnn | Sparten

OURS = "escc"


@dataclass(frozen=True)
class Rival:
    """One of the other machines.

    Attributes:
        name: key on the command line and in files.
        title: what tables call it.
        kind: ``dense`` machines run all weights and ``sparse`` ones the pruned ones, both at the multipliers
            or the area of escc's; a ``reference`` runs all weights and is as published.
        make: the machine with so many multipliers (a reference has its own).
        about: how it was brought to the same terms.
    """

    name: str
    title: str
    kind: Kind
    make: Callable[[int], Machine]
    about: str

    @property
    def pruned(self) -> bool:
        """Whether it runs pruned weights."""
        return self.kind == "sparse"

    def work(self, workload: Workload) -> list[ConvWork]:
        """The layers as this machine gets them."""
        return [layer.pruned if self.pruned else layer.dense for layer in workload.layers]

    def machine(self, multipliers: int, arch: Arch) -> Machine:
        """The machine with the DRAM bandwidth of ``arch`` and, but for a reference, its clock."""
        made = self.make(multipliers)
        changes: dict[str, Any] = {"dram_gbps": arch.dram_gbps}
        if self.kind != "reference":
            changes["clock_mhz"] = arch.mhz
        return replace(made, **changes)


RIVALS: tuple[Rival, ...] = (
    Rival(
        "eyeriss",
        "Eyeriss-like",
        "dense",
        lambda count: Eyeriss().scaled(count),
        "row stationary, 8-bit words; buffers and ports grow with the array, scratchpads do not",
    ),
    Rival(
        "dense",
        "dense array",
        "dense",
        lambda count: Dense().scaled(count),
        "dot products of 16, 8-bit words, outputs shared out in the fastest way",
    ),
    Rival(
        "scnn",
        "SCNN",
        "sparse",
        lambda count: Scnn().scaled(count),
        "Cartesian products of 4 x 4 non-zeros, 8-bit words",
    ),
    Rival(
        "sparten",
        "SparTen",
        "sparse",
        lambda count: Sparten().scaled(count),
        "inner joins of chunks of 128, two-sided, greedy balancing",
    ),
    Rival(
        "eyeriss-chip",
        "Eyeriss, the chip",
        "reference",
        lambda _count: Eyeriss(),
        "as published: 168 multipliers, 16-bit words, 200 MHz",
    ),
)


def rival_names() -> list[str]:
    """The other machines, in the order of the tables."""
    return [rival.name for rival in RIVALS]


def find_rivals(names: Sequence[str] | None) -> list[Rival]:
    """The machines of these names in the order of the tables; all of them for None.

    Raises:
        EsccError: no such machine.
    """
    known = rival_names()
    for name in names or ():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            raise EsccError(f"no machine {name!r} to compare with", hint=hint)
    return [rival for rival in RIVALS if names is None or rival.name in names]


def rival_mm2(machine: Machine, buffers: Sequence[BufferUse], table: AreaTable | None = None) -> float:
    """Area by the rules of escc's own area (:mod:`escc.backend_sim.area`) in square millimetres.

    Storage is what the machine's model moves bytes in and out of. Beside it: a multiplier and an adder each;
    for SCNN the crossbar and the adders of the banks instead, for SparTen two prefix counts and a priority
    encoder for each unit.

    Args:
        machine: any of the models.
        buffers: of one of its runs.
        table: cell areas; the shipped ones by default.
    """
    cells = Cells(table or AreaTable.load())
    um2 = 0.0
    for item in buffers:
        bits = 8192 * item.kib
        large = item.kib > REGISTER_KIB
        um2 += item.count * (cells.table.sram_mm2(item.kib) * UM2_PER_MM2 if large else cells.memory(bits))
    word, psum = machine.word_bits, machine.psum_bits
    um2 += machine.multipliers * cells.multiplier(word, word)
    if isinstance(machine, Scnn):
        bank = cells.multiplexer(machine.weights * machine.activations, psum) + cells.adder(psum)
        um2 += machine.elements * machine.banks * bank
    else:
        um2 += machine.multipliers * cells.adder(psum)
    if isinstance(machine, Sparten):
        join = 2 * cells.prefix_count(machine.chunk) + cells.priority_encoder(machine.chunk)
        um2 += machine.multipliers * join
    return um2 / UM2_PER_MM2


def rectangular(count: int, longest: float = 8.0) -> int:
    """The largest number up to ``count`` that makes an array, sides 1 to ``longest``: a prime is one row."""
    while True:
        rows, columns = near_square(count)
        if max(rows, columns) <= longest * min(rows, columns):
            return count
        count -= 1


def at_area(rival: Rival, arch: Arch, mm2: float, probe: ConvWork) -> Machine:
    """The machine with as many multipliers as fit ``mm2``, to what its elements come in.

    Args:
        rival: not a reference.
        arch: escc's machine, for clock and DRAM.
        mm2: area to fill.
        probe: any layer; its run tells the sizes of the buffers.
    """
    multipliers = arch.multipliers
    for _ in range(4):
        machine = rival.machine(multipliers, arch)
        size = rival_mm2(machine, machine.run(probe).buffers)
        multipliers = rectangular(max(16, round(machine.multipliers * mm2 / size)))
    return rival.machine(multipliers, arch)
