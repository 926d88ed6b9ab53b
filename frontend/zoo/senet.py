"""A small network of all that is not ReLU: depthwise convolutions, squeeze-excite, smooth activations."""

from __future__ import annotations

import torch
from torch import nn


class SqueezeExcite(nn.Module):
    """Per-channel gates from the global average (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int, gate: nn.Module) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.activation = nn.SiLU()
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.gate = gate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(self.fc2(self.activation(self.fc1(self.avgpool(x)))))


class Block(nn.Module):
    """Expand 1x1, depthwise 3x3, gates, project 1x1; a shortcut where shapes agree."""

    def __init__(
        self, channels: int, planes: int, stride: int, activation: nn.Module, gate: nn.Module
    ) -> None:
        super().__init__()
        hidden = 3 * channels
        self.residual = stride == 1 and channels == planes
        self.expand = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), activation
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            activation,
        )
        self.excite = SqueezeExcite(hidden, max(hidden // 4, 4), gate)
        self.project = nn.Sequential(nn.Conv2d(hidden, planes, 1, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(self.excite(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


class SeNetTiny(nn.Module):
    """Stem, four blocks with different activations, head, classifier."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish()
        )
        self.blocks = nn.Sequential(
            Block(16, 16, 1, nn.SiLU(), nn.Sigmoid()),
            Block(16, 24, 2, nn.Hardswish(), nn.Hardsigmoid()),
            Block(24, 24, 1, nn.SiLU(), nn.Hardsigmoid()),
            Block(24, 40, 2, nn.ReLU(), nn.Sigmoid()),
        )
        self.head = nn.Sequential(nn.Conv2d(40, 96, 1, bias=False), nn.BatchNorm2d(96), nn.Hardswish())
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(96, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.avgpool(self.head(self.blocks(self.stem(x))))
        return self.classifier(torch.flatten(x, 1))


def senet_tiny(*, num_classes: int, in_channels: int) -> nn.Module:
    """The small squeeze-excite network."""
    return SeNetTiny(num_classes, in_channels)
