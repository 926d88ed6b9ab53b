"""Shrinking: dead channels and unused bases leave the torch network; what is left is smaller, not masked."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from escc.errors import EsccError
from escc.training.closure import LayerChannels, close, weight_mask
from escc.training.context import TransformContext
from escc.training.cutting import (
    Layer,
    Norm,
    channel_paddings,
    free_channels,
    layers,
    select,
    set_channel_padding,
)
from escc.training.modules import DecomposedConv2d

_TOLERANCE = 1e-3


@torch.no_grad()
def shrink(model: GraphModule, context: TransformContext, *, rule: str = "penni") -> dict[str, Any]:
    """Close dead channels, then cut them (and bases without coefficients) out of the network.

    The outputs are those of the closed, masked network: only sums of zeros are left out, so that at most the
    order of additions changes. This is checked with random images; where a graph cannot be cut it stays as it
    is, closed and masked, and the result says why.

    Args:
        model: changed in place.
        context: of the recipe.
        rule: as in :func:`escc.training.closure.close_channels`.

    Returns:
        ``channels`` and ``live_channels`` (outputs of convolutions and linear layers), ``bases`` and
        ``live_bases``, ``cut``: whether the network became smaller in fact, ``reason`` if it could not.

    Raises:
        EsccError: no such rule, or a network that escc cannot import.
    """
    closed = close(model, context, rule)
    figures: dict[str, Any] = {**closed.counts(), "bases": _bases(model)}
    images = torch.randn(2, *context.input_shape, generator=torch.Generator().manual_seed(context.seed))
    images = images.to(context.device)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    undo = _Undo(model)
    try:
        wanted = _outputs(model, images)
        _cut(model, closed.layers, closed.paddings)
        _compare(wanted, _outputs(model, images))
    except (EsccError, RuntimeError) as error:
        undo.restore(model)
        return {**figures, "live_bases": figures["bases"], "cut": False, "reason": str(error).splitlines()[0]}
    finally:
        for module, training in modes:
            module.training = training
    return {**figures, "live_bases": _bases(model), "cut": True}


def _cut(model: GraphModule, channels: dict[str, LayerChannels], paddings: list[LayerChannels]) -> None:
    nodes = channel_paddings(model)
    if len(nodes) != len(paddings):
        raise EsccError("paddings of channels follow each other")
    for node, found in zip(nodes, paddings, strict=True):
        before = int(cast("Any", node.args[1])[4])
        behind = before + len(found.inputs)
        set_channel_padding(node, int(found.outputs[:before].sum()), int(found.outputs[behind:].sum()))
    free_channels(model)
    model.recompile()
    for name, layer in layers(model).items():
        if name not in channels:
            raise EsccError("this layer is not among those of the imported network", where=name)
        _cut_layer(layer, channels[name])


def _cut_layer(layer: Layer, found: LayerChannels) -> None:
    outputs = torch.from_numpy(found.outputs.nonzero()[0])
    if isinstance(layer, Norm):
        select(layer, outputs, outputs)
        return
    columns = weight_mask(layer, found)[outputs[0]]
    while columns.dim() > 1:
        columns = columns.any(-1)
    columns = columns.nonzero()[:, 0].cpu()
    select(layer, outputs, columns)
    if isinstance(layer, DecomposedConv2d):
        _cut_bases(layer)


def _cut_bases(layer: DecomposedConv2d) -> None:
    """Bases no coefficient uses go, unless one holds the largest tap and with it the grid of the others."""
    used = ((layer.coefficients * layer.mask) != 0).any(1).any(0)
    used[0] |= ~used.any()
    kept = used.nonzero()[:, 0].cpu()
    if len(kept) == len(used):
        return
    everything = torch.arange(layer.out_channels), torch.arange(layer.coefficients.shape[1])
    trial = copy.deepcopy(layer)
    select(trial, *everything, kept)
    if torch.equal(trial.codes()[1], layer.codes()[1][used]):
        select(layer, *everything, kept)


def _bases(model: nn.Module) -> int:
    return sum(len(layer.bases) for layer in model.modules() if isinstance(layer, DecomposedConv2d))


def _outputs(model: GraphModule, images: Tensor) -> list[Tensor]:
    dtype = next((item.dtype for item in model.parameters()), images.dtype)
    result: Any = model(images.to(dtype))
    return [result] if isinstance(result, Tensor) else list(result)


def _compare(wanted: list[Tensor], found: list[Tensor]) -> None:
    for before, after in zip(wanted, found, strict=True):
        if before.shape != after.shape:
            raise EsccError(f"an output would change from {tuple(before.shape)} to {tuple(after.shape)}")
        if float((before - after).abs().max()) > _TOLERANCE * float(before.abs().max()):
            raise EsccError("the outputs would change")


class _Undo:
    """The layers and arguments of a graph as they are, to put back."""

    def __init__(self, model: GraphModule) -> None:
        self.layers = [(layer, dict(vars(layer)), _tensors(layer)) for layer in layers(model).values()]
        self.arguments = [(node, node.args) for node in model.graph.nodes]

    def restore(self, model: GraphModule) -> None:
        """Put everything back."""
        for layer, values, tensors in self.layers:
            vars(layer).update(values)
            for kind, kept in tensors.items():
                vars(layer)[kind] = kept
        for node, arguments in self.arguments:
            node.args = arguments
        model.recompile()


def _tensors(layer: nn.Module) -> dict[str, dict[str, Any]]:
    return {kind: dict(vars(layer)[kind]) for kind in ("_parameters", "_buffers")}
