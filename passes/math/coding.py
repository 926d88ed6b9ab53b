"""Exact ternary coding: the best code in {-1, 0, 1}^d for many kernels at once, by enumeration.

A kernel w with projections beta = B w and the bases' Gram matrix G = B B^T is coded by the c that minimises
||w - c B||^2 + 2 mu nnz(c), which is the c that maximises

    c . beta - c G c / 2 - mu nnz(c).

As only the first term changes with the sign of c, half of the codes is enough: |c . beta| takes its place and
the sign is put back afterwards. Without the native library, scores are computed in tiles that stay in cache:
one small matrix product and a running arg max, never an array of all kernels by all codes.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from escc.passes.math import native_coding

Array = NDArray[Any]
Float = NDArray[np.float64]
Codes = NDArray[np.int8]

LARGEST = 9
"""Most bases a code may have (3^9 = 19683 codes)."""

PRODUCT = 1 << 18
"""Multiplications per matrix product: small enough that no BLAS splits one over threads, as the hand-over
takes longer than the product itself (much longer on a busy machine)."""

TOGETHER = 4096
"""About how many kernels are improved together: what they need stays inside the second-level cache."""

BLOCK = 1024
"""Most codes scored by one matrix product."""

TILE = 1 << 17
"""About how many scores (or weights) are in flight: they stay inside the second-level cache."""


@cache
def codewords(bases: int) -> Codes:
    """Half of the ternary codes of a length: of c and -c the one whose first non-zero entry is positive.

    Sorted by number of non-zeros, so that of equally good codes the sparsest is found first.

    Returns:
        int8 ((3**bases + 1) / 2, bases), read-only; row 0 is the zero code.

    Raises:
        ValueError: more than 9 bases.
    """
    if not 1 <= bases <= LARGEST:
        raise ValueError(f"exact coding takes 1 to {LARGEST} bases, not {bases}")
    every = np.array(list(itertools.product((0, 1, -1), repeat=bases)), dtype=np.int8)
    leading = every[np.arange(len(every)), (every != 0).argmax(axis=1)]
    half = every[leading >= 0]
    half = np.ascontiguousarray(half[np.argsort((half != 0).sum(axis=1), kind="stable")])
    half.flags.writeable = False
    return half


def encode(beta: Array, gram: Array, penalty: Array) -> Codes:
    """The best code of every kernel, exactly (in float32), by the native library where it was built.

    Args:
        beta: (K, C, d) projections of the kernels of output channel k, in units of that channel's scale.
        gram: (d, d) Gram matrix of the bases.
        penalty: (K,) cost mu of a non-zero for each output channel, in the same units squared.

    Returns:
        int8 (K, C, d).
    """
    table = codewords(beta.shape[2])
    energy = 0.5 * np.einsum("jm,jm->j", table @ np.asarray(gram, dtype=np.float64), table)
    found = native_coding.encode(beta, penalty, table, energy.astype(np.float32))
    return encode_numpy(beta, energy, penalty) if found is None else found


def encode_numpy(beta: Array, energy: Array, penalty: Array) -> Codes:
    """:func:`encode` with half of each code's energy, (J,), in place of the Gram matrix: the definition."""
    outputs, inputs, bases = beta.shape
    table, columns, count = _blocks(bases)
    blocks, _, width = columns.shape
    half_energy = np.full(blocks * width, np.inf, dtype=np.float32)
    half_energy[: len(table)] = energy
    half_energy = half_energy.reshape(blocks, 1, width)
    rows = max(TILE // (blocks * width), 1)
    # whole outputs side by side, or an even part of one
    together, step = max(rows // inputs, 1), -(-inputs // -(-inputs // rows))
    product = max(PRODUCT // (bases * width), 1)
    scores = np.empty(blocks * together * step * width, dtype=np.float32)
    best = np.empty((outputs, inputs), dtype=np.intp)
    for first in range(0, outputs, together):
        mu = np.asarray(penalty[first : first + together], dtype=np.float32)
        offset = (half_energy + mu[:, None] * count)[:, :, None, :]
        for start in range(0, inputs, step):
            part = beta[first : first + together, start : start + step]
            flat = np.ascontiguousarray(part, dtype=np.float32).reshape(-1, bases)
            tile = scores[: blocks * len(flat) * width].reshape(blocks, len(flat), width)
            for at in range(0, len(flat), product):
                np.matmul(flat[at : at + product], columns, out=tile[:, at : at + product])
            np.abs(tile, out=tile)
            by_output = tile.reshape(blocks, *part.shape[:2], width)
            np.subtract(by_output, offset, out=by_output)
            best[first : first + together, start : start + step] = _best(tile).reshape(part.shape[:2])
    codes = table[best]
    real = table.astype(np.float32)
    for first in range(0, outputs, step := max(TOGETHER // inputs, 1)):
        here = slice(first, first + step)
        match = np.einsum("kcm,kcm->kc", np.asarray(beta[here], dtype=np.float32), real[best[here]])
        codes[here] *= np.where(match < 0, -1, 1).astype(np.int8)[..., None]
    return codes


def encode_single(values: Array, bases: Array, penalty: Array) -> Codes:
    """:func:`encode` for kernels of one weight, many times faster (see :class:`Lines`).

    Args:
        values: (K, C) weights, those of output channel k in units of its scale.
        bases: (d,) the bases' only taps.
        penalty: (K,) cost mu of a non-zero for each output channel, in the same units squared.

    Returns:
        int8 (K, C, d).
    """
    lines = Lines(bases, penalty)
    return pick(values, lines.codes, lines.starts)


class Lines:
    """The best codes of kernels of one weight, as a function of the weight.

    The score of a code is the line c B of slope, less its price, over the weight's size; the best codes are
    the upper envelope of the lines.

    Attributes:
        codes: int8 (J, d), those that may be best for some output, c B >= 0 rising.
        starts: float64 (K, J), the size from which on each is the best for output k: it ends where the next
            one starts, at its own start if it is the best nowhere.
    """

    def __init__(self, bases: Array, penalty: Array) -> None:
        """
        Args:
            bases: (d,) the bases' only taps.
            penalty: (K,) cost mu of a non-zero.
        """
        table = codewords(len(bases))
        sums = table @ np.asarray(bases, dtype=np.float64)
        # of codes of one sum the sparsest comes first, and is the best
        slopes, first = np.unique(np.abs(sums), return_index=True)
        codes = table[first] * np.where(sums[first] < 0, -1, 1)[:, None]
        size, mu = np.count_nonzero(codes, axis=1), np.asarray(penalty, dtype=np.float64)
        kept = _on_top(slopes, 0.5 * slopes**2, size, float(mu.min()), float(mu.max()))
        self.codes = codes[kept].astype(np.int8)
        slopes = slopes[kept]
        self.starts = _starts(slopes, 0.5 * slopes[:, None] ** 2 + np.multiply.outer(size[kept], mu))


def pick(values: Array, codes: Codes, starts: Array) -> Codes:
    """The codes (K, C, d) of weights (K, C) by size: codes[j] from starts[k, j] on, of the weight's sign.

    Args:
        values: (K, C).
        codes, starts: as in :class:`Lines`, the starts in units of the values.
    """
    table = np.concatenate([codes, -codes])
    found = np.empty((*values.shape, table.shape[1]), dtype=np.int8)
    first = starts.astype(values.dtype)
    count = np.uint8 if len(codes) <= 256 else np.int16
    together = max(TILE // max(values.shape[1], 1), 1)
    for at in range(0, len(values), together):
        here = slice(at, at + together)
        sizes = np.abs(values[here])
        place = np.zeros(sizes.shape, dtype=count)
        for start in first[here, 1:].T:
            # seen as bytes: a sum with booleans would convert them first
            place += (sizes >= start[:, None]).view(np.uint8)
        index = place + np.where(values[here] < 0, len(codes), 0)
        found[here] = np.take(table, index, axis=0)
    return found


def _on_top(slopes: Float, base: Float, size: NDArray[np.intp], low: float, high: float) -> NDArray[np.intp]:
    """Of lines of rising slope and price base + mu * size, those that may be the highest anywhere (x >= 0)
    for any mu from ``low`` to ``high``.

    A line below the chord of two others at both ends is below it in between, since prices are linear in mu.
    """
    lowest, highest = base + low * size, base + high * size
    kept = np.ones(len(slopes), dtype=np.bool_)
    for price in (lowest, highest):
        hull = np.array(_hull(slopes.tolist(), price.tolist()))
        right = np.searchsorted(hull, np.arange(len(slopes)))
        corner = hull[np.minimum(right, len(hull) - 1)] == np.arange(len(slopes))
        inner = ~corner & (right < len(hull))
        after, before = hull[np.minimum(right, len(hull) - 1)], hull[np.maximum(right - 1, 0)]
        span = np.where(inner, slopes[after] - slopes[before], 1.0)
        share = (slopes - slopes[before]) / span
        for other in (lowest, highest):
            inner &= other > (1.0 - share) * other[before] + share * other[after]
        kept &= ~inner
    return np.flatnonzero(kept)


def _hull(slopes: list[float], price: list[float]) -> list[int]:
    """Corners of the lower convex hull of points (slope, price), from the first to the last."""
    hull: list[int] = []
    for index, (x, y) in enumerate(zip(slopes, price, strict=True)):
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (price[b] - price[a]) * (x - slopes[a]) < (y - price[a]) * (slopes[b] - slopes[a]):
                break
            hull.pop()
        hull.append(index)
    return hull


def _starts(slopes: Float, price: Float) -> Float:
    """Where each line slope * x - price becomes the highest, for x >= 0: (K, lines).

    ``slopes`` (lines,) rise, ``price`` is (lines, K). A line that is nowhere the highest starts where
    the next one does.
    """
    begin = np.zeros(price.shape)
    np.maximum(np.diff(price, axis=0) / np.diff(slopes)[:, None], 0.0, out=begin[1:])
    # where neighbours cross one after the other, each is the highest in between
    crossed = np.flatnonzero((np.diff(begin, axis=0) <= 0).any(axis=0))
    if len(crossed):
        begin[:, crossed] = _starts_of_any(slopes, price[:, crossed])
    return np.ascontiguousarray(begin.T)


def _starts_of_any(slopes: Float, price: Float) -> Float:
    """As :func:`_starts`, of lines in any position; (lines, K)."""
    begin, end = np.zeros(price.shape), np.full(price.shape, np.inf)
    for line in range(len(slopes) - 1):
        # steeper lines overtake this one where the prices' difference is made up for
        crossing = (price[line + 1 :] - price[line]) / (slopes[line + 1 :, None] - slopes[line])
        end[line] = crossing.min(axis=0)
        np.maximum(begin[line + 1 :], crossing, out=begin[line + 1 :])
    begin[begin >= end] = np.inf
    return np.minimum.accumulate(begin[::-1], axis=0)[::-1]


def _best(scores: NDArray[np.float32]) -> NDArray[np.intp]:
    """Index of the largest of scores (blocks, rows, width) for each row, counted over all blocks."""
    inside = scores.argmax(axis=2)
    if len(scores) == 1:
        return inside[0]
    block = np.take_along_axis(scores, inside[:, :, None], axis=2)[:, :, 0].argmax(axis=0)
    return block * scores.shape[2] + inside[block, np.arange(len(block))]


@cache
def _blocks(bases: int) -> tuple[Codes, NDArray[np.float32], NDArray[np.float32]]:
    """Codewords; the same as columns (blocks, bases, width), padded with zero codes; their non-zeros."""
    table = codewords(bases)
    blocks = -(-len(table) // BLOCK)
    width = -(-len(table) // blocks)
    padded = np.zeros((blocks * width, bases), dtype=np.float32)
    padded[: len(table)] = table
    columns = np.ascontiguousarray(padded.reshape(blocks, width, bases).transpose(0, 2, 1))
    return table, columns, np.abs(columns).sum(axis=1, keepdims=True)


def descend(beta: Array, gram: Array, penalty: Array, codes: Codes, sweeps: int = 1) -> Codes:
    """Improve codes entry by entry (each the best given the others); arguments as in :func:`encode`.

    Returns:
        int8 (K, C, d), one basis after the other in memory.
    """
    outputs, inputs, bases = beta.shape
    square = np.asarray(gram, dtype=np.float32)
    own = np.diag(square).copy()
    others = square - np.diag(own)
    price = np.asarray(penalty, dtype=np.float32)
    # one row per basis: every step then runs over memory in order
    given, before = beta.transpose(2, 0, 1), codes.transpose(2, 0, 1)
    found = np.empty((bases, outputs, inputs), dtype=np.int8)
    together = max(TOGETHER // max(inputs, 1), 1)
    for first in range(0, outputs, together):
        here = slice(first, first + together)
        wanted = np.array(given[:, here], dtype=np.float32, order="C").reshape(bases, -1)
        current = np.array(before[:, here], dtype=np.float32, order="C").reshape(bases, -1)
        mu = np.repeat(price[here], inputs)
        two = np.empty((2, len(mu)), dtype=np.float32)
        for _ in range(sweeps):
            for m in range(bases):
                # of two equal rows: one alone would be a matrix times a vector, which BLAS gives to threads
                np.matmul(others[[m, m]], current, out=two)
                alone = np.subtract(wanted[m], two[0], out=two[0])
                least = np.add(mu, 0.5 * own[m], out=two[1])
                more = (alone > least).view(np.int8)
                less = (alone < np.negative(least, out=least)).view(np.int8)
                current[m] = np.subtract(more, less, out=more)
        found[:, here] = current.reshape(bases, -1, inputs)
    return found.transpose(1, 2, 0)


def code_costs(beta: Array, gram: Array, penalty: Array, codes: Codes) -> Float:
    """(K, C): c G c / 2 + mu nnz(c) - c . beta of each kernel, in double precision (0 for the zero code)."""
    values = codes.astype(np.float64)
    energy = np.einsum("kcm,kcm->kc", values @ np.asarray(gram, dtype=np.float64), values)
    match = np.einsum("kcm,kcm->kc", values, np.asarray(beta, dtype=np.float64))
    return 0.5 * energy + np.asarray(penalty)[:, None] * (codes != 0).sum(axis=2) - match
