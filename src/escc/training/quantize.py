"""8-bit weights, bases and activations in training, placed and scaled as the compiled network has them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from escc.errors import EsccError
from escc.frontend.capture import capture
from escc.frontend.importer import import_with_nodes
from escc.ir.base import LayerOp
from escc.ir.module import Module
from escc.ir.passes import PassContext, make_pass, run_pipeline
from escc.ir.pins import GRAPH_NODE, KEEPS_SCALE
from escc.passes.math.ranges import map_scale
from escc.passes.pinned import has_table_input
from escc.passes.signs import non_negative_values
from escc.progress import Progress, silent
from escc.training.exporting import frozen
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


@dataclass(frozen=True)
class QuantizedMap:
    """An activation that is 8 bits from now on.

    Attributes:
        node: name of the graph node that makes it.
        scale: real value of one step.
        signed: -128 to 127, or 0 to 255.
    """

    node: str
    scale: float
    signed: bool


def quantize_activations(
    model: fx.GraphModule,
    images: NDArray[np.float32] | Tensor,
    *,
    method: str = "mse",
    percentile: float = 99.99,
    progress: Progress = silent,
) -> list[QuantizedMap]:
    """Round every map to 8 bits that the compiled network keeps in 8 bits, in place.

    The graph is imported and fused as for compilation, so that nothing is rounded inside a fused operation,
    and calibrated: scales are those ``calibrate`` would choose on the images for the present weights, maps
    that cannot be negative are unsigned. The scales stay as they are.

    Args:
        model: a graph made by :func:`escc.training.graph.trainable`, without activation quantisers.
        images: float32 (N, C, H, W), as the network expects them.
        method, percentile: of the pass ``calibrate``.
        progress: called as ``progress(stage, done, total)``.

    Returns:
        The maps in the order of the graph, inputs first.

    Raises:
        EsccError: the graph holds an operation the compiler does not take, or has quantisers already; bad
            images or options.
    """
    pixels = images.detach().cpu().numpy() if isinstance(images, Tensor) else images
    if any(isinstance(module, ActivationQuantizer) for module in model.modules()):
        raise EsccError("the activations are quantised already")
    module, names = _compiled_form(model, torch.zeros(2, *pixels.shape[1:]))
    values = {"method": method, "percentile": repr(percentile), "correct_statistics": "false"}
    context = PassContext(calibration=np.ascontiguousarray(pixels, np.float32), progress=progress)
    run_pipeline(
        module,
        [make_pass("fold-batch-norm", {}), make_pass("fuse-requantize", {}), make_pass("calibrate", values)],
        context,
    )
    nodes = {node.name: node for node in model.graph.nodes}
    found: dict[str, QuantizedMap] = {}
    for name, scale, signed in _maps(module, names, nodes):
        found.setdefault(name, QuantizedMap(name, scale, signed))
    for item in found.values():
        insert_quantizer(model, nodes[item.node], ActivationQuantizer(item.scale, item.signed))
    model.recompile()
    return [found[name] for name in nodes if name in found]


def insert_quantizer(model: fx.GraphModule, node: fx.Node, quantizer: ActivationQuantizer) -> None:
    """Let everything that reads ``node`` read its 8-bit rounding instead; recompile afterwards.

    Raises:
        EsccError: the node has one already.
    """
    name = f"{QUANTIZERS}.{node.name}"
    if any(user.target == name for user in node.users):
        raise EsccError("is quantised already", where=node.name)
    device = next((parameter.device for parameter in model.parameters()), None)
    model.add_submodule(name, quantizer.to(device).train(model.training))
    with model.graph.inserting_after(node):
        made = model.graph.call_module(name, (node,))
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)


# -- the compiled form of a graph ---------------------------------------------------------------------------


class _Mark(nn.Module):
    """Shows in an export where the value of a node of the original graph is."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        operator: Any = torch.ops.escc.fake_quantize
        return operator(x, float(self.index + 1), True)


def _compiled_form(model: fx.GraphModule, example: Tensor) -> tuple[Module, dict[str, str]]:
    """The graph imported, with ``graph_node`` attributes, and what its nodes are called in ``model``.

    Exporting gives nodes other names. So every value is marked by an operator that passes through the export,
    and that is taken out again before the import.
    """
    # copying a graph keeps the names of its nodes
    marked = frozen(copy.deepcopy(model).cpu())
    assert isinstance(marked, fx.GraphModule)
    originals = [node.name for node in model.graph.nodes]
    for index, node in enumerate(list(marked.graph.nodes)):
        if node.op in ("output", "get_attr"):
            continue
        marked.add_submodule(f"{QUANTIZERS}.mark{index}", _Mark(index))
        with marked.graph.inserting_after(node):
            mark = marked.graph.call_module(f"{QUANTIZERS}.mark{index}", (node,))
        node.replace_all_uses_with(mark, delete_user_cb=lambda user, mark=mark: user is not mark)
    marked.recompile()
    exported = capture(marked.eval(), example=example)
    graph, names = exported.graph, dict[str, str]()
    for mark in graph.find_nodes(op="call_function", target=torch.ops.escc.fake_quantize.default):
        value = mark.args[0]
        names.setdefault(value.name, originals[int(mark.args[1]) - 1])
        mark.replace_all_uses_with(value)
        graph.erase_node(mark)
    return import_with_nodes(exported), names


def _maps(module: Module, names: dict[str, str], nodes: dict[str, fx.Node]) -> list[tuple[str, float, bool]]:
    """(node, scale, signed) of every 8-bit map of a calibrated network that is a node of the graph."""
    unsigned = non_negative_values(module)
    found: list[tuple[str, float, bool]] = []
    for index, (value, port) in enumerate(zip(module.inputs, module.input_ports, strict=True)):
        low, high = module.input_value(index, "range")
        signed = value not in unsigned
        found.append((names[port.name], map_scale(low, high, signed), signed))
    for op in module.layers:
        name = names.get(str(op.value(GRAPH_NODE)))
        if name is None or op.name in KEEPS_SCALE:
            continue
        if before := _before_table(op, nodes[name]):
            found.append((before, map_scale(*op.floats("pre_range"), signed=True), True))
        signed = op.out not in unsigned
        low, high = op.floats("range")
        found.append((name, map_scale(low, high, signed), signed))
    return found


def _before_table(op: LayerOp, node: fx.Node) -> str | None:
    """The node whose value a fused table reads: it is rounded, too."""
    if not has_table_input(op):
        return None
    # x * sigmoid(x) is one activation for the compiler, and x what its sigmoid reads
    sources = {source for source in node.all_input_nodes if source.op != "get_attr"}
    return next((earlier.name for earlier in node.graph.nodes if earlier in sources), None)
