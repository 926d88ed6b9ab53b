"""SqueezeNet 1.0 and 1.1 (Iandola et al. 2016), parameter names as in torchvision."""

from __future__ import annotations

import torch
from torch import nn

from escc.errors import EsccError

PLANS: dict[str, tuple[tuple[int, int], tuple[tuple[int, int] | None, ...]]] = {
    "1.0": (
        (96, 7),
        (
            None,
            (16, 64),
            (16, 64),
            (32, 128),
            None,
            (32, 128),
            (48, 192),
            (48, 192),
            (64, 256),
            None,
            (64, 256),
        ),
    ),
    "1.1": (
        (64, 3),
        (
            None,
            (16, 64),
            (16, 64),
            None,
            (32, 128),
            (32, 128),
            None,
            (48, 192),
            (48, 192),
            (64, 256),
            (64, 256),
        ),
    ),
}
"""Version -> stem (channels, kernel), then fire modules (squeeze, expand) and max pooling (None)."""


class Fire(nn.Module):
    """Squeeze 1x1, then 1x1 and 3x3 side by side."""

    def __init__(self, channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeeze, 1)
        self.squeeze_activation = nn.ReLU(inplace=True)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand1x1_activation = nn.ReLU(inplace=True)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.expand3x3_activation = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.squeeze_activation(self.squeeze(x))
        wide = self.expand3x3_activation(self.expand3x3(x))
        return torch.cat([self.expand1x1_activation(self.expand1x1(x)), wide], 1)


class SqueezeNet(nn.Module):
    """Stem, fire modules with max pooling between them, a 1x1 classifier and a global average."""

    def __init__(self, version: str, num_classes: int, in_channels: int) -> None:
        super().__init__()
        (channels, kernel), plan = PLANS[version]
        self.features = nn.Sequential(nn.Conv2d(in_channels, channels, kernel, 2), nn.ReLU(inplace=True))
        for item in plan:
            if item is None:
                self.features.append(nn.MaxPool2d(3, 2, ceil_mode=True))
            else:
                self.features.append(Fire(channels, *item))
                channels = 2 * item[1]
        self.classifier = nn.Sequential(
            nn.Dropout(0.5),
            nn.Conv2d(channels, num_classes, 1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d((1, 1)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.flatten(self.classifier(self.features(x)), 1)


def squeezenet(*, num_classes: int, in_channels: int, version: str) -> nn.Module:
    """SqueezeNet of ``version`` "1.0" or "1.1"."""
    if version not in PLANS:
        raise EsccError(f"SqueezeNet has no version {version!r}")
    return SqueezeNet(version, num_classes, in_channels)
