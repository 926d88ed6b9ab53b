"""Models as a user would define them, importable by name."""

from __future__ import annotations

import torch
from torch import nn


class Block(nn.Module):
    """A module class of the user's own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x)) + x


class Net(nn.Module):
    """Two blocks and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(3), Block(3))
        self.head = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(x).mean((2, 3)))


def make_net() -> nn.Module:
    return Net()


def broken_factory() -> nn.Module:
    raise RuntimeError("no GPU\nhere")


def not_a_module() -> int:
    return 3


an_instance = nn.Sequential(nn.Conv2d(3, 4, 1))
