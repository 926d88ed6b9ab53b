"""Slimming: whole channels that the loss hardly feels go, before anything is decomposed."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
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
    per: str = "channel",
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
        keep: share of the channels that could go that stays; with ``per`` "operation", of their operations.
        per: what importance is weighed against: "channel" (nothing), or "operation", the multiplications
            that the channel's own convolution and the readers of it spend on it before anything is cut, so
            that channels of large maps have to matter more.
        least: channels every layer keeps.
        images: how many calibration images.
        layers: shell pattern of the convolutions' module paths.

    Returns:
        What :func:`escc.training.shrinking.shrink` returns, and ``slimmed``: the layers that lost channels.

    Raises:
        EsccError: keep is no share, ``per`` unknown, or no layer has channels of its own under ``layers``.
    """
    if not 0 < keep <= 1 or least < 1:
        raise EsccError(f"keep={keep} is no share above 0, or least={least} not positive", where="slim")
    if per not in ("channel", "operation"):
        raise EsccError(f"per='{per}' is neither 'channel' nor 'operation'", where="slim")
    free = free_outputs(model)
    gated = {path: found.end for path, found in free.items() if fnmatchcase(path, layers)}
    if not gated:
        close = difflib.get_close_matches(layers, list(free), n=1)
        hint = f"did you mean '{close[0]}'?" if close else "channels tied by additions cannot go"
        raise EsccError(f"no layer '{layers}' has channels that could go", where="slim", hint=hint)
    importance = _importance(model, context, gated, images)
    cost = dict.fromkeys(gated, 1.0)
    if per == "operation":
        cost = operations(model, context, {path: free[path].readers for path in gated})
    slimmed = 0
    for path, kept in choice(importance, cost, keep, least).items():
        if not bool(kept.all()):
            slimmed += 1
            layer: Any = model.get_submodule(path)
            weight = layer.coefficients if isinstance(layer, DecomposedConv2d) else layer.weight
            rows = kept.to(weight.device).view(-1, *[1] * (weight.dim() - 1))
            set_mask(layer, MASK, rows.expand_as(weight))
    return {**shrink(model, context, rule="penni"), "slimmed": slimmed}


def choice(
    importance: dict[str, Tensor], cost: dict[str, float], keep: float, least: int
) -> dict[str, Tensor]:
    """Which channels stay, bool by convolution: the least important for their cost go first."""
    values = torch.cat([found / cost[path] for path, found in importance.items()])
    costs = torch.cat([torch.full_like(found, cost[path]) for path, found in importance.items()])
    # the most important ones of each layer are beyond comparison
    start = 0
    for found in importance.values():
        values[start + found.argsort(descending=True)[:least]] = torch.inf
        start += len(found)
    order = values.argsort(stable=True)
    gone = costs[order].cumsum(0) <= (1 - keep) * costs.sum() * (1 + 1e-12)
    kept = torch.ones(len(values), dtype=torch.bool)
    kept[order[gone & values[order].isfinite()]] = False
    return dict(zip(importance, kept.split([len(found) for found in importance.values()]), strict=True))


def operations(
    model: fx.GraphModule, context: TransformContext, readers: dict[str, tuple[str, ...]]
) -> dict[str, float]:
    """Multiplications per image that one channel of each convolution costs there and in its readers."""
    total: dict[str, int] = {}

    def count(path: str, weights: int, output: Tensor) -> None:
        total[path] = weights * output.shape[2:].numel()

    hooks: list[Any] = []
    for path in {*readers, *(name for names in readers.values() for name in names)}:
        layer: Any = model.get_submodule(path)
        weights = (layer.weight() if isinstance(layer, DecomposedConv2d) else layer.weight).numel()
        hooks.append(
            layer.register_forward_hook(
                lambda _module, _inputs, output, path=path, weights=weights: count(path, weights, output)
            )
        )
    try:
        model(torch.from_numpy(context.calibration(1)).to(context.device))
    finally:
        for hook in hooks:
            hook.remove()
    channels = {path: cast("nn.Conv2d", model.get_submodule(path)).out_channels for path in readers}
    return {
        path: (total[path] + sum(total[name] for name in names)) / channels[path]
        for path, names in readers.items()
    }


@dataclass(frozen=True)
class Free:
    """Where the channels of a convolution can be gated, and the layers that read them."""

    end: str
    readers: tuple[str, ...]


def free_outputs(model: fx.GraphModule) -> dict[str, Free]:
    """Convolutions whose channels only convolutions and linear layers read, by path."""
    found: dict[str, Free] = {}
    for node in model.graph.find_nodes(op="call_module"):
        layer = model.get_submodule(str(node.target))
        if not isinstance(layer, nn.Conv2d | DecomposedConv2d) or layer.groups != 1:
            continue
        follower = next(iter(node.users)) if len(node.users) == 1 else node
        normed = follower.op == "call_module" and isinstance(
            model.get_submodule(str(follower.target)), nn.BatchNorm2d
        )
        end = follower if normed else node
        readers = _readers(model, end)
        if readers:
            found[str(node.target)] = Free(str(end.target), tuple(readers))
    return found


def _readers(model: fx.GraphModule, node: fx.Node) -> list[str] | None:
    """The layers that read the channels of ``node``; None where something ties or mixes them."""
    found: list[str] = []
    for user in node.users:
        if user.op == "call_module":
            layer = model.get_submodule(str(user.target))
            if not isinstance(layer, nn.Conv2d | nn.Linear | DecomposedConv2d):
                return None
            found.append(str(user.target))
        elif user.op == "call_function":
            name = str(user.target).removeprefix("aten.")
            if name.startswith("sym_size"):
                continue
            beyond = _readers(model, user) if any(name.startswith(known) for known in _PASSES_ON) else None
            if beyond is None:
                return None
            found += beyond
        else:
            return None
    return found


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
