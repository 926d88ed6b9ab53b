"""Requantisation, bit-exact: the definition in int64, and a faster float64 form where provably the same.

The definition (docs/machine.md, "Numerics"): ``v = (acc + bias) * multiplier`` exactly, then
``sign(v) * ((|v| + 2^(shift-1)) >> shift)``, which rounds half away from zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from escc.backend_sim.simulator.workspace import Workspace

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]
Bytes = npt.NDArray[np.uint8]

MAX_SHIFT = 62
EXACT = 1 << 53
"""Float64 holds every integer up to here, hence every multiple of 2^-s up to 2^(53-s)."""
RESIDUALS_BELOW = 1 << 29
"""Sizes of residuals that the native library takes."""
LONG = 64
"""Channels that are long enough for an inner loop."""


def round_shift(value: Int64s, shift: Int64s | int) -> Int64s:
    """``value / 2^shift`` rounded half away from zero; |value| < 2^62, shift 0..62 (broadcast)."""
    shift = np.asarray(shift, np.int64)
    half = np.where(shift > 0, np.int64(1) << np.maximum(shift - 1, 0), 0)
    size = (np.abs(value) + half) >> shift
    return np.where(value < 0, -size, size)


def requantize(acc: Int64s, bias: Int64s | int, multiplier: Int64s | int, shift: Int64s | int) -> Int64s:
    """The definition, in int64: |acc + bias| < 2^31, multiplier an int32, shift 0..62."""
    return round_shift((acc + np.asarray(bias, np.int64)) * np.asarray(multiplier, np.int64), shift)


@lru_cache(maxsize=4096)
def rescale_table(multiplier: int, shift: int, signed: bool) -> Int64s:
    """``rq`` of every 8-bit value, (256,) int64 indexed by the byte."""
    values = byte_values(signed)
    table = requantize(values, 0, multiplier, shift)
    table.setflags(write=False)
    return table


@lru_cache(maxsize=4096)
def rescale_table_f64(multiplier: int, shift: int, signed: bool) -> npt.NDArray[np.float64]:
    """`rescale_table` as float64: exact, because |rq| <= 255 * 2^31 < 2^53."""
    return rescale_table(multiplier, shift, signed).astype(np.float64)


def byte_values(signed: bool) -> Int64s:
    """What each byte 0..255 stands for, (256,) int64."""
    values = np.arange(256)
    return np.where(values > 127, values - 256, values) if signed else values


@dataclass(frozen=True)
class Residual:
    """The second operand of a requantisation: bytes (n, rows, cols, outs) and their `rescale_table_f64`."""

    values: Bytes
    table: npt.NDArray[np.float64]
    bound: int


@dataclass(frozen=True)
class Finish:
    """What follows: clamp to ``low..high``, or saturate to int8 and look up ``table`` (256,) uint8."""

    low: int
    high: int
    table: Bytes | None = None

    @property
    def limits(self) -> tuple[int, int]:
        """Where the sum saturates."""
        return (self.low, self.high) if self.table is None else (-128, 127)


class Requantizer:
    """Requantisation of the outputs of one instruction: per-channel bias, multiplier and shift, (outs,) each.

    The float64 form computes ``t = acc * (m * 2^-s) + bias * (m * 2^-s)`` and rounds t half away from zero.
    Everything is a multiple of 2^-s, so nothing rounds as long as ``(|acc| + |bias|) * m + 2^(s-1) <= 2^53``
    (condition E). Where |bias| * m <= 2^51, a sum that breaks this has |v| >= 2^52 - 2^(s-1), hence
    |y| >= 2^(52-s) - 1, and t is wrong by less than one part in 2^50; with 2^(52-s) >= 258 + |residual| it
    saturates all the same (condition S). `apply` takes the float64 form only where one of the two holds,
    and the definition in int64 otherwise.
    """

    def __init__(self, bias: Int64s, multiplier: Int64s, shift: Int64s) -> None:
        self.bias, self.multiplier, self.shift = bias, multiplier, shift
        self.outs = len(bias)
        self.factor = np.ldexp(multiplier.astype(np.float64), -shift.astype(np.int32))
        self.bias_size = int(np.abs(bias).max(initial=0))
        size = int(np.abs(multiplier).max(initial=0))
        # One more bit than the shift where the shift is 0: adding 0.5 needs halves.
        spare = int(np.maximum(shift, 1).max(initial=1))
        step = 2 if int(shift.min(initial=1)) == 0 else 1
        self.exact_below = (EXACT - (1 << (spare - 1))) // max(size * step, 1) - self.bias_size
        self.tie_free_below = _tie_free_below(multiplier, shift)
        self._bias_fits = self.bias_size * size * step <= EXACT // 4
        self._room = EXACT // 2 >> spare if spare < 53 else 0
        self._parts: dict[tuple[int, int], Requantizer] = {}
        self._tiles: dict[int, tuple[npt.NDArray[np.float64], ...]] = {}

    def part(self, first: int, stop: int) -> Requantizer:
        """The same for output channels ``first..stop-1``."""
        if (first, stop) == (0, self.outs):
            return self
        part = self._parts.get((first, stop))
        if part is None:
            columns = (values[first:stop] for values in (self.bias, self.multiplier, self.shift))
            part = self._parts[(first, stop)] = Requantizer(*columns)
        return part

    def float_is_exact(self, acc_size: int, residual_bound: int = 0) -> bool:
        """Whether the float64 form gives the defined result for all |acc| <= acc_size."""
        return acc_size <= self.exact_below or (self._bias_fits and self._room >= 258 + residual_bound)

    def apply(
        self,
        acc: Floats,
        acc_size: int,
        finish: Finish,
        residual: Residual | None,
        out: npt.NDArray[np.int8] | Bytes,
        workspace: Workspace,
    ) -> None:
        """Requantise ``acc`` into ``out``.

        ``acc``: (n, rows, cols, outs) float32 or float64 holding exact integers, |acc| <= acc_size, last two
        axes contiguous. ``out``: (n, rows, cols, outs) int8 or uint8 view, any strides.
        """
        bound = residual.bound if residual else 0
        if not self.float_is_exact(acc_size, bound):
            acc_size = int(max(acc.max(initial=0), -acc.min(initial=0)))
        if not self.float_is_exact(acc_size, bound):
            return self._apply_exact(acc, finish, residual, out)
        if workspace.maps is not None and bound < RESIDUALS_BELOW:
            factor, offset, _ = self._tiled(1)
            addend = None if residual is None else (residual.values, residual.table)
            workspace.maps.finish(acc, factor, offset, finish.limits, addend, finish.table, out)
            return None
        n, rows, cols, outs = acc.shape
        inner = (cols, outs) if outs >= LONG else (cols * outs,)
        t = workspace.array("requantize", (n, rows, *inner), np.float64)
        factor, offset, offset_half = self._tiled(1 if outs >= LONG else cols)
        np.copyto(t, acc.reshape(t.shape))
        np.multiply(t, factor, out=t)
        low, high = finish.limits
        if low >= 0 and residual is None:
            # Half up is half away from zero for t >= 0, and what is below 0 ends at low either way.
            np.add(t, offset_half, out=t)
            high = high + 0.5
        else:
            self._round(t, offset, offset_half, acc_size, workspace)
            if residual is not None:
                self._add_residual(t, residual, workspace)
        np.maximum(t, low, out=t)
        np.minimum(t, high, out=t)
        self._store(t.reshape(acc.shape), finish, out, workspace)

    def _round(
        self, t: Floats, offset: Floats, offset_half: Floats, acc_size: int, workspace: Workspace
    ) -> None:
        """Add the offset and round half away from zero, in place."""
        if acc_size + self.bias_size < self.tie_free_below:
            np.add(t, offset_half, out=t)
            np.floor(t, out=t)
            return
        np.add(t, offset, out=t)
        half = workspace.array("requantize half", t.shape, np.float64)
        np.copysign(0.5, t, out=half)
        np.add(t, half, out=t)
        np.trunc(t, out=t)

    @staticmethod
    def _add_residual(t: Floats, residual: Residual, workspace: Workspace) -> None:
        taken = workspace.array("residual bytes", residual.values.shape, np.uint8)
        np.copyto(taken, residual.values)
        values = workspace.array("requantize half", t.shape, np.float64)
        residual.table.take(taken.reshape(t.shape), out=values, mode="wrap")
        np.add(t, values, out=t)

    def _tiled(self, cols: int) -> tuple[npt.NDArray[np.float64], ...]:
        """Factor, bias * factor and bias * factor + 0.5, ``cols`` times each: long inner loops."""
        tiles = self._tiles.get(cols)
        if tiles is None:
            offset = self.bias.astype(np.float64) * self.factor
            half_up = np.add(offset, 0.5, dtype=np.float64)
            tiles = (self.factor, offset, half_up)
            if cols > 1:
                tiles = tuple(np.tile(values, cols) for values in tiles)
            self._tiles[cols] = tiles
        return tiles

    @staticmethod
    def _store(t: Floats, finish: Finish, out: npt.NDArray[Any], workspace: Workspace) -> None:
        if finish.table is None:
            np.copyto(out, t, casting="unsafe")
            return
        index = workspace.array("table index", t.shape, np.int8)
        np.copyto(index, t, casting="unsafe")
        np.copyto(out.view(np.uint8), np.take(finish.table, index.view(np.uint8)))

    def _apply_exact(
        self, acc: Floats, finish: Finish, residual: Residual | None, out: npt.NDArray[Any]
    ) -> None:
        y = requantize(acc.astype(np.int64), self.bias, self.multiplier, self.shift)
        if residual is not None:
            y += residual.table[residual.values].astype(np.int64)
        y = np.clip(y, *finish.limits)
        if finish.table is not None:
            y = finish.table[y & 0xFF]
        np.copyto(out, y.astype(np.uint8).view(out.dtype))


def _tie_free_below(multiplier: Int64s, shift: Int64s) -> int:
    """No sum of a smaller size times a multiplier lies half way between two integers.

    ``a * m / 2^s`` does so only if ``a * m`` is an odd multiple of 2^(s-1), so that 2^(s-1) over the largest
    power of two in m divides a.
    """
    twos = multiplier & -multiplier
    some = (twos > 0) & (shift > 0)
    bounds = (np.int64(1) << (shift[some] - 1)) // twos[some]
    return int(bounds[bounds > 0].min(initial=EXACT))


def sum_bound(sizes: Int64s, weights: Int64s) -> int:
    """``max_k sum_j sizes[k, j] * weights[j]`` without overflow, for bounds on sums."""
    if not sizes.size:
        return 0
    total = sizes.astype(np.float64) @ weights.astype(np.float64)
    return math.ceil(float(total.max()) * (1 + 1e-12))
