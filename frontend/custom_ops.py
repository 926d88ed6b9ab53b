"""The two operators of compressed networks in torch: ``escc::decomposed_conv2d``, ``escc::fake_quantize``.

A compressed model that is exported keeps its structure through them: a decomposed convolution stays bases
and coefficients, a quantised map keeps its scale. In eager mode they are plain torch, so that an exported
program runs anywhere. Importing this module registers them; torch must know them before it reads an archive
that contains them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

NAMESPACE = "escc"

SCHEMAS = {
    "decomposed_conv2d": "(Tensor x, Tensor bases, Tensor coefficients, Tensor scale, Tensor? bias,"
    " int[] stride, int[] padding, int[] dilation, int groups) -> Tensor",
    "fake_quantize": "(Tensor x, float scale, bool signed) -> Tensor",
}
"""Operator name -> arguments and result."""


def compose(bases: Tensor, coefficients: Tensor, scale: Tensor) -> Tensor:
    """The weight W[k, c] = scale[k] * sum_m coefficients[k, c, m] * bases[m] (PENNI, section 3).

    Args:
        bases: float (M, R, S).
        coefficients: (K, C/groups, M), of any real type.
        scale: float (K,).

    Returns:
        (K, C/groups, R, S) in the type of ``bases``, never less than that under autocast.
    """
    # autocast would run the product in 16 bits: too coarse for weights that a batch norm then amplifies
    with torch.autocast(bases.device.type, enabled=False):
        scaled = coefficients.to(bases.dtype) * scale.to(bases.dtype)[:, None, None]
        return (scaled @ bases.flatten(1)).unflatten(2, bases.shape[1:])


def round_half_away(x: Tensor) -> Tensor:
    """Nearest whole number, halves away from zero, as the machine rounds."""
    return torch.trunc(x + torch.copysign(torch.full_like(x, 0.5), x))


def quantization_limits(signed: bool) -> tuple[int, int]:
    """Smallest and largest integer of an 8-bit map."""
    return (-128, 127) if signed else (0, 255)


def decomposed_conv2d(
    x: Tensor,
    bases: Tensor,
    coefficients: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """conv2d of x (N, C, H, W) with the weight of :func:`compose`; the result is (N, K, H', W')."""
    weight = compose(bases, coefficients, scale).to(x.dtype)
    return functional.conv2d(x, weight, bias, list(stride), list(padding), list(dilation), groups)


def fake_quantize(x: Tensor, scale: float, signed: bool) -> Tensor:
    """clamp(round(x / scale), limits) * scale: 8 bits, zero-point 0, halves away from zero."""
    low, high = quantization_limits(signed)
    return (round_half_away(x / scale).clamp(low, high) * scale).to(x.dtype)


def _keep_convolution(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.geometry = inputs[5:]


def _convolution_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    # rebuilt from plain torch: training uses modules that never call this operator
    tensors: list[Tensor | None] = [
        None if item is None else item.detach().requires_grad_(needed)
        for item, needed in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)
    ]
    x, bases, coefficients, scale, bias = tensors
    assert x is not None
    assert bases is not None
    assert coefficients is not None
    assert scale is not None
    with torch.enable_grad():
        result = decomposed_conv2d(x, bases, coefficients, scale, bias, *ctx.geometry)
    wanted = [item for item in tensors if item is not None and item.requires_grad]
    found = iter(torch.autograd.grad(result, wanted, gradient))
    gradients = [next(found) if item is not None and item.requires_grad else None for item in tensors]
    return (*gradients, None, None, None, None)


def _same_shape(x: Tensor, scale: float, signed: bool) -> Tensor:
    return torch.empty_like(x)


def _keep_scale(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.scale, ctx.signed = inputs
    ctx.save_for_backward(x)


def straight_through(x: Tensor, scale: float, signed: bool, gradient: Tensor) -> Tensor:
    """The gradient of :func:`fake_quantize` for x: as if it did not round, zero where it saturates."""
    low, high = quantization_limits(signed)
    inside = (x >= (low - 0.5) * scale) & (x <= (high + 0.5) * scale)
    return gradient * inside.to(gradient.dtype)


def _straight_through(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    (x,) = ctx.saved_tensors
    return straight_through(x, ctx.scale, ctx.signed, gradient), None, None


def _register() -> torch.library.Library:
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    for name, schema in SCHEMAS.items():
        library.define(name + schema)
    library.impl("decomposed_conv2d", decomposed_conv2d, "CompositeExplicitAutograd")
    library.impl("fake_quantize", fake_quantize, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::decomposed_conv2d", decomposed_conv2d, lib=library)
    torch.library.register_fake(f"{NAMESPACE}::fake_quantize", _same_shape, lib=library)
    torch.library.register_autograd(
        f"{NAMESPACE}::decomposed_conv2d",
        _convolution_gradients,
        setup_context=_keep_convolution,
        lib=library,
    )
    torch.library.register_autograd(
        f"{NAMESPACE}::fake_quantize", _straight_through, setup_context=_keep_scale, lib=library
    )
    return library


_LIBRARY = _register()
"""Kept: the operators live as long as this object."""
