"""CIFAR ResNets: He et al. 2015 section 4.2 (ResNet-20, -56), and ResNet-18 with a 3x3 stem."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from escc.errors import EsccError

Shortcut = Literal["A", "B"]


class PadShortcut(nn.Module):
    """Option A: every other pixel, and zero channels on both sides; no parameters."""

    def __init__(self, added: int) -> None:
        super().__init__()
        self.before = added // 2
        self.after = added - added // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, channels: int, planes: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 or channels != planes:
            if shortcut == "A" and stride == 2:
                self.shortcut = PadShortcut(planes - channels)
            else:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(channels, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)
                )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """Stem, stages of basic blocks, global average, classifier."""

    def __init__(
        self, widths: tuple[int, ...], blocks: int, shortcut: Shortcut, num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        channels = widths[0]
        self.stages: list[str] = []
        for index, width in enumerate(widths):
            stage = nn.Sequential()
            for block in range(blocks):
                stride = 2 if index > 0 and block == 0 else 1
                stage.append(BasicBlock(channels, width, stride, shortcut))
                channels = width
            self.stages.append(f"layer{index + 1}")
            self.add_module(self.stages[-1], stage)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        x = F.adaptive_avg_pool2d(x, 1)
        return self.linear(torch.flatten(x, 1))


def resnet(
    *, num_classes: int, in_channels: int, blocks: int, shortcut: Shortcut = "A", width: int = 16
) -> nn.Module:
    """ResNet-(6 * blocks + 2) for CIFAR; ``shortcut`` "A" (slice and pad) or "B" (1x1 convolution)."""
    if shortcut not in ("A", "B"):
        raise EsccError(f"shortcut {shortcut!r} is neither 'A' nor 'B'")
    return CifarResNet((width, 2 * width, 4 * width), blocks, shortcut, num_classes, in_channels)


def resnet18(*, num_classes: int, in_channels: int) -> nn.Module:
    """ResNet-18 for CIFAR: four stages of two blocks, 64 to 512 channels, 1x1 shortcuts."""
    return CifarResNet((64, 128, 256, 512), 2, "B", num_classes, in_channels)
