"""Placing byte buffers: lifetime intervals for maps, free gaps for the buffers of one layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from escc.backend_sim.lowering.layers import Range

ALIGNMENT = 8


def align(size: int) -> int:
    """``size`` rounded up to the alignment of buffers."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Block:
    """A buffer of ``size`` bytes that lives from step ``first`` to step ``last``, both included."""

    size: int
    first: int
    last: int


def free_gaps(used: Iterable[Range], total: int) -> list[Range]:
    """The gaps of [0, total) that ``used`` leaves, in order."""
    gaps: list[Range] = []
    position = 0
    for start, stop in sorted(used):
        if start > position:
            gaps.append((position, start))
        position = max(position, stop)
    if position < total:
        gaps.append((position, total))
    return gaps


def place_blocks(blocks: Sequence[Block], total: int | None) -> list[int] | None:
    """Addresses of blocks so that blocks alive at the same step never overlap.

    With a ``total``, blocks are placed in order at the lower or upper end of a gap, where they leave the
    largest contiguous rest over their lifetime (other buffers need it), then the tightest fit. Without one
    (DRAM), larger blocks first, at the lowest address.

    Returns None when a block does not fit into ``total`` bytes.
    """
    order = range(len(blocks))
    if total is None:
        order = sorted(order, key=lambda index: -blocks[index].size)
    placed: dict[int, int] = {}
    for index in order:
        block = blocks[index]
        size = align(block.size)
        alive = [(other, address) for other, address in placed.items() if _overlap(blocks[other], block)]
        used = [(address, address + align(blocks[other].size)) for other, address in alive]
        limit = total if total is not None else sum(align(item.size) for item in blocks) + size
        candidates: list[tuple[tuple[int, int, int], int]] = []
        for low, high in free_gaps(used, limit):
            if high - low < size:
                continue
            if total is None:
                candidates.append(((0, 0, low), low))
                continue
            for address in {low, (high - size) // ALIGNMENT * ALIGNMENT}:
                rest = min(
                    _largest_gap(blocks, placed, step, total, (address, address + size))
                    for step in range(block.first, block.last + 1)
                )
                candidates.append(((-rest, high - low, address), address))
        if not candidates:
            return None
        placed[index] = min(candidates)[1]
    return [placed[index] for index in range(len(blocks))]


def _overlap(a: Block, b: Block) -> bool:
    return a.first <= b.last and b.first <= a.last


def _largest_gap(blocks: Sequence[Block], placed: dict[int, int], step: int, total: int, more: Range) -> int:
    used = [
        (address, address + align(blocks[index].size))
        for index, address in placed.items()
        if blocks[index].first <= step <= blocks[index].last
    ]
    return max((high - low for low, high in free_gaps([*used, more], total)), default=0)


def pack(sizes: Sequence[int], gaps: Sequence[Range], avoid: Sequence[Range] = ()) -> list[int] | None:
    """Addresses of buffers of the given sizes inside the gaps, None when they do not fit.

    Larger buffers first. Addresses that stay clear of ``avoid`` are taken where there are any (a buffer
    that the previous layer does not use can be filled while that layer runs); the tightest gap otherwise.
    """
    return _pack(sizes, gaps, avoid) or (_pack(sizes, gaps, ()) if avoid else None)


def clashes(spans: Sequence[Range], avoid: Sequence[Range]) -> bool:
    """Whether any of the spans shares a byte with any of ``avoid``."""
    return any(_clash(span, avoid) for span in spans)


def _pack(sizes: Sequence[int], gaps: Sequence[Range], avoid: Sequence[Range]) -> list[int] | None:
    if not sizes:
        return []
    free = [(-(-low // ALIGNMENT) * ALIGNMENT, high) for low, high in gaps]
    result = [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda item: -sizes[item]):
        size = align(sizes[index])
        candidates: list[tuple[tuple[int, int, int], int, Range]] = []
        for gap in free:
            for low, high in _clear_spans(gap, avoid):
                for address in (low, (high - size) // ALIGNMENT * ALIGNMENT):
                    if low <= address and address + size <= high:
                        clash = _clash((address, address + size), avoid)
                        candidates.append(((clash, gap[1] - gap[0], address), address, gap))
        if not candidates:
            return None
        _, address, (low, high) = min(candidates)
        result[index] = address
        free.remove((low, high))
        free += [span for span in ((low, address), (address + size, high)) if span[1] > span[0]]
    return result


def _clear_spans(gap: Range, avoid: Sequence[Range]) -> list[Range]:
    """The gap itself and the pieces of it that ``avoid`` leaves."""
    low, high = gap
    inside = [(max(start, low), min(stop, high)) for start, stop in avoid if start < high and stop > low]
    pieces = [(-(-a // ALIGNMENT) * ALIGNMENT, b) for a, b in _complement(inside, low, high)]
    return [gap, *pieces]


def _complement(used: Sequence[Range], low: int, high: int) -> list[Range]:
    return [(a + low, b + low) for a, b in free_gaps([(a - low, b - low) for a, b in used], high - low)]


def _clash(span: Range, avoid: Sequence[Range]) -> int:
    return sum(max(0, min(span[1], stop) - max(span[0], start)) for start, stop in avoid)
