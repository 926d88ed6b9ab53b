"""Transforms that recipes name, in the form the engine calls them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from escc.errors import EsccError
from escc.passes.math.ternary import Decomposition
from escc.training import decomposition
from escc.training.context import TransformContext
from escc.training.freezing import decomposed_layers
from escc.training.modules import RULES
from escc.training.quantize import quantize_activations, quantize_weights


def decompose(
    model: fx.GraphModule,
    context: TransformContext,
    *,
    bases: int = 5,
    method: str = "svd",
    rule: str = "",
    planes: int = 0,
    penalty: float = 0.02,
    basis_bits: int = 0,
    keep_dense: Sequence[str] = (),
    layers: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Convolutions become bases and coefficients that learn, from their weights alone.

    Options as in :func:`escc.training.decomposition.decompose`; the defaults are PENNI's.

    Returns:
        ``decomposed``: layers; ``error``: mean relative squared error of their weights; ``density``.
    """
    found = decomposition.decompose(
        model,
        bases=bases,
        method=method,
        rule=rule,
        planes=planes,
        penalty=penalty,
        basis_bits=basis_bits,
        keep_dense=keep_dense,
        layers=layers,
        progress=context.progress,
    )
    return {
        "decomposed": len(found),
        "error": float(np.mean([layer.error for layer in found])) if found else 0.0,
        "density": float(np.mean([layer.density for layer in found])) if found else 1.0,
    }


@torch.no_grad()
def ternarize(model: fx.GraphModule, context: TransformContext, *, rule: str = "twn") -> dict[str, Any]:
    """Real coefficients become ternary ones (ESCALATE's hybrid quantisation), to be trained on.

    Args:
        model: decomposed, its coefficients real; what is pruned stays pruned.
        context: of the recipe.
        rule: "twn", "ttq" or "fixed", see :class:`escc.training.modules.DecomposedConv2d`.

    Returns:
        ``density``: share of codes that are not zero.

    Raises:
        EsccError: no such rule, or no layer with real coefficients.
    """
    if rule not in RULES or rule == "none":
        raise EsccError(f"'{rule}' is no ternary rule", where="ternarize", hint="twn, ttq or fixed")
    found = [layer for layer in decomposed_layers(model).values() if not layer.is_ternary]
    if not found:
        raise EsccError(
            "no layer with real coefficients", where="ternarize", hint="decompose with method = 'svd'"
        )
    nonzero = total = 0
    for done, layer in enumerate(found, start=1):
        kept = layer.coefficients * layer.mask
        fit = Decomposition(layer.bases.cpu().numpy(), kept.cpu().numpy(), layer.scale.cpu().numpy())
        latents, bases = decomposition.starting_point(fit, rule)
        layer.rule = rule
        for target, values in ((layer.coefficients, latents), (layer.bases, bases)):
            target.copy_(torch.from_numpy(np.asarray(values, np.float32)))
        nonzero += int(layer.codes()[0].count_nonzero())
        total += layer.coefficients.numel()
        context.progress("ternarize", done, len(found))
    return {"density": nonzero / total}


def quantize(
    model: fx.GraphModule,
    context: TransformContext,
    *,
    weights: bool = True,
    activations: bool = True,
    images: int = 256,
) -> dict[str, Any]:
    """Bases, dense weights and activations go to 8 bits, as the compiled network has them.

    Args:
        model: changed in place.
        context: gives calibration images.
        weights: bases and the weights of dense layers.
        activations: every map the machine rounds; scales from calibration images, fixed from here on.
        images: how many of them.
    """
    if weights:
        quantize_weights(model)
    if activations:
        quantize_activations(model, context.calibration(images))
    return {}
