"""The compiler's own post-training codes as the place where training starts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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

MARGIN = 0.45
"""How far from its code a latent coefficient starts at most; the threshold is half way to the next code."""


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
                counts += (int(layer.codes()[0].count_nonzero()), layer.coefficients.numel())
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
    bases, codes, scale = (needed(module, op, name) for name in ("bases", "coefficients", "scale"))
    made = DecomposedConv2d.like(layer, len(bases), rule="fixed", learn_scale=True)
    latents = undecided(codes, bases, scale, layer.weight.detach().cpu().numpy())
    for target, values in ((made.bases, bases), (made.coefficients, latents), (made.scale, scale)):
        target.data.copy_(torch.from_numpy(np.array(values, np.float32)))
    if made.bias is not None:
        made.bias.data.copy_(layer.bias.data)
    model.set_submodule(path, made)
    return made


def undecided(
    codes: NDArray[np.int8], bases: NDArray[Any], scale: NDArray[Any], weight: NDArray[Any]
) -> NDArray[np.float64]:
    """Latent coefficients that give the codes and lie the nearer to another code the less it would cost.

    The real coefficients that fit the weight best (least squares), kept on the codes' side of the threshold.

    Args:
        codes: (K, C, M); bases: (M, R, S); scale: (K,); weight: (K, C, R, S).

    Returns:
        (K, C, M) within :data:`MARGIN` of the codes.
    """
    flat = bases.reshape(len(bases), -1).astype(np.float64)
    gram = flat @ flat.T
    ridge = 1e-3 * np.trace(gram) / len(gram) * np.eye(len(gram))
    rows = weight.reshape(*weight.shape[:2], -1) / np.maximum(scale, 1e-12)[:, None, None]
    # the fit of what the codes leave over: bases that say the same do not pull against each other
    rest = rows - codes.astype(np.float64) @ flat
    change = np.linalg.solve(gram + ridge, flat @ rest.reshape(-1, flat.shape[1]).T).T.reshape(codes.shape)
    return codes + np.clip(change, -MARGIN, MARGIN)
