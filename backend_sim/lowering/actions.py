"""Actions: queue instructions with their registers, and which of them may not change places."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from escc.errors import EsccError
from escc.isa.access import Access, accesses
from escc.isa.instructions import BY_MNEMONIC, Queue
from escc.isa.registers import UNITS


@dataclass(frozen=True, eq=False)
class Action:
    """One queue instruction of the unrolled program.

    ``registers``: values of the unit registers it depends on, without the unit prefix. ``layer``: index
    of the layer it belongs to. ``cycles``: estimated time. ``coefficient_bytes``: real length of the
    coefficient stream it reads, 0 if it reads none.
    """

    mnemonic: str
    registers: Mapping[str, int]
    layer: int
    cycles: float
    coefficient_bytes: int = 0

    @cached_property
    def queue(self) -> Queue:
        """The queue that executes it."""
        queue = BY_MNEMONIC[self.mnemonic].queue
        assert queue is not None
        return queue

    @cached_property
    def accesses(self) -> tuple[Access, ...]:
        """The boxes of memory it touches.

        Raises:
            EsccError: the registers describe no valid instruction.
        """
        unit = BY_MNEMONIC[self.mnemonic].unit
        assert unit is not None
        cls = UNITS[unit][1]
        footprint = accesses(self.mnemonic, cls(**self.registers))
        found = list(footprint.accesses)
        if footprint.coefficients >= 0:
            index = footprint.coefficients
            found[index] = found[index]._replace(chans=self.coefficient_bytes)
        return tuple(found)

    @property
    def is_load(self) -> bool:
        """Whether it brings data on chip."""
        return self.mnemonic in ("load_map", "load_stream")


def overlap(a: Access, b: Access) -> bool:
    """Whether two boxes of one memory may share a byte (exact for boxes of equal pitches)."""
    if a.base >= b.end or b.base >= a.end:
        return False
    if a.row_pitch == b.row_pitch and a.pos_pitch == b.pos_pitch:
        first, second = _runs(a), _runs(b)
        if first is not None and second is not None:
            return _runs_overlap(*first, *second, a.pos_pitch)
    return True


def _runs(box: Access) -> tuple[int, int, int] | None:
    """(base, runs, bytes of a run) when the positions of all rows follow each other at one pitch."""
    if box.rows == 1 or box.row_pitch == box.cols * box.pos_pitch:
        return box.base, box.rows * box.cols, box.chans
    return None


def _runs_overlap(base: int, count: int, size: int, other: int, others: int, width: int, pitch: int) -> bool:
    if pitch == 0 or count == others == 1:
        return base < other + width and other < base + size
    if base > other:
        base, count, size, other, others, width = other, others, width, base, count, size
    # run i of the first box starts at base + i * pitch; only the runs around the other's start matter,
    # because both boxes repeat at the same pitch
    distance = other - base
    step, phase = divmod(distance, pitch)
    if step < count and phase < size:
        return True
    return phase + width > pitch and step + 1 < count


def conflict(a: Action, b: Action) -> bool:
    """Whether two actions may not change places: one writes what the other touches."""
    return any(
        (x.write or y.write) and x.memory == y.memory and overlap(x, y)
        for x in a.accesses
        for y in b.accesses
    )


def check_inside(actions: Iterable[Action], sram_bytes: int, names: list[str]) -> None:
    """Every SRAM access must lie inside the SRAM.

    Raises:
        EsccError: naming the layer.
    """
    for action in actions:
        for box in action.accesses:
            if box.memory == "SRAM" and (box.base < 0 or box.end > sram_bytes):
                raise EsccError(
                    f"{action.mnemonic} touches SRAM bytes {box.base}..{box.end} of {sram_bytes}",
                    where=names[action.layer],
                    hint="run plan-memory and schedule for this architecture",
                )
