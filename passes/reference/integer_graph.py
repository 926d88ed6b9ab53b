"""Reference interpreter of the integer levels ("quantized", "reordered"): what the machine must compute.

It knows nothing of the lowering or the simulator. A ternary layer is computed from its recomposed integer
weights W[k, c] = sum_m T[k, c, m] * B[m]; after reorder-linear-combination the split operations are evaluated
literally, so that both orders can be compared.

Maps are torch tensors (N, C, H, W) of type float32 that hold integers. Sums of products are exact because
every partial sum is an integer that the floating-point type represents: float32 is used only where the bound
2**24 is proven from the actual weights, float64 (bound 2**53) elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray

from escc.errors import EsccError
from escc.ir.base import LayerOp, describe, map_shape
from escc.ir.escalate import Combine
from escc.ir.module import Module
from escc.ir.types import MapType, StreamType
from escc.ir.xdsl import SSAValue
from escc.passes.math.fixed_point import integer_dtype, limits, quantize_input

Tensor = torch.Tensor
Step = Callable[[list[Tensor]], Tensor]
Visit = Callable[[LayerOp, Tensor], None]
"""Called as ``visit(op, result)`` with a tensor (N, C, H, W) of integers in a floating-point type."""
Images = NDArray[Any] | Sequence[NDArray[Any]]

_FLOAT32_EXACT = 2**24
_FLOAT64_EXACT = 2**53
_MAP_VALUES = 2**18
_STREAM_VALUES = 2**21


def evaluate_integer(
    module: Module, x: Images, visit: Visit | None = None, *, literal: bool = True
) -> list[NDArray[Any]]:
    """Outputs of a quantised network as the machine gives them.

    Args:
        module: a network of the level "quantized" or "reordered".
        x: one batch (N, *torch_shape), or one per input; float images are quantised as the host does it
            (x / scale rounded half to even, saturated), int8 or uint8 images are taken as they are.
        visit: called after each operation, once per slice of the batch.
        literal: evaluate combine and convolve in that order, as they stand; False takes the recomposed
            weights instead, several times faster (combine then gives its input as it is).

    Returns:
        One int8 or uint8 array (N, *torch_shape) per output.

    Raises:
        EsccError: wrong number, shape or type of inputs; an operation of another level.
    """
    batches = _inputs(module, x)
    count = len(batches[0])
    layers = list(module.layers)
    steps = [_builder(op, literal)(module, op) for op in layers]
    chunk = min(_images_at_once(module, literal), max(count, 1))
    parts: list[list[NDArray[Any]]] = [[] for _ in module.outputs]
    with torch.inference_mode(), _exact_kernels():
        for start in range(0, max(count, 1), chunk):
            maps = [_to_map(batch[start : start + chunk]) for batch in batches]
            found = _walk(module, layers, steps, maps, visit)
            for part, value, port in zip(parts, module.outputs, module.output_ports, strict=True):
                dtype = integer_dtype(_map_type(value).signed)
                part.append(found[value].numpy().astype(dtype).reshape(-1, *port.torch_shape))
    return [np.concatenate(part) for part in parts]


@contextmanager
def _exact_kernels() -> Generator[None]:
    """Convolutions of torch as plain float32 sums of products, whatever the process has set.

    NNPACK is off because its Winograd transforms are not exact, and so is rounding to bfloat16.
    """
    settings: Any = getattr(torch.backends.mkldnn, "conv", None)
    before = getattr(settings, "fp32_precision", None)
    if before is not None:
        settings.fp32_precision = "ieee"
    try:
        with torch.backends.nnpack.flags(enabled=False):
            yield
    finally:
        if before is not None:
            settings.fp32_precision = before


def _images_at_once(module: Module, literal: bool) -> int:
    """So many that a map of the network, and a stream when there is one, keeps to the caches."""
    values = [*module.inputs, *(op.out for op in module.layers)]
    sizes = [(math.prod(map_shape(value)), isinstance(value.type, StreamType)) for value in values]
    maps = max(size for size, stream in sizes if not stream)
    streams = max((size for size, stream in sizes if stream and literal), default=1)
    return max(1, min(_MAP_VALUES // maps, _STREAM_VALUES // streams))


def _walk(
    module: Module, layers: list[LayerOp], steps: list[Step], maps: list[Tensor], visit: Visit | None
) -> dict[SSAValue, Tensor]:
    values: dict[SSAValue, Tensor] = dict(zip(module.inputs, maps, strict=True))
    outputs = set(module.outputs)
    last_use = {operand: op for op in layers for operand in op.operands}
    for op, step in zip(layers, steps, strict=True):
        values[op.out] = step([values[operand] for operand in op.operands])
        if visit is not None:
            visit(op, values[op.out])
        for operand in set(op.operands) - outputs:
            if last_use[operand] is op:
                del values[operand]
    return values


def _map_type(value: SSAValue) -> MapType:
    if not isinstance(value.type, MapType):
        raise EsccError(f"not a quantised map: {value.type}", hint="run quantize-hybrid first")
    return value.type


def _to_map(batch: NDArray[Any]) -> Tensor:
    return torch.from_numpy(batch.astype(np.float32))


def _inputs(module: Module, x: Images) -> list[NDArray[Any]]:
    given = [x] if isinstance(x, np.ndarray) else list(x)
    ports = module.input_ports
    if len(given) != len(ports):
        raise EsccError(f"the network has {len(ports)} inputs, {len(given)} given")
    batches: list[NDArray[Any]] = []
    for batch, port, value in zip(given, ports, module.inputs, strict=True):
        height, width, channels = map_shape(value)
        if tuple(batch.shape[1:]) not in (tuple(port.torch_shape), (channels, height, width)):
            raise EsccError(
                f"input '{port.name}' must be N x {list(port.torch_shape)}, found {list(batch.shape)}"
            )
        kind = _map_type(value)
        if np.issubdtype(batch.dtype, np.floating):
            if np.isnan(batch).any():
                raise EsccError(f"input '{port.name}' holds values that are not numbers")
            batch = quantize_input(batch, kind.scale_value, kind.signed)
        elif batch.dtype != integer_dtype(kind.signed):
            raise EsccError(
                f"input '{port.name}' takes {np.dtype(integer_dtype(kind.signed))} or float,"
                f" found {batch.dtype}"
            )
        batches.append(batch.reshape(len(batch), channels, height, width))
    if len({len(batch) for batch in batches}) != 1:
        raise EsccError("the inputs have different numbers of images")
    return batches


# -- exact arithmetic ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Geometry:
    """Stride, padding (top, left, bottom, right), dilation and groups of a convolution."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @staticmethod
    def of(op: LayerOp) -> Geometry:
        """Read from an operation."""
        return Geometry(op.ints("stride"), op.ints("padding"), op.ints("dilation"), int(op.value("groups")))


def _bound(weight: NDArray[np.int64], low: int, high: int) -> int:
    """Largest magnitude of any partial sum of one output, inputs in [low, high]."""
    flat = weight.reshape(len(weight), -1)
    above = np.maximum(flat * low, flat * high).sum(axis=1)
    below = np.minimum(flat * low, flat * high).sum(axis=1)
    return max(int(above.max(initial=0)), -int(below.min(initial=0)))


def exact_convolution(
    weight: NDArray[np.int64], geometry: Geometry, low: int, high: int
) -> Callable[[Tensor], Tensor]:
    """A function that convolves maps of integers in [low, high] exactly.

    Args:
        weight: integers (K, C/groups, R, S).
        low, high: range of the input values.

    Returns:
        A function from (N, C, H, W) to (N, K, H', W'), float32 or float64.
    """
    bound = _bound(weight, low, high)
    if bound >= _FLOAT64_EXACT:
        raise ValueError("sums above 2^53 cannot be computed exactly")
    parts = 1
    if geometry.groups == 1:  # sums over fewer input channels may stay below the float32 bound
        while bound >= _FLOAT32_EXACT and parts < min(8, weight.shape[1]):
            parts *= 2
            pieces = np.array_split(weight, parts, axis=1)
            bound = max(_bound(piece, low, high) for piece in pieces)
    kind = torch.float32 if bound < _FLOAT32_EXACT else torch.float64
    splits = np.array_split(np.arange(weight.shape[1]), parts if kind == torch.float32 else 1)
    kernels = [
        (int(part[0]) if parts > 1 else 0, torch.from_numpy(weight[:, part]).to(kind)) for part in splits
    ]
    top, left, bottom, right = geometry.padding
    symmetric = (top, left) == (bottom, right)

    def convolve(x: Tensor) -> Tensor:
        x = x.to(kind)
        if not symmetric:
            x = functional.pad(x, (left, right, top, bottom))
        total: Tensor | None = None
        for first, kernel in kernels:
            y = functional.conv2d(
                x if len(kernels) == 1 else x[:, first : first + kernel.shape[1]],
                kernel,
                None,
                cast("tuple[int, int]", geometry.stride),
                (top, left) if symmetric else 0,
                cast("tuple[int, int]", geometry.dilation),
                geometry.groups,
            )
            total = y if total is None else total.to(torch.float64).add_(y)
        assert total is not None
        return total

    return convolve


Rows = NDArray[np.int64] | int


def exact_requantize(bias: Rows, multiplier: Rows, shift: Rows, needed: int) -> Callable[[Tensor], Tensor]:
    """A function giving (x + bias) * multiplier / 2**shift rounded half away from zero.

    Args:
        bias, multiplier, shift: per channel (K,), or one number for all.
        needed: results up to this magnitude are exact; larger ones may be off but stay above it.

    Returns:
        A function from integers (N, K, H, W) to float64 integers of the same shape.

    In double precision the factor m / 2**s is replaced by the next larger number. The product then lies above
    the true value p, rounding included, by less than 1.51 * 2**-52 of it; so ties (k + 1/2) fall to the side
    away from zero. Every other p is a multiple of 2**-s and at least that far from a tie, so it cannot cross
    one while 1.51 * 2**-52 * needed <= 2**-s. Channels with a larger shift take 64-bit integers instead.
    """
    rows = [np.atleast_1d(np.asarray(item, np.int64)) for item in (bias, multiplier, shift)]
    limit = max(0, math.floor(52 - math.log2(1.51 * needed)))
    factors = np.ldexp(rows[1].astype(np.float64), -rows[2])
    factors = torch.from_numpy(np.nextafter(factors, np.where(factors > 0, np.inf, 0.0)))
    biases = torch.from_numpy(rows[0].astype(np.float64))[:, None, None]
    factors = factors[:, None, None]
    slow = np.flatnonzero((rows[2] > limit) & (rows[1] > 0))
    exact = [torch.from_numpy(row[slow])[:, None, None] for row in rows]
    everywhere = len(slow) == len(rows[2])

    def in_integers(x: Tensor) -> Tensor:
        product = x.to(torch.int64).add_(exact[0]).mul_(exact[1])
        sign = product.sign()
        half = torch.bitwise_left_shift(torch.ones_like(exact[2]), exact[2] - 1)
        return product.abs_().add_(half).bitwise_right_shift_(exact[2]).mul_(sign).to(torch.float64)

    def requantize(x: Tensor) -> Tensor:
        if everywhere:
            return in_integers(x)
        y = x.to(torch.float64) if x.dtype != torch.float64 else x.clone()
        y = y.add_(biases).mul_(factors).round_()
        if len(slow):
            y[:, slow] = in_integers(x[:, slow])
        return y

    return requantize


def _finish(module: Module, op: LayerOp) -> Callable[[Tensor], Tensor]:
    """Clamp or table at the end of an operation; takes a float64 tensor it may overwrite."""
    symbol = op.symbol("table")
    if symbol is None:
        low, high = float(op.value("low")), float(op.value("high"))
        return lambda y: y.clamp_(low, high).to(torch.float32)
    look_up = _table(module.store[symbol])
    return lambda y: look_up(y.clamp_(-128, 127))


def _table(table: NDArray[Any]) -> Callable[[Tensor], Tensor]:
    entries = torch.from_numpy(table.astype(np.float32))
    return lambda y: entries[y.to(torch.int64) & 0xFF]


def _limits(value: SSAValue) -> tuple[int, int]:
    return limits(_map_type(value).signed)


# -- operations ---------------------------------------------------------------------------------------------


def recomposed_weight(module: Module, op: LayerOp) -> NDArray[np.int64]:
    """The integer weights (K, C/groups, R, S) of a quantised convolution, whatever its form."""
    bases = module.store[op.weight_name("bases")].astype(np.int64)
    if op.value("form") != "ternary":
        return bases
    coefficients = module.store[op.weight_name("coefficients")].astype(np.int64)
    return np.einsum("kcm,mrs->kcrs", coefficients, bases)


def _requantizer(module: Module, op: LayerOp) -> Callable[[Tensor, list[Tensor]], Tensor]:
    """Bias, multiplier, residual and clamp or table of a convolution."""
    rows = module.store[op.weight_name("requant")].astype(np.int64)
    finish = _finish(module, op)
    needed, add = 256, None
    if len(op.operands) > 1:
        multiplier, shift = int(op.value("residual_multiplier")), int(op.value("residual_shift"))
        needed += math.ceil(255 * math.ldexp(multiplier, -shift)) + 1
        add = exact_requantize(0, multiplier, shift, needed)
    scale = exact_requantize(rows[:, 0], rows[:, 1], rows[:, 2], needed)

    def requantize(sums: Tensor, residuals: list[Tensor]) -> Tensor:
        y = scale(sums)
        if add is not None:
            y = y.add_(add(residuals[0]))
        return finish(y)

    return requantize


def _quantized_conv2d(module: Module, op: LayerOp) -> Step:
    convolve = exact_convolution(recomposed_weight(module, op), Geometry.of(op), *_limits(op.x))
    requantize = _requantizer(module, op)
    return lambda maps: requantize(convolve(maps[0]), maps[1:])


def _combine(module: Module, op: LayerOp) -> Step:
    coefficients = module.store[op.weight_name("coefficients")].astype(np.int64)
    outputs, inputs, bases = coefficients.shape
    weight = coefficients.transpose(0, 2, 1).reshape(outputs * bases, inputs, 1, 1)
    geometry = Geometry((1, 1), (0, 0, 0, 0), (1, 1), int(op.value("groups")))
    return _one_map(exact_convolution(weight, geometry, *_limits(op.x)))


def _convolve(module: Module, op: LayerOp) -> Step:
    bases = module.store[op.weight_name("bases")].astype(np.int64)
    geometry = Geometry.of(op)
    kind = op.x.type
    if not isinstance(kind, StreamType):
        return _one_map(exact_convolution(bases, geometry, *_limits(op.x)))
    limit = 1 << (kind.element.width.data - 1)
    geometry = replace(geometry, groups=1)

    def convolve(maps: list[Tensor]) -> Tensor:
        # every output k convolves its own M combinations with the same bases: K more images of M channels
        images, outputs, (count, *side) = len(maps[0]), map_shape(op.out)[2], (len(bases), *maps[0].shape[2:])
        largest = int(maps[0].abs().max()) if maps[0].numel() else 0
        if largest >= limit:
            raise EsccError(f"a combination exceeds {limit - 1}", where=describe(op))
        streams = maps[0].reshape(images * outputs, count, *side)
        sums = exact_convolution(bases[None], geometry, -largest, largest)(streams)
        return sums.reshape(images, outputs, *sums.shape[2:])

    return convolve


def _recomposed_convolve(module: Module, op: LayerOp) -> Step:
    """As :func:`_convolve`, from the map that was to be combined and the recomposed weights."""
    combine = op.x.owner
    if not isinstance(combine, Combine):
        return _convolve(module, op)
    bases = module.store[op.weight_name("bases")].astype(np.int64)
    coefficients = module.store[combine.weight_name("coefficients")].astype(np.int64)
    weight = np.einsum("kcm,mrs->kcrs", coefficients, bases)
    return _one_map(exact_convolution(weight, Geometry.of(op), *_limits(combine.x)))


def _one_map(function: Callable[[Tensor], Tensor]) -> Step:
    return lambda maps: function(maps[0])


def _requantize(module: Module, op: LayerOp) -> Step:
    requantize = _requantizer(module, op)
    return lambda maps: requantize(maps[0], maps[1:])


def _rescale(op: LayerOp, prefix: str, needed: int = 256) -> Callable[[Tensor], Tensor]:
    return exact_requantize(0, int(op.value(f"{prefix}multiplier")), int(op.value(f"{prefix}shift")), needed)


def _add(module: Module, op: LayerOp) -> Step:
    ratios = [
        math.ldexp(int(op.value(f"{side}_multiplier")), -int(op.value(f"{side}_shift"))) for side in "ab"
    ]
    needed = 258 + math.ceil(255 * max(ratios))
    first, second = _rescale(op, "a_", needed), _rescale(op, "b_", needed)
    finish = _finish(module, op)
    return lambda maps: finish(first(maps[0]).add_(second(maps[1])))


def _mul(module: Module, op: LayerOp) -> Step:
    scale, finish = _rescale(op, ""), _finish(module, op)
    return lambda maps: finish(scale(maps[0] * maps[1]))


def _max_pool(module: Module, op: LayerOp) -> Step:
    kernel, stride = op.ints("kernel"), op.ints("stride")
    top, left, bottom, right = op.ints("padding")
    return lambda maps: functional.max_pool2d(
        functional.pad(maps[0], (left, right, top, bottom), value=-math.inf), kernel, stride
    )


Windows = list[tuple[int, int]]


def _mean(module: Module, op: LayerOp, rows: Windows, columns: Windows, counts: NDArray[np.int64]) -> Step:
    """Window means: window (i, j) covers rows[i] x columns[j] of the map and is divided by counts[i, j]."""
    records = {int(row[0]): row for row in module.store[op.weight_name("divisors")].astype(np.int64)}
    missing = sorted({int(count) for count in counts.flat} - set(records))
    if missing:
        raise EsccError(f"no divisor for windows of {missing} values", where=describe(op))
    low, high = _limits(op.out)
    scales = {count: exact_requantize(0, int(row[1]), int(row[2]), 256) for count, row in records.items()}

    def mean(maps: list[Tensor]) -> Tensor:
        # sums of 8-bit values stay far below 2^53
        strips = torch.stack([maps[0][:, :, a:b].sum(2, dtype=torch.float64) for a, b in rows], 2)
        sums = torch.stack([strips[:, :, :, a:b].sum(3) for a, b in columns], 3)
        y = torch.empty_like(sums)
        for count, scale in scales.items():
            where = torch.from_numpy(counts == count)
            y = torch.where(where, scale(sums), y)
        return y.clamp_(low, high).to(torch.float32)

    return mean


def _windows(size: int, kernel: int, stride: int, before: int, outputs: int) -> Windows:
    starts = [index * stride - before for index in range(outputs)]
    return [(max(start, 0), min(start + kernel, size)) for start in starts]


def _lengths(windows: Windows) -> NDArray[np.int64]:
    return np.array([end - start for start, end in windows], np.int64)


def _avg_pool(module: Module, op: LayerOp) -> Step:
    (height, width, _), out = map_shape(op.x), map_shape(op.out)
    kernel, stride, padding = op.ints("kernel"), op.ints("stride"), op.ints("padding")
    rows = _windows(height, kernel[0], stride[0], padding[0], out[0])
    columns = _windows(width, kernel[1], stride[1], padding[1], out[1])
    counts = np.outer(_lengths(rows), _lengths(columns))
    if op.value("count_include_pad"):
        counts[:] = kernel[0] * kernel[1]
    return _mean(module, op, rows, columns, counts)


def _adaptive_avg_pool(module: Module, op: LayerOp) -> Step:
    shape, size = map_shape(op.x), op.ints("size")
    rows, columns = (
        [(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]
        for length, count in zip(shape[:2], size, strict=True)
    )
    return _mean(module, op, rows, columns, np.outer(_lengths(rows), _lengths(columns)))


def _lookup(module: Module, op: LayerOp) -> Step:
    return _one_map(_table(module.store[op.weight_name("table")]))


def _concat(module: Module, op: LayerOp) -> Step:
    records = module.store[op.weight_name("rescale")].astype(np.int64)
    low, high = float(op.value("low")), float(op.value("high"))
    scales = [exact_requantize(0, int(m), int(s), 256) if m else None for m, s in records]

    def concat(maps: list[Tensor]) -> Tensor:
        rescaled = [
            (x if scale is None else scale(x).to(torch.float32))
            for x, scale in zip(maps, scales, strict=True)
        ]
        return torch.cat(rescaled, dim=1).clamp_(low, high)

    return concat


def _pad(module: Module, op: LayerOp) -> Step:
    top, left, bottom, right = op.ints("padding")
    before, after = op.ints("channels")
    return lambda maps: functional.pad(maps[0], (left, right, top, bottom, before, after))


_BUILDERS: dict[str, Callable[[Module, LayerOp], Step]] = {
    "escalate.quantized_conv2d": _quantized_conv2d,
    "escalate.combine": _combine,
    "escalate.convolve": _convolve,
    "escalate.requantize": _requantize,
    "escalate.add": _add,
    "escalate.mul": _mul,
    "escalate.max_pool": _max_pool,
    "escalate.avg_pool": _avg_pool,
    "escalate.adaptive_avg_pool": _adaptive_avg_pool,
    "escalate.lookup": _lookup,
    "escalate.concat": _concat,
    "escalate.pad": _pad,
}


_RECOMPOSED: dict[str, Callable[[Module, LayerOp], Step]] = {
    "escalate.combine": lambda module, op: lambda maps: maps[0],
    "escalate.convolve": _recomposed_convolve,
}


def _builder(op: LayerOp, literal: bool) -> Callable[[Module, LayerOp], Step]:
    builders = _BUILDERS if literal else _BUILDERS | _RECOMPOSED
    if op.name not in builders:
        raise EsccError(
            "not an operation of the integer levels", where=describe(op), hint="run quantize-hybrid first"
        )
    return builders[op.name]
