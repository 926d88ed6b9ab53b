"""The vector unit's instructions on arrays: element-wise work, tables, pooling, copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from escc.backend_sim.simulator.memory import Memory, as_signed
from escc.backend_sim.simulator.numerics import Int64s, requantize, rescale_table
from escc.backend_sim.simulator.operands import OperandCache
from escc.backend_sim.simulator.vec_plan import VecPlan
from escc.backend_sim.simulator.windows import gather
from escc.errors import EsccError

Bytes = npt.NDArray[np.uint8]
INT32_SAFE = 1 << 30


def run_vec(plan: VecPlan, memory: Memory, cache: OperandCache) -> None:
    """Run one vector instruction for all images of ``memory``.

    Raises:
        EsccError: a box outside SRAM, or no divisor record for a window's count.
    """
    a = None if plan.a is None else memory.sram_view(plan.a)
    b = None if plan.b is None else memory.sram_view(plan.b)
    table = cache.table(memory, plan.registers.table_addr) if plan.table else None
    divisors = None
    if plan.mnemonic == "vec_avg":
        divisors = cache.divisors(memory, plan.registers.table_addr, plan.registers.entries).by_count
    y = memory.sram_view(plan.y, write=True)
    if a is None:
        y[...] = 0
    elif plan.mnemonic == "vec_avg":
        assert divisors is not None
        _average(plan, a, divisors, y)
    elif plan.mnemonic == "vec_max":
        _maximum(plan, a, y)
    elif plan.mnemonic == "vec_copy":
        _copy(plan, a, y)
    else:
        shape = y.shape
        taken = gather(a, plan.rows, plan.cols, np.empty(shape, np.uint8))
        if plan.mnemonic == "vec_lut":
            assert table is not None
            y[...] = table[taken]
        else:
            assert b is not None
            other = np.empty(shape, np.uint8)
            other[...] = b
            _finish(plan, _OPERATIONS[plan.mnemonic](plan, taken, other), table, y)


def _add(plan: VecPlan, a: Bytes, b: Bytes) -> npt.NDArray[Any]:
    r = plan.registers
    left = rescale_table(r.a_mult, r.a_shift, plan.a_signed)
    right = rescale_table(r.b_mult, r.b_shift, plan.b_signed)
    if max(np.abs(left).max(), np.abs(right).max()) < INT32_SAFE:
        return left.astype(np.int32)[a] + right.astype(np.int32)[b]
    return left[a] + right[b]


def _multiply(plan: VecPlan, a: Bytes, b: Bytes) -> npt.NDArray[Any]:
    r = plan.registers
    product = as_signed(a, plan.a_signed).astype(np.int64) * as_signed(b, plan.b_signed)
    return requantize(product, 0, r.a_mult, r.a_shift)


_OPERATIONS: dict[str, Callable[[VecPlan, Bytes, Bytes], npt.NDArray[Any]]] = {
    "vec_add": _add,
    "vec_mul": _multiply,
}


def _finish(plan: VecPlan, values: npt.NDArray[Any], table: Bytes | None, y: Bytes) -> None:
    if table is None:
        y[...] = np.clip(values, plan.registers.low, plan.registers.high).astype(np.int16).astype(np.uint8)
    else:
        y[...] = table[np.clip(values, -128, 127).astype(np.int8).view(np.uint8)]


def _copy(plan: VecPlan, a: Bytes, y: Bytes) -> None:
    r = plan.registers
    taken = gather(a, plan.rows, plan.cols, np.empty(y.shape, np.uint8))
    if r.a_mult:
        scaled = np.clip(rescale_table(r.a_mult, r.a_shift, plan.a_signed), r.low, r.high)
        # Positions outside the map are zero whatever the clamp says.
        zeros = gather(np.ones((1, *a.shape[1:3], 1), np.uint8), plan.rows, plan.cols, _mask(plan)) == 0
        taken = scaled.astype(np.int16).astype(np.uint8)[taken]
        taken[:, zeros[0, :, :, 0]] = 0
    y[...] = taken


def _mask(plan: VecPlan) -> Bytes:
    return np.empty((1, plan.rows.size, plan.cols.size, 1), np.uint8)


def _maximum(plan: VecPlan, a: Bytes, y: Bytes) -> None:
    values, target = as_signed(a, plan.a_signed), as_signed(y, plan.a_signed)
    lowest = -128 if plan.a_signed else 0
    if plan.adaptive:
        for (i, rows), (j, cols) in plan.cells():
            target[:, i, j] = values[:, rows, cols].max(axis=(1, 2))
        return
    shape = (len(a), plan.rows.size, plan.cols.size, plan.registers.chans)
    padded = gather(values, plan.rows, plan.cols, np.empty(shape, values.dtype), fill=lowest)
    target[...] = _reduce(plan, padded, np.maximum)


def _average(plan: VecPlan, a: Bytes, divisors: dict[int, tuple[int, int]], y: Bytes) -> None:
    values = as_signed(a, plan.a_signed)
    if plan.adaptive:
        sums = np.empty(y.shape, np.int64)
        for (i, rows), (j, cols) in plan.cells():
            sums[:, i, j] = values[:, rows, cols].sum(axis=(1, 2), dtype=np.int64)
    else:
        shape = (len(a), plan.rows.size, plan.cols.size, plan.registers.chans)
        padded = gather(values, plan.rows, plan.cols, np.empty(shape, np.int32))
        sums = _reduce(plan, padded, np.add).astype(np.int64)
    multiplier, shift = _looked_up(plan.counts(), divisors)
    averages = requantize(sums, 0, multiplier[..., None], shift[..., None])
    _finish(plan, averages, None, y)


def _looked_up(counts: Int64s, divisors: dict[int, tuple[int, int]]) -> tuple[Int64s, Int64s]:
    """Multiplier and shift for every window's count, (rows, cols) each."""
    multiplier, shift = np.empty_like(counts), np.empty_like(counts)
    for count in np.unique(counts).tolist():
        if count not in divisors:
            known = ", ".join(str(c) for c in sorted(divisors)[:8]) or "none"
            raise EsccError(f"no divisor record for windows of {count} values (records: {known})")
        multiplier[counts == count], shift[counts == count] = divisors[count]
    return multiplier, shift


def _reduce(plan: VecPlan, padded: npt.NDArray[Any], operation: np.ufunc) -> npt.NDArray[Any]:
    """Combine the taps of every window of ``padded`` (n, rows.size, cols.size, chans), rows then columns."""
    for axis, window in ((1, plan.rows), (2, plan.cols)):
        picked: npt.NDArray[Any] | None = None
        for tap in range(window.taps):
            span = (window.count - 1) * window.out_stride + 1
            part = padded[(slice(None),) * axis + (slice(tap, tap + span, window.out_stride),)]
            picked = part if picked is None else operation(picked, part)
        assert picked is not None
        padded = picked
    return padded
