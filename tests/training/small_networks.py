"""Networks for tests of closing and cutting, and random masks for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, fx, nn

from escc.frontend import zoo
from escc.training.context import TransformContext
from escc.training.cutting import layers
from escc.training.freezing import MASK, set_mask
from escc.training.graph import trainable
from escc.training.modules import DecomposedConv2d


def context(shape: tuple[int, int, int]) -> TransformContext:
    """The surroundings of a transform on the CPU."""
    return TransformContext(torch.device("cpu"), shape, lambda count: np.zeros((count, *shape), np.float32))


def block(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU6."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class Mobile(nn.Module):
    """Inverted residuals, a gate, a concatenation, and two linear layers behind a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 8, 3, 2)
        self.expand, self.depth = block(8, 24, 1), block(24, 24, 3, 1, 24)
        self.project = nn.Sequential(nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.side = block(8, 6, 3)
        self.hidden, self.classifier = nn.Linear(14 * 4, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.depth(self.expand(x)))
        gate = functional.relu(self.squeeze(functional.adaptive_avg_pool2d(x, 1)))
        x = x * torch.sigmoid(self.excite(gate))
        x = functional.adaptive_avg_pool2d(torch.cat([x, self.side(x)], 1), 2)
        return self.classifier(functional.relu(self.hidden(torch.flatten(x, 1))))


class Chain(nn.Module):
    """Two convolutions with a norm and a ReLU between them; the second one pads zeros or does not."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 5, 3, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(functional.relu(self.norm(self.first(x))))


def at(model: nn.Module, path: str) -> Any:
    """The layer at a module path."""
    return model.get_submodule(path)


def graph(net: nn.Module, shape: tuple[int, int, int], *, settle: bool = True) -> fx.GraphModule:
    """A trainable graph with norms that do something."""
    torch.manual_seed(0)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.5)
    net.eval()
    return trainable(zoo.settle(net, shape) if settle else net, input_shape=shape)


@torch.no_grad()
def decompose_randomly(model: fx.GraphModule, bases: int, *, rule: str = "none") -> None:
    """3x3 convolutions of one group get random bases and coefficients, whole numbers from -1 to 1."""
    for name, layer in layers(model).items():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and layer.groups == 1:
            made = DecomposedConv2d.like(layer, bases, rule=rule)
            made.bases.copy_(torch.randint(-1, 2, made.bases.shape))
            made.coefficients.copy_(torch.randint(-1, 2, made.coefficients.shape))
            model.set_submodule(name, made)


@torch.no_grad()
def mask_randomly(model: fx.GraphModule, seed: int, share: float = 0.25) -> None:
    """Mask whole rows, columns and bases of layers, and single coefficients or weights."""
    generator = torch.Generator().manual_seed(seed)

    def keep(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) >= share

    for layer in layers(model).values():
        if isinstance(layer, DecomposedConv2d):
            outputs, inputs, bases = layer.coefficients.shape
            kept = keep(outputs, 1, 1) & keep(1, inputs, 1) & keep(1, 1, bases) & keep(outputs, inputs, bases)
            set_mask(layer, MASK, kept)
        elif isinstance(layer, nn.Conv2d):
            outputs, inputs = layer.weight.shape[:2]
            kept = keep(outputs, 1, 1, 1) & (keep(1, inputs, 1, 1) | (inputs == 1))
            set_mask(layer, MASK, kept.expand_as(layer.weight))
        elif isinstance(layer, nn.Linear):
            kept = keep(1, layer.in_features) & keep(layer.out_features, 1)
            set_mask(layer, MASK, kept.expand_as(layer.weight))
