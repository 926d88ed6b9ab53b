"""The compiler's own post-training codes as the place where training starts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx, nn

from escc.frontend.importer import import_exported
from escc.ir.base import LayerOp, module_path
from escc.ir.escalate import DecomposedConv2d as DecomposedOp
from escc.ir.module import Module
from escc.ir.nn import ConvolutionLike
from escc.ir.passes import PassContext, make_pass, run_pipeline
from escc.passes.convolutions import needed, stored
from escc.training.context import TransformContext
from escc.training.folding import fold_norms
from escc.training.graph import export
from escc.training.modules import DecomposedConv2d


def refine(
    model: fx.GraphModule,
    context: TransformContext,
    *,
    bases: int = 6,
    planes: int = 4,
    penalty: float = 0.01,
    images: int = 512,
    keep_dense: str = "",
    layers: str = "",
    penalties: str = "",
) -> dict[str, Any]:
    """Ternary codes for the inputs layers really see, by the compiler's passes; batch norms are folded.

    Runs ``decompose-kernels`` and ``refine-coefficients`` on the network as it is and takes over bases,
    coefficients, scales and biases. From here on the network is what the compiler would make of it, and
    learns in that form (rule "fixed", scales that learn).

    Args:
        model: dense so far; changed in place.
        context: gives calibration images.
        bases, planes, keep_dense, layers: as ``decompose-kernels`` takes them.
        penalty, images: as ``refine-coefficients`` takes them; penalties: its ``layers``.

    Returns:
        ``layers``: decomposed layers, ``density``: their share of non-zero coefficients.

    Raises:
        EsccError: an option out of range.
    """
    fold_norms(model)
    module = import_exported(export(model, context.example()))
    specs: list[tuple[str, dict[str, str]]] = [
        ("fold-batch-norm", {}),
        ("fuse-requantize", {}),
        (
            "decompose-kernels",
            {"bases": str(bases), "planes": str(planes), "keep_dense": keep_dense, "layers": layers},
        ),
        (
            "refine-coefficients",
            {"penalty": repr(float(penalty)), "images": str(images), "layers": penalties},
        ),
    ]
    surroundings = PassContext(calibration=context.calibration(images), progress=context.progress)
    passes = [
        make_pass(name, {key: text for key, text in given.items() if text}) for name, given in specs
    ]
    run_pipeline(module, passes, surroundings)
    counts = np.zeros(2, dtype=np.int64)
    found = 0
    for op in module.layers:
        if isinstance(op, ConvolutionLike):
            layer = _take_over(model, module, op)
            if layer is not None:
                found += 1
                counts += (int(layer.coefficients.count_nonzero()), layer.coefficients.numel())
    return {"layers": found, "density": float(counts[0] / max(counts[1], 1))}


def _take_over(model: fx.GraphModule, module: Module, op: LayerOp) -> DecomposedConv2d | None:
    """Give the layer at an operation's path the operation's numbers."""
    path = module_path(op)
    layer: Any = model.get_submodule(path)
    device = next(layer.parameters()).device
    bias = stored(module, op, "bias")
    if bias is not None:
        # the error of a mean is repaired in dense layers, too
        layer.bias = nn.Parameter(torch.from_numpy(np.array(bias, np.float32)).to(device))
    if not isinstance(op, DecomposedOp):
        return None
    made = DecomposedConv2d.like(layer, len(needed(module, op, "bases")), rule="fixed", learn_scale=True)
    for name in ("bases", "coefficients", "scale"):
        getattr(made, name).data.copy_(torch.from_numpy(np.array(needed(module, op, name), np.float32)))
    if made.bias is not None:
        made.bias.data.copy_(layer.bias.data)
    model.set_submodule(path, made)
    return made
