"""Batch norms become part of the layers before them while a network learns on, as they will when compiled."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, fx, nn

from escc.errors import EsccError
from escc.training.modules import DecomposedConv2d

FOLDED = "folded_norms"
"""Key of the graph's ``meta``: module paths of the norms that are gone, in order."""

Convolution = nn.Conv2d | DecomposedConv2d


@torch.no_grad()
def fold_norms(model: fx.GraphModule) -> int:
    """Fold every batch norm that follows a convolution into it, in place, with its running statistics.

    The outputs in evaluation mode stay what they were. Convolutions get a bias, decomposed ones a scale that
    learns; a negative factor turns the signs of a decomposed layer's coefficients.

    Returns:
        How many were folded; norms elsewhere stay.
    """
    folded = 0
    norms = {path: norm for path, norm in model.named_modules() if isinstance(norm, nn.BatchNorm2d)}
    for path, norm in norms.items():
        mean, variance = norm.running_mean, norm.running_var
        if _before(model, path) is None or mean is None or variance is None:
            continue
        factor = torch.rsqrt(variance.double() + norm.eps)
        weight, bias = (cast("Tensor | None", item) for item in (norm.weight, norm.bias))
        if weight is not None:
            factor = factor * weight.double()
        shift: Tensor = -mean.double() * factor
        if bias is not None:
            shift = shift + bias.double()
        layer = remove_norm(model, path)
        assert layer.bias is not None
        layer.bias.copy_(layer.bias.double() * factor + shift)
        if isinstance(layer, DecomposedConv2d):
            scale = layer.scale.double() * factor
            layer.coefficients.mul_(torch.where(scale < 0, -1.0, 1.0)[:, None, None])
            layer.scale.copy_(scale.abs())
        else:
            layer.weight.copy_(layer.weight.double() * factor[:, None, None, None])
        folded += 1
    model.recompile()
    return folded


def remove_norm(model: fx.GraphModule, path: str) -> Convolution:
    """Take a norm out of the graph, and make room for what it did in the convolution before it.

    Args:
        model: recompile it afterwards.
        path: module path of a batch norm.

    Returns:
        The convolution, whose bias is zero if it had none.

    Raises:
        EsccError: no such norm, or nothing it can be folded into.
    """
    layer = _before(model, path)
    if layer is None:
        raise EsccError("no batch norm behind a convolution", where=path)
    if layer.bias is None:
        layer.bias = nn.Parameter(torch.zeros(layer.out_channels, device=_device(layer)))
    if isinstance(layer, DecomposedConv2d) and not layer.learn_scale:
        scale = layer.scale.detach().clone()
        del layer.scale
        layer.scale, layer.learn_scale = nn.Parameter(scale), True
    (node,) = _calls(model, path)
    node.replace_all_uses_with(cast("fx.Node", node.args[0]))
    model.graph.erase_node(node)
    model.delete_submodule(path)
    model.meta.setdefault(FOLDED, []).append(path)
    return layer


def _calls(model: fx.GraphModule, path: str) -> list[fx.Node]:
    return [node for node in model.graph.find_nodes(op="call_module") if node.target == path]


def _before(model: fx.GraphModule, path: str) -> Convolution | None:
    """The convolution whose result only this norm reads, both called once."""
    calls = _calls(model, path)
    source = calls[0].args[0] if len(calls) == 1 else None
    if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
        return None
    layer = model.get_submodule(str(source.target))
    once = len(_calls(model, str(source.target))) == 1
    return layer if once and isinstance(layer, nn.Conv2d | DecomposedConv2d) else None


def _device(layer: nn.Module) -> torch.device:
    return next(layer.parameters()).device
