"""Slimming: whole channels that the loss hardly feels go, before anything is decomposed."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from escc.errors import EsccError
from escc.training.context import TransformContext
from escc.training.freezing import MASK, set_mask
from escc.training.modules import DecomposedConv2d
from escc.training.shrinking import shrink

_BATCH = 32
_PASSES_ON = ("relu", "clamp", "hardtanh", "max_pool", "avg_pool", "adaptive_avg_pool", "view", "reshape")
"""Operators that keep channels apart: what reads them reads the channels of their input."""


def slim(
    model: fx.GraphModule,
    context: TransformContext,
    *,
    keep: float = 0.5,
    least: int = 8,
    images: int = 256,
    layers: str = "*",
) -> dict[str, Any]:
    """Cut the channels that matter least to the loss, over all layers together.

    A channel's importance is E[(dL/dg)^2] for a gate g = 1 on it, averaged over calibration images: the
    squared first-order change of the loss if it were not there (Molchanov et al., CVPR 2019, equation 8). L
    is the cross entropy with the network's own answers as labels. Channels that residual sums tie stay.

    Args:
        model: before activations are quantised; changed in place.
        context: gives calibration images.
        keep: share of the channels that could go that stays.
        least: channels every layer keeps.
        images: how many calibration images.
        layers: shell pattern of the convolutions' module paths.

    Returns:
        What :func:`escc.training.shrinking.shrink` returns, and ``slimmed``: the layers that lost channels.

    Raises:
        EsccError: keep is no share, or no layer has channels of its own under ``layers``.
    """
    if not 0 < keep <= 1 or least < 1:
        raise EsccError(f"keep={keep} is no share above 0, or least={least} not positive", where="slim")
    gated = {
        path: after for path, after in _free_outputs(model).items() if fnmatchcase(path, layers)
    }
    if not gated:
        close = difflib.get_close_matches(layers, list(_free_outputs(model)), n=1)
        hint = f"did you mean '{close[0]}'?" if close else "channels tied by additions cannot go"
        raise EsccError(f"no layer '{layers}' has channels that could go", where="slim", hint=hint)
    importance = _importance(model, context, gated, images)
    # the most important ones of each layer are beyond comparison
    spared = {path: values.argsort(descending=True)[:least] for path, values in importance.items()}
    ranked = torch.cat([values.index_fill(0, spared[path], torch.inf) for path, values in importance.items()])
    count = round((1 - keep) * len(ranked))
    threshold = float(ranked.kthvalue(count).values) if count else -1.0
    slimmed = 0
    for path, values in importance.items():
        kept = values > threshold
        kept[spared[path]] = True
        if not bool(kept.all()):
            slimmed += 1
            layer: Any = model.get_submodule(path)
            weight = layer.coefficients if isinstance(layer, DecomposedConv2d) else layer.weight
            rows = kept.to(weight.device).view(-1, *[1] * (weight.dim() - 1))
            set_mask(layer, MASK, rows.expand_as(weight))
    return {**shrink(model, context, rule="penni"), "slimmed": slimmed}


def _free_outputs(model: fx.GraphModule) -> dict[str, str]:
    """Convolutions whose channels only convolutions and linear layers read: path -> module to gate."""
    found: dict[str, str] = {}
    for node in model.graph.find_nodes(op="call_module"):
        layer = model.get_submodule(str(node.target))
        if not isinstance(layer, nn.Conv2d | DecomposedConv2d) or layer.groups != 1:
            continue
        follower = next(iter(node.users)) if len(node.users) == 1 else node
        normed = follower.op == "call_module" and isinstance(
            model.get_submodule(str(follower.target)), nn.BatchNorm2d
        )
        end = follower if normed else node
        if _read_apart(model, end):
            found[str(node.target)] = str(end.target)
    return found


def _read_apart(model: fx.GraphModule, node: fx.Node) -> bool:
    if not node.users:
        return False
    for user in node.users:
        if user.op == "call_module":
            layer = model.get_submodule(str(user.target))
            if not isinstance(layer, nn.Conv2d | nn.Linear | DecomposedConv2d):
                return False
        elif user.op == "call_function":
            name = str(user.target).removeprefix("aten.")
            plain = any(name.startswith(known) for known in _PASSES_ON)
            if not name.startswith("sym_size") and not (plain and _read_apart(model, user)):
                return False
        else:
            return False
    return True


def _importance(
    model: fx.GraphModule, context: TransformContext, gated: dict[str, str], images: int
) -> dict[str, Tensor]:
    """E[(dL/dg)^2] of every channel, float64 on the CPU, by convolution."""
    gates: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(end).register_forward_hook(
            lambda _module, _inputs, output, path=path: _gate(gates, path, cast("Tensor", output))
        )
        for path, end in gated.items()
    ]
    inputs = torch.from_numpy(context.calibration(images)).to(context.device)
    total = {path: torch.zeros(0, dtype=torch.float64) for path in gated}
    try:
        for start in range(0, len(inputs), _BATCH):
            with torch.enable_grad():
                scores = model(inputs[start : start + _BATCH])
                loss = functional.cross_entropy(scores, scores.detach().argmax(1), reduction="sum")
            found = torch.autograd.grad(loss, [gates[path] for path in gated])
            for path, gradient in zip(gated, found, strict=True):
                squares = gradient.double().square().sum(0).flatten().cpu()
                total[path] = total[path] + squares if len(total[path]) else squares
            context.progress("importance of channels", min(start + _BATCH, len(inputs)), len(inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return {path: values / len(inputs) for path, values in total.items()}


def _gate(gates: dict[str, Tensor], path: str, output: Tensor) -> Tensor:
    # a gate for every image: their gradients are squared one by one
    gates[path] = torch.ones(*output.shape[:2], 1, 1, device=output.device, requires_grad=True)
    return output * gates[path]
