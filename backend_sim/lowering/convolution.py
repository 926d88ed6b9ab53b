"""Machine layers of convolutions: the chain combine -> convolve -> requantize, or convolve -> requantize."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from escc.backend_sim.lowering.layers import ConvWork, MachineLayer, Operand, Part, Read, Stream, Window
from escc.backend_sim.lowering.streams import (
    RECORD_BYTES,
    channel_bases,
    coefficient_stream,
    requant_stream,
    row_nonzeros,
    shared_bases,
    table_stream,
)
from escc.backend_sim.lowering.values import map_type, operand_of, shape_of
from escc.errors import EsccError
from escc.ir.base import LayerOp, describe, module_path, source_place
from escc.ir.store import TensorStore
from escc.ir.xdsl import OpResult, SSAValue
from escc.isa.arch import Arch
from escc.isa.registers import ConvFlags

MNEMONICS = {"ternary": "conv_combine", "dense": "conv_dense", "depthwise": "conv_depthwise"}


def convolution_layer(op: LayerOp, store: TensorStore, arch: Arch) -> MachineLayer:
    """The layer that ends in the requantize ``op``.

    Raises:
        EsccError: the chain is broken, or the machine's partial-sum memory, Z width or accumulator is too
            small for it.
    """
    convolve = _producer(op.x, "escalate.convolve", op)
    form = str(convolve.value("form"))
    combine = _producer(convolve.x, "escalate.combine", convolve) if form == "ternary" else None
    kernel, stride = convolve.ints("kernel"), convolve.ints("stride")
    padding, dilation = convolve.ints("padding"), convolve.ints("dilation")
    rule = Window(dilation[0] * (kernel[0] - 1) + 1, stride[0], padding[0])
    x = operand_of((combine or convolve).x, rule, op)
    operands = [x]
    if len(op.operands) > 1:
        operands.append(operand_of(op.operands[1], Window(), op))
    shape = shape_of(op.out)
    groups = int(convolve.value("groups"))
    _check_partial_sums(op, shape[1], rule, arch)
    streams, bases, density, two_level = _streams(op, convolve, combine, store, arch, x)
    registers = {
        "height": x.shape[0],
        "width": x.shape[1],
        "y_cols": shape[1],
        "kernel_h": kernel[0],
        "kernel_w": kernel[1],
        "stride_h": stride[0],
        "stride_w": stride[1],
        "pad_top": padding[0],
        "pad_left": padding[1],
        "dil_h": dilation[0],
        "dil_w": dilation[1],
        "low": int(op.value("low")),
        "high": int(op.value("high")),
        "flags": _flags(op, operands) | int(two_level) * int(ConvFlags.TWO_LEVEL),
    }
    if len(operands) > 1:
        registers["res_mult"] = int(op.value("residual_multiplier"))
        registers["res_shift"] = int(op.value("residual_shift"))
    if form == "ternary":
        registers["bases"] = bases
    channels, outs = x.shape[2] // groups, shape[2] // groups
    unit = 1
    if form == "depthwise":
        # one instruction serves all channels: output k reads channel k // multiplier
        registers["multiplier"] = unit = outs
        spans = [(0, shape[2], Read(0, "x", multiplier=unit))]
    else:
        spans = [
            (group * outs, (group + 1) * outs, Read(0, "x", group * channels, channels))
            for group in range(groups)
        ]
    residual = len(operands) > 1
    parts = tuple(
        Part(MNEMONICS[form], lo, hi, (read, Read(1, "residual", lo)) if residual else (read,), registers)
        for lo, hi, read in spans
    )
    return MachineLayer(
        name=module_path(op) or op.name,
        operation=f"{convolve.name} {form}",
        source=source_place(op),
        anchor=op,
        operands=tuple(operands),
        shape=shape,
        signed=map_type(op.out, op).signed,
        parts=parts,
        streams=tuple(streams),
        unit=unit,
        work=ConvWork(form, bases, density, (kernel[0], kernel[1])),
        dense_bytes=shape[2]
        * ((1 if form == "depthwise" else channels) * kernel[0] * kernel[1] + RECORD_BYTES),
    )


def _producer(value: SSAValue, name: str, user: LayerOp) -> LayerOp:
    owner = value.op if isinstance(value, OpResult) else None
    if not isinstance(owner, LayerOp) or owner.name != name:
        raise EsccError(f"its operand must come from {name}", where=describe(user))
    return owner


def _flags(op: LayerOp, operands: list[Operand]) -> int:
    flags = ConvFlags(0)
    if operands[0].signed:
        flags |= ConvFlags.X_SIGNED
    if map_type(op.out, op).signed:
        flags |= ConvFlags.Y_SIGNED
    if len(operands) > 1:
        flags |= ConvFlags.RESIDUAL
        if operands[1].signed:
            flags |= ConvFlags.RESIDUAL_SIGNED
    if op.symbol("table") is not None:
        flags |= ConvFlags.TABLE
    return int(flags)


def _streams(
    op: LayerOp,
    convolve: LayerOp,
    combine: LayerOp | None,
    store: TensorStore,
    arch: Arch,
    x: Operand,
) -> tuple[list[Stream], int, float, bool]:
    """(streams, bases M, density of the coefficients, two-level masks); checks that no sum can overflow."""
    kernels = store[convolve.weight_name("bases")]
    requant = store[op.weight_name("requant")]
    streams = [requant_stream(requant)]
    if combine is None:
        streams.append(channel_bases(kernels))
        bases, density, two_level = 1, 1.0, False
        # bytes are at most 128: mostly enough to rule an overflow out without reading every weight
        taps = kernels.size // len(kernels)
        largest = 128 if x.signed else 255
        sums = np.full(len(kernels), taps * 128 * largest, np.int64)
        if taps * 128 * largest >= 1 << 30:
            sums = _sizes(kernels) * largest
    else:
        coefficients = store[combine.weight_name("coefficients")]
        nonzeros = row_nonzeros(coefficients)
        stream, two_level = coefficient_stream(coefficients, nonzeros, arch.chunk)
        streams += [shared_bases(kernels), stream]
        bases = int(kernels.shape[0])
        density = float(nonzeros.sum()) / max(coefficients.size, 1)
        limit = 1 << (arch.z_bits - 1)
        largest, sums = _sum_bounds(coefficients, nonzeros, _sizes(kernels), x.signed, limit)
        _check_width(op, largest, arch)
    _check_accumulator(op, sums, requant)
    if (table := op.symbol("table")) is not None:
        streams.append(table_stream(store[table]))
    return streams, bases, density, two_level


def _sizes(kernels: NDArray[Any]) -> NDArray[np.int64]:
    """(n,) sum of |taps| of each of n kernels (n, ...) int8."""
    rows = kernels.reshape(len(kernels), -1)
    return np.fromiter((int(np.abs(row.astype(np.int16)).sum()) for row in rows), np.int64, len(rows))


def _sum_bounds(
    coefficients: NDArray[Any],
    nonzeros: NDArray[np.int64],
    sizes: NDArray[np.int64],
    signed: bool,
    limit: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers (K,) that no |Z|, and no sum, of any input of the map's type exceeds.

    ``sizes``: (M,) sum of |taps| of every basis. Exact for the outputs whose cheap bound, all non-zeros of
    the output in one combination with the largest basis, does not decide.
    """
    largest = nonzeros * (128 if signed else 255)
    sums = largest * int(sizes.max(initial=0))
    for row in np.flatnonzero((largest >= limit) | (sums >= 1 << 30)).tolist():
        plus = np.count_nonzero(coefficients[row] > 0, axis=0)
        minus = np.count_nonzero(coefficients[row] < 0, axis=0)
        if signed:
            exact = np.maximum(plus * 127 + minus * 128, plus * 128 + minus * 127)
        else:
            exact = np.maximum(plus, minus) * 255
        largest[row], sums[row] = exact.max(initial=0), exact @ sizes
    return largest, sums


def _check_width(op: LayerOp, bounds: NDArray[np.int64], arch: Arch) -> None:
    limit = 1 << (arch.z_bits - 1)
    largest = int(bounds.max(initial=0))
    if largest >= limit:
        raise EsccError(
            f"a linear combination can reach {largest}, {arch.z_bits} bits hold less than {limit}",
            where=describe(op),
            hint="raise array.z_bits, make its coefficients sparser or keep the layer dense",
        )


def _check_accumulator(op: LayerOp, sums: NDArray[np.int64], requant: NDArray[Any]) -> None:
    largest = int((sums + np.abs(requant[:, 0].astype(np.int64))).max(initial=0))
    if largest >= 1 << 31:
        raise EsccError(
            f"a sum can reach {largest}, the accumulator holds less than {1 << 31}",
            where=describe(op),
            hint="make the layer's weights sparser or smaller",
        )


def _check_partial_sums(op: LayerOp, columns: int, rule: Window, arch: Arch) -> None:
    needed = columns * -(-rule.extent // rule.stride)
    if needed > arch.psum_entries:
        raise EsccError(
            f"needs {needed} partial sums in a row ({columns} columns x {needed // columns} output rows in "
            f"flight), the machine holds {arch.psum_entries}",
            where=describe(op),
            hint="raise array.psum_entries",
        )
