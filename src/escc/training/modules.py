"""Layers that learn in the form they are compiled to: decomposed, ternary, 8-bit.

All composition and rounding of weights runs in float32, also under autocast; only the convolution itself
runs in 16 bits. Rounding is passed straight through by gradients (Bengio et al., arXiv 1308.3432).
"""

from __future__ import annotations

from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from escc.errors import EsccError
from escc.frontend.custom_ops import (
    compose,
    decomposed_conv2d,
    fake_quantize,
    round_half_away,
    straight_through,
)

Pair = tuple[int, int]
Rule = Literal["none", "fixed", "twn", "ttq"]
RULES: tuple[Rule, ...] = ("none", "fixed", "twn", "ttq")

FIXED_THRESHOLD = 0.5
FIXED_WINDOW = 1.2
"""A latent coefficient of rule "fixed" beyond this is pushed no further out."""
TWN_THRESHOLD = 0.7
"""In units of the mean magnitude (arXiv 1605.04711, section 2.2)."""
TTQ_THRESHOLD = 0.05
"""In units of the largest magnitude (arXiv 1612.01064, section 4)."""
WEIGHT_LIMIT = 127

_MATMUL_CHANNELS, _MATMUL_POSITIONS = 256, 16


# -- convolution --------------------------------------------------------------------------------------------


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """conv2d of x (N, C, H, W) with weight (K, C/groups, R, S); small wide maps on CPUs take another road."""
    if groups == 1 and _wants_matmul(x, weight, stride, padding, dilation):
        return matmul_conv2d(x, weight, bias, stride, padding, dilation)
    return functional.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _wants_matmul(x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> bool:
    """Where oneDNN's 16-bit weight gradient is several times slower than a matrix product."""
    outputs, inputs, *kernel = weight.shape
    if x.device.type != "cpu" or x.dim() != 4 or min(inputs, outputs) < _MATMUL_CHANNELS or kernel == [1, 1]:
        return False
    if not (torch.is_grad_enabled() and weight.requires_grad):
        return False
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    if not autocast and x.dtype != torch.bfloat16:
        return False
    rows, columns = _output_size(x, (kernel[0], kernel[1]), stride, padding, dilation)
    return rows * columns <= _MATMUL_POSITIONS


def _output_size(x: Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Pair:
    rows, columns = (
        (x.shape[axis + 2] + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1
        for axis in (0, 1)
    )
    return rows, columns


def matmul_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """The same as conv2d with one group, as one matrix product of shifted copies of the map.

    Args:
        x: (N, C, H, W), best in channels-last memory format.
        weight: (K, C, R, S).

    Returns:
        (N, K, H', W') in channels-last memory format.
    """
    outputs, inputs, height, width = weight.shape
    if torch.is_autocast_enabled(x.device.type):
        # once here, not once per shifted copy
        x = x.to(torch.get_autocast_dtype(x.device.type))
    rows, columns = _output_size(x, (height, width), stride, padding, dilation)
    padded = functional.pad(x, (padding[1], padding[1], padding[0], padding[0])).permute(0, 2, 3, 1)
    shifted = [
        padded[
            :,
            r * dilation[0] : r * dilation[0] + (rows - 1) * stride[0] + 1 : stride[0],
            s * dilation[1] : s * dilation[1] + (columns - 1) * stride[1] + 1 : stride[1],
        ]
        for r in range(height)
        for s in range(width)
    ]
    taps = torch.stack(shifted, 3).reshape(-1, height * width * inputs)
    result = taps @ weight.permute(2, 3, 1, 0).reshape(-1, outputs)
    if bias is not None:
        result = result + bias.to(result.dtype)
    return result.view(x.shape[0], rows, columns, outputs).permute(0, 3, 1, 2)


# -- rounding with gradients --------------------------------------------------------------------------------


class _StraightThrough(torch.autograd.Function):
    """``value`` forward; its gradient, times ``factor``, goes to ``latent``.

    With a window, a latent beyond it takes no step further out (it may come back).
    """

    @staticmethod
    def forward(
        ctx: Any, latent: Tensor, value: Tensor, factor: Tensor | None, window: float | None
    ) -> Tensor:
        ctx.window = window
        ctx.save_for_backward(
            *([latent] if window is not None else []), *([] if factor is None else [factor])
        )
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None, None]:
        gradient: Tensor = gradients[0]
        saved: list[Tensor] = list(ctx.saved_tensors)
        if ctx.window is not None:
            latent = saved.pop(0)
            leaving = (latent.abs() > ctx.window) & (latent * gradient < 0)
            gradient = gradient.masked_fill(leaving, 0.0)
        if saved:
            gradient = gradient * saved[0]
        return gradient, None, None, None


def _stand_in(
    latent: Tensor, value: Tensor, factor: Tensor | None = None, window: float | None = None
) -> Tensor:
    return cast("Tensor", _StraightThrough.apply(latent, value, factor, window))


def _on_grid(x: Tensor, largest: Tensor) -> Tensor:
    """x rounded to multiples of largest / 127 (x itself where largest is 0)."""
    step = torch.where(largest > 0, largest / WEIGHT_LIMIT, torch.ones_like(largest))
    return round_half_away(x / step) * step


def quantize_bases(bases: Tensor) -> Tensor:
    """Bases (M, R, S) on the grid max|B| / 127 of their layer, straight through for gradients."""
    with torch.no_grad():
        rounded = _on_grid(bases, bases.abs().amax())
    return _stand_in(bases, rounded)


def quantize_weight(weight: Tensor) -> Tensor:
    """A weight (K, ...) on the grid max|W[k]| / 127 of each output, straight through for gradients."""
    with torch.no_grad():
        largest = weight.abs().flatten(1).amax(1).view(-1, *[1] * (weight.dim() - 1))
        rounded = _on_grid(weight, largest)
    return _stand_in(weight, rounded)


# -- dense layers -------------------------------------------------------------------------------------------


class Conv2d(nn.Conv2d):
    """torch's convolution, quick on small wide maps; ``weight_bits`` 8 trains on the 8-bit grid."""

    weight_bits: int = 0

    def used_weight(self) -> Tensor:
        """The weight the layer computes with."""
        return quantize_weight(self.weight) if self.weight_bits else self.weight

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, K, H', W')."""
        weight = self.used_weight()
        if isinstance(self.padding, str) or torch.compiler.is_exporting():
            return self._conv_forward(input, weight, self.bias)
        return convolve(
            input,
            weight,
            self.bias,
            cast("Pair", self.stride),
            cast("Pair", self.padding),
            cast("Pair", self.dilation),
            self.groups,
        )


class Linear(nn.Linear):
    """torch's linear layer; ``weight_bits`` 8 trains on the 8-bit grid."""

    weight_bits: int = 0

    def used_weight(self) -> Tensor:
        """The weight the layer computes with."""
        return quantize_weight(self.weight) if self.weight_bits else self.weight

    def forward(self, input: Tensor) -> Tensor:
        """(..., C) to (..., K)."""
        return functional.linear(input, self.used_weight(), self.bias)


# -- decomposed convolution ---------------------------------------------------------------------------------


class DecomposedConv2d(nn.Module):
    """Convolution with W[k, c] = scale[k] * sum_m T[k, c, m] * B[m] (PENNI, section 3; ESCALATE, section 3).

    ``coefficients`` are latent real numbers, T is what ``rule`` makes of them:

    * "none": T = coefficients (PENNI);
    * "fixed": T = sign where |latent| > 0.5;
    * "twn": T = sign where |latent| > 0.7 * mean|latent| of the basis, and the basis is multiplied by the
      mean magnitude of those latents; the latents get the gradient of that product (arXiv 1605.04711);
    * "ttq": T = sign where |latent| > 0.05 * max|latent| of the basis; the learned scale is the basis
      itself, so positive and negative codes share it (arXiv 1612.01064, symmetric; gradients go straight
      through).

    Statistics leave out what ``mask`` has pruned. B = bases, on the grid max|B| / 127 with ``basis_bits`` 8.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as for Conv2d.
        bases: M.
        rule: one of :data:`RULES`.
        basis_bits: 0 or 8.
        learn_scale: whether ``scale`` is a parameter; a buffer otherwise.

    Attributes:
        bases: parameter float32 (M, R, S).
        coefficients: parameter float32 (K, C/groups, M).
        scale: float32 (K,).
        mask: buffer float32 (K, C/groups, M) of 0 and 1; 0 where a coefficient is pruned.
        bias: parameter float32 (K,) or None.

    Raises:
        EsccError: no such rule or number of bits.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        bases: int,
        *,
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
        bias: bool = False,
        rule: str = "none",
        basis_bits: int = 0,
        learn_scale: bool = False,
    ) -> None:
        super().__init__()
        if rule not in RULES:
            raise EsccError(f"unknown rule '{rule}'", hint=f"one of {', '.join(RULES)}")
        if basis_bits not in (0, 8):
            raise EsccError(f"bases of {basis_bits} bits; 0 (real numbers) or 8")
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.rule, self.basis_bits, self.learn_scale = rule, basis_bits, learn_scale
        codes = (out_channels, in_channels // groups, bases)
        self.bases = nn.Parameter(torch.zeros(bases, *kernel_size))
        self.coefficients = nn.Parameter(torch.zeros(codes))
        scale = torch.ones(out_channels)
        self.scale = nn.Parameter(scale) if learn_scale else nn.Buffer(scale)
        self.mask = nn.Buffer(torch.ones(codes))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    @classmethod
    def like(
        cls,
        dense: nn.Conv2d,
        bases: int,
        *,
        rule: str = "none",
        basis_bits: int = 0,
        learn_scale: bool = False,
    ) -> Self:
        """A layer of the geometry, device and bias of a dense one; bases and coefficients are zero.

        Raises:
            EsccError: padding that is a word (give numbers).
        """
        if isinstance(dense.padding, str):
            raise EsccError(f"padding '{dense.padding}' is not a pair of numbers")
        made = cls(
            dense.in_channels,
            dense.out_channels,
            cast("Pair", dense.kernel_size),
            bases,
            stride=cast("Pair", dense.stride),
            padding=cast("Pair", dense.padding),
            dilation=cast("Pair", dense.dilation),
            groups=dense.groups,
            bias=dense.bias is not None,
            rule=rule,
            basis_bits=basis_bits,
            learn_scale=learn_scale,
        )
        made.train(dense.training).to(dense.weight.device)
        if made.bias is not None and dense.bias is not None:
            made.bias.data.copy_(dense.bias.data)
        return made

    @property
    def is_ternary(self) -> bool:
        """Whether the coefficients as used are -1, 0 and 1."""
        return self.rule != "none"

    def codes(self) -> tuple[Tensor, Tensor]:
        """(coefficients T (K, C/groups, M), bases B (M, R, S)) as used, float32, without gradients."""
        with torch.no_grad():
            coefficients, bases = self._used()
        return coefficients.detach(), bases.detach()

    def weight(self) -> Tensor:
        """The weight (K, C/groups, R, S) the layer stands for, float32, with gradients."""
        with torch.autocast(self.bases.device.type, enabled=False):
            coefficients, bases = self._used()
            return compose(bases, coefficients, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, K, H', W')."""
        if torch.compiler.is_exporting():
            coefficients, bases = self._used()
            operator: Any = torch.ops.escc.decomposed_conv2d
            return operator(
                x,
                bases,
                coefficients,
                self.scale,
                self.bias,
                list(self.stride),
                list(self.padding),
                list(self.dilation),
                self.groups,
            )
        weight = self.weight()
        return convolve(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        """What print shows."""
        size = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        return f"{size}, bases={len(self.bases)}, rule={self.rule}"

    def _used(self) -> tuple[Tensor, Tensor]:
        latent, bases = self.coefficients * self.mask, self.bases
        if self.rule == "none":
            return latent, quantize_bases(bases) if self.basis_bits else bases
        with torch.no_grad():
            size = latent.abs()
            threshold: Tensor | float = FIXED_THRESHOLD
            if self.rule == "twn":
                kept = self.mask.sum((0, 1)).clamp_min(1.0)
                threshold = TWN_THRESHOLD * size.sum((0, 1)) / kept
            elif self.rule == "ttq":
                threshold = TTQ_THRESHOLD * size.amax((0, 1))
            chosen = size > threshold
            codes = latent.sign() * chosen
            factor: Tensor | None = None
            if self.rule == "twn":
                mean = (size * chosen).sum((0, 1)) / chosen.sum((0, 1)).clamp_min(1)
                mean = torch.where(mean > 0, mean, torch.ones_like(mean))
                factor = 1.0 / mean
        if factor is not None:
            bases = bases / factor[:, None, None]
        window = FIXED_WINDOW if self.rule == "fixed" else None
        return _stand_in(latent, codes, factor, window), quantize_bases(bases) if self.basis_bits else bases


class FrozenDecomposedConv2d(nn.Module):
    """A decomposed convolution as it is compiled: numbers as used (ternary codes in int8), nothing learns."""

    def __init__(self, layer: DecomposedConv2d) -> None:
        super().__init__()
        coefficients, bases = layer.codes()
        self.bases = nn.Buffer(bases.clone())
        self.coefficients = nn.Buffer(
            coefficients.to(torch.int8) if layer.is_ternary else coefficients.clone()
        )
        self.scale = nn.Buffer(layer.scale.detach().clone())
        self.bias = None if layer.bias is None else nn.Buffer(layer.bias.detach().clone())
        self.geometry = (list(layer.stride), list(layer.padding), list(layer.dilation), layer.groups)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, K, H', W')."""
        operator: Any = torch.ops.escc.decomposed_conv2d
        return operator(x, self.bases, self.coefficients, self.scale, self.bias, *self.geometry)


# -- activations --------------------------------------------------------------------------------------------


class _FakeQuantize(torch.autograd.Function):
    """8-bit rounding that keeps only its input for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, signed: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.scale, ctx.signed = scale, signed
        if signed:
            return fake_quantize(x.float(), scale, signed).to(x.dtype)
        # halves away from zero is one addition for values that are not negative
        levels = torch.div(x, scale) if x.dtype == torch.float32 else x.float().div_(scale)
        return levels.add_(0.5).floor_().clamp_(0, 255).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return straight_through(x, ctx.scale, ctx.signed, gradients[0]), None, None


class ActivationQuantizer(nn.Module):
    """Rounds a map to 8 bits with zero-point 0; the scale is fixed.

    Attributes:
        scale: buffer float64 (), the real value of one step.
        signed: -128 to 127, or 0 to 255.
    """

    def __init__(self, scale: float = 1.0, signed: bool = True) -> None:
        super().__init__()
        self.scale = nn.Buffer(torch.tensor(scale, dtype=torch.float64))
        self.signed = signed
        # as a number: reading the buffer would wait for the device, and cannot be exported
        self._step = scale
        self.register_load_state_dict_post_hook(lambda module, _: module.refresh())

    def refresh(self) -> None:
        """Take over what was written to ``scale``."""
        self._step = float(self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        if torch.compiler.is_exporting():
            operator: Any = torch.ops.escc.fake_quantize
            return operator(x, self._step, self.signed)
        return cast("Tensor", _FakeQuantize.apply(x, self._step, self.signed))

    def extra_repr(self) -> str:
        """What print shows."""
        return f"scale={self._step:.4g}, signed={self.signed}"


__all__ = [
    "RULES",
    "ActivationQuantizer",
    "Conv2d",
    "DecomposedConv2d",
    "FrozenDecomposedConv2d",
    "Linear",
    "convolve",
    "decomposed_conv2d",
    "matmul_conv2d",
    "quantize_bases",
    "quantize_weight",
]
