"""Operand streams of a layer: weights from the tensor store as the bytes the machine reads."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from escc.backend_sim.lowering.layers import Stream
from escc.isa.sparsemap import encode_row_streams

Array = NDArray[Any]
RECORD_BYTES = 9


def row_nonzeros(coefficients: Array) -> NDArray[np.int64]:
    """(K,) non-zeros of every output channel. Row by row: numpy counts along an axis ten times slower."""
    rows = np.ascontiguousarray(coefficients).reshape(len(coefficients), -1)
    return np.fromiter((np.count_nonzero(row) for row in rows), np.int64, len(rows))


def coefficient_stream(coefficients: Array, nonzeros: NDArray[np.int64], chunk: int) -> Stream:
    """Row streams of ternary coefficients (K, C, M): C * M mask bits and a sign bit per non-zero, in whole
    bytes; ``nonzeros`` (K,) as from `row_nonzeros`."""
    sizes = (math.prod(coefficients.shape[1:]) + nonzeros + 7) // 8
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    def encode(first: int, stop: int) -> NDArray[np.uint8]:
        return encode_row_streams(coefficients[first:stop], chunk)

    return Stream("coefficients", "coef_addr", int(offsets[-1]), offsets, encode)


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
