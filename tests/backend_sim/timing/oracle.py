"""The time of a convolution, cycle by cycle: the slow and obvious model that the fast one must equal.

Nothing here is shared with the fast code and nothing is clever: vectors are lists, lanes are visited one by
one, every block steps its producer, its rows, their FIFOs and their MAC parts from cycle to cycle, and a
cause is booked for every part in every cycle.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

LC_CAUSES = ("lc_busy", "lc_wait_input", "lc_wait_row", "lc_wait_fifo", "lc_idle")
MAC_CAUSES = ("mac_busy", "mac_wait_lc", "mac_idle")
EVENTS = (
    "matches",
    "dilution_words",
    "issue_cycles",
    "products",
    "fifo_pushes",
    "fifo_values",
    "psum_updates",
    "ring_entries",
    "ring_bytes_written",
    "ring_bytes_read",
)


def diluted_vectors(active: list[bool], coefficient: list[bool], lanes: int) -> list[list[int]]:
    """Packed non-zero activations, those without a coefficient blanked, cut into vectors of ``lanes``."""
    packed = [int(coefficient[c]) for c in range(len(active)) if active[c]]
    vectors: list[list[int]] = []
    for begin in range(0, len(packed), lanes):
        vector = packed[begin : begin + lanes]
        vectors.append(vector + [0] * (lanes - len(vector)))
    return vectors


def issue_cycles(arch: Any, vectors: list[list[int]]) -> int:
    """Cycles of one sum of one ring entry under the concentration policy."""
    if arch.policy == "none":
        return len([vector for vector in vectors if any(vector)])
    if arch.policy == "gather":
        matches = sum(sum(vector) for vector in vectors)
        cycles = 0
        while matches > 0:
            matches -= arch.lanes
            cycles += 1
        return cycles
    vectors = [list(vector) for vector in vectors]
    offsets = [0]
    for step in range(1, arch.look_aside + 1):
        offsets += [step, -step]
    cycles = 0
    while vectors:
        head = vectors[0]
        if any(head):
            for offset in offsets:
                for distance in range(1, arch.look_ahead + 1):
                    if distance >= len(vectors):
                        continue
                    for lane in range(arch.lanes):
                        other = (lane + offset) % arch.lanes
                        if not head[lane] and vectors[distance][other]:
                            head[lane] = 1
                            vectors[distance][other] = 0
            cycles += 1
        vectors.pop(0)
    return cycles


@dataclass
class Entry:
    """One ring entry: what it costs each row of the group, and what each row then pushes, if it does."""

    lc: list[int]
    push: list[int] | None


@dataclass
class Row:
    """One row: what its LC part works on, its FIFO, what its MAC part works on."""

    entry: int = 0
    lc_left: int = 0
    working: bool = False
    held: int | None = None
    fifo: list[int] = field(default_factory=list)
    mac_left: int = 0
    pushed: int = 0


def split(count: int, parts: int) -> list[int]:
    """Nearly equal lengths, the longer ones first."""
    return [count // parts + (1 if part < count % parts else 0) for part in range(parts)]


def taps_on(work: Any, iy: int, ix: int, first: int, stop: int) -> int:
    """Taps of position (iy, ix) that land on an output of rows first..stop-1: those along the rows that do,
    times those along the columns."""
    down = across = 0
    for r in range(work.kernel_h):
        for oy in range(first, stop):
            down += oy * work.stride_h - work.pad_top + r * work.dil_h == iy
    for s in range(work.kernel_w):
        for ox in range(work.y_cols):
            across += ox * work.stride_w - work.pad_left + s * work.dil_w == ix
    return down * across


def needed_rows(work: Any, first: int, stop: int) -> list[int]:
    """Input rows, inside the map, that the output rows first..stop-1 read."""
    rows = {
        oy * work.stride_h - work.pad_top + r * work.dil_h
        for oy in range(first, stop)
        for r in range(work.kernel_h)
    }
    return sorted(row for row in rows if 0 <= row < work.height)


def mac_cycles(macs: int, n: int, t: int) -> int:
    """Cycles of the MAC part for n values that meet t taps each."""
    if n == 0 or t == 0:
        return 0
    if t <= macs:
        together = macs // t
        return (n + together - 1) // together
    return n * ((t + macs - 1) // macs)


def combine_position(
    arch: Any, work: Any, pixel: list[bool], mask: Any, k: int, events: Counter[str]
) -> tuple[list[int], int]:
    """LC cycles of every chunk of a position in the row of output k, and how many sums are not blank."""
    chunk_cycles: list[int] = []
    met: set[int] = set()
    for begin in range(0, work.chans, arch.chunk):
        channels = range(begin, min(begin + arch.chunk, work.chans))
        units = [0] * arch.units
        active = [bool(pixel[c]) for c in channels]
        for m in range(work.bases):
            coefficient = [bool(mask[k][c][m]) for c in channels]
            vectors = diluted_vectors(active, coefficient, arch.lanes)
            cycles = issue_cycles(arch, vectors)
            matches = sum(map(sum, vectors))
            if matches:
                met.add(m)
            events["matches"] += matches
            events["issue_cycles"] += cycles
            events["dilution_words"] += 1
            units[m % arch.units] += max(1, cycles)
        chunk_cycles.append(max(units))
    return chunk_cycles, len(met)


def item_entries(
    arch: Any, work: Any, image: Any, mask: Any, group: list[int], first: int, stop: int, events: Counter[str]
) -> list[Entry]:
    """The ring entries of an item in order; counts the events that do not depend on time."""
    entries: list[Entry] = []
    for iy in needed_rows(work, first, stop):
        for ix in range(work.width):
            pixel = image[iy - work.x_first][ix]
            t = taps_on(work, iy, ix, first, stop)
            if work.form == "depthwise":
                chunks = [sorted({k // work.multiplier for k in group})]
            else:
                chunks = [
                    list(range(c, min(c + arch.chunk, work.chans))) for c in range(0, work.chans, arch.chunk)
                ]
            for channels in chunks:
                size = (len(channels) + 7) // 8 + sum(bool(pixel[c]) for c in channels)
                events["ring_entries"] += 1
                events["ring_bytes_written"] += size
                events["ring_bytes_read"] += size * len(group)
            values: list[list[int]] = []
            if work.form == "combine":
                per_row = [combine_position(arch, work, pixel, mask, k, events) for k in group]
                entries += [Entry([cycles[i] for cycles, _ in per_row], None) for i in range(len(chunks))]
                values = [[n for _, n in per_row]]
                entries[-1].push = [mac_cycles(arch.macs, n, t) for n in values[0]]
            elif work.form == "dense":
                for channels in chunks:
                    n = sum(bool(pixel[c]) for c in channels)
                    cycles = max(1, (n + arch.units - 1) // arch.units)
                    values.append([n] * len(group))
                    entries.append(Entry([cycles] * len(group), [mac_cycles(arch.macs, n, t)] * len(group)))
            else:
                values = [[int(bool(pixel[k // work.multiplier])) for k in group]]
                entries.append(Entry([1] * len(group), [mac_cycles(arch.macs, n, t) for n in values[0]]))
            for push in values:
                for n in push:
                    events["fifo_pushes"] += 1
                    events["fifo_values"] += n
                    events["products"] += n * t
                    events["psum_updates"] += mac_cycles(arch.macs, n, t) * t if t <= arch.macs else n * t
    return entries


def run_item(arch: Any, entries: list[Entry], active: int, causes: Counter[str]) -> int:
    """Step one item until its last row is done; book every active row in every cycle; return the cycles."""
    rows = [Row() for _ in range(active)]
    arrived, last_arrival = 0, 0
    read_by = [0] * len(entries)
    pushes = sum(entry.push is not None for entry in entries)
    now = 0

    def occupied() -> int:
        return sum(count < active for count in read_by[:arrived])

    while True:
        moved = True
        while moved:
            moved = False
            # The producer delivers its first entry at cycle 1, then one a cycle while a slot is free.
            if arrived < len(entries) and now > last_arrival and occupied() < arch.ring_entries:
                arrived, last_arrival, moved = arrived + 1, now, True
            for index, row in enumerate(rows):
                if row.working and row.lc_left == 0:
                    push = entries[row.entry].push
                    row.working, moved = False, True
                    if push is None:
                        read_by[row.entry] += 1
                        row.entry += 1
                    else:
                        row.held = push[index]
                if row.held is not None and len(row.fifo) < arch.fifo_positions:
                    row.fifo.append(row.held)
                    row.pushed += 1
                    row.held, moved = None, True
                    read_by[row.entry] += 1
                    row.entry += 1
                if row.mac_left == 0 and row.fifo:
                    row.mac_left, moved = row.fifo.pop(0), True
                if not row.working and row.held is None and row.entry < arrived:
                    row.lc_left, row.working, moved = entries[row.entry].lc[index], True, True
        if all(row.entry == len(entries) and row.mac_left == 0 and not row.fifo for row in rows):
            return now
        for row in rows:
            if row.working:
                causes["lc_busy"] += 1
                row.lc_left -= 1
            elif row.held is not None:
                causes["lc_wait_fifo"] += 1
            elif row.entry == len(entries):
                causes["lc_idle"] += 1
            elif occupied() == arch.ring_entries:
                causes["lc_wait_row"] += 1
            else:
                causes["lc_wait_input"] += 1
        for row in rows:
            if row.mac_left:
                causes["mac_busy"] += 1
                row.mac_left -= 1
            elif row.pushed < pushes:
                causes["mac_wait_lc"] += 1
            else:
                causes["mac_idle"] += 1
        now += 1


def image_timing(arch: Any, work: Any, image: Any, mask: Any) -> dict[str, int]:
    """All figures of one image, ``image`` [row][column][channel]; ``mask`` [output][channel][basis]."""
    events: Counter[str] = Counter()
    causes: Counter[str] = Counter()
    groups = [list(range(k, min(k + arch.rows, work.outs))) for k in range(0, work.outs, arch.rows)]
    block_time = [0] * arch.blocks
    item = 0
    first = work.y_first
    for length in split(work.y_rows, work.bands):
        for group in groups:
            entries = item_entries(arch, work, image, mask, group, first, first + length, events)
            time = run_item(arch, entries, len(group), causes)
            for part in ("lc_idle", "mac_idle"):
                causes[part] += time * (arch.rows - len(group))
            block_time[item % arch.blocks] += time
            item += 1
        first += length
    cycles = arch.startup_cycles + max(block_time)
    for busy in block_time:
        for part in ("lc_idle", "mac_idle"):
            causes[part] += (cycles - busy) * arch.rows
    booked = {name: causes[name] for name in LC_CAUSES + MAC_CAUSES}
    return {"cycles": cycles} | booked | {name: events[name] for name in EVENTS}
