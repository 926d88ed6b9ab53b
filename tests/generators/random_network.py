"""Seeded random small torch networks that use everything the compiler takes.

``random_network(seed)`` gives a module in evaluation mode and its input shape (C, H, W). The same seed gives
the same network and weights. Batch norms are settled: their statistics are those of the data that reaches
them, so activations keep a sane scale through any depth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

Shape = tuple[int, int, int]
T = TypeVar("T")

ACTIVATIONS: list[Callable[[], nn.Module]] = [
    nn.ReLU,
    nn.ReLU,
    nn.ReLU6,
    lambda: nn.Hardtanh(-0.75, 1.5),
    lambda: nn.LeakyReLU(0.1),
    nn.Sigmoid,
    nn.Hardsigmoid,
    nn.SiLU,
    nn.Hardswish,
    nn.Tanh,
    nn.GELU,
    lambda: nn.ELU(0.8),
]

MAX_MULTIPLICATIONS = 1_500_000
"""Upper bound of a network's multiply-accumulates: a cycle-exact simulation stays under a second or two."""


class Padded(nn.Module):
    """Asymmetric zero padding (left, right, top, bottom), perhaps of the channels (before, after) too."""

    def __init__(self, padding: tuple[int, ...]) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x, self.padding)


class Residual(nn.Module):
    """activation(body(x) + shortcut(x)), the two branches of different magnitude."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut, self.activation = body, shortcut, activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.body(x) + self.shortcut(x))


class Concatenated(nn.Module):
    """Branches side by side in the channels."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class SqueezeExcite(nn.Module):
    """x * gate(mean(x)), one factor per channel."""

    def __init__(self, channels: int, hidden: int, gate: nn.Module) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.expand(functional.relu(self.reduce(mean))))


class Gated(nn.Module):
    """body(x) * gate(x), maps of one shape."""

    def __init__(self, body: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.body, self.gate = body, gate

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * self.gate(x)


class GlobalMean(nn.Module):
    """Mean over rows and columns, written as a mean."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class RandomNetwork(nn.Module):
    """A chain of blocks and, mostly, a classifier."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class _Builder:
    """Draws blocks that fit the shape reached so far."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.wide = self.chance(0.35)
        side = 6 if self.wide else 13
        self.shape: Shape = (
            self.pick([1, 2, 3, 3, 5, 8]),
            self.integer(4, side),
            self.integer(4, side),
        )

    # -- draws ----------------------------------------------------------------------------------------------
    def integer(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return int(self.random.integers(low, high + 1))

    def chance(self, probability: float) -> bool:
        """True that often."""
        return bool(self.random.random() < probability)

    def pick(self, items: list[T]) -> T:
        """One of the items."""
        return items[int(self.random.integers(len(items)))]

    def activation(self) -> nn.Module:
        """Any activation, half of the time a ReLU."""
        return nn.ReLU() if self.chance(0.4) else self.pick(ACTIVATIONS)()

    def channels(self) -> int:
        """Few channels, or more than one chunk of 64 and not a multiple of it."""
        return self.integer(65, 140) if self.wide and self.chance(0.7) else self.integer(1, 24)

    # -- blocks ---------------------------------------------------------------------------------------------
    def convolution(
        self, inputs: int, outputs: int, side: tuple[int, int], *, same: bool = False
    ) -> nn.Module:
        """Convolution with batch norm before, after or not at all, and perhaps an activation.

        ``same`` keeps height and width.
        """
        kernel = self.pick([(1, 1), (3, 3), (3, 3), (3, 3), (5, 5), (1, 3), (3, 2), (2, 2)])
        dilation = self.pick([(1, 1), (1, 1), (1, 1), (2, 2), (1, 2)])
        reach = [(kernel[axis] - 1) * dilation[axis] for axis in (0, 1)]
        if same and any(item % 2 for item in reach):
            kernel, dilation, reach = (3, 3), (1, 1), [2, 2]
        layers: list[nn.Module] = []
        if self.chance(0.2):
            layers += [nn.BatchNorm2d(inputs), self.activation()]
        padding, stride = (
            (reach[0] // 2, reach[1] // 2) if same else ((reach[0] + 1) // 2, (reach[1] + 1) // 2),
            (1, 1),
        )
        if not same:
            stride = self.pick([(1, 1), (1, 1), (2, 2), (2, 1), (1, 3)])
            if self.chance(0.2):
                extra = tuple(self.integer(0, 2) for _ in range(4))
                layers.append(Padded(extra))
                side = (side[0] + extra[2] + extra[3], side[1] + extra[0] + extra[1])
            if self.chance(0.3) and all(side[axis] > reach[axis] for axis in (0, 1)):
                padding = (0, 0)
        groups = self.groups(inputs, outputs)
        bias = self.chance(0.5)
        layers.append(nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups=groups, bias=bias))
        if self.chance(0.6):
            layers.append(nn.BatchNorm2d(outputs))
        if self.chance(0.75):
            layers.append(self.activation())
        return nn.Sequential(*layers)

    def groups(self, inputs: int, outputs: int) -> int:
        """1, or now and then any number that divides both (inputs themselves: depthwise)."""
        if self.chance(0.5):
            return 1
        return self.pick([g for g in range(1, inputs + 1) if inputs % g == 0 and outputs % g == 0])

    def plain(self) -> nn.Module:
        """One convolution; a quarter of the time depthwise, with one to three outputs per channel."""
        inputs, height, width = self.shape
        if self.chance(0.25) and inputs <= 40:
            outputs = inputs * self.integer(1, 3)
            depthwise = nn.Conv2d(inputs, outputs, 3, self.integer(1, 2), 1, groups=inputs)
            return nn.Sequential(depthwise, nn.BatchNorm2d(outputs), self.activation())
        return self.convolution(inputs, self.channels(), (height, width))

    def residual(self) -> nn.Module:
        """Two scales meet in an addition."""
        inputs, *side = self.shape
        outputs = inputs if self.chance(0.6) else self.channels()
        middle = min(self.channels(), 40)
        body = nn.Sequential(
            self.convolution(inputs, middle, (side[0], side[1]), same=True),
            nn.Conv2d(middle, outputs, 3, 1, 1, bias=self.chance(0.5)),
            nn.BatchNorm2d(outputs),
        )
        shortcut: nn.Module = nn.Identity()
        if outputs != inputs:
            shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
            if outputs > inputs and self.chance(0.4):
                before = self.integer(0, outputs - inputs)
                shortcut = Padded((0, 0, 0, 0, before, outputs - inputs - before))
        return Residual(body, shortcut, self.activation() if self.chance(0.7) else nn.Identity())

    def concatenated(self) -> nn.Module:
        """Two or three branches, one of them perhaps the input itself."""
        inputs, *side = self.shape
        branches: list[nn.Module] = [
            self.convolution(inputs, self.integer(1, 20), (side[0], side[1]), same=True)
            for _ in range(self.integer(1, 2))
        ]
        branches.append(self.pick([nn.Identity(), nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1)]))
        return Concatenated(branches)

    def squeeze_excite(self) -> nn.Module:
        """Channel attention."""
        gate = nn.Sigmoid() if self.chance(0.5) else nn.Hardsigmoid()
        return SqueezeExcite(self.shape[0], self.integer(1, 8), gate)

    def gated(self) -> nn.Module:
        """Product of two maps."""
        channels, *side = self.shape
        body = self.convolution(channels, channels, (side[0], side[1]), same=True)
        gate = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.Sigmoid())
        return Gated(body, gate)

    def pool(self) -> nn.Module:
        """Any pooling that leaves something of the map."""
        _, height, width = self.shape
        kernel = (self.integer(1, min(3, height)), self.integer(1, min(3, width)))
        padding = (kernel[0] // 2, kernel[1] // 2) if self.chance(0.5) else (0, 0)
        stride = self.pick([(1, 1), (2, 2), (2, 1), kernel])
        return self.pick(
            [
                nn.MaxPool2d(kernel, stride, padding),
                nn.AvgPool2d(kernel, stride, padding, count_include_pad=True),
                nn.AvgPool2d(kernel, stride, padding, count_include_pad=False),
                nn.AdaptiveAvgPool2d((self.integer(1, height), self.integer(1, width))),
            ]
        )

    def alone(self) -> nn.Module:
        """An activation, a padding or a layer that is nothing in evaluation mode."""
        return self.pick(
            [
                self.activation(),
                nn.BatchNorm2d(self.shape[0]),
                Padded(tuple(self.integer(0, 1) for _ in range(4))),
                nn.Dropout(0.1),
            ]
        )

    def head(self) -> nn.Module:
        """How the network ends: a map, or logits."""
        channels, height, width = self.shape
        classes = self.integer(2, 12)
        return self.pick(
            [
                nn.Identity(),
                nn.Conv2d(channels, classes, 1),
                nn.Sequential(GlobalMean(), nn.Linear(channels, classes)),
                nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)),
                nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, classes)),
                nn.Sequential(
                    nn.Flatten(), nn.Linear(channels * height * width, 16), nn.ReLU(), nn.Linear(16, classes)
                ),
            ]
        )


def random_network(seed: int, blocks: int | None = None) -> tuple[nn.Module, Shape]:
    """A network and its input shape.

    Args:
        seed: decides everything.
        blocks: how many blocks before the head; by default 1 to 5.

    Returns:
        (module in evaluation mode, (C, H, W)); its output is (N, K, H', W') or (N, classes).
    """
    builder = _Builder(seed)
    input_shape = builder.shape
    kinds = [
        builder.plain,
        builder.plain,
        builder.residual,
        builder.concatenated,
        builder.squeeze_excite,
        builder.gated,
        builder.pool,
        builder.alone,
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x = torch.randn(16, *input_shape)
        chosen: list[nn.Module] = []
        spent = 0
        for _ in range(builder.integer(1, 5) if blocks is None else blocks):
            block = (builder.plain if not chosen else builder.pick(kinds))()
            cost = _cost(block, x)
            if spent + cost > MAX_MULTIPLICATIONS:
                continue
            spent += cost
            x = _settle(block, x)
            chosen.append(block)
            builder.shape = (x.shape[1], x.shape[2], x.shape[3])
        head = builder.head()
        chosen.append(head if spent + _cost(head, x) <= MAX_MULTIPLICATIONS else nn.Identity())
        _settle(chosen[-1], x)
    return RandomNetwork(chosen).eval(), input_shape


def _settle(block: nn.Module, x: Tensor) -> Tensor:
    """Random batch norm parameters, statistics of the data; the block's output in evaluation mode."""
    for layer in block.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.4, 1.6)
            nn.init.normal_(layer.bias, 0.0, 0.5)
            layer.momentum = 1.0
    with torch.no_grad():
        if x.shape[0] * x.shape[2] * x.shape[3] > 1:
            block.train()
            block(x)
        return block.eval()(x)


def _cost(block: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of a block for one image."""
    total = 0

    def count(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d | nn.Linear):
            total += layer.weight[0].numel() * output[0].numel()

    hooks = [layer.register_forward_hook(count) for layer in block.modules()]
    with torch.no_grad():
        block.eval()(x[:1])
    for hook in hooks:
        hook.remove()
    return total
