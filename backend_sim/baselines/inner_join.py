"""Cycles of SparTen's inner joins: counts of matches by matrix products of masks, then the waits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from escc.backend_sim.baselines.counting import Counts, blocks, ceil_div, window
from escc.backend_sim.baselines.workload import ConvWork, Mask

SHALLOW = 16
"""With fewer input channels than this (first layers, depthwise) chunks run on over the taps of a window."""

Reals = npt.NDArray[np.float32]
Chunk = tuple[Reals, Mask]


@dataclass(frozen=True)
class Cut:
    """Output positions cut into ``pieces`` runs of ``length``, the last one shorter."""

    positions: int
    pieces: int
    length: int


def cut_positions(positions: int, groups: int, clusters: int) -> Cut:
    """The cut whose pieces, times ``groups`` of filters, share out best over the clusters."""

    def most(pieces: int) -> int:
        return ceil_div(groups * pieces, clusters) * ceil_div(positions, pieces)

    # of equally good cuts the one with the longest pieces
    length = ceil_div(positions, min(range(1, min(positions, clusters) + 1), key=most))
    return Cut(positions, ceil_div(positions, length), length)


def window_chunks(work: ConvWork, groups: slice, size: int, *, ones_w: bool, ones_x: bool) -> Iterator[Chunk]:
    """Chunks of the window in order: masks of weights (g, K / g, n) and of inputs (g, n, positions).

    A chunk holds up to ``size`` channels of one tap, or of several taps where there are few channels.
    ``ones_w``, ``ones_x``: no zero of this side is skipped; then one position stands for all.
    """
    outs, chans, kernel_h, kernel_w = work.weight.shape
    _, rows, columns = work.output_shape
    map_mask = work.padded_mask.reshape(work.groups, chans, *work.padded_mask.shape[1:])[groups]
    weight = work.weight_mask.reshape(work.groups, outs // work.groups, chans, kernel_h, kernel_w)[groups]
    weight = np.ones_like(weight) if ones_w else weight
    count = len(map_mask)

    def reads(i: int, j: int, part: slice) -> Mask:
        if ones_x:
            return np.ones((count, len(range(chans)[part]), 1), np.bool_)
        across = window(j, columns, work.stride[1], work.dilation[1])
        taken = map_mask[:, part, window(i, rows, work.stride[0], work.dilation[0]), across]
        return taken.reshape(count, -1, rows * columns)

    taps = [(i, j) for i in range(kernel_h) for j in range(kernel_w)]
    if chans >= SHALLOW:
        for i, j in taps:
            for part in blocks(chans, size):
                yield weight[:, :, part, i, j].astype(np.float32), reads(i, j, part)
        return
    inputs = np.concatenate([reads(i, j, slice(None)) for i, j in taps], axis=1)
    flat = weight.transpose(0, 1, 3, 4, 2).reshape(count, outs // work.groups, -1)
    for part in blocks(flat.shape[2], size):
        yield flat[:, :, part].astype(np.float32), inputs[:, part]


def unit_costs(chunks: Iterator[Chunk], units: int, balance: str, cut: Cut) -> Reals:
    """Cycles of every unit for every chunk: (chunks, length, pieces, filter groups, units).

    A filter takes max(1, matches) cycles; with ``balance`` a unit has two. Positions that the last piece
    lacks, and filters that the last group lacks, take none. One position (no zeros of the input are
    skipped) stays one.
    """
    held = list(chunks)
    sets = len(held[0][0])
    positions = held[0][1].shape[2]
    first, second = _assign(
        np.stack([weights.sum(axis=2).reshape(-1) for weights, _ in held]), units, balance
    )
    groups = first.shape[1] // units
    pieces, length = (cut.pieces, cut.length) if positions == cut.positions else (1, 1)
    found = np.empty((len(held), length, pieces, groups, units), np.float32)
    for number, (weights, inputs) in enumerate(held):
        # pieces side by side, their positions one after the other
        spread = np.zeros((sets, inputs.shape[1], pieces * length), np.float32)
        spread[:, :, :positions] = inputs
        turned = np.ascontiguousarray(spread.reshape(sets, -1, pieces, length).swapaxes(2, 3))
        turned = turned.reshape(sets, -1, length * pieces)
        flat = found[number].reshape(length * pieces, -1)
        _count(weights, turned, first[number], flat)
        if second is not None:
            more = np.empty_like(flat)
            _count(weights, turned, second[number], more)
            flat += more
    lacking = pieces * length - positions
    if lacking:
        found[:, length - lacking :, -1] = 0
    return found


def _count(weights: Reals, inputs: Reals, filters: Counts, out: Reals) -> None:
    """max(1, matches) at every position of the given filters, 0 for those that are not there."""
    sets, outs = weights.shape[:2]
    absent = filters == sets * outs
    chosen = np.where(absent, 0, filters)
    if sets == 1:
        np.matmul(inputs[0].T, weights[0, chosen].T, out=out)
    else:
        out[:] = (weights @ inputs).reshape(sets * outs, -1)[chosen].T
    np.maximum(out, 1, out=out)
    out[:, absent] = 0


def _assign(nonzeros: Reals, units: int, balance: str) -> tuple[Counts, Counts | None]:
    """The filter (or two) of every unit for every chunk, (chunks, groups * units); K stands for none.

    ``nonzeros``: of every chunk and filter, (chunks, K).
    """
    count, outs = nonzeros.shape
    if balance == "none":
        first = _padded(np.arange(outs), units, outs)
        return np.broadcast_to(first, (count, len(first))), None
    # densest with sparsest, second with second, ...; 2 * units filters make a group
    order = np.argsort(-nonzeros.sum(axis=0), kind="stable")
    half = ceil_div(outs, 2)
    first = _padded(order[:half], units, outs)
    second = np.full_like(first, outs)
    second[: outs - half] = order[half:][::-1]
    if balance == "gb-s":
        return np.broadcast_to(first, (count, len(first))), np.broadcast_to(second, (count, len(second)))
    # the same groups, paired anew for every chunk by its own densities; who is absent counts as empty
    densities = np.concatenate([nonzeros, np.full((count, 1), -1, nonzeros.dtype)], axis=1)
    members = np.concatenate([first.reshape(-1, units), second.reshape(-1, units)], axis=1)
    ranked = np.argsort(-densities[:, members], axis=2, kind="stable")
    chosen = np.take_along_axis(np.broadcast_to(members, ranked.shape), ranked, axis=2)
    return chosen[:, :, :units].reshape(count, -1), chosen[:, :, : units - 1 : -1].reshape(count, -1)


def _padded(values: Counts, size: int, fill: int) -> Counts:
    return np.concatenate([values, np.full(-len(values) % size, fill, values.dtype)])


def piece_times(costs: Reals, cut: Cut, lead: int) -> Counts:
    """Cycles of every (filter group, piece) on a cluster of its own.

    A chunk is broadcast when all units have done the one ``lead`` before it; a unit starts it when it has
    done its last one.
    """
    chunks, length, pieces, groups, units = costs.shape
    constant = length == pieces == 1 and cut.positions > 1
    finish = np.zeros((pieces, groups, units))
    gates = [np.zeros((pieces, groups, 1)) for _ in range(lead)]
    ends = np.zeros((cut.length + 1, pieces, groups))
    turn = 0
    for position in range(cut.length):
        for number in range(chunks):
            gate = gates[turn]
            np.maximum(finish, gate, out=finish)
            finish += costs[number, 0 if constant else position]
            np.maximum.reduce(finish, axis=2, out=gate, keepdims=True)
            turn = (turn + 1) % lead
        ends[position + 1] = gates[turn - 1][..., 0]
    if not constant:
        return ends[-1].T.astype(np.int64)
    lengths = [min(cut.length, cut.positions - n * cut.length) for n in range(cut.pieces)]
    return ends[lengths, 0].T.astype(np.int64)


def total(costs: Reals) -> int:
    """Cycles of all units together; exact, as the sums over units are below 2^24."""
    return int(costs.sum(axis=4).sum(dtype=np.float64))
