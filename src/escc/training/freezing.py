"""Which half of the decomposed layers learns when, and that what is frozen or pruned really stays.

PENNI (ICML 2020) trains bases and coefficients in turns. Setting ``requires_grad`` alone does not freeze: a
gradient left at zero still lets weight decay and momentum move a parameter. Here the gradient is gone too, so
that torch's optimizers pass over the parameter; its momentum waits, per parameter, for its next turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from escc.errors import EsccError
from escc.training.modules import DecomposedConv2d

Half = Literal["all", "coefficients", "bases"]
HALVES: tuple[Half, ...] = ("all", "coefficients", "bases")

MASK, BIAS_MASK = "mask", "bias_mask"
"""Buffers of a layer with pruned numbers: 1 where a number is kept, 0 where it stays zero.

``mask`` belongs to the coefficients of a decomposed convolution, to the weight of any other layer; a batch
norm's to weight and bias. ``bias_mask`` belongs to the bias of a convolution or linear layer."""


def decomposed_layers(model: nn.Module) -> dict[str, DecomposedConv2d]:
    """The decomposed convolutions of a model by module path."""
    return {name: module for name, module in model.named_modules() if isinstance(module, DecomposedConv2d)}


def train_half(model: nn.Module, half: str) -> None:
    """Let the named half of every decomposed layer learn and freeze the other one.

    Frozen parameters lose their gradient. What belongs to no decomposed layer, and biases, always learn.

    Args:
        model: with or without decomposed layers.
        half: "all", "coefficients" or "bases".

    Raises:
        EsccError: no such half.
    """
    if half not in HALVES:
        raise EsccError(f"'{half}' is no half of a layer", hint=f"one of {', '.join(HALVES)}")
    for layer in decomposed_layers(model).values():
        for name, parameter in (("bases", layer.bases), ("coefficients", layer.coefficients)):
            parameter.requires_grad_(half in ("all", name))
            if not parameter.requires_grad:
                parameter.grad = None


@dataclass(frozen=True)
class Alternation:
    """Which half learns in which epoch.

    Attributes:
        interval: epochs between two changes; 0: ``first`` always.
        first: half to start with; "all" means the coefficients when there are changes.
        penni: change as the published code does, at the start of every epoch e (from 0) with (e + 1) a
            multiple of ``interval``: the first turn is an epoch shorter (1, 2, 2, 2, ... for interval 2).
    """

    interval: int = 2
    first: Half = "coefficients"
    penni: bool = False

    def half(self, epoch: int) -> Half:
        """The half that learns in an epoch, counted from 0."""
        if not self.interval:
            return self.first
        first = "coefficients" if self.first == "all" else self.first
        other: Half = "bases" if first == "coefficients" else "coefficients"
        changes = (epoch + self.penni) // self.interval
        return other if changes % 2 else first


def masked_parameters(model: nn.Module) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Every parameter that has a mask, with the mask (of the same shape)."""
    for module in model.modules():
        mask, bias_mask = getattr(module, MASK, None), getattr(module, BIAS_MASK, None)
        weight: Any = getattr(
            module, "coefficients" if isinstance(module, DecomposedConv2d) else "weight", None
        )
        bias: Any = getattr(module, "bias", None)
        if isinstance(mask, Tensor) and isinstance(weight, nn.Parameter):
            yield weight, mask
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            bias_mask = mask
        if isinstance(bias_mask, Tensor) and isinstance(bias, nn.Parameter):
            yield bias, bias_mask


def set_mask(module: nn.Module, name: str, mask: Tensor) -> int:
    """Narrow a layer's mask (adding the buffer if there is none) and set what it covers to zero.

    Args:
        module: a layer.
        name: :data:`MASK` or :data:`BIAS_MASK`.
        mask: of the parameter's shape, 0 or False where it becomes zero. What was pruned stays pruned.

    Returns:
        How many numbers it newly covers.
    """
    known = getattr(module, name, None)
    kept = mask.bool()
    if isinstance(known, Tensor):
        before = known.bool()
        kept = kept & before
        with torch.no_grad():
            known.copy_(kept)
        fresh = int((before & ~kept).sum())
    else:
        fresh = int((~kept).sum())
        if fresh:
            module.register_buffer(name, kept.to(torch.float32))
    enforce_masks(module)
    return fresh


@torch.no_grad()
def enforce_masks(model: nn.Module) -> None:
    """Set everything under a mask to zero."""
    for parameter, mask in masked_parameters(model):
        parameter.masked_fill_(mask == 0, 0.0)


def hold(optimizer: Optimizer, model: nn.Module) -> None:
    """Make every step of an optimizer respect what is frozen and what is pruned.

    Before a step, gradients of parameters that do not learn are dropped (so that neither weight decay nor
    momentum moves them, whatever ``zero_grad`` left there). After it, pruned numbers are zero again, and so
    is their momentum. Call it after the masks and modules of the phase are in place.

    Args:
        optimizer: over parameters of ``model``.
        model: its masks are read now.
    """
    zeros = [(parameter, mask == 0) for parameter, mask in masked_parameters(model)]

    def before(owner: Optimizer, *_: Any) -> None:
        for group in owner.param_groups:
            for parameter in group["params"]:
                if not parameter.requires_grad:
                    parameter.grad = None

    @torch.no_grad()
    def after(owner: Optimizer, *_: Any) -> None:
        for parameter, zero in zeros:
            parameter.masked_fill_(zero, 0.0)
            for state in owner.state.get(parameter, {}).values():
                if isinstance(state, Tensor) and state.shape == zero.shape:
                    state.masked_fill_(zero, 0.0)

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
