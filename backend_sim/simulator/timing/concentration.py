"""Dilution and concentration: how many dense vectors a ring entry costs, for all outputs and bases at once.

Both are computed on bit planes. One bit stands for one pair (output, basis); a plane tells, for one lane of
one diluted vector, which pairs have no coefficient for the activation in that lane. Reading the coefficient
planes of an entry in the order of its non-zero activations *is* dilution (the packed activations, those
without a coefficient blank), and a move of the concentration window is two bitwise operations for 64 pairs
at a time. The head moves on one vector a step; where it is blank nothing is issued, which is the same as
skipping it free.

Entries (a position and a chunk of channels) of many instructions are concentrated side by side, those of
equally many vectors together, so that an operation is long enough to be worth its call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from escc.backend_sim.simulator.timing.work import Bits, TimingArch

Words = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.intp]
Unsigned = npt.NDArray[np.unsignedinteger]

# A block of entries: so many words of a lane (a few of them stay in a core's second-level cache), and at most
# so many bytes.
LANE_WORDS = 1 << 12
BLOCK_BYTES = 1 << 22
# Vectors of a unit that are counted in unary; more are counted pair by pair.
MOST_UNARY = 16


@dataclass(frozen=True)
class Diluted:
    """Entries after dilution: ``packed`` (entries, slots) int32, planes of the non-zero activations in order
    and the blank plane 0 behind them; ``vectors`` (entries,) of so many lanes."""

    packed: npt.NDArray[np.int32]
    vectors: npt.NDArray[np.int16]


def lanes_of(arch: TimingArch, chans: int) -> int:
    """Lanes to cut the entries of ``chans`` channels with: more than channels would give one vector, too."""
    return min(arch.lanes, arch.chunk, chans)


def absent_planes(coefficients: Bits) -> Words:
    """Coefficient mask (outs, n, bases) to planes (n, words) of the pairs without a coefficient.

    A basis begins with a whole byte, bit k of it is 1 where coefficients[k, c, m] is not set; what is left of
    the last byte of a basis and of the words is 1.
    """
    outs, chans, bases = coefficients.shape
    size = -(-outs // 8)
    present = np.zeros((chans, -(-bases * size // 8) * 8), np.uint8)
    flat = np.ascontiguousarray(coefficients.reshape(outs, chans * bases).T)
    packed = np.packbits(flat, axis=-1, bitorder="little")
    present[:, : bases * size] = packed.reshape(chans, bases * size)
    return ~present.view(np.uint64)


def blank_plane(words: int) -> Words:
    """The plane 0 of every table: no pair has a coefficient."""
    return np.full((1, words), ~np.uint64(0))


def by_basis(words: Words, outs: int, bases: int) -> npt.NDArray[np.uint8]:
    """Planes (..., words) as the bytes of each basis (..., bases, bytes), a view."""
    size = -(-outs // 8)
    return words.view(np.uint8)[..., : bases * size].reshape(*words.shape[:-1], bases, size)


def unpacked(words: Words, outs: int, bases: int) -> npt.NDArray[np.uint8]:
    """Planes (..., words) to one byte a pair (..., bases, outs)."""
    return np.unpackbits(by_basis(words, outs, bases), axis=-1, count=outs, bitorder="little")


def dilute(active: Bits, chunk: int, lanes: int, first: int = 1) -> Diluted:
    """The entries of ``active`` (positions, chans), non-zero activations, chunk by chunk of a position.

    ``first``: the plane of channel 0.
    """
    positions, chans = active.shape
    chunks = -(-chans // chunk)
    wide = chunks * chunk
    if wide != chans:
        whole = np.zeros((positions, wide), np.bool_)
        whole[:, :chans] = active
        active = whole
    filled = np.count_nonzero(active.reshape(positions * chunks, chunk), axis=1)
    vectors = -(-filled // lanes)
    slots = int(vectors.max(initial=0)) * lanes
    start = np.repeat(np.arange(positions) * wide - first, filled.reshape(positions, chunks).sum(axis=1))
    packed = np.zeros((len(filled), slots), np.int32)
    packed[np.arange(slots) < filled[:, None]] = np.flatnonzero(active) - start
    return Diluted(packed, vectors.astype(np.int16))


def stacked(parts: list[Diluted]) -> Diluted:
    """The entries of all parts, one after the other."""
    if len(parts) == 1:
        return parts[0]
    slots = max(part.packed.shape[1] for part in parts)
    packed = np.zeros((sum(len(part.packed) for part in parts), slots), np.int32)
    begin = 0
    for part in parts:
        packed[begin : begin + len(part.packed), : part.packed.shape[1]] = part.packed
        begin += len(part.packed)
    return Diluted(packed, np.concatenate([part.vectors for part in parts]))


def issued_blocks(
    arch: TimingArch, lanes: int, planes: Words, entries: Diluted
) -> Iterator[tuple[Indices, Words]]:
    """Blocks of entries (p indices) with the vectors they issue, as planes (vectors, p, words).

    ``planes``: the blank plane and those that the entries name. Policies none and window; entries without an
    activation are left out.
    """
    ahead = arch.look_ahead if arch.policy == "window" else 0
    words = planes.shape[1]
    order = np.argsort(entries.vectors, kind="stable")
    begin = int(np.searchsorted(entries.vectors[order], 1))
    while begin < order.size:
        # Two rounds: the first entry bounds the block's size, its last one the vectors of the block.
        each = int(entries.vectors[order[begin]]) * lanes * words * planes.itemsize
        count = min(LANE_WORDS // words, BLOCK_BYTES // each)
        chosen = order[begin : begin + max(1, count)]
        most = int(entries.vectors[chosen[-1]])
        lane = planes.take(entries.packed[chosen, : most * lanes].T, axis=0)
        issued = issued_vectors(lane.reshape(most, lanes, -1), ahead, arch.look_aside)
        yield chosen, issued.reshape(most, len(chosen), words)
        begin += len(chosen)


def issued_vectors(absent: Words, look_ahead: int, look_aside: int) -> Words:
    """Which vectors are issued: absent values (vectors, lanes, n), overwritten, to bits (vectors, n).

    Class order: for offset 0, +1, -1, +2, -2 ... and distance 1..look_ahead, all lanes at once: an empty lane
    l of the head takes the value of lane (l + offset) mod lanes of the vector at that distance. With E the
    empty lanes and N the absent values there, that leaves E & N empty and E | N absent.
    """
    vectors, lanes, size = absent.shape
    # A class moves all it can: the same lanes and vector once more (offsets wrap) would move nothing.
    sides = (sign * step for step in range(1, look_aside + 1) for sign in (1, -1))
    turns = list(dict.fromkeys(offset % lanes for offset in (0, *sides)))
    # Lanes lie one behind the other, so lanes in a row are one line: where it is cut, for every offset.
    cuts = [(lanes - turn) * size for turn in turns]
    blank = np.empty((vectors, size), absent.dtype)
    empty, left = np.empty((2, lanes * size), absent.dtype)
    empties, lefts = ([_parts(line, cut) for cut in cuts] for line in (empty, left))
    aheads: list[list[list[Words]]] = []
    both, either = np.bitwise_and, np.bitwise_or
    for head in range(vectors):
        both.reduce(absent[head], axis=0, out=blank[head])
        while len(aheads) < min(look_ahead, vectors - 1 - head):
            line = absent[head + 1 + len(aheads)].reshape(-1)
            aheads.append([_parts(line, lanes * size - cut)[::-1] for cut in cuts])
        if not aheads:
            continue
        # A blank head issues nothing, so it has no lane to fill.
        np.bitwise_xor(absent[head], blank[head], out=empties[0][0].reshape(lanes, size))
        for turn in range(len(turns)):
            for vector in aheads:
                for to, source, rest in zip(empties[turn], vector[turn], lefts[turn], strict=True):
                    both(to, source, rest)
                    either(to, source, source)
                empties, lefts = lefts, empties
        del aheads[0]
    return ~blank


def _parts(line: Words, cut: int) -> list[Words]:
    """A line in two at ``cut``, without an empty part."""
    return [part for part in (line[:cut], line[cut:]) if part.size]


def issue_counts(issued: Words, outs: int, bases: int) -> Unsigned:
    """Issue cycles of every pair (p, bases, outs), of planes (vectors, p, words)."""
    return np.add.reduce(unpacked(issued, outs, bases), axis=0, dtype=np.min_scalar_type(len(issued)))


def unit_cycles(counts: Unsigned, units: int, kind: np.dtype[np.unsignedinteger]) -> Unsigned:
    """LC cycles (p, outs): of issue cycles (p, bases, outs), those of the unit that has most to do.

    Basis m belongs to unit m mod ``units`` and takes a cycle even where nothing is issued.
    """
    bases = counts.shape[1]
    slowest = np.ones((len(counts), counts.shape[2]), dtype=kind)
    for unit in range(min(units, bases)):
        cycles = np.maximum(counts[:, unit], 1).astype(kind)
        for basis in range(unit + units, bases, units):
            cycles += np.maximum(counts[:, basis], 1)
        np.maximum(slowest, cycles, out=slowest)
    return slowest


def entry_cycles(
    issued: Words, outs: int, bases: int, units: int, kind: np.dtype[np.unsignedinteger]
) -> Unsigned:
    """LC cycles (p, outs) of planes (vectors, p, words), as `unit_cycles` has them.

    Unary counters of the bases are added up by unit, 64 outputs at a time; the largest of them is an OR.
    """
    vectors, count = issued.shape[:2]
    turns = -(-bases // units)
    if turns * vectors > MOST_UNARY:
        return unit_cycles(issue_counts(issued, outs, bases), units, kind)
    # what every basis issues beyond one vector; whole words are quicker than bytes
    more = by_basis(_filled(_unary(issued)[1:]), outs, bases)
    more = more.view(np.uint64) if more.shape[-1] % 8 == 0 else more
    more = np.ascontiguousarray(more.transpose(2, 0, 1, 3))
    most = np.zeros((turns * more.shape[1], *more.shape[2:]), more.dtype)
    for unit in range(min(units, bases)):
        parts = more[unit::units]
        total = parts[0]
        for part in parts[1:]:
            total = _unary_sum(total, part)
        # a unit with fewer bases has as many cycles in hand
        above = total[turns - len(parts) :]
        np.bitwise_or(most[: len(above)], above, out=most[: len(above)])
    bits = np.unpackbits(_filled(most).view(np.uint8), axis=-1, count=outs, bitorder="little")
    cycles = np.full((count, outs), turns, kind)
    return np.add(cycles, np.add.reduce(bits, axis=0, dtype=kind), out=cycles)


def _filled(levels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Unary counters without the last levels that nothing reaches."""
    while len(levels) and not levels[-1].any():
        levels = levels[:-1]
    return levels


def _unary_sum(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The sum of two unary counters, planes (levels, ...)."""
    both = np.concatenate([first, np.zeros_like(second)])
    np.bitwise_or(both[: len(second)], second, out=both[: len(second)])
    for level, plane in enumerate(first):
        part = both[level + 1 : level + 1 + len(second)]
        np.bitwise_or(part, plane & second, out=part)
    return both


def _unary(issued: Words) -> Words:
    """Unary counters: plane j tells which pairs issue more than j vectors."""
    levels = np.zeros_like(issued)
    spare = np.empty_like(issued[0])
    for head, more in enumerate(issued):
        for level in range(head, 0, -1):
            np.bitwise_and(levels[level - 1], more, out=spare)
            np.bitwise_or(levels[level], spare, out=levels[level])
        np.bitwise_or(levels[0], more, out=levels[0])
    return levels


def gathered(lanes: int, active: Bits, coefficients: Bits) -> Iterator[tuple[Indices, Unsigned]]:
    """The policy gather on one chunk, ceil(matches / lanes): positions, and cycles (p, bases, outs).

    ``active`` (positions, n), ``coefficients`` (outs, n, bases). Matches are a product of 0/1 matrices, exact
    in float32.
    """
    outs, chans, bases = coefficients.shape
    columns = coefficients.transpose(1, 2, 0).reshape(chans, bases * outs).astype(np.float32)
    kind = np.min_scalar_type(-(-chans // lanes))
    step = max(1, BLOCK_BYTES // columns[0].nbytes)
    for first in range(0, len(active), step):
        matches = active[first : first + step].astype(np.float32) @ columns
        cycles = np.ceil(matches / np.float32(lanes)).astype(kind)
        yield np.arange(first, first + len(matches)), cycles.reshape(len(matches), bases, outs)
