"""Time of the items of a convolution: producer, ring buffer, rows, FIFOs and MAC parts as max-plus equations.

Per item, with D ring entries and F FIFO positions, entry e, push i, over the rows of the group:

    arrival(e) = max(arrival(e-1) + 1, release(e-D)), arrival(0) = 1
    start(e)   = max(arrival(e), finish(e-1));  done(e) = start(e) + lc(e)
    finish(e)  = max(done(e), pop(i-F)) if e is the last entry of push i, done(e) otherwise
    release(e) = max over rows of finish(e)
    pop(i)     = max(finish of i's last entry, mdone(i-1));  mdone(i) = pop(i) + mac(i)

A row works at least one cycle on an entry, hence finish(e-1) >= arrival(e-1) + 1 in every row, and the start
needs no arrival: start(e) = max(release(e-D), finish(e-1)), start(0) = 1. The loop is over the entries; what
does not wait for each other advances together: rows, groups, bands, images, and instructions whose pushes
have equally many entries. Rows without an output channel have no more work than the others; they never are
the last to finish anything, so they may run along.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from escc.backend_sim.simulator.timing.geometry import Plan
from escc.backend_sim.simulator.timing.load import Load
from escc.backend_sim.simulator.timing.work import Counts, TimingArch

Times = npt.NDArray[np.signedinteger]
Unsigned = npt.NDArray[np.unsignedinteger]

# Elements of one array of a block of entries, of which a few live at a time, and of the state that advances
# together: a second-level cache holds it.
BLOCK_ELEMENTS = 1 << 19
TOGETHER = 1 << 14
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


class Queued(NamedTuple):
    """A convolution with ``outs`` outputs: the rows of its bands and their load."""

    plan: Plan
    load: Load
    outs: int


def mac_table(macs: int, most_taps: int, most_values: int) -> Counts:
    """MAC cycles of a push with t taps and n values, as [t, n]; none without either.

    t <= macs: ceil(n / (macs // t)) (several values a cycle); otherwise n * ceil(t / macs).
    """
    taps, values = np.arange(1, most_taps + 1)[:, None], np.arange(most_values + 1)
    together = -(-values // np.maximum(macs // taps, 1))
    table = np.where(taps <= macs, together, values * -(-taps // macs))
    return np.concatenate([np.zeros((1, most_values + 1), dtype=np.int64), table])


@lru_cache(maxsize=256)
def _flat_table(macs: int, most_taps: int, most_values: int) -> Unsigned:
    table = mac_table(macs, most_taps, most_values)
    return table.astype(np.min_scalar_type(table.max())).reshape(-1)


@dataclass(frozen=True)
class _Strip:
    """A band of an image of a convolution, position after position.

    ``lc`` (pushes, entries of a push, K) and ``mac`` (pushes, K): cycles in the LC and MAC parts; K 1: the
    same for all outputs. ``rows`` x ``groups`` outputs advance, ``weight`` (rows, groups) times each.
    ``mac_busy``: MAC cycles of all outputs.
    """

    index: int
    image: int
    band: int
    lc: Unsigned
    mac: Unsigned
    rows: int
    groups: int
    weight: Counts
    mac_busy: int
    kind: np.dtype[np.signedinteger]

    @property
    def pushes(self) -> int:
        return len(self.mac)

    @property
    def alike(self) -> tuple[int, int, str]:
        """What strips that advance together have in common."""
        return self.lc.shape[1], self.rows, self.kind.str

    def by_row(self, cycles: Unsigned) -> Unsigned:
        """``cycles`` (..., K) as (n, rows, groups)."""
        if cycles.shape[-1] == 1:
            return cycles.reshape(-1, 1, 1)
        return cycles.reshape(-1, self.rows, self.groups)


def item_times(arch: TimingArch, plan: Plan, load: Load, outs: int) -> ItemTimes:
    """Times of all items of a convolution with ``outs`` output channels."""
    return items_times(arch, [Queued(plan, load, outs)])[0]


def items_times(arch: TimingArch, convolutions: Sequence[Queued]) -> list[ItemTimes]:
    """Times of all items of every convolution.

    With one load for all outputs (form dense) all rows of all groups do the same at the same time: one row
    stands for them all.
    """
    found: list[ItemTimes] = []
    alike: dict[tuple[int, int, str], list[_Strip]] = {}
    for index, item in enumerate(convolutions):
        images, bands, groups = len(item.load.cycles), len(item.plan.band_rows), -(-item.outs // arch.rows)
        names = list(ItemTimes.__annotations__)[1:]
        time = np.zeros((images, bands, groups), np.int64)
        found.append(ItemTimes(time, **{name: np.zeros(images, np.int64) for name in names}))
        for strip in _strips(arch, index, item, found[-1].psum_updates):
            alike.setdefault(strip.alike, []).append(strip)
    for strips in alike.values():
        # the longest first: those that end are the last ones
        strips.sort(key=lambda strip: -strip.pushes)
        begin = 0
        while begin < len(strips):
            stop, size = begin, 0
            while stop < len(strips) and (stop == begin or size < TOGETHER):
                size += strips[stop].rows * strips[stop].groups
                stop += 1
            _Rows(arch, strips[begin:stop], found).run()
            begin = stop
    return found


def _strips(arch: TimingArch, index: int, item: Queued, psum_updates: Counts) -> list[_Strip]:
    """The strips of a convolution; adds up its partial-sum updates."""
    plan, load, outs = item
    images, _, width, chunks, _ = load.cycles.shape
    pushes, padded = load.values.shape[3:]
    groups = -(-outs // arch.rows)
    rows, cols = (arch.rows, groups) if padded > 1 else (1, 1)
    weight = np.full((1, 1), outs) if padded == 1 else _in_use(outs, arch.rows)
    times = outs if padded == 1 else 1
    most_taps = int(plan.row_taps.max(initial=0) * plan.col_taps.max())
    most_values = int(load.values.max(initial=0))
    table = _flat_table(arch.macs, most_taps, most_values)
    longest = max(len(band) for band in plan.band_rows) * width
    bound = longest * (chunks * int(load.cycles.max(initial=1)) + pushes * int(table.max())) + 1
    kind = np.dtype(np.int32 if bound <= LARGEST_INT32 else np.int64)
    strips: list[_Strip] = []
    for band, here in enumerate(plan.band_rows):
        if not len(here):
            continue
        met = np.repeat((plan.row_taps[band, here][:, None] * plan.col_taps).reshape(-1), pushes)
        whole = slice(int(here[0]), int(here[-1]) + 1)
        part = whole if len(here) == whole.stop - whole.start else here
        for image in range(images):
            lc, values = load.cycles[image, part], load.values[image, part].reshape(-1, padded)
            mac = table.take(values + (met * (most_values + 1)).astype(np.uint32)[:, None])
            of_push = mac.sum(axis=1, dtype=np.int64)
            # t a cycle if the taps fit the MACs, otherwise one a product
            updates = of_push @ met
            if most_taps > arch.macs:
                each = values.sum(axis=1, dtype=np.int64)
                updates = np.where(met <= arch.macs, of_push * met, each * met).sum()
            psum_updates[image] += times * int(updates)
            lc = lc.reshape(-1, load.per_push, lc.shape[-1])
            busy = times * int(of_push.sum())
            strips.append(_Strip(index, image, band, lc, mac, rows, cols, weight, busy, kind))
    return strips


@lru_cache(maxsize=256)
def _in_use(outs: int, rows: int) -> Counts:
    """1 for every (row, group) with an output channel."""
    index = np.arange(rows)[:, None] + rows * np.arange(-(-outs // rows))
    return (index < outs).astype(np.int64)


class _Rows:
    """The rows of strips, the longest first: state and sums in arrays (rows of a group, groups of all)."""

    def __init__(self, arch: TimingArch, strips: Sequence[_Strip], found: Sequence[ItemTimes]) -> None:
        self.strips, self.found = list(strips), found
        self.per_push, self.kind = strips[0].lc.shape[1], strips[0].kind
        self.ends = np.cumsum([strip.groups for strip in strips]).tolist()
        shape = (strips[0].rows, self.ends[-1])
        self.finish: Times = np.ones(shape, self.kind)
        self.mdone: Times = np.zeros(shape, self.kind)
        none: Times = np.zeros((), self.kind)
        self.releases: deque[Times] = deque([none] * arch.ring_entries)
        self.pops: deque[Times] = deque([none] * arch.fifo_positions)
        self.lc_busy: Counts = np.zeros(shape, np.int64)
        self.wait_fifo: Counts = np.zeros(shape, np.int64)

    def run(self) -> None:
        """To the end of all strips."""
        begin = 0
        while self.strips:
            size = self.finish.size * self.per_push
            stop = min(self.strips[-1].pushes, begin + max(1, BLOCK_ELEMENTS // size))
            self._block(begin, stop)
            begin = stop
            ended = len(self.strips)
            while ended and self.strips[ended - 1].pushes == begin:
                ended -= 1
            self._close(ended)

    def _block(self, first: int, stop: int) -> None:
        """Run the pushes first..stop-1."""
        rows, cols = self.finish.shape
        lc = np.empty(((stop - first) * self.per_push, rows, cols), self.kind)
        mac = np.empty((stop - first, rows, cols), self.kind)
        begin = 0
        for strip, end in zip(self.strips, self.ends, strict=True):
            lc[:, :, begin:end] = strip.by_row(strip.lc[first:stop])
            mac[:, :, begin:end] = strip.by_row(strip.mac[first:stop])
            begin = end
        self._advance(lc, mac)

    def _advance(self, lc: Times, mac: Times) -> None:
        """Run entries: ``lc`` (entries, rows, groups) and ``mac`` (entries / per_push, rows, groups)."""
        finish, mdone, releases, pops = self.finish, self.mdone, self.releases, self.pops
        maximum, add, latest, alone = np.maximum, np.add, np.maximum.reduce, lc.shape[1] == 1
        self.lc_busy += add.reduce(lc, axis=0)
        # what has been read of lc and mac makes room for what is written
        done, waited = lc, np.empty_like(mac)
        popped = np.empty_like(mac)
        pushed = np.empty_like(mac)
        released = np.empty((lc.shape[0], lc.shape[2]), lc.dtype)
        spare = np.empty_like(finish)
        entry = 0
        for push, mac_cycles in enumerate(mac):
            for last in range(1 - self.per_push, 1):
                ended = done[entry]
                maximum(finish, releases.popleft(), out=spare)
                add(spare, ended, out=ended)
                if last:
                    finish = ended
                else:
                    finish = maximum(ended, pops.popleft(), out=pushed[push])
                    pop = maximum(finish, mdone, out=popped[push])
                    pops.append(pop)
                    mdone = add(pop, mac_cycles, out=mac_cycles)
                releases.append(finish[0] if alone else latest(finish, axis=0, out=released[entry]))
                entry += 1
        self.finish, self.mdone = finish.copy(), mdone.copy()
        np.subtract(pushed, done[self.per_push - 1 :: self.per_push], out=waited)
        self.wait_fifo += add.reduce(waited, axis=0)

    def _close(self, left: int) -> None:
        """Book the strips from ``left`` on and go on with the others."""
        for number in range(left, len(self.strips)):
            strip = self.strips[number]
            here = slice(self.ends[number] - strip.groups, self.ends[number])
            finish, mdone = self.finish[:, here].astype(np.int64), self.mdone[:, here].astype(np.int64)
            times, image, use = self.found[strip.index], strip.image, strip.weight
            times.time[image, strip.band] = mdone.max(axis=0)
            every = int(use.sum())
            busy = int((self.lc_busy[:, here] * use).sum())
            waited = int((self.wait_fifo[:, here] * use).sum())
            times.lc_busy[image] += busy
            times.lc_wait_input[image] += every
            times.lc_wait_row[image] += int((finish * use).sum()) - every - busy - waited
            times.lc_wait_fifo[image] += waited
            times.mac_busy[image] += strip.mac_busy
            times.mac_wait_lc[image] += int((mdone * use).sum()) - strip.mac_busy
        if left < len(self.strips):
            del self.strips[left:], self.ends[left:]
            self._keep(self.ends[-1] if self.ends else 0)

    def _keep(self, groups: int) -> None:
        """Go on with the first ``groups`` groups only."""

        def cut(array: Times) -> Times:
            return array[..., :groups].copy() if array.ndim else array

        self.finish, self.mdone = cut(self.finish), cut(self.mdone)
        self.releases, self.pops = deque(map(cut, self.releases)), deque(map(cut, self.pops))
        self.lc_busy, self.wait_fifo = self.lc_busy[:, :groups], self.wait_fifo[:, :groups]
