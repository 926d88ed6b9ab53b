"""Exact ternary coding: the best code in {-1, 0, 1}^d for many kernels at once, by enumeration.

A kernel w with projections beta = B w and the bases' Gram matrix G = B B^T is coded by the c that minimises
||w - c B||^2 + 2 mu nnz(c), which is the c that maximises

    c . beta - c G c / 2 - mu nnz(c).

As only the first term changes with the sign of c, half of the codes is enough: |c . beta| takes its place and
the sign is put back afterwards. Scores are computed in tiles that stay in cache: one small matrix product and
a running arg max, never an array of all kernels by all codes.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Float = NDArray[np.float64]
Codes = NDArray[np.int8]

LARGEST = 9
"""Most bases a code may have (3^9 = 19683 codes)."""

PRODUCT = 1 << 18
"""Multiplications per matrix product: small enough that no BLAS splits one over threads, as the hand-over
takes longer than the product itself (much longer on a busy machine)."""

BLOCK = 1024
"""Most codes scored by one matrix product; the scores in flight stay inside the second-level cache."""


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
    """The best code of every kernel, exactly (in float32).

    Args:
        beta: (K, C, d) projections of the kernels of output channel k, in units of that channel's scale.
        gram: (d, d) Gram matrix of the bases.
        penalty: (K,) cost mu of a non-zero for each output channel, in the same units squared.

    Returns:
        int8 (K, C, d).
    """
    outputs, inputs, bases = beta.shape
    table, columns, count = _blocks(bases)
    blocks, _, width = columns.shape
    energy = np.einsum("jm,jm->j", table @ np.asarray(gram, dtype=np.float64), table)
    half_energy = np.full(blocks * width, np.inf, dtype=np.float32)
    half_energy[: len(table)] = 0.5 * energy
    half_energy = half_energy.reshape(blocks, 1, width)
    rows = max(PRODUCT // (bases * width), 1)
    together, step = max(rows // inputs, 1), min(rows, inputs)
    codes = np.empty(beta.shape, dtype=np.int8)
    scores = np.empty(blocks * together * step * width, dtype=np.float32)
    for first in range(0, outputs, together):
        mu = np.asarray(penalty[first : first + together], dtype=np.float32)
        offset = (half_energy + mu[:, None] * count)[:, :, None, :]
        for start in range(0, inputs, step):
            part = beta[first : first + together, start : start + step]
            flat = np.ascontiguousarray(part, dtype=np.float32).reshape(-1, bases)
            tile = scores[: blocks * len(flat) * width].reshape(blocks, len(flat), width)
            np.matmul(flat, columns, out=tile)
            np.abs(tile, out=tile)
            by_output = tile.reshape(blocks, *part.shape[:2], width)
            np.subtract(by_output, offset, out=by_output)
            found = table[_best(tile)]
            found[np.einsum("nm,nm->n", flat, found) < 0] *= -1
            codes[first : first + together, start : start + step] = found.reshape(part.shape)
    return codes


def encode_single(values: Array, bases: Array, penalty: Array) -> Codes:
    """:func:`encode` for kernels of one weight, many times faster: a code is then the line c B of slope, less
    its price, over the weight, and the best codes are the upper envelope of the lines.

    Args:
        values: (K, C) weights, those of output channel k in units of its scale.
        bases: (d,) the bases' only taps.
        penalty: (K,) cost mu of a non-zero for each output channel, in the same units squared.

    Returns:
        int8 (K, C, d).
    """
    table = codewords(len(bases))
    sums = table @ np.asarray(bases, dtype=np.float64)
    # of codes of one sum the sparsest comes first, and is the best
    slopes, lines = np.unique(np.abs(sums), return_index=True)
    signed = np.concatenate([table[lines] * np.where(sums[lines] < 0, -1, 1)[:, None]] * 2).astype(np.int8)
    signed[len(lines) :] *= -1
    price = 0.5 * slopes**2 + np.multiply.outer(np.asarray(penalty), (table[lines] != 0).sum(axis=1))
    begin, end = _envelope(slopes, price)
    begin[begin >= end] = np.inf
    order = np.argsort(begin, axis=1, kind="stable")
    begin = np.take_along_axis(begin, order, axis=1).astype(values.dtype)
    size = np.abs(values)
    # the lines of an output in the order in which they are best, counted up to the one that is
    place = np.zeros(values.shape, dtype=np.int64)
    for start in begin[:, 1 : np.isfinite(begin).sum(axis=1).max()].T:
        place += size >= start[:, None]
    found = np.take_along_axis(order, place, axis=1) + len(lines) * (values < 0)
    return signed[found]


def _envelope(slopes: Float, price: Float) -> tuple[Float, Float]:
    """Where each line slope * x - price is the highest, for x >= 0: (from, to), both (K, lines).

    ``slopes`` (lines,) rise, ``price`` is (K, lines); one that is nowhere the highest ends before it begins.
    """
    begin, end = np.zeros(price.shape), np.full(price.shape, np.inf)
    for line in range(len(slopes)):
        # steeper lines overtake this one where the prices' difference is made up for
        crossing = (price[:, line + 1 :] - price[:, line, None]) / (slopes[line + 1 :] - slopes[line])
        end[:, line] = crossing.min(axis=1, initial=np.inf)
        np.maximum(begin[:, line + 1 :], crossing, out=begin[:, line + 1 :])
    return begin, end


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
    """Improve codes entry by entry (each the best given the others); arguments as in :func:`encode`."""
    mu = np.asarray(penalty, dtype=np.float32)[:, None]
    square = np.asarray(gram, dtype=np.float32)
    current = codes.astype(np.float32)
    rest = np.asarray(beta, dtype=np.float32) - current @ square
    for _ in range(sweeps):
        for m in range(square.shape[0]):
            alone = rest[..., m] + current[..., m] * square[m, m]
            chosen = np.where(np.abs(alone) > 0.5 * square[m, m] + mu, np.sign(alone), np.float32(0))
            rest -= (chosen - current[..., m])[..., None] * square[m]
            current[..., m] = chosen
    return current.astype(np.int8)


def code_costs(beta: Array, gram: Array, penalty: Array, codes: Codes) -> Float:
    """(K, C): c G c / 2 + mu nnz(c) - c . beta of each kernel, in double precision (0 for the zero code)."""
    values = codes.astype(np.float64)
    energy = np.einsum("kcm,kcm->kc", values @ np.asarray(gram, dtype=np.float64), values)
    match = np.einsum("kcm,kcm->kc", values, np.asarray(beta, dtype=np.float64))
    return 0.5 * energy + np.asarray(penalty)[:, None] * (codes != 0).sum(axis=2) - match
