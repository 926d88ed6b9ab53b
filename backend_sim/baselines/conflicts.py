"""What SCNN multiplies in a step, and the accumulator banks its products fall into."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from escc.backend_sim.baselines.counting import Counts, ceil_div
from escc.backend_sim.baselines.workload import ConvWork

Places = npt.NDArray[np.intp]


class Vectors:
    """Non-zeros of a layer by channel and phase, weights by group, activations by tile.

    A product lands on an output only if the phases (place mod stride) of its operands fit; only those
    meet. Weights of a channel are in the order (r, s, k), activations in row-major order.
    """

    def __init__(
        self, work: ConvWork, weights: int, activations: int, tile_h: int, tile_w: int, held: int, sets: int
    ) -> None:
        self.work = work
        self.lanes = (weights, activations)
        self.tile = (tile_h, tile_w)
        self.outs = work.weight.shape[0] // work.groups
        self.per_set = ceil_div(self.outs, sets)
        self.held = held
        _, height, width = work.x.shape
        _, _, kernel_h, kernel_w = work.weight.shape
        # padded places of activations and taps, whose difference is stride * output
        self.places = (np.arange(height) + work.padding[0], np.arange(width) + work.padding[1])
        self.taps = (np.arange(kernel_h) * work.dilation[0], np.arange(kernel_w) * work.dilation[1])
        self.phases = [
            (row, column)
            for row in sorted(set(self.taps[0] % work.stride[0]))
            for column in sorted(set(self.taps[1] % work.stride[1]))
        ]

    @cached_property
    def groups(self) -> list[list[slice]]:
        """Output channels (of a convolution's group) by set and group; a set with fewer has empty ones."""
        count = ceil_div(self.per_set, self.held)
        found: list[list[slice]] = []
        for first in range(0, self.outs, self.per_set):
            last = min(first + self.per_set, self.outs)
            starts = [min(first + number * self.held, last) for number in range(count + 1)]
            found.append([slice(low, high) for low, high in pairwise(starts)])
        return found

    @cached_property
    def weight_counts(self) -> Counts:
        """Non-zero weights, (C, sets, groups, phases)."""
        work = self.work
        mask = work.weight_mask.reshape(work.groups, self.outs, *work.weight.shape[1:])
        found = np.empty((work.x.shape[0], len(self.groups), len(self.groups[0]), len(self.phases)), np.int64)
        for number, (rows, columns) in enumerate(self._phase_places(self.taps)):
            part = mask[:, :, :, rows][..., columns].sum(axis=(3, 4))
            for place, groups in enumerate(self.groups):
                for group, chans in enumerate(groups):
                    found[:, place, group, number] = part[:, chans].sum(axis=1).reshape(-1)
        return found

    @cached_property
    def tile_counts(self) -> Counts:
        """Non-zero activations, (C, tiles down, tiles across, phases)."""
        mask = self.work.x_mask
        chans, height, width = mask.shape
        shape = (ceil_div(height, self.tile[0]), ceil_div(width, self.tile[1]))
        found = np.empty((chans, *shape, len(self.phases)), np.int64)
        for number, (rows, columns) in enumerate(self._phase_places(self.places)):
            part = mask[:, rows][:, :, columns] if len(self.phases) > 1 or self._strided else mask
            part = _tiled(part, rows // self.tile[0], shape[0], 1)
            found[..., number] = _tiled(part, columns // self.tile[1], shape[1], 2)
        return found

    @property
    def _strided(self) -> bool:
        return max(self.work.stride) > 1

    def _phase_places(self, places: tuple[Places, Places]) -> list[tuple[Places, Places]]:
        """Indices (rows, columns) of the places of each phase."""
        stride = self.work.stride
        return [
            (np.flatnonzero(places[0] % stride[0] == row), np.flatnonzero(places[1] % stride[1] == column))
            for row, column in self.phases
        ]

    def pairs(self) -> int:
        """How many (channel, set, group, tile down, tile across) there are."""
        return int(np.prod(self.weight_counts.shape[:3]) * np.prod(self.tile_counts.shape[1:3]))

    def place(self, index: int) -> tuple[int, ...]:
        """The pair of a number below `pairs`."""
        shape = (*self.weight_counts.shape[:3], *self.tile_counts.shape[1:3])
        return tuple(int(part) for part in np.unravel_index(index, shape))

    def operands(self, place: tuple[int, ...], phase: int) -> tuple[Counts, Counts]:
        """Non-zeros that meet, in padded places: weights (n, 3) as k, row, column; activations (n, 2)."""
        channel, part, group, down, across = place
        work = self.work
        first = channel // work.weight.shape[1] * self.outs
        chans = self.groups[part][group]
        rows, columns = self._phase_places(self.taps)[phase]
        held = work.weight_mask[first + chans.start : first + chans.stop, channel % work.weight.shape[1]]
        r, s, k = np.nonzero(held[:, rows][:, :, columns].transpose(1, 2, 0))
        weights = np.stack([k, self.taps[0][rows[r]], self.taps[1][columns[s]]], axis=1)
        rows, columns = self._phase_places(self.places)[phase]
        rows = rows[rows // self.tile[0] == down]
        columns = columns[columns // self.tile[1] == across]
        y, x = np.nonzero(work.x_mask[channel, rows][:, columns])
        return weights, np.stack([self.places[0][rows[y]], self.places[1][columns[x]]], axis=1)


def _tiled(mask: npt.NDArray[np.generic], tiles: Places, count: int, axis: int) -> Counts:
    """Sums along an axis over runs of equal tile number, 0 for tiles without a place."""
    edges = np.searchsorted(tiles, np.arange(count + 1))
    sums = np.cumsum(mask, axis=axis, dtype=np.int32)
    none = np.zeros([1 if n == axis else size for n, size in enumerate(sums.shape)], np.int32)
    return np.diff(np.take(np.concatenate([none, sums], axis=axis), edges, axis=axis), axis=axis)


def bank(k: Counts, row: Counts, column: Counts, banks: int) -> Counts:
    """The accumulator bank of an output: low bits of its channel and place side by side, the next folded in.

    The interleaving that the public DNNsim model of SCNN uses for 32 banks.
    """
    low = (k & 3) | ((row & 1) << 2) | ((column & 1) << 3)
    folded = ((k >> 2) ^ (row >> 1) ^ (column >> 1)) & 1
    return (low | (folded << 4)) % banks


def extra_cycles(vectors: Vectors, place: tuple[int, ...], banks: int, queued: bool) -> int:
    """Cycles beyond one a step that an element spends on a channel of a group because banks collide.

    A step multiplies a vector of weights with a vector of activations; products outside the map go
    nowhere. Without queues a step takes as many cycles as there are products in the fullest bank. With
    queues products wait for their bank while later steps go on: all steps together take as many cycles
    as the fullest bank has products, where that is more than the steps.
    """
    work = vectors.work
    _, height, width = work.output_shape
    lanes_w, lanes_a = vectors.lanes
    extra = total = 0
    load = np.zeros(banks, np.int64)
    for phase in range(len(vectors.phases)):
        weights, activations = vectors.operands(place, phase)
        if not len(weights) or not len(activations):
            continue
        row = (activations[:, None, 0] - weights[None, :, 1]) // work.stride[0]
        column = (activations[:, None, 1] - weights[None, :, 2]) // work.stride[1]
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        target = bank(np.broadcast_to(weights[None, :, 0], row.shape), row, column, banks)
        across = ceil_div(len(weights), lanes_w)
        steps = ceil_div(len(activations), lanes_a) * across
        total += steps
        if queued:
            load += np.bincount(target[inside], minlength=banks)
            continue
        step = (np.arange(len(activations)) // lanes_a)[:, None] * across + np.arange(len(weights)) // lanes_w
        fill = np.bincount((step * banks + target)[inside], minlength=steps * banks).reshape(steps, banks)
        extra += int(np.maximum(fill.max(axis=1) - 1, 0).sum())
    return max(0, int(load.max()) - total) if queued else extra
