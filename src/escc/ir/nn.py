"""Dialect ``nn``: the captured float network, maps position-major without a batch dimension."""

from __future__ import annotations

from escc.ir.activations import ACTIVATIONS
from escc.ir.base import LayerOp, map_shape
from escc.ir.geometry import window_output
from escc.ir.xdsl import (
    DenseArrayBase,
    Dialect,
    FloatAttr,
    IntegerAttr,
    StringAttr,
    SymbolRefAttr,
    VerifyException,
    f64,
    i1,
    i64,
    irdl_op_definition,
    operand_def,
    opt_operand_def,
    opt_prop_def,
    prop_def,
    result_def,
    var_operand_def,
)

INTS = DenseArrayBase.constr(i64)
FLOATS = DenseArrayBase.constr(f64)
INT = IntegerAttr.constr(i64)
BOOL = IntegerAttr.constr(i1)


def check_activation(op: LayerOp, kind: str | None, arguments: tuple[float, ...]) -> None:
    """Raise unless ``kind`` is a known activation with the right number of arguments."""
    if kind is None:
        return
    if kind not in ACTIVATIONS:
        raise VerifyException(f"unknown activation '{kind}', known: {', '.join(sorted(ACTIVATIONS))}")
    if len(arguments) != ACTIVATIONS[kind].arguments:
        raise VerifyException(f"activation '{kind}' takes {ACTIVATIONS[kind].arguments} numbers")


class ConvolutionLike(LayerOp):
    """Shared shape rule of convolutions: y = activation(conv(x) + bias + residual)."""

    def kernel_and_outputs(self) -> tuple[tuple[int, int], int]:
        """((R, S), K); the kernel size is a property because weights live in the store."""
        kernel = self.ints("kernel")
        return (kernel[0], kernel[1]), int(self.value("outputs"))

    def infer_shape(self) -> tuple[int, ...]:
        height, width, channels = map_shape(self.x)
        kernel, outputs = self.kernel_and_outputs()
        groups = int(self.value("groups"))
        if groups < 1 or channels % groups or outputs % groups:
            raise VerifyException(f"{groups} groups do not divide {channels} -> {outputs} channels")
        rows, columns = window_output(
            (height, width), kernel, self.ints("stride"), self.ints("padding"), self.ints("dilation")
        )
        return rows, columns, outputs

    def verify_(self) -> None:
        super().verify_()
        check_activation(self, self.value("activation"), self.floats("activation_args"))
        if len(self.operands) > 1 and map_shape(self.operands[1]) != map_shape(self.out):
            raise VerifyException("the residual has another shape than the result")


@irdl_op_definition
class Conv2d(ConvolutionLike):
    """Convolution, y = activation(conv(x, weight) + bias + residual); weight (K, C/groups, R, S)."""

    name = "nn.conv2d"
    input = operand_def()
    residual = opt_operand_def()
    weight = prop_def(SymbolRefAttr)
    bias = opt_prop_def(SymbolRefAttr)
    kernel = prop_def(INTS)
    outputs = prop_def(INT)
    stride = prop_def(INTS)
    padding = prop_def(INTS)
    dilation = prop_def(INTS)
    groups = prop_def(INT)
    activation = opt_prop_def(StringAttr)
    activation_args = opt_prop_def(FLOATS)
    result = result_def()


@irdl_op_definition
class BatchNorm(LayerOp):
    """Batch normalisation in evaluation mode: (x - mean) / sqrt(var + eps) * weight + bias per channel."""

    name = "nn.batch_norm"
    input = operand_def()
    weight = opt_prop_def(SymbolRefAttr)
    bias = opt_prop_def(SymbolRefAttr)
    mean = prop_def(SymbolRefAttr)
    var = prop_def(SymbolRefAttr)
    eps = prop_def(FloatAttr)
    result = result_def()


@irdl_op_definition
class Activation(LayerOp):
    """Element-wise activation function by name."""

    name = "nn.activation"
    input = operand_def()
    kind = prop_def(StringAttr)
    args = opt_prop_def(FLOATS)
    result = result_def()

    def verify_(self) -> None:
        super().verify_()
        check_activation(self, self.value("kind"), self.floats("args"))


@irdl_op_definition
class Add(LayerOp):
    """Element-wise sum of two maps of one shape, then an optional activation."""

    name = "nn.add"
    a = operand_def()
    b = operand_def()
    activation = opt_prop_def(StringAttr)
    activation_args = opt_prop_def(FLOATS)
    result = result_def()

    def verify_(self) -> None:
        super().verify_()
        if map_shape(self.operands[0]) != map_shape(self.operands[1]):
            raise VerifyException("the two maps differ in shape")
        check_activation(self, self.value("activation"), self.floats("activation_args"))


@irdl_op_definition
class Mul(LayerOp):
    """Element-wise product; the second map may be 1x1xC (squeeze-excite)."""

    name = "nn.mul"
    a = operand_def()
    b = operand_def()
    result = result_def()

    def verify_(self) -> None:
        super().verify_()
        a, b = map_shape(self.operands[0]), map_shape(self.operands[1])
        if b != a and b != (1, 1, a[2]):
            raise VerifyException("the second map must have the first one's shape or be 1x1xC")


class Pooling(LayerOp):
    """Shared shape rule of window pooling."""

    def infer_shape(self) -> tuple[int, ...]:
        height, width, channels = map_shape(self.x)
        kernel, stride, padding = self.ints("kernel"), self.ints("stride"), self.ints("padding")
        rows, columns = window_output((height, width), kernel, stride, padding)
        return rows, columns, channels

    def verify_(self) -> None:
        super().verify_()
        kernel, padding = self.ints("kernel"), self.ints("padding")
        if any(padding[i] >= kernel[i % 2] for i in range(4)):
            raise VerifyException("pooling padding must be smaller than the window")


@irdl_op_definition
class MaxPool(Pooling):
    """Maximum over a window; padding never wins."""

    name = "nn.max_pool"
    input = operand_def()
    kernel = prop_def(INTS)
    stride = prop_def(INTS)
    padding = prop_def(INTS)
    result = result_def()


@irdl_op_definition
class AvgPool(Pooling):
    """Mean over a window; padding counts as zeros or not at all."""

    name = "nn.avg_pool"
    input = operand_def()
    kernel = prop_def(INTS)
    stride = prop_def(INTS)
    padding = prop_def(INTS)
    count_include_pad = prop_def(BOOL)
    result = result_def()


@irdl_op_definition
class AdaptiveAvgPool(LayerOp):
    """Mean over windows floor(i*H/O) .. ceil((i+1)*H/O)."""

    name = "nn.adaptive_avg_pool"
    input = operand_def()
    size = prop_def(INTS)
    result = result_def()

    def infer_shape(self) -> tuple[int, ...]:
        size = self.ints("size")
        return size[0], size[1], map_shape(self.x)[2]


@irdl_op_definition
class Concat(LayerOp):
    """Concatenation over channels."""

    name = "nn.concat"
    inputs = var_operand_def()
    result = result_def()

    def infer_shape(self) -> tuple[int, ...]:
        return concat_shape(self)


@irdl_op_definition
class Pad(LayerOp):
    """Zeros around a map: padding (top, left, bottom, right), channels (before, after)."""

    name = "nn.pad"
    input = operand_def()
    padding = prop_def(INTS)
    channels = prop_def(INTS)
    result = result_def()

    def infer_shape(self) -> tuple[int, ...]:
        return pad_shape(self)


def concat_shape(op: LayerOp) -> tuple[int, ...]:
    """Shape rule of channel concatenation."""
    shapes = [map_shape(value) for value in op.operands]
    if not shapes or len({shape[:2] for shape in shapes}) != 1:
        raise VerifyException("concatenated maps must agree in height and width")
    return (*shapes[0][:2], sum(shape[2] for shape in shapes))


def pad_shape(op: LayerOp) -> tuple[int, ...]:
    """Shape rule of zero padding."""
    height, width, channels = map_shape(op.x)
    top, left, bottom, right = op.ints("padding")
    before, after = op.ints("channels")
    if min(top, left, bottom, right, before, after) < 0:
        raise VerifyException("padding must not be negative")
    return height + top + bottom, width + left + right, channels + before + after


NN = Dialect(
    "nn", [Conv2d, BatchNorm, Activation, Add, Mul, MaxPool, AvgPool, AdaptiveAvgPool, Concat, Pad], []
)
