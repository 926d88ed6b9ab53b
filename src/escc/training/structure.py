"""How a network that learns differs from the one it was made from, in a form that JSON holds.

The numbers are in the state dictionary; what modules it belongs to is said here, so that a run can be taken
up again on a fresh graph of the same network.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from escc.errors import EsccError
from escc.training.cutting import apply_sizes, sizes
from escc.training.folding import FOLDED, remove_norm
from escc.training.modules import ActivationQuantizer, Conv2d, DecomposedConv2d, Linear
from escc.training.quantize import insert_quantizer

FORMAT = 1
_MASKS = ("mask", "bias_mask")
_MASKED = {"mask": "weight", "bias_mask": "bias"}


def structure(model: fx.GraphModule) -> dict[str, Any]:
    """What was done to a graph since :func:`escc.training.graph.trainable` made it; plain JSON values."""
    decomposed: dict[str, Any] = {}
    weight_bits: dict[str, int] = {}
    masks: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, DecomposedConv2d):
            decomposed[path] = {
                "bases": len(module.bases),
                "rule": module.rule,
                "basis_bits": module.basis_bits,
                "learn_scale": module.learn_scale,
            }
        elif isinstance(module, Conv2d | Linear) and module.weight_bits:
            weight_bits[path] = module.weight_bits
        masks += [f"{path}.{name}" for name in _MASKS if name in _added_buffers(module)]
    activations = [
        {"after": cast("fx.Node", node.args[0]).name, "name": str(node.target), "signed": module.signed}
        for node in model.graph.find_nodes(op="call_module")
        if isinstance(module := model.get_submodule(str(node.target)), ActivationQuantizer)
    ]
    return {
        "format": FORMAT,
        "decomposed": decomposed,
        "weight_bits": weight_bits,
        "masks": masks,
        "activations": activations,
        "sizes": sizes(model),
        "folded": list(model.meta.get(FOLDED, [])),
    }


def _added_buffers(module: nn.Module) -> set[str]:
    """Names of the module's own buffers that it was not built with."""
    built = {"mask"} if isinstance(module, DecomposedConv2d) else set[str]()
    return {name for name, _ in module.named_buffers(recurse=False)} - built


def apply_structure(model: fx.GraphModule, found: dict[str, Any]) -> None:
    """Give a fresh graph of the same network the modules of :func:`structure`; load the numbers afterwards.

    Args:
        model: as :func:`escc.training.graph.trainable` made it; changed in place.
        found: what :func:`structure` gave, also after a trip through JSON.

    Raises:
        EsccError: of another format, or not of this network.
    """
    if found.get("format") != FORMAT:
        raise EsccError(f"a network structure of format {found.get('format')}; this escc reads {FORMAT}")
    # first: a folded norm gives the convolution before it the bias that its decomposed form takes over
    for path in found["folded"]:
        remove_norm(model, str(path))
    for path, options in found["decomposed"].items():
        layer = _module(model, path)
        if not isinstance(layer, nn.Conv2d):
            raise EsccError("is not a convolution", where=path)
        model.set_submodule(path, DecomposedConv2d.like(layer, options["bases"], **_rest(options)))
    for path, bits in found["weight_bits"].items():
        layer = _module(model, path)
        if not isinstance(layer, Conv2d | Linear):
            raise EsccError("is not a convolution or linear layer", where=path)
        layer.weight_bits = int(bits)
    apply_sizes(model, found["sizes"])
    for name in found["masks"]:
        path, _, leaf = str(name).rpartition(".")
        layer = _module(model, path)
        masked = getattr(layer, _MASKED[leaf], None)
        if not isinstance(masked, Tensor):
            raise EsccError(f"has no {_MASKED[leaf]} to mask", where=path)
        layer.register_buffer(leaf, torch.ones_like(masked.detach()))
    nodes = {node.name: node for node in model.graph.nodes}
    for entry in found["activations"]:
        if entry["after"] not in nodes:
            raise EsccError(f"the network has no operation '{entry['after']}'")
        insert_quantizer(model, nodes[entry["after"]], ActivationQuantizer(signed=bool(entry["signed"])))
    model.recompile()


def _rest(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("rule", "basis_bits", "learn_scale")}


def _module(model: fx.GraphModule, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise EsccError("the network has no such layer", where=path) from None
