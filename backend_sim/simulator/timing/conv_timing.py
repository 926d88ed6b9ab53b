"""Cycles, causes and event counts of one convolution instruction, from the real bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from escc.backend_sim.simulator.timing.geometry import Plan, plan
from escc.backend_sim.simulator.timing.load import Load, Operands, chunk_bounds, conv_loads
from escc.backend_sim.simulator.timing.recurrence import ItemTimes, Queued, items_times
from escc.backend_sim.simulator.timing.work import (
    Bits,
    ConvTiming,
    ConvWork,
    Counts,
    Ternary,
    TimingArch,
    joined,
)
from escc.errors import EsccError

# Instructions and images are taken together up to this many bytes of load: more of them do not make the
# loops cheaper.
BATCH_BYTES = 1 << 24


class Convolution(NamedTuple):
    """An instruction to time: ``x`` (N, rows, width, chans), not zero where an activation is; ``ternary`` for
    the form combine only."""

    work: ConvWork
    x: npt.NDArray[np.uint8] | Bits
    ternary: Ternary | None = None


def conv_timing(
    arch: TimingArch, work: ConvWork, x_nonzero: Bits, coefficient_mask: Bits | None = None
) -> ConvTiming:
    """Time one convolution over N images.

    ``x_nonzero`` (N, rows, width, chans) bool: non-zero activations of the resident rows, the first of which
    is row ``work.x_first`` of the map. ``coefficient_mask`` (outs, chans, bases) bool: non-zero ternary
    coefficients, for the form combine only.

    An item is a group of ``arch.rows`` consecutive outputs and one of the bands (numpy.array_split of the
    output rows); items, band after band, are dealt to the blocks in turn. An item reads the input rows that
    have a tap landing in its band, every column, in row-major order, a ring entry for each position and chunk
    of ``arch.chunk`` channels (depthwise: for each position, with the channels of its group). The cycles are
    ``arch.startup_cycles`` plus the largest sum of item times of a block.

    Raises EsccError for arrays of another shape, or when a needed input row is not resident.
    """
    ternary = None if coefficient_mask is None else Ternary(coefficient_mask)
    return conv_timings(arch, [Convolution(work, x_nonzero, ternary)])[0]


def conv_timings(arch: TimingArch, convolutions: Sequence[Convolution]) -> list[ConvTiming]:
    """`conv_timing` of each of ``convolutions``, many at a time.

    Raises:
        EsccError: see there.
    """
    parts: list[list[ConvTiming]] = [[] for _ in convolutions]
    batch: list[_Part] = []
    held = 0
    for index, (work, x, ternary) in enumerate(convolutions):
        check_shapes(work, x.shape, None if ternary is None else ternary.shape)
        rows = plan(work, x.shape[1])
        size = _load_bytes(arch, work, len(rows.rows))
        step = max(1, BATCH_BYTES // size)
        for first in range(0, len(x), step):
            images = x[first : first + step, rows.rows - work.x_first] != 0
            batch.append(_Part(index, work, rows, images, ternary))
            held += size * len(images)
            if held >= BATCH_BYTES:
                _time(arch, batch, parts)
                batch, held = [], 0
    _time(arch, batch, parts)
    return [joined(part) for part in parts]


class _Part(NamedTuple):
    """Some images of convolution ``number``; ``x`` are its input rows that the bands need."""

    number: int
    work: ConvWork
    rows: Plan
    x: Bits
    ternary: Ternary | None


def _load_bytes(arch: TimingArch, work: ConvWork, rows: int) -> int:
    """About what the load of one image takes."""
    chunks = -(-work.chans // arch.chunk)
    outs = 1 if work.form == "dense" else work.outs + arch.rows
    return max(1, rows * work.width * (work.chans + (chunks + 2) * outs + chunks * work.bases * outs // 8))


def _time(arch: TimingArch, batch: list[_Part], parts: list[list[ConvTiming]]) -> None:
    loads = conv_loads(arch, [Operands(part.work, part.x, part.ternary) for part in batch])
    queued = [Queued(part.rows, load, part.work.outs) for part, load in zip(batch, loads, strict=True)]
    times = items_times(arch, queued)
    for part, load, items in zip(batch, loads, times, strict=True):
        parts[part.number].append(report(arch, part.work, part.rows, part.x, load, items))


def check_shapes(work: ConvWork, x: tuple[int, ...], mask: tuple[int, ...] | None) -> None:
    """Refuse arrays that do not belong to ``work``: shapes of the activations and of the coefficients.

    Raises:
        EsccError: naming both shapes.
    """
    if len(x) != 4 or x[2:] != (work.width, work.chans):
        raise EsccError(
            f"activation mask of shape {x} does not fit rows of {work.width} positions "
            f"and {work.chans} channels"
        )
    wanted = (work.outs, work.chans, work.bases) if work.form == "combine" else None
    if mask != wanted:
        raise EsccError(f"coefficient mask of shape {mask} in a {work.form} convolution, expected {wanted}")


def report(arch: TimingArch, work: ConvWork, rows: Plan, x: Bits, load: Load, items: ItemTimes) -> ConvTiming:
    """What the items of ``work`` took together; ``x`` are its input rows that the bands need."""
    images, _, width, chunks, _ = load.cycles.shape
    pushes = load.values.shape[3]
    groups = -(-work.outs // arch.rows)
    read = sum(len(band) for band in rows.band_rows)

    line = items.time.reshape(images, -1)
    padded = np.zeros((images, -(-line.shape[1] // arch.blocks) * arch.blocks), dtype=np.int64)
    padded[:, : line.shape[1]] = line
    cycles = arch.startup_cycles + padded.reshape(images, -1, arch.blocks).sum(axis=1).max(axis=1)

    # How many bands read a row: what an entry costs once counts so often.
    reads = np.zeros(x.shape[1], dtype=np.int64)
    for band in rows.band_rows:
        reads[band] += 1
    taps = rows.row_taps.sum(axis=0)[:, None] * rows.col_taps
    replicas = work.outs if load.values.shape[4] == 1 else 1
    per_position = replicas * load.values.sum(axis=(3, 4), dtype=np.int64)
    written, fetched = _ring_bytes(arch, work, x, reads)
    whole = cycles * arch.rows * arch.blocks
    lc = items.lc_busy + items.lc_wait_input + items.lc_wait_row + items.lc_wait_fifo
    words = work.bases * work.outs * width * chunks * read if work.form == "combine" else 0
    return ConvTiming(
        cycles=cycles,
        lc_busy=items.lc_busy,
        lc_wait_input=items.lc_wait_input,
        lc_wait_row=items.lc_wait_row,
        lc_wait_fifo=items.lc_wait_fifo,
        lc_idle=whole - lc,
        mac_busy=items.mac_busy,
        mac_wait_lc=items.mac_wait_lc,
        mac_idle=whole - items.mac_busy - items.mac_wait_lc,
        matches=load.matches @ reads,
        dilution_words=np.full(images, words, dtype=np.int64),
        issue_cycles=load.issue_cycles @ reads,
        products=(per_position * taps).sum(axis=(1, 2)),
        fifo_pushes=np.full(images, work.outs * width * pushes * read, dtype=np.int64),
        fifo_values=per_position.sum(axis=2) @ reads,
        psum_updates=items.psum_updates,
        ring_entries=np.full(images, groups * width * chunks * read, dtype=np.int64),
        ring_bytes_written=written,
        ring_bytes_read=fetched,
    )


def _ring_bytes(arch: TimingArch, work: ConvWork, x: Bits, reads: Counts) -> tuple[Counts, Counts]:
    """Bytes (mask, non-zeros) written into the rings by all items, and read by all rows with an output."""
    width = x.shape[2]
    if work.form != "depthwise":
        mask_bytes = sum(-(-(stop - first) // 8) for first, stop in chunk_bounds(arch.chunk, work.chans))
        each = np.count_nonzero(x, axis=(2, 3)) @ reads + mask_bytes * width * reads.sum()
        return each * -(-work.outs // arch.rows), each * work.outs
    written, fetched = np.zeros(len(x), dtype=np.int64), np.zeros(len(x), dtype=np.int64)
    of_channel = np.tensordot(np.count_nonzero(x, axis=2), reads, axes=(1, 0))
    for first in range(0, work.outs, arch.rows):
        stop = min(first + arch.rows, work.outs)
        low, high = first // work.multiplier, (stop - 1) // work.multiplier + 1
        each = of_channel[:, low:high].sum(axis=1) + -(-(high - low) // 8) * width * reads.sum()
        written += each
        fetched += each * (stop - first)
    return written, fetched
