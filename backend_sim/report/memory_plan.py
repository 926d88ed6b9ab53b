"""What lies where in the SRAM, and when: read from the instructions of a run and their times.

A region begins with the first write to it and ends with the last read of it. Writes of one layer and one kind
that touch or overlap each other are one region (tiles of a map, a buffer that is filled again and again);
where another layer overwrites a part of one, that part is a region of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from escc.backend_sim.simulator.result import TimedResult
from escc.isa.access import SRAM, Access, accesses
from escc.isa.maps import position_pitch

LOADED, COMPUTED, OPERANDS = "loaded map", "computed map", "operands"
KINDS = (COMPUTED, LOADED, OPERANDS)

GAP_BYTES = 64
"""Regions this close together are one: the space between is alignment."""


@dataclass
class Region:
    """SRAM bytes ``low`` to ``high - 1`` from cycle ``start`` to ``end``, written by layer number ``layer``.

    ``readers``: numbers of the layers that read it; ``roles``: as what (x, residual, coefficients, ...), in
    order of first use. ``channels``: of a map that is written a few channels at a time, the (position pitch,
    first byte modulo the pitch, bytes) of each write; empty for anything that fills its bytes.
    """

    layer: int
    kind: str
    low: int
    high: int
    start: int
    end: int
    readers: dict[int, None] = field(default_factory=dict[int, None])
    roles: dict[str, None] = field(default_factory=dict[str, None])
    channels: frozenset[tuple[int, int, int]] = frozenset()

    def cut(self, low: int, high: int) -> Region:
        """The part from ``low`` to ``high - 1``, with what is known of it so far."""
        return replace(self, low=low, high=high, readers=dict(self.readers), roles=dict(self.roles))


def memory_plan(timed: TimedResult, image: int = 0) -> list[Region]:
    """The regions of the SRAM during the run of a timed image, in order of their start."""
    starts: list[int] = timed.timeline.start[:, image].tolist()
    ends: list[int] = timed.timeline.end[:, image].tolist()
    live: list[Region] = []
    gone: list[Region] = []
    for index, step in enumerate(timed.steps):
        if step.registers is None:
            continue
        mnemonic = step.instruction.mnemonic
        kind = {"load_map": LOADED, "load_stream": OPERANDS}.get(mnemonic, COMPUTED)
        found = [item for item in accesses(mnemonic, step.registers).accesses if item.memory == SRAM]
        for access in found:
            if not access.write:
                _read(live, access, step.layer, ends[index])
        for access in found:
            if access.write:
                times = starts[index], ends[index]
                fresh = Region(step.layer, kind, access.base, access.end, *times, channels=_channels(access))
                live = _written(live, gone, fresh)
    return _joined(gone + live)


def _joined(pieces: list[Region]) -> list[Region]:
    """Neighbours that live and die together as one region, in order of their start."""
    found: list[Region] = []
    order = sorted(pieces, key=lambda piece: (piece.layer, piece.kind, piece.start, piece.end, piece.low))
    for piece in order:
        last = found[-1] if found else piece
        same = all(getattr(last, name) == getattr(piece, name) for name in ("layer", "kind", "start", "end"))
        if found and same and piece.low <= last.high + GAP_BYTES:
            last.high = max(last.high, piece.high)
            last.readers |= piece.readers
            last.roles |= piece.roles
        else:
            found.append(piece)
    return sorted(found, key=lambda region: (region.start, region.low))


def _read(live: list[Region], access: Access, layer: int, end: int) -> None:
    low, high = access.base, access.end
    for region in live:
        if region.low < high and low < region.high:
            region.end = max(region.end, end)
            region.readers[layer] = None
            region.roles[access.operand] = None


def _channels(access: Access) -> frozenset[tuple[int, int, int]]:
    pitch = access.pos_pitch
    if access.cols == 1 or pitch <= position_pitch(access.chans):
        return frozenset()
    return frozenset({(pitch, access.base % pitch, access.chans)})


def _beside(one: Region, other: Region) -> bool:
    """Whether two layers write different channels of one map, so that neither overwrites the other."""
    return bool(one.channels and other.channels) and all(
        pitch == other_pitch and (first - second) % pitch >= amount and (second - first) % pitch >= size
        for pitch, first, size in one.channels
        for other_pitch, second, amount in other.channels
    )


def _written(live: list[Region], gone: list[Region], fresh: Region) -> list[Region]:
    """What lives after a write of ``fresh``: it takes in what is of its layer and kind, and cuts the rest."""
    low, high = fresh.low, fresh.high
    kept: list[Region] = []
    for region in live:
        same = (region.layer, region.kind) == (fresh.layer, fresh.kind)
        if same and region.low - GAP_BYTES <= high and low <= region.high + GAP_BYTES:
            fresh.low, fresh.high = min(fresh.low, region.low), max(fresh.high, region.high)
            fresh.start, fresh.end = min(fresh.start, region.start), max(fresh.end, region.end)
            fresh.readers |= region.readers
            fresh.roles |= region.roles
            fresh.channels |= region.channels
        elif _beside(fresh, region) or region.high <= low or high <= region.low:
            kept.append(region)
        else:
            gone.append(region.cut(max(low, region.low), min(high, region.high)))
            if low - region.low > GAP_BYTES:
                kept.append(region.cut(region.low, low))
            if region.high - high > GAP_BYTES:
                kept.append(region.cut(high, region.high))
    return [*kept, fresh]


def occupancy(regions: list[Region]) -> list[tuple[int, int]]:
    """(cycle, bytes of the SRAM in use from there on) at every change; bytes in two regions count once."""
    events: dict[int, tuple[list[int], list[int]]] = {}
    for index, region in enumerate(regions):
        if region.end > region.start:
            events.setdefault(region.start, ([], []))[0].append(index)
            events.setdefault(region.end, ([], []))[1].append(index)
    active: set[int] = set()
    steps: list[tuple[int, int]] = []
    for time in sorted(events):
        begun, ended = events[time]
        active.difference_update(ended)
        active.update(begun)
        used = _union(sorted((regions[index].low, regions[index].high) for index in active))
        if not steps or steps[-1][1] != used:
            steps.append((time, used))
    return steps


def _union(spans: list[tuple[int, int]]) -> int:
    """Bytes covered by sorted spans."""
    used = reached = 0
    for low, high in spans:
        used += max(0, high - max(low, reached))
        reached = max(reached, high)
    return used
