"""PENNI's steps (ICML 2020) on networks with decomposed convolutions: penalty, turns, pruning.

Closing and cutting channels is in ``closure`` and ``shrinking``. What the published code gets wrong and is
done differently here is said at each function.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from escc.errors import EsccError
from escc.passes.math.thresholds import magnitude_mask
from escc.training.context import TransformContext
from escc.training.freezing import MASK, decomposed_layers, set_mask, train_half

__all__ = ["coefficient_l1", "density", "prune", "train_half"]


def coefficient_l1(model: nn.Module, *, mean: bool = False, pointwise: bool = False) -> Tensor:
    """Sum of |coefficients| over the decomposed layers, as a term of the loss (to be weighted by gamma).

    Args:
        model: on any device.
        mean: add up each layer's mean instead. The raw sum is PENNI's convention: its gamma = 1e-4 weighs
            every coefficient alike, so that the term grows with the network; the mean weighs layers alike.
        pointwise: count the weights of plain 1x1 convolutions as coefficients, as PENNI does on ImageNet.

    Returns:
        A scalar; 0 without such layers. A coefficient at zero gets no gradient from it.
    """
    found = [parameter.abs() for parameter, _ in _coefficients(model, pointwise).values()]
    terms = [item.mean() if mean else item.sum() for item in found]
    if not terms:
        return torch.zeros((), device=next((item.device for item in model.parameters()), None))
    return torch.stack(terms).sum()


@torch.no_grad()
def prune(
    model: nn.Module, context: TransformContext, *, std: float = 1.0, pointwise: bool = False
) -> dict[str, Any]:
    """Set coefficients below a share of their layer's standard deviation to zero, for good.

    PENNI's rule: c goes where |c| < std * (standard deviation of all of the layer's coefficients about their
    mean, zeros included). What is pruned stays pruned. Once more without training in between takes nothing
    more as long as the deviation did not grow, which it cannot where coefficients lie evenly about zero.

    Args:
        model: with decomposed layers.
        context: of the recipe; reports progress.
        std: PENNI takes 1.
        pointwise: prune plain 1x1 convolutions by the same rule, as PENNI does on ImageNet. Unlike in the
            published code, their pruned weights do not grow again.

    Returns:
        ``density``: share of coefficients left, and ``layers``: the same per layer.

    Raises:
        EsccError: std is no number from 0 on, there is nothing to prune, or a layer would lose everything.
    """
    if not 0 <= std < np.inf:
        raise EsccError(f"std is {std}, not a number from 0 on", where="prune")
    found = _coefficients(model, pointwise)
    if not found:
        raise EsccError("the network has no decomposed layer", where="prune", hint="decompose it first")
    for done, (name, (parameter, mask)) in enumerate(found.items(), start=1):
        values = parameter.detach() if mask is None else parameter.detach() * mask
        kept = torch.from_numpy(magnitude_mask(values.cpu().numpy(), std)).to(values.device)
        if not bool((kept & (values != 0)).any()):
            raise EsccError(f"std={std:g} leaves no coefficient", where=name, hint="a smaller std")
        set_mask(model.get_submodule(name), MASK, kept)
        context.progress("prune", done, len(found))
    layers = {name: _share([parameter]) for name, (parameter, _) in found.items()}
    return {"density": _share([parameter for parameter, _ in found.values()]), "layers": layers}


def density(model: nn.Module, *, pointwise: bool = False) -> float:
    """Share of coefficients that are not zero, over all decomposed layers (1 without any)."""
    return _share([parameter for parameter, _ in _coefficients(model, pointwise).values()])


def _share(parameters: list[nn.Parameter]) -> float:
    total = sum(item.numel() for item in parameters)
    return sum(int(torch.count_nonzero(item)) for item in parameters) / total if total else 1.0


def _coefficients(model: nn.Module, pointwise: bool) -> dict[str, tuple[nn.Parameter, Tensor | None]]:
    """What counts as coefficients of each layer, with its mask; what is pruned is zero there."""
    found: dict[str, tuple[nn.Parameter, Tensor | None]] = {
        name: (layer.coefficients, layer.mask) for name, layer in decomposed_layers(model).items()
    }
    if pointwise:
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
                found[name] = cast("nn.Parameter", layer.weight), getattr(layer, MASK, None)
    return found
