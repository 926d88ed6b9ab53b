"""The channels of a network, numbered through: what is tied, what needs what, what is constant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from escc.errors import EsccError
from escc.ir.activations import ACTIVATIONS
from escc.ir.base import LayerOp, describe, map_shape
from escc.ir.escalate import DecomposedConv2d
from escc.ir.module import Module
from escc.ir.nn import ConvolutionLike
from escc.ir.pins import Pin, pin_of, pre_pin_of
from escc.ir.xdsl import SSAValue
from escc.passes.convolutions import dense_weight, needed, stored
from escc.passes.math.accounting import any_along
from escc.passes.math.liveness import Link, constant_sums, foldable, live_channels

Array = NDArray[Any]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Float = NDArray[np.float64]


@dataclass
class ChannelView:
    """The network as numbered channels; ``constant`` is the known value of a channel, NaN where it varies.

    With ``zeros_only``, channels of any other constant count as varying.
    """

    zeros_only: bool = False
    count: int = 0
    first: dict[SSAValue, int] = field(default_factory=lambda: {})
    constant: dict[SSAValue, Float] = field(default_factory=lambda: {})
    ties: list[tuple[int, int]] = field(default_factory=lambda: [])
    links: list[Link] = field(default_factory=lambda: [])
    pinned: list[SSAValue] = field(default_factory=lambda: [])

    def enter(self, value: SSAValue, constant: Float | None = None) -> None:
        """Number the channels of a value."""
        channels = map_shape(value)[2]
        self.first[value] = self.count
        known = np.full(channels, np.nan) if constant is None else constant
        self.constant[value] = np.where(known == 0.0, 0.0, np.nan) if self.zeros_only else known
        self.count += channels

    def numbers(self, value: SSAValue) -> Ints:
        """The numbers of the channels of a value."""
        start = self.first[value]
        return np.arange(start, start + map_shape(value)[2])

    def tie(self, a: Ints, b: Ints) -> None:
        """Channels a[i] and b[i] stay or go together."""
        self.ties += zip(a.tolist(), b.tolist(), strict=True)

    def live(self) -> Bools:
        """(count,) the channels that must stay."""
        pinned = np.zeros(self.count, dtype=np.bool_)
        for value in self.pinned:
            pinned[self.numbers(value)] = True
        maps = [self.numbers(value) for value in self.first]
        return live_channels(self.count, np.array(self.ties).reshape(-1, 2), self.links, pinned, maps)


def view_channels(module: Module, *, zeros_only: bool = False) -> ChannelView:
    """Number the channels of a float network.

    Args:
        module: without batch norms.
        zeros_only: for whoever can drop channels of zeros, but not move another constant elsewhere.

    Raises:
        EsccError: an operation of another level.
    """
    view = ChannelView(zeros_only)
    for value in module.inputs:
        view.enter(value)
    for op in module.layers:
        inputs = [view.constant[value] for value in op.operands]
        if isinstance(op, ConvolutionLike):
            _enter_convolution(module, view, op)
        elif op.name == "nn.concat":
            view.enter(op.out, np.concatenate(inputs))
            numbers = np.split(view.numbers(op.out), np.cumsum([len(item) for item in inputs])[:-1])
            for value, part in zip(op.operands, numbers, strict=True):
                view.tie(view.numbers(value), part)
        elif op.name == "nn.pad":
            before, after = op.ints("channels")
            inside = np.where(inputs[0] == 0.0, 0.0, np.nan) if any(op.ints("padding")) else inputs[0]
            view.enter(op.out, np.concatenate([np.zeros(before), inside, np.zeros(after)]))
            view.tie(view.numbers(op.x), view.numbers(op.out)[before : before + len(inside)])
        elif op.name in _CONSTANTS:
            view.enter(op.out, _activated(op, _CONSTANTS[op.name](op, inputs)))
            for value in op.operands:
                view.tie(view.numbers(value), view.numbers(op.out))
        else:
            raise EsccError("not an operation of the float levels", where=describe(op))
        view.constant[op.out] = _unrounded(view.constant[op.out], pin_of(op))
    view.pinned += [*module.inputs, *module.outputs]
    return view


def _average(op: LayerOp, inputs: list[Float]) -> Float:
    padded = bool(op.value("count_include_pad")) and any(op.ints("padding"))
    return np.where(inputs[0] == 0.0, 0.0, np.nan) if padded else inputs[0]


def _product(op: LayerOp, inputs: list[Float]) -> Float:
    zero = (inputs[0] == 0.0) | (inputs[1] == 0.0)
    return np.where(zero, 0.0, inputs[0] * inputs[1])


_CONSTANTS: dict[str, Callable[[LayerOp, list[Float]], Float]] = {
    "nn.activation": lambda op, inputs: inputs[0],
    "nn.add": lambda op, inputs: inputs[0] + inputs[1],
    "nn.mul": _product,
    "nn.max_pool": lambda op, inputs: inputs[0],
    "nn.avg_pool": _average,
    "nn.adaptive_avg_pool": lambda op, inputs: inputs[0],
}
"""Constant value of each channel of channel-wise operations, before their activation."""


def _unrounded(constant: Float, pin: Pin | None) -> Float:
    """A constant that rounding to a pinned scale would change counts as varying: it stays where it is."""
    if pin is None:
        return constant
    steps = np.clip(np.rint(constant / pin.scale), *pin.limits)
    return np.where(steps * pin.scale == constant, constant, np.nan)


def _activated(op: LayerOp, constant: Float) -> Float:
    kind = op.value("kind" if op.name == "nn.activation" else "activation")
    if kind is None:
        return constant
    arguments = op.floats("args" if op.name == "nn.activation" else "activation_args")
    constant = _unrounded(constant, pre_pin_of(op))
    known = ~np.isnan(constant)
    result = constant.copy()
    result[known] = ACTIVATIONS[kind].function(constant[known], *arguments)
    return result


@dataclass(frozen=True)
class Kernels:
    """What counts of a convolution here: which kernels are there, the sum of each, and the bias."""

    nonzero: Bools  # (K, C/groups)
    bias: Float  # (K,)
    padded: bool
    weight: Callable[[], Array]

    @cached_property
    def sums(self) -> Float:
        """(K, C/groups); only asked for where an input is constant."""
        return self.weight().sum(axis=(2, 3))


def kernels_of(module: Module, op: LayerOp) -> Kernels:
    """The kernels of nn.conv2d or escalate.decomposed_conv2d."""
    bias = stored(module, op, "bias")
    if isinstance(op, DecomposedConv2d):
        # what is stored decides, not whether bases happen to cancel
        nonzero = any_along(needed(module, op, "coefficients") != 0, 2)
        nonzero &= needed(module, op, "scale")[:, None] != 0
    else:
        weight = needed(module, op, "weight")
        nonzero = any_along(weight.reshape(*weight.shape[:2], -1) != 0, 2)
    return Kernels(
        nonzero,
        np.zeros(len(nonzero)) if bias is None else bias.astype(np.float64),
        any(op.ints("padding")),
        lambda: dense_weight(module, op),
    )


def is_depthwise(op: LayerOp, channels: int) -> bool:
    """Each of the input's channels is a group of its own."""
    return channels > 1 and int(op.value("groups")) == channels


def _enter_convolution(module: Module, view: ChannelView, op: LayerOp) -> None:
    constant = None
    if int(op.value("groups")) == 1:
        kernels, inputs = kernels_of(module, op), view.constant[op.x]
        some = foldable(inputs, kernels.padded).any()
        sums = kernels.sums if some else np.broadcast_to(0.0, kernels.nonzero.shape)
        constant = constant_sums(kernels.nonzero, sums, kernels.bias, inputs, kernels.padded)
    elif is_depthwise(op, map_shape(op.x)[2]):
        kernels = kernels_of(module, op)
        inputs = np.repeat(view.constant[op.x], len(kernels.bias) // map_shape(op.x)[2])
        fixed = foldable(inputs, kernels.padded)
        known = kernels.bias + np.where(fixed & kernels.nonzero[:, 0], kernels.sums[:, 0] * inputs, 0.0)
        constant = np.where(fixed | ~kernels.nonzero[:, 0], known, np.nan)
    else:
        view.pinned += [op.x, op.out]
        kernels = None
    if constant is not None:
        if len(op.operands) > 1:
            constant = constant + view.constant[op.operands[1]]
        constant = _activated(op, constant)
    view.enter(op.out, constant)
    if len(op.operands) > 1:
        view.tie(view.numbers(op.operands[1]), view.numbers(op.out))
    if kernels is None:
        return
    if is_depthwise(op, map_shape(op.x)[2]):
        multiplier = map_shape(op.out)[2] // map_shape(op.x)[2]
        view.tie(np.repeat(view.numbers(op.x), multiplier), view.numbers(op.out))
    else:
        needs = kernels.nonzero & ~foldable(view.constant[op.x], kernels.padded)
        view.links.append(Link(view.numbers(op.x), view.numbers(op.out), needs))
