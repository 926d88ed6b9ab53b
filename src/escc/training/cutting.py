"""Layers made smaller: which outputs, inputs and bases stay; and the sizes of a network as plain data.

Whatever a cut changes can be read off the network (:func:`sizes`) and put on a fresh graph of the same one
(:func:`apply_sizes`), so that a state dictionary fits it again.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from escc.errors import EsccError
from escc.training.freezing import BIAS_MASK, MASK
from escc.training.modules import DecomposedConv2d

_PADS = frozenset({"aten.pad.default", "aten.constant_pad_nd.default"})
_VIEWS = frozenset(
    {"aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", "aten.expand.default"}
)

NORMS = (nn.BatchNorm2d, nn.BatchNorm1d)
Norm = nn.BatchNorm2d | nn.BatchNorm1d
Layer = nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.BatchNorm1d | DecomposedConv2d


def layers(model: nn.Module) -> dict[str, Layer]:
    """What has channels, by module path."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Layer)}


def select(layer: Layer, outputs: Tensor, columns: Tensor, bases: Tensor | None = None) -> None:
    """Keep only these outputs, inputs and bases of a layer, in this order.

    Args:
        layer: changed in place; parameters become new ones.
        outputs: int64, output channels.
        columns: int64, second dimension of the weight (coefficients): input channels of a group, features of
            a linear layer. Batch norms have none.
        bases: int64, for a decomposed layer; None keeps all.
    """
    if isinstance(layer, Norm):
        for name in ("weight", "bias", "running_mean", "running_var", MASK):
            _keep(layer, name, outputs)
        layer.num_features = len(outputs)
    elif isinstance(layer, nn.Linear):
        for name in ("weight", MASK):
            _keep(layer, name, outputs, columns)
        layer.out_features, layer.in_features = len(outputs), len(columns)
    else:
        depthwise = layer.groups > 1 and layer.groups == layer.in_channels
        if layer.groups > 1 and not depthwise and len(outputs) != layer.out_channels:
            raise EsccError("a grouped convolution keeps its channels")
        if isinstance(layer, DecomposedConv2d):
            kept = torch.arange(len(layer.bases)) if bases is None else bases
            for name in ("coefficients", MASK):
                _keep(layer, name, outputs, columns, kept)
            _keep(layer, "bases", kept)
            _keep(layer, "scale", outputs)
        else:
            for name in ("weight", MASK):
                _keep(layer, name, outputs, columns)
        if depthwise:
            layer.groups = len(outputs) * layer.in_channels // layer.out_channels
        layer.out_channels, layer.in_channels = len(outputs), len(columns) * layer.groups
    if not isinstance(layer, Norm):
        for name in ("bias", BIAS_MASK):
            _keep(layer, name, outputs)
    _drop_idle_masks(layer)


def _keep(layer: nn.Module, name: str, *kept: Tensor) -> None:
    """Select along the first dimensions of a parameter or buffer, when there is one."""
    old = getattr(layer, name, None)
    if not isinstance(old, Tensor):
        return
    new = old.detach()
    for dimension, index in enumerate(kept):
        new = new.index_select(dimension, index.to(new.device))
    if isinstance(old, nn.Parameter):
        setattr(layer, name, nn.Parameter(new, requires_grad=old.requires_grad))
    else:
        setattr(layer, name, new)


def _drop_idle_masks(layer: nn.Module) -> None:
    """Masks that cover nothing go; a decomposed layer always has one."""
    for name in (MASK, BIAS_MASK):
        mask = getattr(layer, name, None)
        idle = isinstance(mask, Tensor) and bool(mask.all())
        if idle and not (name == MASK and isinstance(layer, DecomposedConv2d)):
            delattr(layer, name)


def channel_paddings(model: GraphModule) -> list[Node]:
    """The calls that put channels of zeros around a map, in order."""
    return [node for node in model.graph.nodes if _is_padding(node) and any(_amounts(node)[4:6])]


def set_channel_padding(node: Node, before: int, after: int) -> None:
    """Change how many channels a padding adds."""
    amounts = _amounts(node)
    node.update_arg(1, [*amounts[:4], before, after, *amounts[6:]])


def free_channels(model: GraphModule) -> None:
    """Let views work out the dimension of the channels, where they have it as a number."""
    for node in model.graph.nodes:
        if node.op == "call_function" and str(node.target) in _VIEWS:
            size = _amounts(node)
            if len(size) > 1 and isinstance(size[1], int) and -1 not in size:
                node.update_arg(1, [size[0], -1, *size[2:]])


def _is_padding(node: Node) -> bool:
    return node.op == "call_function" and str(node.target) in _PADS and len(_amounts(node)) >= 6


def _amounts(node: Node) -> list[Any]:
    return list(cast("Any", node.args[1]))


# -- as plain data ------------------------------------------------------------------------------------------


def sizes(model: GraphModule) -> dict[str, Any]:
    """What a cut may have changed, for JSON: sizes of layers and paddings of channels (masks are not)."""
    return {
        "layers": {name: _size(layer) for name, layer in layers(model).items()},
        "paddings": {node.name: _amounts(node)[4:6] for node in model.graph.nodes if _is_padding(node)},
    }


def _size(layer: Layer) -> list[int]:
    """[outputs, columns, bases]; no columns of a norm, no bases of a plain layer."""
    if isinstance(layer, Norm):
        return [layer.num_features]
    weight = layer.coefficients if isinstance(layer, DecomposedConv2d) else layer.weight
    return list(weight.shape[: 3 if isinstance(layer, DecomposedConv2d) else 2])


def apply_sizes(model: GraphModule, record: dict[str, Any]) -> None:
    """Give a fresh graph the sizes of another one of the same network; numbers are to be loaded afterwards.

    Args:
        model: before any cut, with the same layers decomposed.
        record: of :func:`sizes`.

    Raises:
        EsccError: the record belongs to another network.
    """
    known = layers(model)
    nodes = {node.name: node for node in model.graph.nodes}
    cut = False
    for name, size in cast("dict[str, list[int]]", record["layers"]).items():
        layer = known.get(name)
        if layer is None or len(_size(layer)) != len(size) or any(map(int.__gt__, size, _size(layer))):
            raise EsccError("this network has no layer of that kind and size", where=name)
        if _size(layer) != size:
            outputs, columns, bases = (torch.arange(item) for item in (*size, 0, 0)[:3])
            select(layer, outputs, columns, bases if isinstance(layer, DecomposedConv2d) else None)
            cut = True
    for name, (before, after) in cast("dict[str, list[int]]", record["paddings"]).items():
        node = nodes.get(name)
        if node is None or not _is_padding(node):
            raise EsccError("this network has no padding of that name", where=name)
        set_channel_padding(node, before, after)
    if cut:
        free_channels(model)
    model.recompile()
