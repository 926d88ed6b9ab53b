"""Slimming takes the channels the loss feels least, and nothing that is tied."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from escc.errors import EsccError
from escc.frontend import zoo
from escc.training.context import TransformContext
from escc.training.graph import apply_structure, structure, trainable
from escc.training.slimming import choice, free_outputs, operations, slim


def context(shape: tuple[int, int, int], seed: int = 0) -> TransformContext:
    def images(count: int) -> np.ndarray:
        return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)

    return TransformContext(torch.device("cpu"), shape, images)


class Chain(nn.Module):
    """Channels 4 to 7 of the first convolution hardly reach the output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(2, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 6, 3, padding=1)
        self.linear = nn.Linear(6, 3)
        with torch.no_grad():
            self.second.weight[:, 4:] *= 1e-4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        return self.linear(torch.relu(self.second(x)).mean((2, 3)))


def test_what_hardly_matters_goes() -> None:
    original = Chain().eval()
    model = trainable(original, input_shape=(2, 8, 8))
    images = torch.from_numpy(context((2, 8, 8), 1).calibration(4))
    before = original(images)
    figures = slim(model, context((2, 8, 8)), keep=0.5, least=2, layers="first")
    assert figures["slimmed"] == 1
    first = model.get_submodule("first")
    assert isinstance(first, nn.Conv2d)
    assert torch.equal(first.weight, original.first.weight[:4])
    assert torch.allclose(model(images), before, atol=1e-3)


def test_every_layer_keeps_its_least_and_the_structure_can_be_restored() -> None:
    network = zoo.settle(zoo.build("vgg16_cifar", num_classes=10, in_channels=1), (1, 32, 32))
    fresh = trainable(network, input_shape=(1, 32, 32))
    model = trainable(network, input_shape=(1, 32, 32))
    figures = slim(model, context((1, 32, 32)), keep=0.1, least=4, images=32)
    assert figures["cut"]
    widths = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert min(widths) >= 4
    assert sum(widths) <= 0.12 * 4224 + 13
    apply_structure(fresh, structure(model))
    fresh.load_state_dict(model.state_dict())
    images = torch.from_numpy(context((1, 32, 32), 1).calibration(2))
    assert torch.equal(fresh.eval()(images), model.eval()(images))


def test_operations_are_what_keep_is_a_share_of() -> None:
    original = zoo.settle(zoo.build("vgg16_cifar", num_classes=10, in_channels=1), (1, 32, 32))
    share: dict[str, float] = {}
    for per in ("channel", "operation"):
        model = trainable(original, input_shape=(1, 32, 32))
        slim(model, context((1, 32, 32)), keep=0.4, per=per, least=4, images=32)
        widths = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
        sizes = [32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2]
        inputs = [1, *widths]
        full = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
        spent = [k * c * s * s for k, c, s in zip(widths, inputs, sizes, strict=False)]
        whole = [k * c * s * s for k, c, s in zip(full, [1, *full], sizes, strict=False)]
        share[per] = sum(spent) / sum(whole)
    # a channel counts where it is made and where it is read, so that both being cut saves more than its share
    assert share["operation"] < min(0.4, share["channel"])


def test_the_cost_of_a_channel_by_hand() -> None:
    model = trainable(Chain().eval(), input_shape=(2, 8, 8))
    free = free_outputs(model)
    assert {path: found.readers for path, found in free.items()} == {"first": ("second",)}
    # first: 2 x 9 weights at 64 positions for a channel; second reads it with 6 x 9 weights at 64 positions
    cost = operations(model, context((2, 8, 8)), {"first": ("second",)})
    assert cost == {"first": 64 * (2 * 9 + 6 * 9)}


def test_the_least_important_for_their_cost_go_first() -> None:
    importance = {"a": torch.tensor([4.0, 8.0, 9.0]), "b": torch.tensor([1.0, 2.0, 3.0])}
    kept = choice(importance, {"a": 10.0, "b": 1.0}, keep=0.6, least=1)
    # 33 in all, 13.2 may go: a's first channel (0.4 an operation), a's second (0.8) is too much after it
    assert kept["a"].tolist() == [False, True, True]
    assert kept["b"].tolist() == [True, True, True]
    even = choice(importance, {"a": 1.0, "b": 1.0}, keep=0.5, least=1)
    assert [even["a"].tolist(), even["b"].tolist()] == [[False, True, True], [False, False, True]]


def test_tied_channels_stay() -> None:
    network = zoo.settle(zoo.build("resnet8", num_classes=10, in_channels=3), (3, 16, 16))
    model = trainable(network, input_shape=(3, 16, 16))
    slim(model, context((3, 16, 16)), keep=0.5, images=16)
    widths = {name: item.out_channels for name, item in model.named_modules() if isinstance(item, nn.Conv2d)}
    assert [widths[name] for name in ("conv1", "layer1.0.conv2", "layer3.0.conv2")] == [16, 16, 64]
    assert sum(widths[f"layer{stage}.0.conv1"] for stage in (1, 2, 3)) == 56


def test_bad_options() -> None:
    model = trainable(Chain().eval(), input_shape=(2, 8, 8))
    with pytest.raises(EsccError, match="no share"):
        slim(model, context((2, 8, 8)), keep=0.0)
    with pytest.raises(EsccError, match="neither 'channel' nor 'operation'"):
        slim(model, context((2, 8, 8)), per="macs")
    with pytest.raises(EsccError, match="did you mean 'first'"):
        slim(model, context((2, 8, 8)), layers="frist")
