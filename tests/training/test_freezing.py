"""Freezing and masks: what must not move does not, bit for bit, whatever the optimizer would like to do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import groupby, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from escc.errors import EsccError
from escc.training.freezing import (
    BIAS_MASK,
    MASK,
    Alternation,
    decomposed_layers,
    hold,
    set_mask,
    train_half,
)
from escc.training.modules import DecomposedConv2d

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda items: torch.optim.SGD(items, 0.05, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "adamw": lambda items: torch.optim.AdamW(items, 0.01, weight_decay=1e-2),
}


def network(seed: int = 0) -> Any:
    """Two decomposed convolutions with norms, and a classifier of 5 classes."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        DecomposedConv2d(3, 6, (3, 3), 4, padding=(1, 1)),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        DecomposedConv2d(6, 6, (3, 3), 4, padding=(1, 1), bias=True),
        nn.BatchNorm2d(6),
        nn.Flatten(),
        nn.Linear(6 * 5 * 5, 5),
    )
    for layer in decomposed_layers(net).values():
        nn.init.normal_(layer.bases)
        nn.init.normal_(layer.coefficients, std=0.2)
    return net


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, *, to_none: bool = True) -> None:
    generator = torch.Generator().manual_seed(7)
    for _ in range(steps):
        images = torch.randn(8, 3, 5, 5, generator=generator)
        labels = torch.randint(0, 5, (8,), generator=generator)
        optimizer.zero_grad(set_to_none=to_none)
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()


def values(net: nn.Module, half: str) -> list[Tensor]:
    return [getattr(layer, half).detach().clone() for layer in decomposed_layers(net).values()]


def same(before: list[Tensor], after: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_frozen_half_stays_bit_for_bit_and_so_does_its_momentum(kind: str, to_none: bool) -> None:
    net = network()
    optimizer = OPTIMIZERS[kind](net.parameters())
    hold(optimizer, net)
    train(net, optimizer, 3)  # momentum for everything
    for learning, resting in (("coefficients", "bases"), ("bases", "coefficients")):
        train_half(net, learning)
        frozen, moving, norms = values(net, resting), values(net, learning), net[1].weight.detach().clone()
        waiting = [getattr(layer, resting) for layer in decomposed_layers(net).values()]
        state = [copy.deepcopy(optimizer.state[item]) for item in waiting]
        train(net, optimizer, 12, to_none=to_none)
        assert same(frozen, values(net, resting))
        assert all(item.grad is None for item in waiting)
        for before, item in zip(state, waiting, strict=True):
            for key, value in before.items():
                assert torch.equal(value, optimizer.state[item][key])
        assert not any(torch.equal(a, b) for a, b in zip(moving, values(net, learning), strict=True))
        assert not torch.equal(norms, net[1].weight)
    train_half(net, "all")
    assert all(item.requires_grad for item in net.parameters())


def test_a_zero_gradient_moves_a_frozen_parameter_unless_it_is_held() -> None:
    """The published code's defect, and that ``hold`` is what prevents it."""
    moved: list[bool] = []
    for held in (False, True):
        net = network()
        optimizer = OPTIMIZERS["sgd"](net.parameters())
        if held:
            hold(optimizer, net)
        train(net, optimizer, 2)
        train_half(net, "coefficients")
        before = values(net, "bases")
        for layer in decomposed_layers(net).values():
            layer.bases.grad = torch.zeros_like(layer.bases)
        optimizer.step()
        moved.append(not same(before, values(net, "bases")))
    assert moved == [True, False]


def test_halves_have_names() -> None:
    with pytest.raises(EsccError, match=r"'scale' is no half.*bases"):
        train_half(network(), "scale")


def lengths(turns: Alternation, epochs: int) -> list[tuple[str, int]]:
    return [(half, len(list(run))) for half, run in groupby(turns.half(epoch) for epoch in range(epochs))]


def test_turns_of_penni_and_plain_ones() -> None:
    # epochs 0 | 1 2 | 3 4 | ...: a change at the start of every epoch e with (e + 1) % 2 == 0
    turns = lengths(Alternation(2, penni=True), 100)
    assert [count for _, count in turns] == [1, *[2] * 49, 1]
    assert turns[0][0] == turns[-1][0] == "coefficients"
    assert all(a[0] != b[0] for a, b in pairwise(turns))
    assert [count for _, count in lengths(Alternation(5, penni=True), 20)] == [4, 5, 5, 5, 1]
    assert lengths(Alternation(3, "bases"), 7) == [("bases", 3), ("coefficients", 3), ("bases", 1)]
    assert lengths(Alternation(2, "all"), 4) == [("coefficients", 2), ("bases", 2)]
    assert lengths(Alternation(0, "bases"), 9) == [("bases", 9)]
    assert lengths(Alternation(0, "all"), 9) == [("all", 9)]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_pruned_numbers_stay_zero_whatever_momentum_they_had(kind: str) -> None:
    net = network()
    optimizer = OPTIMIZERS[kind](net.parameters())
    train(net, optimizer, 3)  # momentum where the masks will be
    torch.manual_seed(1)
    layers = decomposed_layers(net).values()
    for layer in layers:
        set_mask(layer, MASK, torch.rand(layer.coefficients.shape) < 0.5)
    set_mask(net[1], MASK, torch.arange(6) != 2)
    set_mask(net[3], BIAS_MASK, torch.arange(6) != 4)
    set_mask(net[6], MASK, torch.rand(5, 150) < 0.5)
    masks = [layer.mask.clone() for layer in layers]
    hold(optimizer, net)
    before = values(net, "coefficients")
    train(net, optimizer, 12, to_none=False)
    for layer, mask, old in zip(layers, masks, before, strict=True):
        assert torch.equal(layer.mask, mask)
        assert not layer.coefficients[mask == 0].any()
        assert (layer.coefficients[mask == 1] != old[mask == 1]).any()
    assert net[1].weight[2] == net[1].bias[2] == net[3].bias[4] == 0
    assert torch.count_nonzero(net[1].weight) == torch.count_nonzero(net[1].bias) == 5
    assert not net[6].weight[net[6].mask == 0].any()


def test_masks_only_ever_narrow() -> None:
    layer: Any = nn.Linear(4, 3)
    assert set_mask(layer, MASK, torch.ones(3, 4)) == 0
    assert not hasattr(layer, MASK)
    assert set_mask(layer, MASK, torch.arange(12).reshape(3, 4) > 3) == 4
    assert set_mask(layer, MASK, torch.arange(12).reshape(3, 4) < 10) == 2
    assert torch.count_nonzero(layer.weight) == torch.count_nonzero(layer.mask) == 6
    assert set_mask(layer, MASK, torch.ones(3, 4)) == 0
