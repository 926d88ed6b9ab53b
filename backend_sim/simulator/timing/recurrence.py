"""Time of the items of a convolution: producer, ring buffer, rows, FIFOs and MAC parts as max-plus equations.

Per item, with D ring entries and F FIFO positions, entry e, push i, over the rows of the group:

    arrival(e) = max(arrival(e-1) + 1, release(e-D)), arrival(0) = 1
    start(e)   = max(arrival(e), finish(e-1));  done(e) = start(e) + lc(e)
    finish(e)  = max(done(e), pop(i-F)) if e is the last entry of push i, done(e) otherwise
    release(e) = max over rows of finish(e)
    pop(i)     = max(finish of i's last entry, mdone(i-1));  mdone(i) = pop(i) + mac(i)

A row works at least one cycle on an entry, hence finish(e-1) >= arrival(e-1) + 1 in every row, and the start
needs no arrival: start(e) = max(release(e-D), finish(e-1)), start(0) = 1. The loop is over the entries;
images, bands, groups and rows advance together. Rows without an output channel have no more work than the
others; they never are the last to finish anything, so they may run along.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from escc.backend_sim.simulator.timing.geometry import Plan
from escc.backend_sim.simulator.timing.load import Load
from escc.backend_sim.simulator.timing.work import Counts, TimingArch

Times = npt.NDArray[np.signedinteger]

# Elements of one array of a block of entries: five such arrays live at a time.
BLOCK_ELEMENTS = 1 << 18
LARGEST_INT32 = 2**31 - 1


@dataclass(frozen=True)
class ItemTimes:
    """``time`` (N, bands, G): cycles of every item; the rest (N,): sums over the rows of all items."""

    time: Counts
    lc_busy: Counts
    lc_wait_input: Counts
    lc_wait_row: Counts
    lc_wait_fifo: Counts
    mac_busy: Counts
    mac_wait_lc: Counts
    psum_updates: Counts


class _Rows:
    """The state of all rows, in arrays (rows of a group, images, bands, groups), and their history."""

    def __init__(
        self, shape: tuple[int, ...], ring: int, fifo: int, kind: np.dtype[np.signedinteger]
    ) -> None:
        self.finish: Times = np.ones(shape, dtype=kind)
        self.mdone: Times = np.zeros(shape, dtype=kind)
        none: Times = np.zeros((), dtype=kind)
        self.releases: deque[Times] = deque([none] * ring)
        self.pops: deque[Times] = deque([none] * fifo)
        self.lc_busy: Counts = np.zeros(shape, dtype=np.int64)
        self.mac_busy: Counts = np.zeros(shape, dtype=np.int64)
        self.wait_fifo: Counts = np.zeros(shape, dtype=np.int64)

    def keep(self, bands: int) -> None:
        """Go on with the first ``bands`` bands only."""

        def cut(array: Times) -> Times:
            return array[..., :bands, :].copy() if array.ndim else array

        self.finish, self.mdone = cut(self.finish), cut(self.mdone)
        self.releases, self.pops = deque(map(cut, self.releases)), deque(map(cut, self.pops))
        self.lc_busy, self.mac_busy = self.lc_busy[..., :bands, :], self.mac_busy[..., :bands, :]
        self.wait_fifo = self.wait_fifo[..., :bands, :]

    def advance(self, lc: Times, mac: Times, per_push: int) -> None:
        """Run entries: ``lc`` (entries, rows, ...) and ``mac`` (entries / per_push, rows, ...)."""
        finish, mdone, releases, pops = self.finish, self.mdone, self.releases, self.pops
        maximum, add, latest, alone = np.maximum, np.add, np.maximum.reduce, lc.shape[1] == 1
        done, pushed, popped = np.empty_like(lc), np.empty_like(mac), np.empty_like(mac)
        released = np.empty((lc.shape[0], *lc.shape[2:]), dtype=lc.dtype)
        entry = 0
        for push, mac_cycles in enumerate(mac):
            for last in range(1 - per_push, 1):
                ended = done[entry]
                maximum(finish, releases.popleft(), out=ended)
                add(ended, lc[entry], out=ended)
                if last:
                    finish = ended
                else:
                    finish = maximum(ended, pops.popleft(), out=pushed[push])
                    pop = maximum(finish, mdone, out=popped[push])
                    pops.append(pop)
                    mdone = add(pop, mac_cycles)
                releases.append(finish[0] if alone else latest(finish, axis=0, out=released[entry]))
                entry += 1
        self.finish, self.mdone = finish.copy(), mdone
        self.lc_busy += lc.sum(axis=0, dtype=np.int64)
        self.mac_busy += mac.sum(axis=0, dtype=np.int64)
        self.wait_fifo += (pushed - done[per_push - 1 :: per_push]).sum(axis=0, dtype=np.int64)


def mac_table(macs: int, most_taps: int, most_values: int) -> Counts:
    """MAC cycles of a push with t taps and n values, as [t, n]; none without either.

    t <= macs: ceil(n / (macs // t)) (several values a cycle); otherwise n * ceil(t / macs).
    """
    taps, values = np.arange(1, most_taps + 1)[:, None], np.arange(most_values + 1)
    together = -(-values // np.maximum(macs // taps, 1))
    table = np.where(taps <= macs, together, values * -(-taps // macs))
    return np.concatenate([np.zeros((1, most_values + 1), dtype=np.int64), table])


def item_times(arch: TimingArch, plan: Plan, load: Load, outs: int) -> ItemTimes:
    """Times of all items of a convolution with ``outs`` output channels.

    With one load for all outputs (form dense) all rows of all groups do the same at the same time: one row
    stands for them all.
    """
    images, _, width, chunks, _ = load.cycles.shape
    pushes, padded = load.values.shape[3:]
    groups = -(-outs // arch.rows)
    lanes, cols = (arch.rows, groups) if padded > 1 else (1, 1)
    weight = np.full((1, 1), outs) if padded == 1 else _in_use(outs, arch.rows)
    lengths = np.array([len(rows) for rows in plan.band_rows])
    order = np.argsort(-lengths, kind="stable")
    most_taps = int(plan.row_taps.max(initial=0) * plan.col_taps.max())
    table = mac_table(arch.macs, most_taps, int(load.values.max(initial=0)))
    longest = int(lengths.max()) * width
    bound = longest * (chunks * int(load.cycles.max(initial=1)) + pushes * int(table.max())) + 1
    kind = np.dtype(np.int32 if bound <= LARGEST_INT32 else np.int64)
    table = table.astype(kind)

    time = np.zeros((images, len(lengths), groups), dtype=np.int64)
    totals = {name: np.zeros(images, dtype=np.int64) for name in list(ItemTimes.__annotations__)[1:]}
    bands = int(np.count_nonzero(lengths))
    if not bands:
        return ItemTimes(time, **totals)
    state = _Rows((lanes, images, bands, cols), arch.ring_entries, arch.fifo_positions, kind)
    begin = 0
    for length in np.unique(lengths[lengths > 0]):
        rows = np.stack([plan.band_rows[band][begin:length] for band in order[:bands]])
        taps = np.stack([plan.row_taps[band, rows[i]] for i, band in enumerate(order[:bands])])
        size = images * bands * lanes * cols * chunks
        run = max(1, BLOCK_ELEMENTS // (size * width))
        piece = width if run > 1 else max(1, BLOCK_ELEMENTS // size)
        for first in range(0, rows.shape[1], run):
            here = rows[:, first : first + run]
            for column in range(0, width, piece):
                across = slice(column, column + piece)
                met = taps[:, first : first + run, None] * plan.col_taps[across]
                lc = load.cycles[:, here, across]
                values = load.values[:, here, across]
                mac = table[met[..., None, None], values]
                _count_psums(totals["psum_updates"], mac, values, met, arch.macs, outs if padded == 1 else 1)
                lc, mac = (_entries_first(block, lanes, cols, kind) for block in (lc, mac))
                state.advance(lc, mac, load.per_push)
        ending = order[np.flatnonzero(lengths[order] == length)]
        bands -= len(ending)
        _close(state, totals, time, ending, bands, weight)
        state.keep(bands)
        begin = int(length)
    return ItemTimes(time, **totals)


def _in_use(outs: int, rows: int) -> Counts:
    """1 for every (row, group) with an output channel."""
    index = np.arange(rows)[:, None] + rows * np.arange(-(-outs // rows))
    return (index < outs).astype(np.int64)


def _entries_first(
    block: npt.NDArray[np.integer], lanes: int, groups: int, kind: np.dtype[np.signedinteger]
) -> Times:
    """(images, bands, rows, columns, parts, K) to (entries, rows of a group, images, bands, groups)."""
    images, bands, rows, columns, parts, outs = block.shape
    if outs == 1:
        block = np.broadcast_to(block, (*block.shape[:-1], lanes * groups))
    split = block.reshape(images, bands, rows, columns, parts, groups, lanes)
    moved = split.transpose(2, 3, 4, 6, 0, 1, 5).astype(kind, order="C")
    return moved.reshape(rows * columns * parts, lanes, images, bands, groups)


def _count_psums(
    total: Counts,
    mac: Times,
    values: npt.NDArray[np.integer],
    taps: Counts,
    macs: int,
    times: int,
) -> None:
    """Partial-sum updates: t a cycle if the taps fit the MACs, otherwise one a product."""
    cycles = mac.sum(axis=-1, dtype=np.int64)
    each = values.sum(axis=-1, dtype=np.int64)
    t = taps[..., None]
    total += times * np.where(t <= macs, cycles * t, each * t).sum(axis=(1, 2, 3, 4))


def _close(
    state: _Rows, totals: dict[str, Counts], time: Counts, ending: Counts, first: int, weight: Counts
) -> None:
    """Book the bands ``ending``, the last ones of the state from ``first`` on."""
    finish = state.finish[:, :, first:].astype(np.int64)
    mdone = state.mdone[:, :, first:].astype(np.int64)
    busy, waited = state.lc_busy[:, :, first:], state.wait_fifo[:, :, first:]
    mac_busy = state.mac_busy[:, :, first:]
    time[:, ending] = mdone.max(axis=0)
    use = weight[:, None, None, :]
    for name, part in {
        "lc_busy": busy,
        "lc_wait_input": np.ones_like(busy),
        "lc_wait_row": finish - 1 - busy - waited,
        "lc_wait_fifo": waited,
        "mac_busy": mac_busy,
        "mac_wait_lc": mdone - mac_busy,
    }.items():
        totals[name] += (part * use).sum(axis=(0, 2, 3))
