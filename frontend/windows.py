"""Rules for convolutions, linear layers, pooling, padding and strided slices."""

from __future__ import annotations

import itertools
import sys
from typing import TYPE_CHECKING, Any

from escc.frontend.translation import Call, Constant, Map, Unsupported, batch_shape
from escc.ir.activations import is_non_negative
from escc.ir.base import LayerOp
from escc.ir.nn import (
    Activation,
    AdaptiveAvgPool,
    AvgPool,
    Concat,
    Conv2d,
    MaxPool,
    Pad,
)
from escc.ir.xdsl import SSAValue

if TYPE_CHECKING:
    from torch import Tensor

Padding = tuple[int, int, int, int]
"""(top, left, bottom, right)."""

NONE: Padding = (0, 0, 0, 0)


# -- convolution and linear ---------------------------------------------------------------------------------


def conv2d(call: Call) -> Map:
    """aten.conv2d.default / .padding: zero padding as two numbers, "same" or "valid"."""
    return _convolve(call, "input", call.arguments.get("padding"))


def convolution(call: Call) -> Map:
    """aten.convolution.default, the form after full decomposition."""
    if call.flag("transposed"):
        raise Unsupported("transposed convolution")
    return _convolve(call, "input", call.arguments.get("padding"))


def _convolve(call: Call, name: str, padding: Any) -> Map:
    x = call.image(name)
    weight = call.constant("weight")
    if weight.tensor.dim() != 4:
        raise Unsupported(f"{weight.tensor.dim() - 2}-dimensional convolution")
    kernel = (int(weight.tensor.shape[2]), int(weight.tensor.shape[3]))
    stride, dilation = call.pair("stride", (1, 1)), call.pair("dilation", (1, 1))
    groups = int(call.number("groups"))
    if isinstance(padding, str):
        border = _named_padding(padding, kernel, dilation)
    else:
        vertical, horizontal = call.pair("padding", (0, 0))
        border = (vertical, horizontal, vertical, horizontal)
    value, extra = peel_padding(x.value)
    bias = call.optional_constant("bias")
    out = call.emit(
        Conv2d,
        [value],
        weight=call.keep(weight),
        bias=None if bias is None else call.keep(bias),
        kernel=kernel,
        outputs=int(weight.tensor.shape[0]),
        stride=stride,
        padding=add_padding(border, extra),
        dilation=dilation,
        groups=groups,
    )
    return call.result(out)


def _named_padding(name: str, kernel: tuple[int, int], dilation: tuple[int, int]) -> Padding:
    if name == "valid":
        return NONE
    if name != "same":
        raise Unsupported(f"padding '{name}'")
    # torch puts the odd row or column at the end
    total = [dilation[axis] * (kernel[axis] - 1) for axis in (0, 1)]
    top, left = total[0] // 2, total[1] // 2
    return top, left, total[0] - top, total[1] - left


def linear(call: Call) -> Map:
    """aten.linear: a convolution whose kernel is the whole map."""
    return _linear(call, call.map("input"), call.constant("weight"), call.optional_constant("bias"))


def addmm(call: Call) -> Map:
    """aten.addmm(bias, x, weight transposed)."""
    if call.number("beta") != 1 or call.number("alpha") != 1:
        raise Unsupported("alpha or beta that is not 1")
    return _linear(call, call.map("mat1"), _transposed(call.constant("mat2")), call.constant("self"))


def matmul(call: Call) -> Map:
    """aten.mm / aten.matmul of features and a constant matrix."""
    other = "mat2" if "mat2" in call.arguments else "other"
    return _linear(call, call.map("self"), _transposed(call.constant(other)), None)


def _transposed(constant: Constant) -> Constant:
    if constant.tensor.dim() != 2:
        raise Unsupported("a product that is not with a matrix")
    return Constant(constant.tensor.t().contiguous(), constant.name)


def _linear(call: Call, x: Map, weight: Constant, bias: Constant | None) -> Map:
    if len(x.shape) != 1:
        raise Unsupported(f"a linear layer over the last dimension of {batch_shape(x.shape)}; flatten first")
    channels, height, width = x.chw
    outputs = int(weight.tensor.shape[0])
    if weight.tensor.dim() != 2 or int(weight.tensor.shape[1]) != x.shape[0]:
        raise Unsupported("a weight of another size")
    out = call.emit(
        Conv2d,
        [x.value],
        weight=call.keep(weight, _as_kernel(weight.tensor, channels, height, width)),
        bias=None if bias is None else call.keep(bias),
        kernel=(height, width),
        outputs=outputs,
        stride=(1, 1),
        padding=NONE,
        dilation=(1, 1),
        groups=1,
    )
    return call.result(out)


def _as_kernel(weight: Tensor, channels: int, height: int, width: int) -> Tensor:
    """(K, C*H*W) in torch's flattening order as (K, C, H, W)."""
    return weight.reshape(weight.shape[0], channels, height, width)


# -- pooling ------------------------------------------------------------------------------------------------


def max_pool2d(call: Call) -> Map:
    """aten.max_pool2d; ceil_mode becomes padding at the bottom and right, which never wins."""
    if call.pair("dilation", (1, 1)) != (1, 1):
        raise Unsupported("dilated pooling")
    x = call.image("self")
    kernel, stride, border, _ = _pool_window(call, x)
    value, extra = peel_padding(x.value)
    # zeros around a map only act like "never wins" where no value is below zero
    if extra == NONE or not non_negative(value) or not _fits(border, extra, kernel):
        value, extra = x.value, NONE
    return call.result(
        call.emit(MaxPool, [value], kernel=kernel, stride=stride, padding=add_padding(border, extra))
    )


def avg_pool2d(call: Call) -> Map:
    """aten.avg_pool2d; with ceil_mode only where clipped windows have one meaning."""
    if call.arguments.get("divisor_override") is not None:
        raise Unsupported("divisor_override")
    x = call.image("self")
    kernel, stride, border, beyond = _pool_window(call, x)
    include = call.flag("count_include_pad")
    own = call.pair("padding", (0, 0))
    if beyond and include:
        if own != (0, 0):
            raise Unsupported("ceil_mode together with counted padding")
        include = False  # without padding, torch divides a clipped window by the values in it
    value, extra = peel_padding(x.value)
    exact = not beyond and (include or own == (0, 0)) and _fits(border, extra, kernel)
    if extra == NONE or not exact:
        value, extra = x.value, NONE
    else:
        include = True  # zeros that were part of the input count
    out = call.emit(
        AvgPool,
        [value],
        kernel=kernel,
        stride=stride,
        padding=add_padding(border, extra),
        count_include_pad=include,
    )
    return call.result(out)


def _pool_window(call: Call, x: Map) -> tuple[tuple[int, int], tuple[int, int], Padding, bool]:
    """Kernel, stride, padding, and whether ceil_mode made windows reach beyond the padding."""
    kernel = call.pair("kernel_size")
    stride = call.pair("stride", kernel)
    padding = call.pair("padding", (0, 0))
    ends = [padding[0], padding[1]]
    if call.flag("ceil_mode"):
        _, height, width = x.chw
        for axis, size in enumerate((height, width)):
            count = -(-(size + 2 * padding[axis] - kernel[axis]) // stride[axis]) + 1
            if (count - 1) * stride[axis] >= size + padding[axis]:
                count -= 1  # torch: the last window must start inside the map or its left padding
            ends[axis] = max(ends[axis], (count - 1) * stride[axis] + kernel[axis] - size - padding[axis])
    return kernel, stride, (padding[0], padding[1], ends[0], ends[1]), tuple(ends) != padding


def adaptive_avg_pool2d(call: Call) -> Map:
    """aten.adaptive_avg_pool2d."""
    x = call.image("self")
    _, height, width = x.chw
    size = call.pair("output_size")
    if size == (height, width):
        return Map(x.value, call.shape)
    return call.result(call.emit(AdaptiveAvgPool, [x.value], size=size))


def adaptive_max_pool2d(call: Call) -> tuple[Map, None]:
    """aten.adaptive_max_pool2d where all its windows have one size and one distance."""
    x = call.image("self")
    _, height, width = x.chw
    rows, columns = call.pair("output_size")
    vertical, horizontal = uniform_window(height, rows), uniform_window(width, columns)
    if vertical is None or horizontal is None:
        raise Unsupported(f"windows of different sizes ({height}x{width} to {rows}x{columns})")
    out = call.emit(
        MaxPool,
        [x.value],
        kernel=(vertical[0], horizontal[0]),
        stride=(vertical[1], horizontal[1]),
        padding=NONE,
    )
    return call.result(out), None


def uniform_window(size: int, count: int) -> tuple[int, int] | None:
    """(length, distance) of adaptive pooling's windows floor(i*n/o) .. ceil((i+1)*n/o) when all agree."""
    windows = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
    lengths = {end - start for start, end in windows}
    steps = {after[0] - before[0] for before, after in itertools.pairwise(windows)}
    if len(lengths) != 1 or len(steps) > 1 or 0 in steps:
        return None
    return lengths.pop(), steps.pop() if steps else size


# -- padding and slices -------------------------------------------------------------------------------------


def pad(call: Call) -> Map:
    """aten.constant_pad_nd / aten.pad with zeros over width, height, channels."""
    mode = call.arguments.get("mode", "constant")
    if mode != "constant":
        raise Unsupported(f"padding mode '{mode}'")
    if call.arguments.get("value") is not None and call.number("value") != 0:
        raise Unsupported("padding with a value that is not zero")
    x = call.image("self")
    amounts: list[Any] = list(call.arguments["pad"])
    if not all(isinstance(amount, int) for amount in amounts):
        raise Unsupported("padding that is not fixed")
    if any(amount < 0 for amount in amounts):
        raise Unsupported("negative padding (cropping)")
    if any(amounts[6:]):
        raise Unsupported("padding of the batch")
    left, right, top, bottom, before, after = (*amounts[:6], 0, 0, 0, 0, 0, 0)[:6]
    if not any(amounts):
        return Map(x.value, call.shape)
    value, outer, channels = x.value, (top, left, bottom, right), (before, after)
    owner = value.owner
    if isinstance(owner, Pad) and (owner.ints("channels") == (0, 0) or outer == NONE):
        first: Any = owner.ints("padding")
        inner = owner.ints("channels")
        value, outer = owner.x, add_padding(outer, first)
        channels = (inner[0] + before, inner[1] + after)
    return call.result(call.emit(Pad, [value], padding=outer, channels=channels))


def slice_(call: Call) -> Map:
    """aten.slice of every n-th row or column: a 1x1 maximum with that stride."""
    x = call.map("self")
    (dim,) = call.dims("dim", len(x.shape) + 1)
    step = int(call.number("step"))
    if dim == 0:
        if x.shape != call.shape or step != 1 or call.arguments.get("start") not in (None, 0):
            raise Unsupported("a slice of the batch")
        if call.arguments.get("end") not in (None, sys.maxsize):
            raise Unsupported("a slice of the batch")
        return Map(x.value, call.shape)
    size = x.shape[dim - 1]
    start, end = (
        _bound(call.arguments.get(key), size, default) for key, default in (("start", 0), ("end", size))
    )
    if start == 0 and end == size and step == 1:
        return Map(x.value, call.shape)
    if not x.is_image or dim == 1:
        raise Unsupported("a slice of channels" if dim == 1 else "a slice that is not of rows or columns")
    if start != 0 or len(range(start, end, step)) != len(range(0, size, step)):
        raise Unsupported("a slice that crops the map")
    return call.result(_every(call, x.value, (step, 1) if dim == 2 else (1, step)))


def _bound(value: Any, size: int, default: int) -> int:
    if value is None:
        return default
    if not isinstance(value, int):
        raise Unsupported("a slice with computed bounds")
    return min(max(value + size if value < 0 else value, 0), size)


def _every(call: Call, value: SSAValue, stride: tuple[int, int]) -> SSAValue:
    owner = value.owner
    if isinstance(owner, MaxPool) and owner.ints("kernel") == (1, 1) and owner.ints("padding") == NONE:
        first = owner.ints("stride")
        value, stride = owner.x, (stride[0] * first[0], stride[1] * first[1])
    return call.emit(MaxPool, [value], kernel=(1, 1), stride=stride, padding=NONE)


# -- padding that can move into its reader ------------------------------------------------------------------


def peel_padding(value: SSAValue) -> tuple[SSAValue, Padding]:
    """The map before a zero padding of rows and columns, and that padding (zeros when there is none)."""
    owner = value.owner
    if isinstance(owner, Pad) and owner.ints("channels") == (0, 0):
        top, left, bottom, right = owner.ints("padding")
        return owner.x, (top, left, bottom, right)
    return value, NONE


def add_padding(a: Padding, b: Padding) -> Padding:
    """Side by side sum."""
    return a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]


def _fits(border: Padding, extra: Padding, kernel: tuple[int, int]) -> bool:
    """Whether pooling may take on the padding: every window must hold at least one value."""
    total = add_padding(border, extra)
    return all(total[side] < kernel[side % 2] for side in range(4))


def non_negative(value: SSAValue) -> bool:
    """True when no value of a map can be below zero."""
    owner = value.owner
    if not isinstance(owner, LayerOp):
        return False
    if isinstance(owner, Activation):
        return is_non_negative(str(owner.value("kind")), owner.floats("args"))
    through: tuple[type[LayerOp], ...] = (MaxPool, AvgPool, AdaptiveAvgPool, Concat, Pad)
    if isinstance(owner, through):
        return all(non_negative(operand) for operand in owner.operands)
    return False
