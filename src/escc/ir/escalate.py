"""Dialect ``escalate``: decomposed and quantised layers, before and after the reordering of
linear combination and convolution (ESCALATE, MICRO 2021)."""

from __future__ import annotations

from escc.ir.base import LayerOp, map_shape
from escc.ir.geometry import window_output
from escc.ir.nn import BOOL, FLOATS, INT, INTS, ConvolutionLike, Pooling, concat_shape, pad_shape
from escc.ir.types import MapType, StreamType, SumsType
from escc.ir.xdsl import (
    Dialect,
    StringAttr,
    SymbolRefAttr,
    VerifyException,
    irdl_op_definition,
    operand_def,
    opt_operand_def,
    opt_prop_def,
    prop_def,
    result_def,
    var_operand_def,
)

FORMS = ("ternary", "dense", "depthwise")


@irdl_op_definition
class DecomposedConv2d(ConvolutionLike):
    """Float convolution whose kernels share basis kernels (PENNI, section 3):
    W[k, c] = scale[k] * sum_m coefficients[k, c, m] * bases[m]."""

    name = "escalate.decomposed_conv2d"
    input = operand_def()
    residual = opt_operand_def()
    bases = prop_def(SymbolRefAttr)
    coefficients = prop_def(SymbolRefAttr)
    scale = prop_def(SymbolRefAttr)
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


class QuantizedOp(LayerOp):
    """Shared checks of integer operations on maps."""

    def verify_(self) -> None:
        super().verify_()
        for value in (*self.operands, self.out):
            if not isinstance(value.type, MapType):
                raise VerifyException(f"operands and result must be !escalate.map, found {value.type}")
        check_limits(self)


def check_limits(op: LayerOp) -> None:
    """low/high must lie inside the result's integer range, in order."""
    kind = op.out.type
    low, high = op.value("low"), op.value("high")
    if low is None or high is None or not isinstance(kind, MapType):
        return
    smallest, largest = kind.limits
    if not smallest <= low <= high <= largest:
        raise VerifyException(f"limits [{low}, {high}] do not fit the result's [{smallest}, {largest}]")


@irdl_op_definition
class QuantizedConv2d(QuantizedOp):
    """Integer convolution with requantisation; the form says how its weights are stored.

    ternary: bases int8 (M, R, S), coefficients int8 (K, C/groups, M) in {-1, 0, 1};
    dense: bases int8 (K, C/groups, R, S); depthwise: groups == C, bases int8 (K, 1, R, S).
    requant: int32 (K, 3) of bias, multiplier, shift.
    """

    name = "escalate.quantized_conv2d"
    input = operand_def()
    residual = opt_operand_def()
    form = prop_def(StringAttr)
    bases = prop_def(SymbolRefAttr)
    coefficients = opt_prop_def(SymbolRefAttr)
    requant = prop_def(SymbolRefAttr)
    kernel = prop_def(INTS)
    outputs = prop_def(INT)
    stride = prop_def(INTS)
    padding = prop_def(INTS)
    dilation = prop_def(INTS)
    groups = prop_def(INT)
    residual_multiplier = opt_prop_def(INT)
    residual_shift = opt_prop_def(INT)
    low = prop_def(INT)
    high = prop_def(INT)
    table = opt_prop_def(SymbolRefAttr)
    result = result_def()

    def infer_shape(self) -> tuple[int, ...]:
        return convolution_shape(self, map_shape(self.x)[:3])

    def verify_(self) -> None:
        super().verify_()
        check_form(self)
        if (self.value("form") == "ternary") != (self.symbol("coefficients") is not None):
            raise VerifyException("exactly the ternary form has coefficients")
        check_residual(self)


def check_form(op: LayerOp) -> None:
    """The form is a known one and fits the groups."""
    form = op.value("form")
    if form not in FORMS:
        raise VerifyException(f"unknown form '{form}', known: {', '.join(FORMS)}")
    if form == "depthwise" and op.value("groups") != map_shape(op.x)[2]:
        raise VerifyException("the depthwise form has as many groups as input channels")


def check_residual(op: LayerOp) -> None:
    """A residual operand comes with its multiplier and shift, and has the result's shape."""
    present = len(op.operands) > 1
    if present != (op.value("residual_multiplier") is not None) or present != (
        op.value("residual_shift") is not None
    ):
        raise VerifyException("a residual comes with residual_multiplier and residual_shift")
    if present and map_shape(op.operands[1]) != map_shape(op.out):
        raise VerifyException("the residual has another shape than the result")


def convolution_shape(op: LayerOp, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape rule of a convolution over an input of ``shape`` (H, W, ...)."""
    rows, columns = window_output(
        shape[:2], op.ints("kernel"), op.ints("stride"), op.ints("padding"), op.ints("dilation")
    )
    return rows, columns, int(op.value("outputs"))


@irdl_op_definition
class Combine(LayerOp):
    """Linear combination of input channels: Z[k, m] = sum_c T[k, c, m] * X[c], adds and subtracts only."""

    name = "escalate.combine"
    input = operand_def()
    coefficients = prop_def(SymbolRefAttr)
    outputs = prop_def(INT)
    bases = prop_def(INT)
    groups = prop_def(INT)
    result = result_def()

    def infer_shape(self) -> tuple[int, ...]:
        height, width, _ = map_shape(self.x)
        return height, width, int(self.value("outputs")), int(self.value("bases"))

    def verify_(self) -> None:
        super().verify_()
        if not isinstance(self.x.type, MapType) or not isinstance(self.out.type, StreamType):
            raise VerifyException("combine takes an !escalate.map and gives an !escalate.stream")


@irdl_op_definition
class Convolve(LayerOp):
    """Convolution with few int8 kernels: of a stream with the layer's shared bases, or of a map directly
    (dense and depthwise forms, where the combination is the identity)."""

    name = "escalate.convolve"
    input = operand_def()
    form = prop_def(StringAttr)
    bases = prop_def(SymbolRefAttr)
    kernel = prop_def(INTS)
    outputs = prop_def(INT)
    stride = prop_def(INTS)
    padding = prop_def(INTS)
    dilation = prop_def(INTS)
    groups = prop_def(INT)
    result = result_def()

    def infer_shape(self) -> tuple[int, ...]:
        return convolution_shape(self, map_shape(self.x)[:2])

    def verify_(self) -> None:
        super().verify_()
        check_form(self)
        takes_stream = isinstance(self.x.type, StreamType)
        if takes_stream != (self.value("form") == "ternary"):
            raise VerifyException("exactly the ternary form convolves a stream")
        if not isinstance(self.out.type, SumsType):
            raise VerifyException("convolve gives !escalate.sums")


@irdl_op_definition
class Requantize(LayerOp):
    """Sums to an 8-bit map: bias, multiplier and shift per channel, residual, clamp or table."""

    name = "escalate.requantize"
    input = operand_def()
    residual = opt_operand_def()
    requant = prop_def(SymbolRefAttr)
    residual_multiplier = opt_prop_def(INT)
    residual_shift = opt_prop_def(INT)
    low = prop_def(INT)
    high = prop_def(INT)
    table = opt_prop_def(SymbolRefAttr)
    result = result_def()

    def verify_(self) -> None:
        super().verify_()
        if not isinstance(self.x.type, SumsType) or not isinstance(self.out.type, MapType):
            raise VerifyException("requantize takes !escalate.sums and gives an !escalate.map")
        check_limits(self)
        check_residual(self)


@irdl_op_definition
class Add(QuantizedOp):
    """Sum of two maps, each rescaled; then clamp or table."""

    name = "escalate.add"
    a = operand_def()
    b = operand_def()
    a_multiplier = prop_def(INT)
    a_shift = prop_def(INT)
    b_multiplier = prop_def(INT)
    b_shift = prop_def(INT)
    low = prop_def(INT)
    high = prop_def(INT)
    table = opt_prop_def(SymbolRefAttr)
    result = result_def()


@irdl_op_definition
class Mul(QuantizedOp):
    """Product of two maps (the second may be 1x1xC), rescaled and clamped."""

    name = "escalate.mul"
    a = operand_def()
    b = operand_def()
    multiplier = prop_def(INT)
    shift = prop_def(INT)
    low = prop_def(INT)
    high = prop_def(INT)
    result = result_def()


class QuantizedPooling(Pooling):
    """Window pooling on integer maps."""

    def verify_(self) -> None:
        super().verify_()
        if not isinstance(self.x.type, MapType) or not isinstance(self.out.type, MapType):
            raise VerifyException("pooling takes and gives an !escalate.map")


@irdl_op_definition
class MaxPool(QuantizedPooling):
    """Maximum over a window; scale and signedness stay."""

    name = "escalate.max_pool"
    input = operand_def()
    kernel = prop_def(INTS)
    stride = prop_def(INTS)
    padding = prop_def(INTS)
    result = result_def()


@irdl_op_definition
class AvgPool(QuantizedPooling):
    """Mean over a window; divisors: int32 (n, 3) of count, multiplier, shift."""

    name = "escalate.avg_pool"
    input = operand_def()
    divisors = prop_def(SymbolRefAttr)
    kernel = prop_def(INTS)
    stride = prop_def(INTS)
    padding = prop_def(INTS)
    count_include_pad = prop_def(BOOL)
    result = result_def()


@irdl_op_definition
class AdaptiveAvgPool(QuantizedOp):
    """Mean over adaptive windows; divisors as in avg_pool."""

    name = "escalate.adaptive_avg_pool"
    input = operand_def()
    divisors = prop_def(SymbolRefAttr)
    size = prop_def(INTS)
    result = result_def()

    def infer_shape(self) -> tuple[int, ...]:
        size = self.ints("size")
        return size[0], size[1], map_shape(self.x)[2]


@irdl_op_definition
class Lookup(QuantizedOp):
    """Element-wise table of 256 bytes, indexed by the value's byte."""

    name = "escalate.lookup"
    input = operand_def()
    table = prop_def(SymbolRefAttr)
    result = result_def()


@irdl_op_definition
class Concat(QuantizedOp):
    """Channel concatenation, each map rescaled; rescale: int32 (n, 2) of multiplier, shift (0, 0: copy)."""

    name = "escalate.concat"
    inputs = var_operand_def()
    rescale = prop_def(SymbolRefAttr)
    low = prop_def(INT)
    high = prop_def(INT)
    result = result_def()

    def infer_shape(self) -> tuple[int, ...]:
        return concat_shape(self)


@irdl_op_definition
class Pad(QuantizedOp):
    """Zeros around a map."""

    name = "escalate.pad"
    input = operand_def()
    padding = prop_def(INTS)
    channels = prop_def(INTS)
    result = result_def()

    def infer_shape(self) -> tuple[int, ...]:
        return pad_shape(self)


ESCALATE = Dialect(
    "escalate",
    [
        DecomposedConv2d,
        QuantizedConv2d,
        Combine,
        Convolve,
        Requantize,
        Add,
        Mul,
        MaxPool,
        AvgPool,
        AdaptiveAvgPool,
        Lookup,
        Concat,
        Pad,
    ],
    [MapType, StreamType, SumsType],
)
