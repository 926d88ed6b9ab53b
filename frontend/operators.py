"""The operator table of the importer: ATen operator -> rule, and the rules that are not about windows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from escc.frontend import trained, windows
from escc.frontend.translation import (
    Call,
    Constant,
    Map,
    Unsupported,
    axis_groups,
    batch_shape,
)
from escc.ir.base import Symbol, map_shape
from escc.ir.nn import Activation, AdaptiveAvgPool, Add, BatchNorm, Concat, MaxPool, Mul

if TYPE_CHECKING:
    from torch.fx import Node


@dataclass(frozen=True)
class Rule:
    """How an operator is translated: the function, and the nn operation it usually becomes (for reports)."""

    translate: Callable[[Call], Any]
    becomes: str


# -- activations --------------------------------------------------------------------------------------------


def _activate(call: Call, kind: str, *arguments: float) -> Map:
    x = call.map("self")
    return call.result(call.emit(Activation, [x.value], kind=kind, args=arguments or None))


def _plain(kind: str) -> Callable[[Call], Map]:
    return lambda call: _activate(call, kind)


def clamp(call: Call) -> Map:
    """aten.clamp, clamp_min, hardtanh, relu6: both limits, or max(x, 0)."""
    low, high = (_limit(call, *names) for names in (("min", "min_val"), ("max", "max_val")))
    if low == 0 and high == math.inf:
        return _activate(call, "relu")
    if math.isinf(low) or math.isinf(high):
        raise Unsupported("a clamp with one limit that is not max(x, 0)")
    if low > high:
        raise Unsupported("a clamp with crossed limits")
    return _activate(call, "clamp", low, high)


def _limit(call: Call, *names: str) -> float:
    for name in names:
        if call.arguments.get(name) is not None:
            return call.number(name)
    return -math.inf if names[0] == "min" else math.inf


def relu6(call: Call) -> Map:
    """aten.relu6."""
    return _activate(call, "clamp", 0.0, 6.0)


def leaky_relu(call: Call) -> Map:
    """aten.leaky_relu."""
    return _activate(call, "leaky_relu", call.number("negative_slope"))


def prelu(call: Call) -> Map:
    """aten.prelu with one slope for all channels."""
    weight = call.constant("weight")
    if weight.tensor.numel() != 1:
        raise Unsupported("a slope per channel")
    return _activate(call, "leaky_relu", float(weight.tensor.item()))


def elu(call: Call) -> Map:
    """aten.elu without its two scales."""
    if call.number("scale") != 1 or call.number("input_scale") != 1:
        raise Unsupported("a scale that is not 1")
    return _activate(call, "elu", call.number("alpha"))


def gelu(call: Call) -> Map:
    """aten.gelu, the exact form."""
    if call.arguments.get("approximate", "none") != "none":
        raise Unsupported("the tanh approximation (use approximate='none')")
    return _activate(call, "gelu")


# -- normalisation and per-channel arithmetic ---------------------------------------------------------------


def batch_norm(call: Call) -> Map:
    """Any batch norm over stored statistics."""
    if call.flag("training"):
        raise Unsupported("batch norm in training mode; call model.eval() before exporting")
    x = call.map("input")
    mean, var = call.optional_constant("running_mean"), call.optional_constant("running_var")
    if mean is None or var is None:
        raise Unsupported("batch norm without stored statistics")
    _need_channels_first(x, int(mean.tensor.shape[0]))
    weight, bias = call.optional_constant("weight"), call.optional_constant("bias")
    out = call.emit(
        BatchNorm,
        [x.value],
        weight=None if weight is None else call.keep(weight),
        bias=None if bias is None else call.keep(bias),
        mean=call.keep(mean),
        var=call.keep(var),
        eps=call.number("eps"),
    )
    return call.result(out)


def inference_batch_norm(call: Call) -> tuple[Map, None, None]:
    """aten._native_batch_norm_legit_no_training, which returns three tensors."""
    return batch_norm(call), None, None


def _need_channels_first(x: Map, channels: int) -> None:
    if not x.shape or x.shape[0] != channels or x.chw[0] != channels:
        raise Unsupported(
            f"normalisation of {batch_shape(x.shape)} over {channels} features; the map is {x.chw}"
        )


def _scale_and_shift(call: Call, x: Map, scale: Any, shift: Any) -> Map:
    """x * scale + shift with constants per channel, as a batch norm with mean 0 and variance 1."""
    import torch

    channels = x.chw[0]

    def keep(constant: Any, neutral: float, suffix: str) -> Symbol:
        values = torch.full((channels,), neutral) if constant is None else _per_channel(x, constant)
        name = constant.name if isinstance(constant, Constant) else f"{call.node.name}.{suffix}"
        return call.keep(Constant(values, name))

    out = call.emit(
        BatchNorm,
        [x.value],
        weight=keep(scale, 1.0, "scale"),
        bias=keep(shift, 0.0, "shift"),
        mean=call.keep(Constant(torch.zeros(channels), f"{call.node.name}.mean")),
        var=call.keep(Constant(torch.ones(channels), f"{call.node.name}.var")),
        eps=0.0,
    )
    return call.result(out)


def _per_channel(x: Map, constant: Any) -> Any:
    """A scalar, or a constant that broadcasts along channels only, as (C,)."""
    import torch

    channels = x.chw[0]
    if isinstance(constant, bool) or not isinstance(constant, Constant | int | float):
        raise Unsupported("arithmetic with something that is not a fixed number")
    if not isinstance(constant, Constant):
        return torch.full((channels,), float(constant))
    tensor = constant.tensor
    if tensor.numel() == 1:
        return tensor.reshape(1).expand(channels).contiguous()
    groups = axis_groups(x.shape, x.chw)
    own = [1] * (1 + len(x.shape) - tensor.dim()) + list(tensor.shape)
    if groups is None or len(own) != 1 + len(x.shape) or own[0] != 1:
        raise Unsupported("a constant that is not one number per channel")
    for size, group in zip(own[1:], groups, strict=True):
        if size != 1 and group != (0,):
            raise Unsupported("a constant that is not one number per channel")
    return tensor.reshape(channels)


def _unlike(call: Call) -> tuple[Map, Any, bool]:
    """(map, other operand, whether they were swapped) of a binary operator."""
    a, b = call.arguments["self"], call.arguments["other"]
    if isinstance(a, Map):
        return a, b, False
    if isinstance(b, Map):
        return b, a, True
    raise Unsupported("an operand that escc does not follow")


def add(call: Call) -> Map:
    """aten.add: two maps of one shape, or a constant per channel."""
    if call.number("alpha") != 1:
        raise Unsupported("alpha that is not 1")
    a, b, _ = _unlike(call)
    if not isinstance(b, Map):
        return _same_shape(call, a, _scale_and_shift(call, a, None, b))
    if a.shape != b.shape or map_shape(a.value) != map_shape(b.value):
        raise Unsupported(f"a sum of {batch_shape(a.shape)} and {batch_shape(b.shape)}")
    return call.result(call.emit(Add, [a.value, b.value]))


def subtract(call: Call) -> Map:
    """aten.sub of a constant per channel."""
    if call.number("alpha") != 1:
        raise Unsupported("alpha that is not 1")
    return _difference(call, *_unlike(call))


def subtract_from(call: Call) -> Map:
    """aten.rsub: a constant per channel minus a map."""
    if call.number("alpha") != 1:
        raise Unsupported("alpha that is not 1")
    a, b, swapped = _unlike(call)
    return _difference(call, a, b, not swapped)


def _difference(call: Call, a: Map, b: Any, swapped: bool) -> Map:
    if isinstance(b, Map):
        raise Unsupported("a difference of two maps")
    if swapped:
        return _same_shape(call, a, _scale_and_shift(call, a, -1.0, b))
    return _same_shape(
        call, a, _scale_and_shift(call, a, None, _changed(b, lambda value: -value, "negative"))
    )


def multiply(call: Call) -> Map:
    """aten.mul: maps of one shape, a map and gates (N, C, 1, 1), or a constant per channel."""
    a, b, _ = _unlike(call)
    if not isinstance(b, Map):
        return _same_shape(call, a, _scale_and_shift(call, a, b, None))
    for x, gate in ((a, b), (b, a)):
        smooth = _self_gate(x, gate)
        if smooth is not None:
            return call.result(call.emit(Activation, [x.value], kind=smooth))
    if a.shape == b.shape and map_shape(a.value) == map_shape(b.value):
        return call.result(call.emit(Mul, [a.value, b.value]))
    if a.chw[1:] == (1, 1) and b.chw[1:] != (1, 1):
        a, b = b, a
    if not (a.is_image and b.is_image and b.chw == (a.chw[0], 1, 1)):
        raise Unsupported(f"a product of {batch_shape(a.shape)} and {batch_shape(b.shape)}")
    return call.result(call.emit(Mul, [a.value, b.value]))


def _self_gate(x: Map, gate: Map) -> str | None:
    """x * sigmoid(x) is SiLU, x * hardsigmoid(x) is hard-swish: one form for both ways of writing them."""
    owner = gate.value.owner
    if not isinstance(owner, Activation) or owner.x is not x.value or gate.shape != x.shape:
        return None
    return {"sigmoid": "silu", "hardsigmoid": "hardswish"}.get(str(owner.value("kind")))


def divide(call: Call) -> Map:
    """aten.div by a constant per channel."""
    a, b, swapped = _unlike(call)
    if swapped or isinstance(b, Map):
        raise Unsupported("a division by something computed from the input")
    if call.arguments.get("rounding_mode") is not None:
        raise Unsupported("a division with rounding")
    return _same_shape(
        call, a, _scale_and_shift(call, a, _changed(b, lambda value: 1 / value, "inverse"), None)
    )


def _changed(operand: Any, function: Callable[[Any], Any], suffix: str) -> Any:
    if isinstance(operand, Constant):
        return Constant(function(operand.tensor.float()), f"{operand.name}.{suffix}")
    if isinstance(operand, bool) or not isinstance(operand, int | float) or operand == 0:
        raise Unsupported("arithmetic with something that is not a fixed number")
    return function(operand)


def _same_shape(call: Call, before: Map, after: Map) -> Map:
    if call.shape != before.shape:
        raise Unsupported(f"broadcasting {batch_shape(before.shape)} to {batch_shape(call.shape)}")
    return after


# -- reductions and concatenation ---------------------------------------------------------------------------


def mean(call: Call) -> Map:
    """aten.mean over height, width or both."""
    x = call.map("self")
    _, height, width = x.chw
    axes = _reduced_axes(call, x)
    size = (1 if 1 in axes else height, 1 if 2 in axes else width)
    if size == (height, width):
        return Map(x.value, call.shape)
    return call.result(call.emit(AdaptiveAvgPool, [x.value], size=size))


def maximum(call: Call) -> Map:
    """aten.amax over height, width or both."""
    x = call.map("self")
    _, height, width = x.chw
    axes = _reduced_axes(call, x)
    kernel = (height if 1 in axes else 1, width if 2 in axes else 1)
    if kernel == (1, 1):
        return Map(x.value, call.shape)
    return call.result(call.emit(MaxPool, [x.value], kernel=kernel, stride=kernel, padding=windows.NONE))


def _reduced_axes(call: Call, x: Map) -> set[int]:
    """The map axes (1: height, 2: width) that a reduction runs over."""
    if call.arguments.get("dtype") is not None:
        raise Unsupported("a reduction to another type")
    dims = call.dims("dim", len(x.shape) + 1) or list(range(len(x.shape) + 1))
    if 0 in dims:
        raise Unsupported("a reduction over the batch")
    groups = axis_groups(x.shape, x.chw)
    if groups is None:
        raise Unsupported(f"a reduction of {batch_shape(x.shape)}, a mixture of channels and positions")
    axes = {axis for dim in dims for axis in groups[dim - 1]}
    if 0 in axes:
        raise Unsupported("a reduction over channels")
    return axes


def concatenate(call: Call) -> Map:
    """aten.cat of maps over channels."""
    parts: list[Any] = list(call.arguments["tensors"])
    if not parts or not all(isinstance(part, Map) for part in parts):
        raise Unsupported("a concatenation with a constant")
    maps: list[Map] = parts
    (dim,) = call.dims("dim", len(maps[0].shape) + 1)
    vectors = all(part.chw[1:] == (1, 1) and part.shape == part.chw[:1] for part in maps)
    if dim != 1 or not (vectors or all(part.is_image for part in maps)):
        raise Unsupported(f"a concatenation over dimension {dim} of {batch_shape(maps[0].shape)}")
    if len(maps) == 1:
        return Map(maps[0].value, call.shape)
    return call.result(call.emit(Concat, [part.value for part in maps]))


# -- views --------------------------------------------------------------------------------------------------


def view(call: Call) -> Map:
    """Any view: the elements stay in order, only the torch shape changes."""
    return call.result(call.map("self").value)


def squeeze(call: Call) -> Map:
    """aten.squeeze; without dimensions it would drop a batch of one, too."""
    if "dim" not in call.arguments:
        raise Unsupported("squeeze() without a dimension also drops a batch of one; name the dimensions")
    return view(call)


def transpose(call: Call) -> Map:
    """aten.permute / transpose that moves nothing but dimensions of size one."""
    x = call.map("self")
    rank = len(x.shape) + 1
    order = list(range(rank))
    if "dims" in call.arguments:
        order = call.dims("dims", rank)
    else:
        first, second = (call.dims(name, rank)[0] for name in ("dim0", "dim1"))
        order[first], order[second] = order[second], order[first]
    moved = [dim for dim in order if dim != 0 and x.shape[dim - 1] != 1]
    if order[0] != 0 or moved != sorted(moved):
        raise Unsupported("a transposition that moves elements")
    return view(call)


def same(call: Call) -> Map:
    """Operators that return their input."""
    name = "self" if "self" in call.arguments else "input"
    return Map(call.map(name).value, call.shape)


def dropout(call: Call) -> Map:
    """aten.dropout in evaluation mode."""
    if call.flag("train"):
        raise Unsupported("dropout in training mode; call model.eval() before exporting")
    return same(call)


def convert(call: Call) -> Map:
    """aten._to_copy between floating-point types (escc computes in float32 up to quantisation)."""
    dtype = call.arguments.get("dtype")
    if dtype is not None and not dtype.is_floating_point:
        raise Unsupported(f"a conversion to {dtype}")
    return same(call)


# -- the table ----------------------------------------------------------------------------------------------

_RELU, _CLAMP = Rule(_plain("relu"), "nn.activation relu"), Rule(clamp, "nn.activation clamp")
_CONV, _NORM = Rule(windows.conv2d, "nn.conv2d"), Rule(batch_norm, "nn.batch_norm")
_VIEW, _SAME = Rule(view, "view"), Rule(same, "(nothing)")
_ADD, _MUL = Rule(add, "nn.add"), Rule(multiply, "nn.mul")

RULES: dict[str, Rule] = {
    "conv2d.default": _CONV,
    "conv2d.padding": _CONV,
    "convolution.default": Rule(windows.convolution, "nn.conv2d"),
    "linear.default": Rule(windows.linear, "nn.conv2d"),
    "addmm.default": Rule(windows.addmm, "nn.conv2d"),
    "mm.default": Rule(windows.matmul, "nn.conv2d"),
    "matmul.default": Rule(windows.matmul, "nn.conv2d"),
    "batch_norm.default": _NORM,
    "_native_batch_norm_legit_no_training.default": Rule(inference_batch_norm, "nn.batch_norm"),
    "native_batch_norm.default": Rule(inference_batch_norm, "nn.batch_norm"),
    "_native_batch_norm_legit.default": Rule(inference_batch_norm, "nn.batch_norm"),
    "relu.default": _RELU,
    "relu6.default": Rule(relu6, "nn.activation clamp"),
    "hardtanh.default": _CLAMP,
    "clamp.default": _CLAMP,
    "clamp_min.default": _CLAMP,
    "silu.default": Rule(_plain("silu"), "nn.activation silu"),
    "hardswish.default": Rule(_plain("hardswish"), "nn.activation hardswish"),
    "hardsigmoid.default": Rule(_plain("hardsigmoid"), "nn.activation hardsigmoid"),
    "sigmoid.default": Rule(_plain("sigmoid"), "nn.activation sigmoid"),
    "tanh.default": Rule(_plain("tanh"), "nn.activation tanh"),
    "leaky_relu.default": Rule(leaky_relu, "nn.activation leaky_relu"),
    "prelu.default": Rule(prelu, "nn.activation leaky_relu"),
    "gelu.default": Rule(gelu, "nn.activation gelu"),
    "elu.default": Rule(elu, "nn.activation elu"),
    "add.Tensor": _ADD,
    "add.Scalar": _ADD,
    "sub.Tensor": Rule(subtract, "nn.batch_norm"),
    "sub.Scalar": Rule(subtract, "nn.batch_norm"),
    "rsub.Tensor": Rule(subtract_from, "nn.batch_norm"),
    "rsub.Scalar": Rule(subtract_from, "nn.batch_norm"),
    "mul.Tensor": _MUL,
    "mul.Scalar": _MUL,
    "div.Tensor": Rule(divide, "nn.batch_norm"),
    "div.Scalar": Rule(divide, "nn.batch_norm"),
    "max_pool2d.default": Rule(windows.max_pool2d, "nn.max_pool"),
    "max_pool2d_with_indices.default": Rule(lambda call: (windows.max_pool2d(call), None), "nn.max_pool"),
    "avg_pool2d.default": Rule(windows.avg_pool2d, "nn.avg_pool"),
    "adaptive_avg_pool2d.default": Rule(windows.adaptive_avg_pool2d, "nn.adaptive_avg_pool"),
    "_adaptive_avg_pool2d.default": Rule(windows.adaptive_avg_pool2d, "nn.adaptive_avg_pool"),
    "adaptive_max_pool2d.default": Rule(windows.adaptive_max_pool2d, "nn.max_pool"),
    "mean.dim": Rule(mean, "nn.adaptive_avg_pool"),
    "amax.default": Rule(maximum, "nn.max_pool"),
    "cat.default": Rule(concatenate, "nn.concat"),
    "pad.default": Rule(windows.pad, "nn.pad"),
    "constant_pad_nd.default": Rule(windows.pad, "nn.pad"),
    "slice.Tensor": Rule(windows.slice_, "nn.max_pool"),
    "view.default": _VIEW,
    "_unsafe_view.default": _VIEW,
    "reshape.default": _VIEW,
    "flatten.using_ints": _VIEW,
    "unflatten.int": _VIEW,
    "unsqueeze.default": _VIEW,
    "squeeze.dim": Rule(squeeze, "view"),
    "squeeze.dims": Rule(squeeze, "view"),
    "squeeze.default": Rule(squeeze, "view"),
    "permute.default": Rule(transpose, "view"),
    "transpose.int": Rule(transpose, "view"),
    "clone.default": _SAME,
    "contiguous.default": _SAME,
    "detach.default": _SAME,
    "alias.default": _SAME,
    "lift_fresh_copy.default": _SAME,
    "dropout.default": Rule(dropout, "(nothing)"),
    "feature_dropout.default": Rule(dropout, "(nothing)"),
    "_to_copy.default": Rule(convert, "(nothing)"),
}
"""ATen operator (name.overload) -> rule; in-place forms share the rule of the plain one."""

OWN_RULES: dict[str, Rule] = {
    "decomposed_conv2d.default": Rule(trained.decomposed_conv2d, "escalate.decomposed_conv2d"),
    "fake_quantize.default": Rule(trained.fake_quantize, "(pinned scale)"),
}
"""The same for the operators of the namespace ``escc``."""

FRESH = frozenset(
    {"conv2d", "convolution", "linear", "batch_norm", "add", "mul", "sub", "div", "cat", "relu", "max_pool2d"}
)
"""Operators whose result shares memory with nothing else."""


def find_rule(target: Any) -> Rule | None:
    """The rule of an ATen operator or one of ours, None when there is none."""
    text = str(target)
    if text.startswith("escc."):
        return OWN_RULES.get(text.removeprefix("escc."))
    if not text.startswith("aten."):
        return None
    name, _, overload = text.removeprefix("aten.").partition(".")
    return RULES.get(f"{name.removesuffix('_')}.{overload}")


def is_in_place(target: Any) -> bool:
    """Whether an operator overwrites an argument."""
    schema = getattr(target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def in_place_is_safe(node: Node) -> bool:
    """Whether nobody notices that the first argument is overwritten: fresh memory, and no other reader."""
    from torch.fx import Node

    written = node.args[0]
    if not isinstance(written, Node) or list(written.users) != [node]:
        return False
    name = str(written.target).removeprefix("aten.").partition(".")[0]
    if is_in_place(written.target):
        return in_place_is_safe(written)
    return str(written.target).startswith("aten.") and name in FRESH


REASONS: dict[str, str] = {
    "softmax": "leave it out of the model and apply it to the program's outputs",
    "_softmax": "leave it out of the model and apply it to the program's outputs",
    "log_softmax": "leave it out of the model and apply it to the program's outputs",
    "argmax": "leave it out of the model and apply it to the program's outputs",
    "_native_batch_norm_legit_functional": "batch norm in training mode; call model.eval() before exporting",
    "_native_batch_norm_legit": "batch norm without stored statistics",
    "conv_transpose2d": "transposed convolution",
    "reciprocal": "a division by something computed from the input",
    "rand": "random numbers",
    "randn": "random numbers",
    "rand_like": "random numbers",
    "randn_like": "random numbers",
    "bernoulli": "random numbers",
    "conv1d": "one-dimensional convolution; use Conv2d with a kernel of height 1",
    "conv3d": "three-dimensional convolution",
    "upsample_nearest2d": "the machine has no upsampling",
    "upsample_bilinear2d": "the machine has no upsampling",
    "group_norm": "statistics of every image; only batch norm with stored statistics is supported",
    "layer_norm": "statistics of every image; only batch norm with stored statistics is supported",
    "instance_norm": "statistics of every image; only batch norm with stored statistics is supported",
    "channel_shuffle": "a transposition that moves elements",
    "t": "a transposition that moves elements",
    "split": "a slice of channels",
    "split_with_sizes": "a slice of channels",
    "chunk": "a slice of channels",
    "select": "a slice of channels",
}
"""Operators without a rule about which more can be said than that."""
