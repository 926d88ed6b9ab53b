"""fold-batch-norm: batch normalisation becomes part of the convolutions around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from escc.ir.base import LayerOp, map_shape, replace_op
from escc.ir.escalate import DecomposedConv2d
from escc.ir.module import Module
from escc.ir.nn import AdaptiveAvgPool, AvgPool, BatchNorm, Conv2d, ConvolutionLike, MaxPool
from escc.ir.passes import Pass, PassContext
from escc.ir.pins import GRAPH_NODE, pin_of, set_pin, take_over
from escc.passes.convolutions import dense_weight, keep_array, needed, producer, set_array, stored, users

Float = NDArray[np.float64]


@dataclass
class FoldBatchNorm(Pass):
    """Remove every batch normalisation, exactly (computed in double precision).

    In this order of preference: into the convolution before it; past a pooling that it commutes with; into
    the convolutions after it, when no zero padding comes between (or nothing is added); otherwise it becomes
    a 1x1 depthwise convolution with a bias. Nothing moves past a pinned scale: there the machine rounds.
    """

    name: ClassVar[str] = "fold-batch-norm"
    establishes: ClassVar[frozenset[str]] = frozenset({"batch-norm-folded"})

    def run(self, module: Module, context: PassContext) -> None:
        """Rewrite the module."""
        total = sum(isinstance(op, BatchNorm) for op in module.layers)
        # a fold may open the way for another one, and a step past a pooling moves the norm: start over
        while norms := [op for op in module.layers if isinstance(op, BatchNorm)]:
            context.progress(self.name, total - len(norms), total)
            _fold(module, norms[0])
        context.progress(self.name, total, total)
        module.drop_unused_arrays()


def _fold(module: Module, norm: BatchNorm) -> None:
    factor, shift = _affine(module, norm)
    before = producer(norm.x)
    if isinstance(before, ConvolutionLike) and _takes_scale_behind(before):
        _scale_outputs(module, before, factor, shift)
        _bypass(norm, before)
        return
    followers = users(norm.out)
    rounded = pin_of(norm) is not None
    if len(followers) == 1 and not rounded and _commutes(followers[0], factor):
        _move_behind(norm, followers[0])
    elif followers and not rounded and all(_takes_scale_before(op, norm, shift) for op in followers):
        for op in followers:
            assert isinstance(op, ConvolutionLike)
            _scale_inputs(module, op, factor, shift)
        norm.out.replace_all_uses_with(norm.x)
        norm.detach()
        norm.erase()
    else:
        become_depthwise(module, norm)


def _affine(module: Module, norm: BatchNorm) -> tuple[Float, Float]:
    """y = factor * x + shift per channel."""
    mean, variance = (needed(module, norm, name).astype(np.float64) for name in ("mean", "var"))
    weight, bias = stored(module, norm, "weight"), stored(module, norm, "bias")
    factor = 1.0 / np.sqrt(variance + float(norm.value("eps")))
    if weight is not None:
        factor = factor * weight
    shift = -mean * factor
    return factor, shift if bias is None else shift + bias


def _takes_scale_behind(op: ConvolutionLike) -> bool:
    """Nothing but the convolution itself stands between its weights and the norm."""
    alone = op.out.has_one_use() and op.value("activation") is None and len(op.operands) == 1
    return alone and pin_of(op) is None


def _takes_scale_before(op: Any, norm: BatchNorm, shift: Float) -> bool:
    """A convolution that reads the norm as its input only and pads no zeros that the norm would shift."""
    return (
        isinstance(op, ConvolutionLike)
        and op.x is norm.out
        and norm.out not in op.operands[1:]
        and (not any(op.ints("padding")) or not shift.any())
        # shared bases leave no room for a scale per input channel
        and isinstance(op, Conv2d)
    )


def _commutes(op: Any, factor: Float) -> bool:
    """A pooling whose result is the same with the norm behind it."""
    if isinstance(op, MaxPool):
        return bool((factor >= 0).all())
    if isinstance(op, AvgPool):
        return not op.value("count_include_pad") or not any(op.ints("padding"))
    return isinstance(op, AdaptiveAvgPool)


def _move_behind(norm: BatchNorm, pool: Any) -> None:
    norm.out.replace_all_uses_with(norm.x)
    moved = BatchNorm.make([pool.out], None, norm.location, **norm.properties)
    take_over(moved, pool)
    set_pin(pool, None)
    pool.set_value(GRAPH_NODE, None)
    pool.out.replace_all_uses_with(moved.out)
    # the replacement above caught the moved norm's own operand too
    moved.operands = (pool.out,)
    assert pool.parent is not None
    pool.parent.insert_op_after(moved, pool)
    norm.detach()
    norm.erase()


def _scale_outputs(module: Module, op: ConvolutionLike, factor: Float, shift: Float) -> None:
    bias = stored(module, op, "bias")
    folded = shift if bias is None else shift + factor * bias
    if isinstance(op, DecomposedConv2d):
        scale = needed(module, op, "scale") * factor
        # scales stay positive: a negative factor turns the coefficients' signs
        if (scale < 0).any():
            coefficients = needed(module, op, "coefficients")
            signs = np.where(scale < 0, -1, 1).astype(coefficients.dtype)[:, None, None]
            set_array(module, op, "coefficients", "folded_coefficients", coefficients * signs)
        set_array(module, op, "scale", "folded_scale", np.abs(scale))
    else:
        set_array(
            module, op, "weight", "folded_weight", dense_weight(module, op) * factor[:, None, None, None]
        )
    set_array(module, op, "bias", "folded_bias", folded)


def _scale_inputs(module: Module, op: ConvolutionLike, factor: Float, shift: Float) -> None:
    weight, bias = dense_weight(module, op), stored(module, op, "bias")
    groups = int(op.value("groups"))
    # channel c of group g is input channel g * (C / groups) + c
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    by_group = (groups, 1, weight.shape[1], 1, 1)
    constant = (grouped * shift.reshape(by_group)).sum(axis=(2, 3, 4)).reshape(-1)
    set_array(
        module, op, "weight", "folded_weight", (grouped * factor.reshape(by_group)).reshape(weight.shape)
    )
    if constant.any() or bias is not None:
        set_array(module, op, "bias", "folded_bias", constant if bias is None else constant + bias)


def _bypass(norm: BatchNorm, before: LayerOp) -> None:
    take_over(before, norm)
    norm.out.replace_all_uses_with(before.out)
    norm.detach()
    norm.erase()


def become_depthwise(module: Module, norm: BatchNorm) -> None:
    """Replace a batch norm by the 1x1 depthwise convolution with bias that computes the same."""
    channels = map_shape(norm.x)[2]
    factor, shift = _affine(module, norm)
    convolution = Conv2d.make(
        [norm.x],
        None,
        norm.location,
        weight=keep_array(module, norm, "folded_weight", factor.reshape(-1, 1, 1, 1)),
        bias=keep_array(module, norm, "folded_bias", shift),
        kernel=(1, 1),
        outputs=channels,
        stride=(1, 1),
        padding=(0, 0, 0, 0),
        dilation=(1, 1),
        groups=channels,
    )
    take_over(convolution, norm)
    replace_op(norm, [convolution])
