"""Closing: channels that are dead are made so in every layer that touches them, to a fixed point.

Which channels are dead is asked of the compiler: the network is imported as ``escc compile`` would do it, and
``escc.passes.channels`` follows its channels through additions, concatenations, depthwise convolutions,
paddings and flattening. What is found is written into masks, so that the later cut (by ``shrinking`` or the
compiler's ``shrink-channels``) changes nothing.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from escc.errors import EsccError
from escc.frontend.capture import capture
from escc.frontend.importer import import_exported
from escc.ir.base import LayerOp, map_shape, module_path
from escc.ir.module import Module
from escc.ir.nn import BatchNorm, ConvolutionLike
from escc.passes.channels import ChannelView, is_depthwise, kernels_of, view_channels
from escc.passes.fold_batch_norm import become_depthwise
from escc.passes.math.liveness import tied_groups
from escc.training.context import TransformContext
from escc.training.cutting import Norm, layers
from escc.training.freezing import BIAS_MASK, MASK, set_mask
from escc.training.modules import ActivationQuantizer, DecomposedConv2d

Bools = NDArray[np.bool_]
Float = NDArray[np.float64]
Rule = Literal["penni", "exact"]
RULES: tuple[Rule, ...] = ("penni", "exact")


@dataclass(frozen=True)
class LayerChannels:
    """Which channels of a layer (or of a padding) live.

    Attributes:
        inputs: bool (C,).
        outputs: bool (K,).
        constant: float64 (C,), the value of dead input channels, 0 for all others.
    """

    inputs: Bools
    outputs: Bools
    constant: Float


class ChannelMap:
    """The channels of a trainable network as the compiler sees them.

    Args:
        model: of plain, decomposed and batch-norm layers.
        context: gives the example input.

    Raises:
        EsccError: the network cannot be imported, or calls a layer twice.
    """

    def __init__(self, model: GraphModule, context: TransformContext) -> None:
        self.model = model
        self._plain = _plain_copy(model)
        self._exported = capture(self._plain, example=context.example().cpu())
        self.zeros_only = not all(_takes_constants(model, name) for name in layers(model))

    def look(self) -> None:
        """Read the model's weights anew and find out what lives.

        Sets ``layers`` (by module path), ``paddings`` (those that add channels, in order) and ``silent``, for
        each layer the outputs whose whole group gets nothing but biases.
        """
        _refresh(self._plain, self.model, indicate=self.zeros_only)
        # exporting may have made copies
        for name, value in self._plain.state_dict().items():
            self._exported.state_dict[name].detach().copy_(value)
        module = import_exported(self._exported)
        for op in list(module.layers):
            if isinstance(op, BatchNorm):
                become_depthwise(module, op)
        view = view_channels(module, zeros_only=self.zeros_only)
        live = view.live()
        self.layers: dict[str, LayerChannels] = {}
        self.silent: dict[str, Bools] = {}
        self.paddings: list[LayerChannels] = []
        silent = _silent(module, view)
        known = layers(self.model)
        for op in module.layers:
            if op.name == "nn.pad" and any(op.ints("channels")):
                self.paddings.append(_channels(op, view, live))
            elif isinstance(op, ConvolutionLike):
                path = module_path(op)
                if path not in known:  # a scale or shift that belongs to no layer
                    continue
                if path in self.layers:
                    raise EsccError("is called twice; its channels cannot be cut", where=path)
                self.layers[path] = _channels(op, view, live)
                self.silent[path] = silent[view.numbers(op.out)]

    def counts(self) -> dict[str, int]:
        """Outputs of all convolutions and linear layers, and how many of them live."""
        found = [item for name, item in self.layers.items() if not _is_norm(self.model, name)]
        return {
            "channels": sum(len(item.outputs) for item in found),
            "live_channels": sum(int(item.outputs.sum()) for item in found),
        }


def _channels(op: LayerOp, view: ChannelView, live: Bools) -> LayerChannels:
    inputs = live[view.numbers(op.x)]
    constant = np.where(inputs, 0.0, np.nan_to_num(view.constant[op.x], nan=0.0))
    return LayerChannels(inputs, live[view.numbers(op.out)], constant)


def _silent(module: Module, view: ChannelView) -> Bools:
    """(count,) channels into whose group of tied channels no convolution writes anything but a bias."""
    group = tied_groups(view.count, np.array(view.ties).reshape(-1, 2))
    written = np.zeros(view.count, dtype=np.bool_)
    for value in view.pinned:
        written[view.numbers(value)] = True
    for op in module.layers:
        if isinstance(op, ConvolutionLike) and not is_depthwise(op, map_shape(op.x)[2]):
            written[view.numbers(op.out)] |= kernels_of(module, op).nonzero.any(axis=1)
    loud = np.zeros(view.count, dtype=np.bool_)
    loud[group[written]] = True
    return ~loud[group]


def close_channels(model: GraphModule, context: TransformContext, *, rule: str = "penni") -> dict[str, Any]:
    """Mask every dead channel in all layers that touch it, until nothing more dies.

    A channel is dead when no later layer weighs it, or when it is constant and whoever reads it can do
    without it; channels that are added together die together. Weight and bias of their batch norm become
    zero, too. The outputs of the network stay what they are, except as ``rule`` says.

    Args:
        model: changed in place: masks, and where a constant moves, a bias or a batch norm's running mean.
        context: of the recipe.
        rule: "exact": a channel without coefficients that still carries its batch norm's constant
            relu(beta - gamma * mu / sigma) dies only if that can move into the layers that read it (it cannot
            where they pad zeros around it). "penni": the constant is dropped, as the published code does, and
            the network has to learn to live without it.

    Returns:
        ``channels`` and ``live_channels``: outputs of convolutions and linear layers, and those that live.

    Raises:
        EsccError: no such rule, or a network that escc cannot import.
    """
    return dict(close(model, context, rule).counts())


@torch.no_grad()
def close(model: GraphModule, context: TransformContext, rule: str) -> ChannelMap:
    """:func:`close_channels`, giving the final state of the channels."""
    if rule not in RULES:
        raise EsccError(f"'{rule}' is no rule for dead channels", hint=f"one of {', '.join(RULES)}")
    channels = ChannelMap(model, context)
    rounds = 0
    while True:
        channels.look()
        fresh = 0
        for name, found in channels.layers.items():
            fresh += _mask_layer(model, name, found)
            if rule == "penni":
                fresh += _silence(model.get_submodule(name), channels.silent[name])
        rounds += 1
        context.progress("close channels", rounds, 0)
        if not fresh:
            return channels


def _mask_layer(model: GraphModule, name: str, found: LayerChannels) -> int:
    """Mask what is dead of one layer; how many numbers were masked."""
    layer = model.get_submodule(name)
    if isinstance(layer, Norm):
        return _silence(layer, ~found.outputs)
    # what a depthwise convolution makes of a constant is dead with it
    if found.constant.any() and getattr(layer, "groups", 1) == 1:
        _move_constant(model, name, found.constant)
    kept = weight_mask(layer, found)
    fresh = set_mask(layer, MASK, kept)
    if getattr(layer, "bias", None) is not None:
        fresh += set_mask(layer, BIAS_MASK, _tensor(found.outputs, kept))
    return fresh


def weight_mask(layer: nn.Module, found: LayerChannels) -> Tensor:
    """What stays of the weight (coefficients) of a convolution or linear layer: bool, of its shape."""
    weight: Any = layer.coefficients if isinstance(layer, DecomposedConv2d) else layer.weight
    inputs, outputs = _tensor(found.inputs, weight), _tensor(found.outputs, weight)
    if isinstance(layer, nn.Linear):
        inputs = inputs.repeat_interleave(weight.shape[1] // len(inputs))
    elif int(getattr(layer, "groups", 1)) > 1:
        inputs = torch.ones_like(weight[0, :, 0], dtype=torch.bool).reshape(weight.shape[1], -1)[:, 0]
    kept = outputs[:, None] & inputs[None, :]
    return kept.reshape(*kept.shape, *[1] * (weight.dim() - 2)).expand_as(weight)


def _silence(layer: nn.Module, dead: Bools) -> int:
    """A batch norm or a bias that gives zero for dead channels."""
    if not dead.any():
        return 0
    if isinstance(layer, Norm):
        assert layer.running_mean is not None
        assert layer.running_var is not None
        kept = _tensor(~dead, layer.running_mean)
        fresh = int(torch.count_nonzero(layer.running_mean[~kept]))
        # without weight and bias this alone does it: what it normalises is zero
        layer.running_mean.masked_fill_(~kept, 0.0)
        layer.running_var.masked_fill_(~kept, 1.0)
        return fresh + (set_mask(layer, MASK, kept) if layer.affine else 0)
    bias = getattr(layer, "bias", None)
    return set_mask(layer, BIAS_MASK, _tensor(~dead, bias)) if isinstance(bias, Tensor) else 0


def _move_constant(model: GraphModule, name: str, constant: Float) -> None:
    """Let a layer give without its constant inputs what it gave with them."""
    layer = model.get_submodule(name)
    weight: Any = layer.weight() if isinstance(layer, DecomposedConv2d) else layer.weight
    sums = weight.double().reshape(len(weight), len(constant), -1).sum(2)
    share = sums @ torch.from_numpy(constant).to(sums.device)
    if not share.any():
        return
    place = _place_of_constant(model, name)
    assert place is not None
    # a batch norm subtracts its mean
    place.add_((share if place is getattr(layer, "bias", None) else -share).to(place.dtype))


def _place_of_constant(model: GraphModule, name: str) -> Tensor | None:
    """The bias of a layer, or the running mean of the batch norm behind it."""
    bias: Any = getattr(model.get_submodule(name), "bias", None)
    if bias is not None:
        return bias
    for node in model.graph.nodes:
        if node.op == "call_module" and node.target == name:
            users: list[Node] = list(node.users)
            if len(users) == 1 and users[0].op == "call_module":
                follower = model.get_submodule(str(users[0].target))
                if isinstance(follower, Norm):
                    return follower.running_mean
    return None


def _takes_constants(model: GraphModule, name: str) -> bool:
    """Whether a constant input of a layer may become part of the layer exactly."""
    layer = model.get_submodule(name)
    if isinstance(layer, Norm):
        return True
    rounded = isinstance(layer, DecomposedConv2d) and layer.rule == "twn"
    rounded |= bool(getattr(layer, "weight_bits", 0))
    return not rounded and _place_of_constant(model, name) is not None


def _is_norm(model: GraphModule, name: str) -> bool:
    return isinstance(model.get_submodule(name), Norm)


def _tensor(values: Bools, like: Any) -> Tensor:
    return torch.from_numpy(values).to(like.device)


# -- the copy that is imported ------------------------------------------------------------------------------


def _plain_copy(model: GraphModule) -> GraphModule:
    """A copy on the CPU in which decomposed convolutions are plain ones and nothing rounds activations."""
    plain = copy.deepcopy(model).cpu()
    for name, layer in list(plain.named_modules()):
        if isinstance(layer, DecomposedConv2d):
            plain.set_submodule(name, _plain_convolution(layer))
        elif isinstance(layer, ActivationQuantizer):
            plain.set_submodule(name, nn.Identity())
    return plain.eval()


def _plain_convolution(layer: DecomposedConv2d) -> nn.Conv2d:
    outputs, inputs = layer.coefficients.shape[:2]
    plain = nn.Conv2d(
        inputs * layer.groups,
        outputs,
        (int(layer.bases.shape[1]), int(layer.bases.shape[2])),
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        bias=layer.bias is not None,
    )
    return plain.to(layer.bases.dtype)


def _refresh(plain: GraphModule, model: GraphModule, *, indicate: bool) -> None:
    """Give the copy the model's numbers; with ``indicate``, ones for the kernels that are not zero.

    Ones tell what depends on what, which is all that counts while no constants move. A ternary layer whose
    threshold is a mean is asked for its latent coefficients: masking any would move the others' threshold.
    """
    theirs = model.state_dict()
    for name, value in plain.state_dict().items():
        owner = model.get_submodule(name.rpartition(".")[0])
        if not isinstance(owner, DecomposedConv2d) or name.endswith(".bias"):
            value.copy_(theirs[name])
        elif indicate:
            codes = owner.coefficients * owner.mask if owner.rule == "twn" else owner.codes()[0]
            value.copy_((codes != 0).any(2)[..., None, None])
        else:
            value.copy_(owner.weight())
