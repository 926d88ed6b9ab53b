"""Operand streams of a layer: weights from the tensor store as the bytes the machine reads."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from escc.backend_sim.lowering.layers import Stream
from escc.isa.sparsemap import TWO_LEVEL_BASES, encode_row_streams, row_stream_sizes

Array = NDArray[Any]
RECORD_BYTES = 9


_T = TypeVar("_T")
_KNOWN: dict[tuple[int, str], tuple[weakref.ref[Array], Any]] = {}


def _remembered(array: Array, what: str, make: Callable[[], _T]) -> _T:
    """``make()`` once for as long as a read-only array lives: three passes ask the same of each array."""
    key = id(array), what
    known = _KNOWN.get(key)
    if known is not None and known[0]() is array:
        return known[1]
    found = make()
    if not array.flags.writeable:
        _KNOWN[key] = weakref.ref(array, lambda _: _KNOWN.pop(key, None)), found
    return found


def row_nonzeros(coefficients: Array) -> NDArray[np.int64]:
    """(K,) non-zeros of every output channel. Row by row: numpy counts along an axis ten times slower."""

    def count() -> NDArray[np.int64]:
        rows = np.ascontiguousarray(coefficients).reshape(len(coefficients), -1)
        return np.fromiter((np.count_nonzero(row) for row in rows), np.int64, len(rows))

    return _remembered(coefficients, "nonzeros", count)


def coefficient_stream(coefficients: Array, nonzeros: NDArray[np.int64], chunk: int) -> tuple[Stream, bool]:
    """Row streams of ternary coefficients (K, C, M), and whether their masks have two levels: where that
    takes fewer bytes. ``nonzeros`` (K,) as from `row_nonzeros`."""
    _, chans, bases = coefficients.shape
    sizes = (chans * bases + nonzeros + 7) // 8
    # a channel's bit stands for `bases` bits, and only a channel without coefficients saves any
    two_level = False
    if 1 < bases <= TWO_LEVEL_BASES and nonzeros.sum() < coefficients.size - coefficients.size // bases:
        others = _remembered(
            coefficients, "two-level sizes", lambda: row_stream_sizes(coefficients, two_level=True)
        )
        two_level = bool(others.sum() < sizes.sum())
        sizes = others if two_level else sizes
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    def encode(first: int, stop: int) -> NDArray[np.uint8]:
        return encode_row_streams(coefficients[first:stop], chunk, two_level=two_level)

    return Stream("coefficients", "coef_addr", int(offsets[-1]), offsets, encode), two_level


def shared_bases(bases: Array) -> Stream:
    """Basis kernels (M, R, S) int8 that all output channels share."""
    content = _bytes(bases, np.int8)
    return Stream("bases", "basis_addr", content.size, None, lambda first, stop: content)


def channel_bases(weights: Array) -> Stream:
    """Kernels of their own per output channel: (K, ...) int8, dense or depthwise."""
    rows = _bytes(weights, np.int8).reshape(weights.shape[0], -1)
    return Stream(
        "bases",
        "basis_addr",
        rows.size,
        _even_offsets(*rows.shape),
        lambda first, stop: rows[first:stop].reshape(-1),
    )


def requant_stream(records: Array) -> Stream:
    """Requantisation records (K, 3) of bias, multiplier, shift: int32, int32, uint8 each."""
    rows = records_bytes(records, "<i4")
    return Stream(
        "requant",
        "quant_addr",
        rows.size,
        _even_offsets(*rows.shape),
        lambda first, stop: rows[first:stop].reshape(-1),
    )


def divisor_stream(records: Array) -> Stream:
    """Divisor records (n, 3) of count, multiplier, shift: uint32, int32, uint8 each."""
    content = records_bytes(records, "<u4").reshape(-1)
    return Stream("divisors", "table_addr", content.size, None, lambda first, stop: content)


def table_stream(table: Array) -> Stream:
    """A 256-byte table, int8 or uint8."""
    content = np.ascontiguousarray(table).view(np.uint8).reshape(-1)
    return Stream("table", "table_addr", content.size, None, lambda first, stop: content)


def records_bytes(records: Array, first_kind: str) -> NDArray[np.uint8]:
    """(n, 9) bytes of n records: a 4-byte number, an int32 and a uint8, little endian."""
    kind = np.dtype([("first", first_kind), ("multiplier", "<i4"), ("shift", "u1")])
    packed = np.empty(records.shape[0], kind)
    packed["first"], packed["multiplier"], packed["shift"] = records.T
    return packed.view(np.uint8).reshape(-1, RECORD_BYTES)


def _even_offsets(count: int, size: int) -> NDArray[np.int64]:
    return np.arange(count + 1, dtype=np.int64) * size


def _bytes(array: Array, kind: Any) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array, dtype=kind).view(np.uint8).reshape(-1)
