"""The work that each ring entry brings to each row: independent of time, bands and grouping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from escc.backend_sim.simulator.timing.concentration import (
    Diluted,
    Words,
    absent_planes,
    blank_plane,
    dilute,
    entry_cycles,
    gathered,
    issued_blocks,
    lanes_of,
    stacked,
    unit_cycles,
    unpacked,
)
from escc.backend_sim.simulator.timing.work import Bits, ConvWork, Counts, Ternary, TimingArch
from escc.isa.bits import bit_counts

Unsigned = npt.NDArray[np.unsignedinteger]

# Values of so many pairs are counted at a time.
COUNTED_PAIRS = 1 << 20


@dataclass(frozen=True)
class Load:
    """What N images put on the rows, over R input rows and W columns.

    ``cycles`` (N, R, W, chunks, K): cycles in the LC part for an entry. K stands for the rows of a block and
    in each its outputs, group by group (`Order`), the surplus zero (combine); 1 where every output has the
    same (dense, depthwise).
    ``values`` (N, R, W, pushes, K): Z values (combine) or activations (dense, depthwise) that are not blank
    in each push to the FIFO; K is 1 for dense. ``per_push``: entries of a push. ``matches`` and
    ``issue_cycles`` (N, R): sums over columns, outputs and bases.
    """

    cycles: Unsigned
    values: Unsigned
    per_push: int
    matches: Counts
    issue_cycles: Counts


@dataclass(frozen=True)
class Order:
    """Outputs by row of the block, then by group: output k stands at (k % rows, k // rows)."""

    outs: int
    rows: int

    @property
    def groups(self) -> int:
        """Groups, the last of which may be ragged."""
        return -(-self.outs // self.rows)

    @property
    def outputs(self) -> npt.NDArray[np.intp]:
        """The outputs in this order."""
        return np.concatenate([np.arange(row, self.outs, self.rows) for row in range(self.rows)])

    def spread(self, found: Unsigned) -> Unsigned:
        """Numbers (n, outs) in this order, with zeros for the outputs that the last group lacks."""
        count, full = len(found), self.outs - (self.groups - 1) * self.rows
        if full == self.rows:
            return found
        whole = np.zeros((count, self.rows, self.groups), found.dtype)
        cut = full * self.groups
        whole[:, :full] = found[:, :cut].reshape(count, full, self.groups)
        whole[:, full:, :-1] = found[:, cut:].reshape(count, self.rows - full, self.groups - 1)
        return whole.reshape(count, self.rows * self.groups)


class Operands(NamedTuple):
    """A convolution to find the load of: ``x`` (N, R, W, chans), the input rows that the bands need."""

    work: ConvWork
    x: Bits
    ternary: Ternary | None


def chunk_bounds(chunk: int, chans: int) -> list[tuple[int, int]]:
    """First and one-past-last channel of every chunk; the last may be ragged."""
    return [(first, min(first + chunk, chans)) for first in range(0, chans, chunk)]


def conv_loads(arch: TimingArch, convolutions: Sequence[Operands]) -> list[Load]:
    """The load of each of ``convolutions``; those of the form combine that have equally many outputs and
    bases are worked on together.

    LC cycles of an entry: combine, the largest unit's sum over its bases m (m mod units) of max(1, issue
    cycles); dense, max(1, ceil(non-zeros / units)); depthwise, 1.
    """
    loads: list[Load | None] = [None] * len(convolutions)
    alike: dict[tuple[int, int, int], list[int]] = {}
    for index, item in enumerate(convolutions):
        work = item.work
        if work.form == "combine":
            key = (work.outs, work.bases, lanes_of(arch, work.chans))
            alike.setdefault(key, []).append(index)
        else:
            loads[index] = _dense(arch, item) if work.form == "dense" else _depthwise(arch, item)
    for indices in alike.values():
        for index, load in zip(indices, _combined(arch, [convolutions[i] for i in indices]), strict=True):
            loads[index] = load
    return [load for load in loads if load is not None]


def _dense(arch: TimingArch, item: Operands) -> Load:
    work, x, _ = item
    none = np.zeros(x.shape[:2], dtype=np.int64)
    bounds = chunk_bounds(arch.chunk, work.chans)
    filled = np.stack([np.count_nonzero(x[..., a:b], axis=-1) for a, b in bounds], axis=-1)
    kind = np.min_scalar_type(arch.chunk)
    cycles = np.maximum(1, -(-filled // arch.units))
    return Load(cycles.astype(kind)[..., None], filled.astype(kind)[..., None], 1, none, none)


def _depthwise(arch: TimingArch, item: Operands) -> Load:
    work, x, _ = item
    images, rows, width, _ = x.shape
    none = np.zeros((images, rows), dtype=np.int64)
    order = Order(work.outs, arch.rows)
    lines = x.view(np.uint8).reshape(images * rows * width, work.chans)
    values = order.spread(lines[:, order.outputs // work.multiplier])
    ones = np.ones((images, rows, width, 1, 1), dtype=np.uint8)
    return Load(ones, values.reshape(images, rows, width, 1, values.shape[1]), 1, none, none)


class _Entries:
    """What concentration finds for the entries of convolutions with ``outs`` outputs and ``bases``."""

    def __init__(self, arch: TimingArch, work: ConvWork, most_chans: int, count: int) -> None:
        self.arch, self.outs, self.bases = arch, work.outs, work.bases
        turns = -(-work.bases // arch.units)
        self.kind = np.min_scalar_type(turns * max(1, -(-min(arch.chunk, most_chans) // arch.lanes)))
        self.order = Order(work.outs, arch.rows)
        # Every basis costs a cycle even without a match; the first unit has the most bases.
        blank = self.order.spread(np.full((1, work.outs), turns, self.kind))
        self.cycles = np.repeat(blank, count, axis=0)
        self.issued = np.zeros(count, dtype=np.int64)
        self.met = np.zeros((count, -(-self.bases * -(-self.outs // 8) // 8)), dtype=np.uint64)

    def concentrate(self, planes: Words, lanes: int, entries: Diluted) -> None:
        """The policies none and window."""
        for chosen, issued in issued_blocks(self.arch, lanes, planes, entries):
            self.met[chosen] = np.bitwise_or.reduce(issued, axis=0)
            some = np.add.reduce(bit_counts(issued), axis=0, dtype=np.uint32)
            self.issued[chosen] = some.sum(axis=1, dtype=np.uint32)
            cycles = entry_cycles(issued, self.outs, self.bases, self.arch.units, self.kind)
            self.cycles[chosen] = self.order.spread(cycles)

    def gather(self, first: int, chunks: int, active: Bits, mask: Bits) -> None:
        """The policy gather, of a convolution whose entries begin at ``first``."""
        pairs = np.zeros((self.met.itemsize * self.met.shape[1],), np.uint8)
        for index, (begin, stop) in enumerate(chunk_bounds(self.arch.chunk, active.shape[1])):
            for chosen, counts in gathered(self.arch.lanes, active[:, begin:stop], mask[:, begin:stop]):
                places = first + chosen * chunks + index
                met = np.zeros((len(chosen), pairs.size), np.uint8)
                packed = np.packbits(counts > 0, axis=-1, bitorder="little").reshape(len(chosen), -1)
                met[:, : packed.shape[1]] = packed
                self.met[places] = met.view(np.uint64)
                self.issued[places] = counts.reshape(len(counts), -1).sum(axis=1, dtype=np.uint32)
                cycles = unit_cycles(counts, self.arch.units, self.kind)
                self.cycles[places] = self.order.spread(cycles)

    def values(self, first: int, positions: int, chunks: int) -> Unsigned:
        """Z values that are not blank, (positions, K), of a convolution whose entries begin at ``first``."""
        met = self.met[first : first + positions * chunks].reshape(positions, chunks, self.met.shape[1])
        some = np.bitwise_or.reduce(met, axis=1) if chunks > 1 else met[:, 0]
        found = np.empty((positions, self.cycles.shape[1]), dtype=np.min_scalar_type(self.bases))
        step = max(1, COUNTED_PAIRS // (self.outs * self.bases))
        for begin in range(0, positions, step):
            pairs = unpacked(some[begin : begin + step], self.outs, self.bases)
            counts = np.add.reduce(pairs, axis=1, dtype=found.dtype)
            found[begin : begin + step] = self.order.spread(counts)
        return found


def _combined(arch: TimingArch, convolutions: Sequence[Operands]) -> list[Load]:
    """Convolutions of the form combine with the same outputs, bases and lanes."""
    work = convolutions[0].work
    chunks = [-(-item.work.chans // arch.chunk) for item in convolutions]
    positions = [item.x.size // item.work.chans for item in convolutions]
    firsts = np.concatenate([[0], np.cumsum(np.multiply(chunks, positions))]).tolist()
    found = _Entries(arch, work, max(item.work.chans for item in convolutions), firsts[-1])
    if arch.policy == "gather":
        for item, first, each in zip(convolutions, firsts, chunks, strict=False):
            assert item.ternary is not None
            mask = item.ternary.mask[found.order.outputs]
            found.gather(first, each, _lines(item), mask)
    else:
        lanes = lanes_of(arch, work.chans)
        tables: dict[int, tuple[int, Words]] = {}
        planes, parts = 1, list[Diluted]()
        for item in convolutions:
            assert item.ternary is not None
            key = id(item.ternary)
            if key not in tables:
                tables[key] = planes, _planes(item.ternary, found.order)
                planes += item.work.chans
            parts.append(dilute(_lines(item), arch.chunk, lanes, tables[key][0]))
        known = [table for _, table in tables.values()]
        stack = np.concatenate([blank_plane(known[0].shape[1]), *known])
        found.concentrate(stack, lanes, stacked(parts))
    return [
        _load(item, found, first, each)
        for item, first, each in zip(convolutions, firsts, chunks, strict=False)
    ]


def _lines(item: Operands) -> Bits:
    """The activations as (positions, chans)."""
    return item.x.reshape(item.x.size // item.work.chans, item.work.chans)


def _load(item: Operands, found: _Entries, first: int, chunks: int) -> Load:
    """The part of ``found`` that belongs to a convolution whose entries begin at ``first``."""
    images, rows, width, _ = item.x.shape
    positions, outs = images * rows * width, found.cycles.shape[1]
    assert item.ternary is not None
    part = slice(first, first + positions * chunks)
    return Load(
        found.cycles[part].reshape(images, rows, width, chunks, outs),
        found.values(first, positions, chunks).reshape(images, rows, width, 1, outs),
        chunks,
        np.count_nonzero(item.x, axis=2) @ weights_of_channels(item.ternary, found.order),
        found.issued[part].reshape(images, rows, width * chunks).sum(axis=2),
    )


def _planes(ternary: Ternary, order: Order) -> Words:
    """`absent_planes` of coefficients, their outputs in order, packed once."""
    found = ternary.packed.get(order)
    if found is None:
        found = ternary.packed[order] = absent_planes(ternary.values[order.outputs] != 0)
    return found


def weights_of_channels(ternary: Ternary, order: Order) -> Counts:
    """Coefficients of each input channel, (chans,), counted once."""
    found = ternary.packed.get("weights")
    if found is None:
        planes = _planes(ternary, order)
        absent = bit_counts(planes).sum(axis=1, dtype=np.int64)
        found = ternary.packed["weights"] = 8 * planes.itemsize * planes.shape[1] - absent
    return found
