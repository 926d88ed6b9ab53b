"""MobileNetV2 (Sandler et al. 2018), parameter names as in torchvision."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

SETTINGS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""(expansion, channels, repeats, stride) of each stage."""

UNSTRIDED = 1
"""For small images the stem and this stage keep the resolution: 32 pixels end as 4, not as 1."""


def convolution(channels: int, planes: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU6."""
    return nn.Sequential(
        nn.Conv2d(channels, planes, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
        nn.BatchNorm2d(planes),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1 without activation; a shortcut where shapes agree."""

    def __init__(self, channels: int, planes: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        self.residual = stride == 1 and channels == planes
        self.conv = nn.Sequential()
        if expansion != 1:
            self.conv.append(convolution(channels, hidden, 1))
        self.conv.append(convolution(hidden, hidden, 3, stride, hidden))
        self.conv.append(nn.Conv2d(hidden, planes, 1, bias=False))
        self.conv.append(nn.BatchNorm2d(planes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """Stem, inverted residuals, 1x1 head, global average, classifier."""

    def __init__(self, num_classes: int, in_channels: int, small_images: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(convolution(in_channels, 32, 3, 1 if small_images else 2))
        channels = 32
        for stage, (expansion, planes, repeats, stride) in enumerate(SETTINGS):
            first = 1 if small_images and stage == UNSTRIDED else stride
            for index in range(repeats):
                self.features.append(
                    InvertedResidual(channels, planes, first if index == 0 else 1, expansion)
                )
                channels = planes
        self.features.append(convolution(channels, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), (1, 1))
        return self.classifier(torch.flatten(x, 1))


def mobilenet_v2(*, num_classes: int, in_channels: int, small_images: bool = False) -> nn.Module:
    """MobileNetV2 of width 1; ``small_images``: with the strides usual for 32x32 images."""
    return MobileNetV2(num_classes, in_channels, small_images)
