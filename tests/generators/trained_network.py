"""Small networks as compression in training leaves them: decomposed ternary layers, 8-bit weights on their
grid, activations rounded to fixed scales. Plain torch around escc's two operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import escc.frontend.custom_ops as _operators  # registers them

M = TypeVar("M", bound=nn.Module)


def on_grid(x: Tensor, dims: Sequence[int] = ()) -> Tensor:
    """Multiples of max|x| / 127, the largest over ``dims`` (over everything by default)."""
    step = (x.abs().amax(tuple(dims), keepdim=True) if dims else x.abs().max()) / 127
    return _operators.round_half_away(x / step) * step


class Decomposed(nn.Module):
    """A 3x3 convolution of ternary coefficients (real ones on request) and 8-bit bases."""

    def __init__(
        self, channels: int, outputs: int, stride: int = 1, *, bases: int = 5, real: bool = False
    ) -> None:
        super().__init__()
        self.bases = nn.Buffer(on_grid(torch.randn(bases, 3, 3)))
        values = (
            torch.randn(outputs, channels, bases)
            if real
            else torch.randint(-1, 2, (outputs, channels, bases))
        )
        self.coefficients = nn.Buffer(values.float() * (torch.rand(outputs, channels, bases) < 0.5))
        self.scale = nn.Buffer(torch.rand(outputs) + 0.5)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        operator: Any = torch.ops.escc.decomposed_conv2d
        stride = [self.stride, self.stride]
        return cast(
            "Tensor",
            operator(x, self.bases, self.coefficients, self.scale, None, stride, [1, 1], [1, 1], 1),
        )


class Dense(nn.Module):
    """A convolution with 8-bit weights, one step per output channel."""

    def __init__(self, channels: int, outputs: int, kernel: int, *, bias: bool = False) -> None:
        super().__init__()
        weight = torch.randn(outputs, channels, kernel, kernel) / (channels * kernel * kernel) ** 0.5
        self.weight = nn.Buffer(on_grid(weight, (1, 2, 3)))
        self.bias = nn.Buffer(torch.randn(outputs) * 0.1) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=self.weight.shape[2] // 2)


class Rounding(nn.Module):
    """8-bit rounding; while ``watching`` it fits its scale to what it sees."""

    def __init__(self, signed: bool = False) -> None:
        super().__init__()
        self.signed, self.scale, self.watching = signed, 0.0, False

    def forward(self, x: Tensor) -> Tensor:
        if self.watching:
            self.scale = max(self.scale, float(x.abs().max()) / (127 if self.signed else 255))
            return x
        operator: Any = torch.ops.escc.fake_quantize
        return cast("Tensor", operator(x, self.scale, self.signed))


class Block(nn.Module):
    """Two decomposed convolutions, and a shortcut without parameters (option A)."""

    def __init__(self, channels: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.round1 = (
            Decomposed(channels, outputs, stride),
            nn.BatchNorm2d(outputs),
            Rounding(),
        )
        self.conv2, self.bn2, self.round2 = Decomposed(outputs, outputs), nn.BatchNorm2d(outputs), Rounding()
        self.stride, self.added = stride, outputs - channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.round1(F.relu(self.bn1(self.conv1(x))))))
        if self.stride != 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))
        return self.round2(F.relu(y + x))


class ResNet8(nn.Module):
    """The CIFAR ResNet with one block per stage, every map rounded."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.round0, self.conv1, self.bn1, self.round1 = (
            Rounding(True), Dense(3, width, 3), nn.BatchNorm2d(width), Rounding())  # fmt: skip
        self.blocks = nn.Sequential(
            Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2)
        )
        self.round2, self.head, self.round3 = Rounding(), Dense(4 * width, 10, 1, bias=True), Rounding(True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.round1(F.relu(self.bn1(self.conv1(self.round0(x)))))
        x = self.round2(F.adaptive_avg_pool2d(self.blocks(x), 1))
        return torch.flatten(self.round3(self.head(x)), 1)

    def residual_stream(self) -> list[Rounding]:
        """The roundings of the maps that residual additions tie."""
        return [self.round1, *(cast("Block", block).round2 for block in self.blocks)]


def vgg(width: int = 8) -> nn.Sequential:
    """Convolutions and poolings in a row; the rounding of one comes behind its pooling."""
    return nn.Sequential(
        Rounding(True), Dense(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), Rounding(),
        Decomposed(width, 2 * width), nn.BatchNorm2d(2 * width), nn.ReLU(), nn.MaxPool2d(2), Rounding(),
        Decomposed(2 * width, 2 * width), nn.BatchNorm2d(2 * width), nn.ReLU(), Rounding(), nn.MaxPool2d(2),
        Decomposed(2 * width, 4 * width), nn.BatchNorm2d(4 * width), nn.ReLU(), Rounding(), nn.AvgPool2d(4),
        Rounding(), Dense(4 * width, 10, 1, bias=True), Rounding(True), nn.Flatten(),
    )  # fmt: skip


def settle(model: M, images: Tensor) -> M:
    """Estimate batch norms, then fix all scales, on images (N, C, H, W); evaluation mode."""
    roundings = [module for module in model.modules() if isinstance(module, Rounding)]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
    for rounding in roundings:
        rounding.watching = True
    with torch.no_grad():
        model.train()
        model(images)
        for rounding in roundings:
            rounding.scale = 0.0
        model.eval()
        model(images)
    for rounding in roundings:
        rounding.watching = False
    if isinstance(model, ResNet8):
        stream = model.residual_stream()
        shared = max(item.scale for item in stream)
        for rounding in stream:
            rounding.scale = shared
    return model
