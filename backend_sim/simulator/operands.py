"""Operand streams of instructions, decoded from SRAM bytes and kept by content, not by instruction.

Layouts: docs/machine.md, "Operand streams". A decoded operand is kept under where its bytes come from, so a
loop, a second tile or the next batch of images does not decode it again, and a changed byte is never missed.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from escc.backend_sim.simulator.memory import Bytes, Memory
from escc.backend_sim.simulator.numerics import MAX_SHIFT, Int64s, Requantizer
from escc.backend_sim.simulator.timing import Codec, NumpyEngine, RowStreams, Ternary
from escc.errors import EsccError
from escc.isa.sparsemap import row_stream_sizes

Float32s = npt.NDArray[np.float32]

RECORD_BYTES = 9
CACHE_BYTES = 256 << 20
CUT_ROWS = 32
"""Right-hand sides are cut at multiples of so many rows where float32 sums these exactly: looked at one by
one,
rows take longer than the product."""


@dataclass(frozen=True)
class Coefficients:
    """A coefficient stream of ``shape`` (outs, chans, bases) and what is derived from it, when asked for."""

    data: Bytes
    shape: tuple[int, int, int]
    chunk: int
    codec: Codec
    two_level: bool

    @property
    def stream_bytes(self) -> int:
        """Bytes of the stream."""
        return self.data.size

    @cached_property
    def register_bytes(self) -> int:
        """Bytes of the stream in the registers of the rows, where masks are plain."""
        return int(row_stream_sizes(self.ternary).sum()) if self.two_level else self.data.size

    @property
    def size(self) -> int:
        """How many coefficients there are."""
        return math.prod(self.shape)

    @cached_property
    def ternary(self) -> npt.NDArray[np.int8]:
        """The coefficients, (outs, chans, bases)."""
        return self.codec.decode(self.data, *self.shape, self.chunk, two_level=self.two_level)[0]

    @cached_property
    def planes(self) -> Float32s:
        """(bases, chans, outs) float32: the right-hand sides of the linear combinations."""
        # bytes change places quicker than they become floats on the way
        return np.ascontiguousarray(self.ternary.transpose(2, 1, 0)).astype(np.float32)

    @cached_property
    def bits(self) -> Ternary:
        """The coefficients as the timing engines take them."""
        streams = RowStreams(self.data, self.chunk, self.two_level)
        return Ternary(lambda: self.ternary, self.shape, streams)

    def recomposed(self, kernels: Kernels) -> Weights:
        """The weights W[k, c] = sum over m of T[k, c, m] * B[m] of a layer with 1 x 1 kernels."""
        key = kernels.values.tobytes()
        found = self._recomposed.get(key)
        if found is None:
            flat = kernels.values.reshape(self.shape[2])
            quick = self.codec.recompose(self.data, *self.shape, self.chunk, flat, two_level=self.two_level)
            if quick is None:
                outs, chans, bases = self.shape
                values = self.ternary.reshape(outs * chans, bases).astype(np.float32)
                found = Weights((values @ flat.astype(np.float32)).reshape(outs, chans).T)
            else:
                weights, sizes = quick
                found = Weights(weights.T, int(sizes.max()))
            self._recomposed[key] = found
        return found

    @cached_property
    def _recomposed(self) -> dict[bytes, Weights]:
        return {}

    @cached_property
    def _signs(self) -> tuple[Int64s, Int64s]:
        quick = self.codec.signs(self.data, *self.shape, self.chunk, two_level=self.two_level)
        if quick is not None:
            return quick
        # sums of float32 ones and of long inner loops: exact, and many times faster than sums of bools
        plus = np.maximum(self.planes, 0).sum(axis=1)
        minus = plus - self.planes.sum(axis=1)
        return plus.T.astype(np.int64), minus.T.astype(np.int64)

    def z_bounds(self, x_signed: bool) -> Int64s:
        """Largest possible |Z|, (outs, bases), for any activations of the type; partial sums included."""
        plus, minus = self._signs
        return 128 * (plus + minus) if x_signed else 255 * np.maximum(plus, minus)


@dataclass(frozen=True)
class Weights:
    """The right-hand side of a matrix product: ``matrix`` (R * S * C, K) float32, all integers.

    ``largest``: the largest sum of the sizes of a column, where it is known.
    """

    matrix: Float32s
    largest: int | None = None

    def parts(self, x_signed: bool) -> tuple[list[int], int]:
        """Where to cut the rows so that float32 sums each part exactly, and a bound of |sum|.

        The cuts are 0, ..., R * S * C; the bound holds for any activations of the type.
        """
        found = self._parts.get(x_signed)
        if found is None:
            largest = 128 if x_signed else 255
            # float32 sums are exact below 2^24, and never fall below it again
            rows = len(self.matrix)
            starts = np.arange(0, rows, CUT_ROWS)
            total, sizes = self.largest, None
            if total is None or total * largest >= 1 << 24:
                sizes = np.add.reduceat(np.abs(self.matrix), starts, axis=0)
                total = int(sizes.sum(axis=0).max())
            if sizes is None or total * largest < 1 << 24:
                found = [0, rows], total * largest
            else:
                if float(sizes.max()) * largest >= 1 << 24:
                    starts, sizes = np.arange(rows), np.abs(self.matrix)
                running = np.concatenate([np.zeros((1, sizes.shape[1])), np.cumsum(sizes, 0, np.float64)])
                ends = [*starts.tolist(), rows]
                found = [ends[i] for i in _cuts(running * largest)], int(running[-1].max()) * largest
            self._parts[x_signed] = found
        return found

    @cached_property
    def _parts(self) -> dict[bool, tuple[list[int], int]]:
        return {}


@dataclass(frozen=True)
class Kernels:
    """Kernels as int8: ``values`` (M, R, S) bases, (K, C, R, S) dense weights or (K, R, S) depthwise."""

    values: npt.NDArray[np.int8]

    @cached_property
    def taps(self) -> Float32s:
        """Bases or depthwise kernels by tap: (R * S, M or K) float32."""
        return np.ascontiguousarray(self.values.reshape(len(self.values), -1).T, dtype=np.float32)

    @cached_property
    def taps_f64(self) -> npt.NDArray[np.float64]:
        """`taps` in float64."""
        return self.taps.astype(np.float64)

    @cached_property
    def tap_sums(self) -> Int64s:
        """Sum of |tap| of each kernel, (M or K,)."""
        return np.abs(self.values.astype(np.int64)).reshape(len(self.values), -1).sum(axis=1)

    @cached_property
    def weights(self) -> Weights:
        """Dense weights in the order of an im2col row."""
        outs = len(self.values)
        matrix = self.values.transpose(2, 3, 1, 0).reshape(-1, outs)
        return Weights(np.ascontiguousarray(matrix, dtype=np.float32))


def _cuts(running: npt.NDArray[np.float64]) -> list[int]:
    """Cut running sums (n, outs) into parts as long as fit float32."""
    cuts = [0]
    while cuts[-1] < len(running) - 1:
        fits = ((running - running[cuts[-1]]).max(axis=1) < 1 << 24).nonzero()[0]
        cuts.append(int(fits[-1]))
    return cuts


class Divisors(NamedTuple):
    """What vec_avg multiplies a sum of ``count`` values with: count -> (multiplier, shift)."""

    by_count: dict[int, tuple[int, int]]


class OperandCache:
    """Decoded operands of one program, shared by all batches and threads; least recently used goes first."""

    def __init__(self, limit: int = CACHE_BYTES, codec: Codec | None = None) -> None:
        self._limit = limit
        self._codec = codec or NumpyEngine()
        self._held = 0
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._stream_sizes: dict[tuple[int, int, int, int, bool], int] = {}
        self._lock = Lock()

    def coefficients(
        self,
        memory: Memory,
        address: int,
        outs: int,
        chans: int,
        bases: int,
        chunk: int,
        *,
        two_level: bool = False,
    ) -> Coefficients:
        """The row streams at SRAM ``address``.

        Raises:
            EsccError: the bytes there are no such streams.
        """
        shape = (outs, chans, bases)
        origin = memory.origin(address)
        size = None
        if origin is not None:
            size = self._stream_sizes.get((origin[0], *shape, two_level))
        if size is None or origin is None or size > origin[1]:
            size = self._stream_size(memory, address, shape, two_level=two_level)
            if origin is not None and size <= origin[1]:
                self._stream_sizes[(origin[0], *shape, two_level)] = size
        key, data = memory.operand(address, size)
        return self._get(
            ("coefficients", shape, two_level, key),
            lambda: Coefficients(data, shape, chunk, self._codec, two_level),
            6,
        )

    def _stream_size(
        self, memory: Memory, address: int, shape: tuple[int, int, int], *, two_level: bool
    ) -> int:
        """Only the streams themselves tell how long they are."""
        origin = memory.origin(address)
        if origin is not None:
            with suppress(EsccError):
                loaded = memory.constants[origin[0] : origin[0] + origin[1]]
                return self._codec.stream_bytes(loaded, *shape, two_level=two_level)
        # they go on behind what was loaded together, or are none
        return self._codec.stream_bytes(memory.tail(address), *shape, two_level=two_level)

    def kernels(self, memory: Memory, address: int, shape: tuple[int, ...]) -> Kernels:
        """int8 kernels of ``shape`` at SRAM ``address``."""
        size = int(np.prod(shape, dtype=np.int64))
        key, data = memory.operand(address, size)
        return self._get(("kernels", shape, key), lambda: Kernels(_int8(data).reshape(shape)), 9)

    def requantizer(self, memory: Memory, address: int, outs: int) -> Requantizer:
        """The ``outs`` requantisation records at SRAM ``address``.

        Raises:
            EsccError: a shift above 62.
        """
        key, data = memory.operand(address, outs * RECORD_BYTES)

        def decode() -> Requantizer:
            records = data.reshape(outs, RECORD_BYTES)
            words = np.ascontiguousarray(records[:, :8]).view("<i4").astype(np.int64)
            shift = records[:, 8].astype(np.int64)
            _check_shifts(shift, "requantisation record")
            return Requantizer(words[:, 0], words[:, 1], shift)

        return self._get(("requantizer", outs, key), decode, 64)

    def divisors(self, memory: Memory, address: int, entries: int) -> Divisors:
        """The divisor records at SRAM ``address``.

        Raises:
            EsccError: a shift above 62.
        """
        key, data = memory.operand(address, entries * RECORD_BYTES)

        def decode() -> Divisors:
            records = data.reshape(entries, RECORD_BYTES)
            counts = np.ascontiguousarray(records[:, :4]).view("<u4")[:, 0].tolist()
            multipliers = np.ascontiguousarray(records[:, 4:8]).view("<i4")[:, 0].tolist()
            _check_shifts(records[:, 8], "divisor record")
            shifts = records[:, 8].tolist()
            return Divisors(dict(zip(counts, zip(multipliers, shifts, strict=True), strict=True)))

        return self._get(("divisors", entries, key), decode, 64)

    def table(self, memory: Memory, address: int) -> Bytes:
        """The 256-byte table at SRAM ``address``."""
        key, data = memory.operand(address, 256)
        return self._get(("table", key), lambda: np.array(data), 1)

    def _get(self, key: Hashable, decode: Callable[[], Any], growth: int) -> Any:
        """The entry of ``key``; ``growth``: bytes it may hold for one byte of its arrays."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                return entry[0]
        value = decode()
        size = growth * _array_bytes(value)
        with self._lock:
            if key not in self._entries:
                self._entries[key] = (value, size)
                self._held += size
            while self._held > self._limit and len(self._entries) > 1:
                _, (_, gone) = self._entries.popitem(last=False)
                self._held -= gone
        return value


def _array_bytes(value: Any) -> int:
    if isinstance(value, Coefficients):
        return value.size
    if isinstance(value, Kernels):
        return value.values.nbytes
    return 4096


def _int8(data: Bytes) -> npt.NDArray[np.int8]:
    return np.ascontiguousarray(data).view(np.int8)


def _check_shifts(shifts: npt.NDArray[Any], what: str) -> None:
    bad = np.flatnonzero(shifts > MAX_SHIFT)
    if bad.size:
        raise EsccError(f"{what} {bad[0]} has shift {int(shifts[bad[0]])}, at most {MAX_SHIFT} is allowed")
