"""shrink-channels: channels that cannot change any output of the network go, with their weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from escc.ir.base import LayerOp, replace_op
from escc.ir.escalate import DecomposedConv2d
from escc.ir.module import Module
from escc.ir.nn import ConvolutionLike
from escc.ir.passes import Pass, PassContext
from escc.passes.channels import ChannelView, is_depthwise, kernels_of, view_channels
from escc.passes.convolutions import ORIGINAL_WEIGHT, needed, set_array, stored
from escc.passes.math.accounting import any_along

Bools = NDArray[np.bool_]


@dataclass
class ShrinkChannels(Pass):
    """Remove dead channels and unused bases; the outputs stay exactly what they were.

    A channel goes when no later convolution has a non-zero weight for it, or when it is constant (all weights
    of its output are zero) and every convolution that reads it can take the constant into its bias; where
    zeros are padded around it, only zero can. What is tied together by additions, products, pools, depthwise
    convolutions or concatenations goes together or stays. Inputs and outputs of the network stay.
    """

    name: ClassVar[str] = "shrink-channels"
    requires: ClassVar[frozenset[str]] = frozenset({"batch-norm-folded"})
    establishes: ClassVar[frozenset[str]] = frozenset({"shrunk"})

    def run(self, module: Module, context: PassContext) -> None:
        """Rewrite the module.

        Raises:
            EsccError: an operation of another level than the float ones.
        """
        view = view_channels(module)
        live = view.live()
        # all masks before the first rewrite: rewriting replaces the values they belong to
        plans = [_plan(op, view, live) for op in module.layers]
        for done, plan in enumerate(plans, start=1):
            plan.apply(module)
            context.progress(self.name, done, len(plans))
        module.drop_unused_arrays()


@dataclass
class _Plan:
    """What stays of one operation.

    Attributes:
        op: the operation.
        inputs: which channels of each operand stay.
        outputs: which channels of its result stay.
        constant: known value of each channel of the first operand, 0 where it varies.
    """

    op: LayerOp
    inputs: list[Bools]
    outputs: Bools
    constant: NDArray[np.float64]

    def apply(self, module: Module) -> None:
        """Slice the arrays and rebuild the operation with its smaller result."""
        op = self.op
        if isinstance(op, DecomposedConv2d):
            self._drop_bases(module)
        if self.outputs.all() and all(mask.all() for mask in self.inputs):
            return
        if isinstance(op, ConvolutionLike):
            self._slice(module)
        elif op.name == "nn.pad":
            before = op.ints("channels")[0]
            behind = before + len(self.inputs[0])
            op.set_value("channels", (int(self.outputs[:before].sum()), int(self.outputs[behind:].sum())))
        new = type(op).make(op.operands, None, op.location, **op.properties)
        new.attributes.update(op.attributes)
        replace_op(op, [new])

    def _drop_bases(self, module: Module) -> None:
        coefficients = needed(module, self.op, "coefficients")
        used = any_along(coefficients.reshape(-1, coefficients.shape[2]) != 0, 0)
        used[0] |= not used.any()
        if not used.all():
            set_array(module, self.op, "coefficients", "shrunk_coefficients", coefficients[..., used])
            set_array(module, self.op, "bases", "shrunk_bases", needed(module, self.op, "bases")[used])

    def _slice(self, module: Module) -> None:
        op = self.op
        kernels = kernels_of(module, op)
        bias = kernels.bias
        columns = np.ones(kernels.nonzero.shape[1], dtype=np.bool_)
        # not asked of the operand: its channels have gone already
        if is_depthwise(op, len(self.inputs[0])):
            op.set_value("groups", int(self.inputs[0].sum()))
        elif int(op.value("groups")) == 1:
            columns, gone = self.inputs[0], ~self.inputs[0]
            if gone.any():
                sums = np.where(kernels.nonzero[:, gone], kernels.sums[:, gone], 0.0)
                bias = bias + sums @ self.constant[gone]
        if bias.any() or op.symbol("bias") is not None:
            set_array(module, op, "bias", "shrunk_bias", bias[self.outputs])
        for name in ("weight", "coefficients", ORIGINAL_WEIGHT):
            array = stored(module, op, name)
            if array is not None:
                set_array(module, op, name, f"shrunk_{name}", array[self.outputs][:, columns])
        if isinstance(op, DecomposedConv2d):
            set_array(module, op, "scale", "shrunk_scale", needed(module, op, "scale")[self.outputs])
        if op.value("density") is not None:
            left: Any = needed(module, op, "coefficients")
            op.set_value("density", float(f"{np.count_nonzero(left) / left.size:.4g}"))
        op.set_value("outputs", int(self.outputs.sum()))


def _plan(op: LayerOp, view: ChannelView, live: Bools) -> _Plan:
    inputs = [live[view.numbers(value)] for value in op.operands]
    constant = np.nan_to_num(view.constant[op.x], nan=0.0)
    return _Plan(op, inputs, live[view.numbers(op.out)], constant)
