"""The convolution instructions on arrays, bit-exact, in float32 BLAS wherever that is provably exact.

Float32 holds every integer up to 2^24, so a sum of integers is exact in any order of additions when the sum
of the sizes of its terms stays below. Each kernel checks that bound, from the operands alone where it can,
else from the data, and goes to float64 (exact up to 2^53) where it does not hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from escc.backend_sim.simulator.conv_plan import ConvPlan
from escc.backend_sim.simulator.memory import Memory, as_signed
from escc.backend_sim.simulator.numerics import Finish, Requantizer, Residual, rescale_table_f64, sum_bound
from escc.backend_sim.simulator.operands import Coefficients, Kernels, OperandCache, Weights
from escc.backend_sim.simulator.windows import fill_inside, pad
from escc.backend_sim.simulator.workspace import Workspace
from escc.errors import EsccError
from escc.isa.registers import ConvFlags

Floats = npt.NDArray[np.floating[Any]]

FLOAT32_EXACT = 1 << 24
FLOAT64_EXACT = 1 << 53
INT32_LIMIT = 1 << 31
# Scratch of one block of work: most of a core's second-level cache.
BLOCK_BYTES = 768 << 10
LEAST_OUTS = 16


@dataclass(frozen=True)
class ConvOperands:
    """The decoded operand streams of a convolution."""

    coefficients: Coefficients | None
    kernels: Kernels
    requantizer: Requantizer
    finish: Finish


def conv_operands(plan: ConvPlan, memory: Memory, cache: OperandCache, chunk: int) -> ConvOperands:
    """Decode the operands of a convolution from SRAM.

    Raises:
        EsccError: bytes that are no valid operand stream, or outside SRAM.
    """
    r = plan.registers
    size = (r.kernel_h, r.kernel_w)
    coefficients = None
    if plan.form == "combine":
        two_level = bool(r.flags & ConvFlags.TWO_LEVEL)
        coefficients = cache.coefficients(
            memory, r.coef_addr, r.outs, r.chans, r.bases, chunk, two_level=two_level
        )
        kernels = cache.kernels(memory, r.basis_addr, (r.bases, *size))
    elif plan.form == "dense":
        kernels = cache.kernels(memory, r.basis_addr, (r.outs, r.chans, *size))
    else:
        kernels = cache.kernels(memory, r.basis_addr, (r.outs, *size))
    requantizer = cache.requantizer(memory, r.quant_addr, r.outs)
    table = cache.table(memory, r.table_addr) if plan.table else None
    return ConvOperands(coefficients, kernels, requantizer, Finish(r.low, r.high, table))


def run_conv(
    plan: ConvPlan, operands: ConvOperands, memory: Memory, z_bits: int, workspace: Workspace
) -> None:
    """Run a convolution for all images of ``memory``.

    Raises:
        EsccError: a sum Z does not fit into ``z_bits`` bits or an accumulator into 32, or a box outside SRAM.
    """
    x = as_signed(memory.sram_view(plan.x), plan.x_signed)
    residual = None if plan.residual is None else memory.sram_view(plan.residual)
    y = as_signed(memory.sram_view(plan.y, write=True), plan.y_signed)
    job = _Job(plan, operands, x, y, residual, z_bits, workspace)
    if plan.form == "dense":
        _dense(job, operands.kernels.weights)
    elif plan.form == "depthwise":
        _depthwise(job)
    elif plan.taps == 1 and plan.registers.chans * 255 < 1 << (z_bits - 1):
        # Z always fits, so nobody can tell the two orders of the sums apart.
        assert operands.coefficients is not None
        _dense(job, operands.coefficients.recomposed(operands.kernels))
    else:
        _combine(job)


@dataclass
class _Job:
    plan: ConvPlan
    operands: ConvOperands
    x: npt.NDArray[Any]
    y: npt.NDArray[Any]
    residual: npt.NDArray[np.uint8] | None
    z_bits: int
    workspace: Workspace

    @cached_property
    def residual_table(self) -> tuple[npt.NDArray[np.float64], int]:
        """The rescaled residual of every byte, and the largest of their sizes."""
        r = self.plan.registers
        table = rescale_table_f64(r.res_mult, r.res_shift, self.plan.residual_signed)
        return table, int(np.abs(table).max())

    def image_blocks(self, bytes_per_image: int) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """Runs of images and their padded input, (n, rows.size, cols.size, chans) float32."""
        plan = self.plan
        count = min(max(BLOCK_BYTES // max(bytes_per_image, 1), 1), len(self.x))
        shape = (count, plan.rows.size, plan.cols.size, plan.x.chans)
        padded, maps = self.workspace.array("input", shape, np.float32), self.workspace.maps
        inside = *plan.rows.inside, *plan.cols.inside
        if maps is None:
            pad(plan.rows, plan.cols, padded)
        for first in range(0, len(self.x), count):
            images = slice(first, min(first + count, len(self.x)))
            part = padded[: images.stop - first]
            if maps is None:
                fill_inside(self.x[images], plan.rows, plan.cols, part)
            else:
                maps.fill(self.x[images, plan.rows.source, plan.cols.source], inside, part)
            yield images, part

    def finish(self, acc: Floats, bound: int, images: slice, outs: slice, rows: slice | None = None) -> None:
        """Check and requantise ``acc`` (n, rows, cols, outs), |acc| <= bound, and write the result."""
        requantizer = self.operands.requantizer.part(outs.start, outs.stop)
        if bound + requantizer.bias_size >= INT32_LIMIT:
            bound = self._checked_sums(acc, requantizer)
        rows = slice(None) if rows is None else rows
        place = (images, rows, slice(None), outs)
        residual = None
        if self.residual is not None:
            residual = Residual(self.residual[place], *self.residual_table)
        requantizer.apply(acc, bound, self.operands.finish, residual, self.y[place], self.workspace)

    @staticmethod
    def _checked_sums(acc: Floats, requantizer: Requantizer) -> int:
        low = acc.min(axis=(0, 1, 2)).astype(np.int64)
        high = acc.max(axis=(0, 1, 2)).astype(np.int64)
        for sums in (low + requantizer.bias, high + requantizer.bias):
            bad = np.flatnonzero((sums < -INT32_LIMIT) | (sums >= INT32_LIMIT))
            if bad.size:
                raise EsccError(f"output channel {bad[0]}: sum {int(sums[bad[0]])} does not fit into 32 bits")
        return int(max(-low.min(), high.max(), 0))


def _combine(job: _Job) -> None:
    """Z = ternary coefficients x activations, then the convolution of the M streams of Z with the bases."""
    plan, operands, ws = job.plan, job.operands, job.workspace
    coefficients = operands.coefficients
    assert coefficients is not None
    r = plan.registers
    positions = plan.rows.size * plan.cols.size
    z_bounds = coefficients.z_bounds(plan.x_signed)
    bounds = z_bounds.astype(np.float64) @ operands.kernels.tap_sums.astype(np.float64)
    z_limit = 1 << (job.z_bits - 1)
    z_bound = int(z_bounds.max())
    kind = np.float32 if r.chans * 255 < FLOAT32_EXACT else np.float64
    step = _outs_step(r.outs, positions * (r.bases + plan.taps + 1) * 4)
    planes = coefficients.planes if kind == np.float32 else coefficients.planes.astype(kind)
    for images, padded in job.image_blocks(positions * (r.chans + (r.bases + plan.taps + 1) * step) * 4):
        count = len(padded) * positions
        flat = padded.reshape(count, r.chans).astype(kind, copy=False)
        for first in range(0, r.outs, step):
            outs = slice(first, min(first + step, r.outs))
            width = outs.stop - first
            z = ws.array("z", (r.bases, count, width), kind)
            np.matmul(flat, planes[:, :, outs], out=z)
            sizes = None
            if z_bound >= z_limit:
                sizes = _stream_sizes(z)
                _check_z(z, sizes, z_limit, job.z_bits, first)
            bound = int(bounds[outs].max()) + 1
            if bound >= FLOAT32_EXACT:
                sizes = _stream_sizes(z) if sizes is None else sizes
                bound = min(bound, sum_bound(sizes[None], operands.kernels.tap_sums))
            if bound >= FLOAT64_EXACT:
                raise EsccError(f"sums of output {first} may not fit into 53 bits")
            acc = _convolve(job, z, len(padded), bound < FLOAT32_EXACT)
            job.finish(acc, bound, images, outs)


def _outs_step(outs: int, bytes_per_out: int) -> int:
    """Output channels to do at once so that their scratch fits the cache."""
    if bytes_per_out * outs <= 2 * BLOCK_BYTES:
        return outs
    pieces = -(-outs // max(BLOCK_BYTES // bytes_per_out, LEAST_OUTS))
    return -(-outs // pieces)


def _stream_sizes(z: Floats) -> npt.NDArray[np.int64]:
    """Largest |Z| of each stream, (bases,)."""
    flat = z.reshape(len(z), -1)
    return np.maximum(flat.max(axis=1), -flat.min(axis=1)).astype(np.int64)


def _check_z(z: Floats, sizes: npt.NDArray[np.int64], limit: int, z_bits: int, first: int) -> None:
    if int(sizes.max()) < limit:
        return
    bad = np.argwhere((z >= limit) | (z < -limit))
    if len(bad):
        basis, position, channel = bad[0]
        value = int(z[basis, position, channel])
        raise EsccError(f"Z of output {first + channel}, basis {basis} is {value}: beyond {z_bits} bits")


def _convolve(job: _Job, z: Floats, images: int, in_float32: bool) -> Floats:
    """Streams ``z`` (bases, n * rows * cols, outs) with the bases: (n, y_rows, y_cols, outs), exact."""
    kernels, ws = job.operands.kernels, job.workspace
    bases, count, outs = z.shape
    kind = np.float32 if in_float32 else np.float64
    if z.dtype != kind:
        z = z.astype(kind)
    taps = kernels.taps if in_float32 else kernels.taps_f64
    by_tap = ws.array("by tap", (len(taps), count * outs), kind)
    np.matmul(taps, z.reshape(bases, count * outs), out=by_tap)
    return _shift_and_add(job, by_tap, images, outs)


def _shift_and_add(job: _Job, by_tap: Floats, images: int, outs: int) -> Floats:
    """Add up ``by_tap`` (taps, n * rows * cols * outs), each tap moved to the output it lands on."""
    plan = job.plan
    rows, cols = plan.rows, plan.cols
    shape = (images, rows.size, cols.size, outs)
    if len(by_tap) == 1:
        return by_tap[0].reshape(shape)
    if rows.out_stride == cols.out_stride == 1:
        # With the padding in place a tap is one shift of the whole array; sums in the padding are not used.
        size = by_tap.shape[1]
        down, right = rows.dilation * cols.size * outs, cols.dilation * outs
        total = size - (rows.taps - 1) * down - (cols.taps - 1) * right
        item = by_tap.itemsize
        moved = np.ndarray(
            (rows.taps, cols.taps, total),
            by_tap.dtype,
            by_tap,
            0,
            ((cols.taps * size + down) * item, (size + right) * item, item),
        )
        acc = job.workspace.array("sums", (size,), by_tap.dtype.type)
        np.add.reduce(moved, axis=(0, 1), out=acc[:total])
        return acc.reshape(shape)[:, : rows.count, : cols.count]
    places = [(i * rows.dilation, j * cols.dilation) for i in range(rows.taps) for j in range(cols.taps)]
    acc = job.workspace.array("sums", (images, rows.count, cols.count, outs), by_tap.dtype.type)
    maps = by_tap.reshape(len(by_tap), *shape)
    for tap, (i, j) in enumerate(places):
        moved = _strided_taps(maps[tap], plan, i, j)
        if tap:
            np.add(acc, moved, out=acc)
        else:
            np.copyto(acc, moved)
    return acc


def _strided_taps(values: Floats, plan: ConvPlan, i: int, j: int) -> Floats:
    """What tap offset (i, j) of every output meets, of ``values`` (n, rows.size, cols.size, channels)."""
    down, right = plan.rows.out_stride, plan.cols.out_stride
    return values[
        :,
        i : i + (plan.rows.count - 1) * down + 1 : down,
        j : j + (plan.cols.count - 1) * right + 1 : right,
    ]


def _dense(job: _Job, weights: Weights) -> None:
    """im2col and one matrix product per part of the columns that float32 sums exactly."""
    plan, ws = job.plan, job.workspace
    r = plan.registers
    length = plan.taps * r.chans
    cuts, bound = weights.parts(plan.x_signed)
    row_bytes = r.y_cols * (length + 2 * r.outs) * 4
    for images, padded in job.image_blocks(row_bytes * r.y_rows):
        n = len(padded)
        step = max(BLOCK_BYTES // row_bytes, 1) if n == 1 else r.y_rows
        for top in range(0, r.y_rows, step):
            high = min(step, r.y_rows - top)
            columns = _columns(job, padded, top, high)
            acc = ws.array("sums", (n * high * r.y_cols, r.outs), np.float32)
            np.matmul(columns[:, : cuts[1]], weights.matrix[: cuts[1]], out=acc)
            total: Floats = acc
            if len(cuts) > 2:
                total = acc.astype(np.float64)
                for a, b in pairwise(cuts[1:]):
                    total += np.matmul(columns[:, a:b], weights.matrix[a:b], out=acc)
            sums = total.reshape(n, high, r.y_cols, r.outs)
            job.finish(sums, bound, images, slice(0, r.outs), slice(top, top + high))


def _columns(job: _Job, padded: npt.NDArray[np.float32], top: int, high: int) -> npt.NDArray[np.float32]:
    """im2col of output rows ``top..top+high-1``: (n * high * y_cols, taps * chans)."""
    plan = job.plan
    rows, cols, chans = plan.rows, plan.cols, plan.x.chans
    n = len(padded)
    if plan.taps == 1:
        return padded[:, top : top + high].reshape(n * high * cols.count, chans)
    s_image, s_row, s_col, s_chan = padded.strides
    view = np.ndarray(
        (n, high, cols.count, rows.taps, cols.taps, chans),
        np.float32,
        padded,
        top * rows.out_stride * s_row,
        (
            s_image,
            rows.out_stride * s_row,
            cols.out_stride * s_col,
            rows.dilation * s_row,
            cols.dilation * s_col,
            s_chan,
        ),
    )
    columns = job.workspace.array("columns", view.shape, np.float32)
    np.copyto(columns, view)
    return columns.reshape(n * high * cols.count, plan.taps * chans)


def _depthwise(job: _Job) -> None:
    """Products of shifted inputs and taps, added up: |sum| <= 255 * 128 * taps."""
    plan, kernels, ws = job.plan, job.operands.kernels, job.workspace
    r = plan.registers
    bound = int(kernels.tap_sums.max()) * (128 if plan.x_signed else 255)
    kind = np.float32 if bound < FLOAT32_EXACT else np.float64
    taps = kernels.taps if kind == np.float32 else kernels.taps_f64
    outputs = r.y_rows * r.y_cols
    if plan.cols.out_stride == 1:
        # One long inner loop over the positions of a row and their channels.
        taps = np.tile(taps, (1, r.y_cols))
    for images, padded in job.image_blocks((plan.rows.size * plan.cols.size + 2 * outputs) * r.outs * 4):
        values = padded.repeat(r.multiplier, axis=3) if r.multiplier > 1 else padded
        acc = ws.array("sums", (len(padded), r.y_rows, r.y_cols, r.outs), kind)
        product = ws.array("products", acc.shape, kind)
        joint = (len(padded), r.y_rows, r.y_cols * r.outs) if plan.cols.out_stride == 1 else acc.shape
        for tap in range(plan.taps):
            i, j = divmod(tap, plan.cols.taps)
            moved = _strided_taps(values, plan, i * plan.rows.dilation, j * plan.cols.dilation)
            target = product if tap else acc
            np.multiply(moved.reshape(joint), taps[tap], out=target.reshape(joint))
            if tap:
                np.add(acc, product, out=acc)
        job.finish(acc, bound, images, slice(0, r.outs))
