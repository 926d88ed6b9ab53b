"""The work that each ring entry brings to each row: independent of time, bands and grouping."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from escc.backend_sim.simulator.timing.concentration import issue_counts, unpacked
from escc.backend_sim.simulator.timing.work import Bits, ConvWork, Counts, TimingArch

Unsigned = npt.NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class Load:
    """What N images put on the rows, over R input rows and W columns.

    ``cycles`` (N, R, W, chunks, K): cycles in the LC part for an entry. K is the number of outputs rounded
    up to whole groups, the surplus zero (combine); 1 where every output has the same (dense, depthwise).
    ``values`` (N, R, W, pushes, K): Z values (combine) or activations (dense, depthwise) that are not blank
    in each push to the FIFO; K is 1 for dense. ``per_push``: entries of a push. ``matches`` and
    ``issue_cycles`` (N, R): sums over columns, outputs and bases.
    """

    cycles: Unsigned
    values: Unsigned
    per_push: int
    matches: Counts
    issue_cycles: Counts


def chunk_bounds(chunk: int, chans: int) -> list[tuple[int, int]]:
    """First and one-past-last channel of every chunk; the last may be ragged."""
    return [(first, min(first + chunk, chans)) for first in range(0, chans, chunk)]


def conv_load(arch: TimingArch, work: ConvWork, x: Bits, mask: Bits | None) -> Load:
    """The load of ``x`` (N, R, W, chans), the input rows that the bands need, under ``work``.

    LC cycles of an entry: combine, the largest unit's sum over its bases m (m mod units) of max(1, issue
    cycles); dense, max(1, ceil(non-zeros / units)); depthwise, 1.
    """
    if work.form == "combine":
        assert mask is not None
        return _combine(arch, work, x, mask)
    images, rows, width, _ = x.shape
    none = np.zeros((images, rows), dtype=np.int64)
    if work.form == "dense":
        bounds = chunk_bounds(arch.chunk, work.chans)
        filled = np.stack([np.count_nonzero(x[..., a:b], axis=-1) for a, b in bounds], axis=-1)
        kind = np.min_scalar_type(arch.chunk)
        cycles = np.maximum(1, -(-filled // arch.units))
        return Load(cycles.astype(kind)[..., None], filled.astype(kind)[..., None], 1, none, none)
    values = np.zeros((images, rows, width, 1, _whole_groups(arch, work)), dtype=np.uint8)
    values[..., 0, : work.outs] = x[..., np.arange(work.outs) // work.multiplier]
    return Load(np.ones((images, rows, width, 1, 1), dtype=np.uint8), values, 1, none, none)


def _whole_groups(arch: TimingArch, work: ConvWork) -> int:
    return -(-work.outs // arch.rows) * arch.rows


def _combine(arch: TimingArch, work: ConvWork, x: Bits, mask: Bits) -> Load:
    images, rows, width, chans = x.shape
    bounds = chunk_bounds(arch.chunk, chans)
    positions = images * rows * width
    flat = x.reshape(positions, chans)
    outs, padded = work.outs, _whole_groups(arch, work)
    turns = -(-work.bases // arch.units)
    kind = np.min_scalar_type(turns * max(1, -(-min(arch.chunk, chans) // arch.lanes)))
    cycles = np.zeros((positions, len(bounds), padded), dtype=kind)
    # Every basis costs a cycle even without a match; the first unit has the most bases.
    cycles[..., :outs] = turns
    issued = np.zeros(positions, dtype=np.int64)
    met = np.zeros((positions, -(-outs * work.bases // 64)), dtype=np.uint64)
    for index, (first, stop) in enumerate(bounds):
        for chosen, counts, matched in issue_counts(arch, flat[:, first:stop], mask[:, first:stop]):
            issued[chosen] += counts.reshape(len(counts), -1).sum(axis=1, dtype=np.uint32)
            met[chosen] |= matched
            cycles[chosen, index, :outs] = _unit_cycles(counts, arch.units, kind)
    values = np.zeros((positions, padded), dtype=np.min_scalar_type(work.bases))
    step = max(1, (1 << 20) // (outs * work.bases))
    for begin in range(0, positions, step):
        bits = unpacked(met[begin : begin + step], outs, work.bases)
        np.add.reduce(bits, axis=1, dtype=values.dtype, out=values[begin : begin + step, :outs])
    weights = _by_channel(mask)
    return Load(
        cycles.reshape(images, rows, width, len(bounds), padded),
        values.reshape(images, rows, width, 1, padded),
        len(bounds),
        np.count_nonzero(x, axis=2) @ weights,
        issued.reshape(images, rows, width).sum(axis=2),
    )


def _by_channel(mask: Bits) -> Counts:
    """Coefficients of each input channel, of a mask (outs, chans, bases)."""
    rows = np.ascontiguousarray(mask).view(np.uint8).reshape(len(mask), -1)
    # so many ones fit into a byte, and bytes are added many times faster than they are widened
    parts = [
        np.add.reduce(rows[first : first + 255], axis=0, dtype=np.uint8) for first in range(0, len(rows), 255)
    ]
    return np.sum(parts, axis=0, dtype=np.int64).reshape(mask.shape[1:]).sum(axis=1)


def _unit_cycles(counts: Unsigned, units: int, kind: np.dtype[np.unsignedinteger]) -> Unsigned:
    """Issue cycles (p, bases, outs) to cycles of the slowest unit (p, outs)."""
    bases = counts.shape[1]
    slowest = np.ones((len(counts), counts.shape[2]), dtype=kind)
    for unit in range(min(units, bases)):
        cycles = np.maximum(counts[:, unit], 1).astype(kind)
        for basis in range(unit + units, bases, units):
            cycles += np.maximum(counts[:, basis], 1)
        np.maximum(slowest, cycles, out=slowest)
    return slowest
