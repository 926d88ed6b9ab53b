"""VGG-16 with batch norm (Simonyan and Zisserman 2014): torchvision's, and the usual CIFAR variant."""

from __future__ import annotations

import torch
from torch import nn

VGG16: tuple[int | str, ...] = (
    64,
    64,
    "M",
    128,
    128,
    "M",
    256,
    256,
    256,
    "M",
    512,
    512,
    512,
    "M",
    512,
    512,
    512,
    "M",
)


def features(in_channels: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU per number; 2x2 max pooling per "M"."""
    layers = nn.Sequential()
    channels = in_channels
    for item in VGG16:
        if isinstance(item, str):
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers.extend(
                [nn.Conv2d(channels, item, 3, padding=1), nn.BatchNorm2d(item), nn.ReLU(inplace=True)]
            )
            channels = item
    return layers


class Vgg(nn.Module):
    """Features, 7x7 adaptive pooling, three linear layers (parameter names as in torchvision)."""

    def __init__(self, num_classes: int, in_channels: int, hidden: int) -> None:
        super().__init__()
        self.features = features(in_channels)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class CifarVgg(nn.Module):
    """Features down to 1x1, 1x1 average pooling, one linear layer (parameter names as in kuangliu's)."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.features = features(in_channels).append(nn.AvgPool2d(1, 1))
        self.classifier = nn.Linear(512, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        return self.classifier(x.view(x.size(0), -1))


def vgg16_bn(*, num_classes: int, in_channels: int, hidden: int = 4096) -> nn.Module:
    """VGG-16 with batch norm; ``hidden`` is the width of the two hidden linear layers."""
    return Vgg(num_classes, in_channels, hidden)


def vgg16_cifar(*, num_classes: int, in_channels: int) -> nn.Module:
    """VGG-16 for 32x32 images."""
    return CifarVgg(num_classes, in_channels)
