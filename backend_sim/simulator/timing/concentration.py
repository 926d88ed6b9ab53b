"""Dilution and concentration: how many dense vectors a ring entry costs, for all outputs and bases at once.

Both are computed on bit planes. One bit stands for one pair (output, basis); a plane tells, for one lane of
one diluted vector, which pairs have no coefficient for the activation in that lane. Reading the coefficient
columns of a position in the order of its non-zero activations *is* dilution (the packed activations, those
without a coefficient blank), and a move of the concentration window is two bitwise operations for 64 pairs
at a time. The head moves on one vector a step; where it is blank nothing is issued, which is the same as
skipping it free.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from escc.backend_sim.simulator.timing.work import Bits, TimingArch

Words = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.intp]
Unsigned = npt.NDArray[np.unsignedinteger]

# Planes are processed in blocks of positions that stay in a core's second-level cache.
BLOCK_BYTES = 1 << 19
# Positions sorted together by their number of vectors; bounds the lists of non-zero activations.
SORTED_POSITIONS = 1 << 14


def _whole_words(bits: int) -> int:
    return -(-bits // 64) * 64


def absent_planes(coefficients: Bits) -> Words:
    """Coefficient mask (outs, n, bases) to planes (n + 1, words) of the pairs without a coefficient.

    Bit m * outs + k of plane c is 1 where coefficients[k, c, m] is not set; the last plane is all ones.
    """
    outs, chans, bases = coefficients.shape
    flat = np.ones((chans + 1, _whole_words(outs * bases)), dtype=np.bool_)
    flat[:chans, : outs * bases] = ~coefficients.transpose(1, 2, 0).reshape(chans, bases * outs)
    return np.packbits(flat, axis=-1, bitorder="little").view(np.uint64)


def unpacked(words: Words, outs: int, bases: int) -> npt.NDArray[np.uint8]:
    """Planes (..., words) to one byte a pair (..., bases, outs)."""
    pairs = np.unpackbits(words.view(np.uint8), axis=-1, count=outs * bases, bitorder="little")
    return pairs.reshape(*words.shape[:-1], bases, outs)


def issued_vectors(absent: Words, look_ahead: int, look_aside: int) -> Words:
    """Which vectors are issued: absent values (vectors, lanes, ...), overwritten, to bits (vectors, ...).

    Class order: for offset 0, +1, -1, +2, -2 ... and distance 1..look_ahead, all lanes at once: an empty lane
    l of the head takes the value of lane (l + offset) mod lanes of the vector at that distance. With E the
    empty lanes and N the absent values there, that leaves E & N empty and E | N absent.
    """
    vectors, lanes = absent.shape[:2]
    # A class moves all it can: the same lanes and vector once more (offsets wrap) would move nothing.
    sides = (sign * step for step in range(1, look_aside + 1) for sign in (1, -1))
    turns = list(dict.fromkeys(offset % lanes for offset in (0, *sides)))
    blank = np.empty((vectors, *absent.shape[2:]), dtype=absent.dtype)
    empty, left = np.empty_like(absent[0]), np.empty_like(absent[0])
    for head in range(vectors):
        np.bitwise_and.reduce(absent[head], axis=0, out=blank[head])
        ahead = absent[head + 1 : head + 1 + look_ahead]
        if not len(ahead):
            continue
        # A blank head issues nothing, so it has no lane to fill.
        np.bitwise_xor(absent[head], blank[head], out=empty)
        for turn in turns:
            pieces = [(slice(0, lanes - turn), slice(turn, lanes))]
            if turn:
                pieces.append((slice(lanes - turn, lanes), slice(0, turn)))
            for vector in ahead:
                for to, source in pieces:
                    np.bitwise_and(empty[to], vector[source], out=left[to])
                    np.bitwise_or(empty[to], vector[source], out=vector[source])
                empty, left = left, empty
    return ~blank


def _diluted(lanes: int, active: Bits, columns: Words) -> Iterator[tuple[Indices, Words]]:
    """Blocks of positions (indices) with their diluted planes (vectors, lanes, positions, words).

    Positions with equally many vectors are taken together, so that a block has few blank ones; positions
    without an activation are left out.
    """
    position, channel = np.nonzero(active)
    filled = np.bincount(position, minlength=len(active))
    vectors = -(-filled // lanes)
    rank = np.arange(position.size) - (np.cumsum(filled) - filled)[position]
    packed = np.full((int(vectors.max(initial=0)) * lanes, len(active)), len(columns) - 1, dtype=np.intp)
    packed[rank, position] = channel
    order = np.argsort(vectors, kind="stable")
    begin = int(np.searchsorted(vectors[order], 1))
    while begin < order.size:
        # Two rounds: the first position bounds the block's size, its last one the vectors of the block.
        each = int(vectors[order[begin]]) * lanes * columns.shape[1] * columns.itemsize
        end = min(order.size, begin + max(1, BLOCK_BYTES // each))
        most = int(vectors[order[end - 1]])
        chosen = order[begin:end]
        planes = columns[packed[: most * lanes, chosen]]
        yield chosen, planes.reshape(most, lanes, *planes.shape[1:])
        begin = end


def issue_counts(
    arch: TimingArch, active: Bits, coefficients: Bits
) -> Iterator[tuple[Indices, Unsigned, Words]]:
    """Issue cycles of one chunk.

    ``active`` (P, n): non-zero activations of the n channels of the chunk at P positions; ``coefficients``
    (outs, n, bases): non-zero coefficients. Yields (indices of p positions, cycles (p, bases, outs), pairs
    with a match as planes (p, words)); positions not yielded have no match and issue nothing.
    """
    if arch.policy == "gather":
        yield from _gathered(arch.lanes, active, coefficients)
        return
    outs, chans, bases = coefficients.shape
    columns = absent_planes(coefficients)
    ahead = arch.look_ahead if arch.policy == "window" else 0
    # More lanes than channels: one vector whatever the lanes.
    lanes = min(arch.lanes, chans)
    for first in range(0, len(active), SORTED_POSITIONS):
        for chosen, planes in _diluted(lanes, active[first : first + SORTED_POSITIONS], columns):
            issued = issued_vectors(planes, ahead, arch.look_aside)
            kind = np.min_scalar_type(len(issued))
            cycles = np.add.reduce(unpacked(issued, outs, bases), axis=0, dtype=kind)
            yield first + chosen, cycles, np.bitwise_or.reduce(issued, axis=0)


def _gathered(lanes: int, active: Bits, coefficients: Bits) -> Iterator[tuple[Indices, Unsigned, Words]]:
    """The policy gather, ceil(matches / lanes): matches are a product of 0/1 matrices, exact in float32."""
    outs, chans, bases = coefficients.shape
    columns = coefficients.transpose(1, 2, 0).reshape(chans, bases * outs).astype(np.float32)
    kind = np.min_scalar_type(-(-chans // lanes))
    step = max(1, BLOCK_BYTES // columns[0].nbytes)
    for first in range(0, len(active), step):
        matches = active[first : first + step].astype(np.float32) @ columns
        cycles = np.ceil(matches / np.float32(lanes)).astype(kind)
        met = np.zeros((len(matches), _whole_words(bases * outs)), dtype=np.bool_)
        met[:, : outs * bases] = cycles
        words = np.packbits(met, axis=-1, bitorder="little").view(np.uint64)
        yield np.arange(first, first + len(matches)), cycles.reshape(len(matches), bases, outs), words
