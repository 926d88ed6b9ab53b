"""Which channels of a network can go without changing its outputs, as functions on arrays.

All channels of all maps are numbered through. *Ties* name channels that only exist together (both sides of a
residual addition, what goes into an activation and what comes out). A *link* is a convolution: output channel
k needs input channel c where ``needs[k, c]``. *Pinned* channels are never touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Float = NDArray[np.float64]


@dataclass(frozen=True)
class Link:
    """A convolution between numbered channels.

    Attributes:
        inputs: (C,) numbers of its input channels.
        outputs: (K,) numbers of its output channels.
        needs: (K, C) True where an output cannot do without an input.
    """

    inputs: Ints
    outputs: Ints
    needs: Bools


def tied_groups(count: int, ties: Array) -> Ints:
    """The group of each of ``count`` channels: the smallest channel number it is tied to, directly or not.

    Args:
        count: number of channels.
        ties: (T, 2) pairs of channel numbers.
    """
    group = np.arange(count)
    a, b = np.asarray(ties, dtype=np.int64).reshape(-1, 2).T
    while True:
        smaller = np.minimum(group[a], group[b])
        if (group[a] == smaller).all() and (group[b] == smaller).all():
            return group
        for side in (a, b):
            # both the channel and the head of its group learn of the smaller number
            np.minimum.at(group, group[side], smaller)
            np.minimum.at(group, side, smaller)
        group = group[group]


def live_channels(
    count: int, ties: Array, links: Sequence[Link], pinned: Bools, maps: Sequence[Ints]
) -> Bools:
    """The channels that must stay.

    Starts from all channels and removes whole groups that no living output needs, until nothing changes; each
    round may free others. A map always keeps a channel: machines and formats know no empty maps.

    Args:
        count: number of channels.
        ties: (T, 2) pairs of channels that stay or go together.
        links: the convolutions.
        pinned: (count,) channels that stay whatever happens.
        maps: the channel numbers of each map.

    Returns:
        bool (count,).
    """
    group = tied_groups(count, ties)
    kept = pinned.copy()
    while True:
        live = _needed(group, links, kept)
        empty = [numbers[0] for numbers in maps if not live[numbers].any()]
        if not empty:
            return live
        kept[empty] = True


def _needed(group: Ints, links: Sequence[Link], kept: Bools) -> Bools:
    live = np.ones(len(group), dtype=np.bool_)
    while True:
        needed = kept.copy()
        for link in links:
            needed[link.inputs] |= link.needs[live[link.outputs]].any(axis=0)
        by_group = np.zeros(len(group), dtype=np.bool_)
        by_group[group[needed]] = True
        after = live & by_group[group]
        if (after == live).all():
            return live
        live = after


def foldable(inputs: Float, padded: bool) -> Bools:
    """(C,) constant channels that a convolution sees alike at every position, so that their share can move
    into its bias: any constant where no zeros are padded, only zero where they are.

    Args:
        inputs: (C,) constant value of each channel, NaN where it varies.
        padded: the convolution pads zeros.
    """
    return (inputs == 0.0) if padded else ~np.isnan(inputs)


def constant_sums(nonzero: Bools, sums: Float, bias: Float, inputs: Float, padded: bool) -> Float:
    """(K,) the constant value of each convolution output before residual and activation, NaN where it varies.

    Args:
        nonzero: (K, C) True where the kernel has a non-zero weight.
        sums: (K, C) sum of each kernel's weights.
        bias: (K,).
        inputs, padded: as in :func:`foldable`.
    """
    fixed = foldable(inputs, padded)
    value = bias + np.where(nonzero[:, fixed], sums[:, fixed], 0.0) @ inputs[fixed]
    return np.where((nonzero & ~fixed).any(axis=1), np.nan, value)
