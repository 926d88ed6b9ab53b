"""8-bit weights, bases and activations in training, placed and scaled as the compiled network has them."""

from __future__ import annotations

from torch import fx

from escc.errors import EsccError
from escc.training.modules import ActivationQuantizer, Conv2d, DecomposedConv2d, Linear

QUANTIZERS = "activation_quantizers"
"""Child of the graph that holds the quantisers, each under the name of the node it follows."""


def quantize_weights(model: fx.GraphModule) -> None:
    """Train bases (grid max|B| / 127 of a layer) and dense weights (max|W[k]| / 127 of an output) rounded."""
    for module in model.modules():
        if isinstance(module, DecomposedConv2d):
            module.basis_bits = 8
        elif isinstance(module, Conv2d | Linear):
            module.weight_bits = 8


def insert_quantizer(model: fx.GraphModule, node: fx.Node, quantizer: ActivationQuantizer) -> None:
    """Let everything that reads ``node`` read its 8-bit rounding instead; recompile afterwards.

    Raises:
        EsccError: the node has one already.
    """
    name = f"{QUANTIZERS}.{node.name}"
    if any(user.target == name for user in node.users):
        raise EsccError("is quantised already", where=node.name)
    model.add_submodule(name, quantizer)
    with model.graph.inserting_after(node):
        made = model.graph.call_module(name, (node,))
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
