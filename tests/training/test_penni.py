"""PENNI's penalty and pruning, and the gradients of learned ternary scales."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.training.small_networks import context
from torch import nn

from escc.errors import EsccError
from escc.training.freezing import hold
from escc.training.modules import DecomposedConv2d
from escc.training.penni import coefficient_l1, density, prune

CONTEXT = context((3, 8, 8))


def layer_of(coefficients: torch.Tensor) -> DecomposedConv2d:
    """A 3x3 layer with these coefficients (K, C, M)."""
    outputs, inputs, bases = coefficients.shape
    layer = DecomposedConv2d(inputs, outputs, (3, 3), bases, padding=(1, 1))
    nn.init.normal_(layer.bases)
    layer.coefficients.data.copy_(coefficients)
    return layer


def random_layers(seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return nn.Sequential(
        layer_of(torch.randn(4, 3, 5, generator=generator)),
        nn.Conv2d(4, 4, 1, bias=False),
        layer_of(0.1 * torch.randn(6, 4, 2, generator=generator) + 0.02),
        nn.Conv2d(6, 6, 3),
    )


def penalty(net: nn.Module, **options: bool) -> float:
    return float(coefficient_l1(net, **options).detach())


def test_the_penalty_is_a_raw_sum_or_a_mean_per_layer() -> None:
    net = random_layers(0)
    parts = [net[index].coefficients.detach() for index in (0, 2)]
    assert penalty(net) == pytest.approx(sum(float(item.abs().sum()) for item in parts))
    assert penalty(net, mean=True) == pytest.approx(sum(float(item.abs().mean()) for item in parts))
    both = penalty(net) + float(net[1].weight.detach().abs().sum())
    assert penalty(net, pointwise=True) == pytest.approx(both)
    assert penalty(nn.Conv2d(3, 3, 3)) == 0.0


def test_the_penalty_pulls_at_every_coefficient_but_those_at_zero() -> None:
    net = random_layers(1)
    net[0].coefficients.data[1] = 0
    coefficient_l1(net).backward()
    for index in (0, 2):
        assert torch.equal(net[index].coefficients.grad, net[index].coefficients.sign())
    assert net[0].bases.grad is None
    assert net[1].weight.grad is None


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 1.5))
@settings(max_examples=30, deadline=None)
def test_pruning_is_pennis_rule_and_never_brings_back(seed: int, std: float) -> None:
    net = random_layers(seed)
    old = [net[index].coefficients.detach().numpy().astype(np.float64) for index in (0, 2)]
    figures = prune(net, CONTEXT, std=std)
    for index, values in zip((0, 2), old, strict=True):
        kept = np.abs(values) >= std * np.std(values)
        np.testing.assert_array_equal(net[index].mask.numpy(), kept)
        np.testing.assert_array_equal(net[index].coefficients.detach().numpy() != 0, kept)
        assert figures["layers"][str(index)] == pytest.approx(kept.mean())
    assert figures["density"] == pytest.approx(density(net))
    masks = [net[index].mask.bool().clone() for index in (0, 2)]
    for index, mask in zip((0, 2), masks, strict=True):
        net[index].coefficients.data[~mask] = 5.0  # as if something had moved them
    prune(net, CONTEXT, std=0.0)
    for index, mask in zip((0, 2), masks, strict=True):
        assert torch.equal(net[index].mask.bool(), mask)
        assert not net[index].coefficients[~mask].any()


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 1.5))
@settings(max_examples=30, deadline=None)
def test_pruning_twice_is_pruning_once_where_signs_are_balanced(seed: int, std: float) -> None:
    half = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(seed))
    net: Any = nn.Sequential(layer_of(torch.cat([half, -half])))
    first = prune(net, CONTEXT, std=std)
    mask = net[0].mask.clone()
    assert prune(net, CONTEXT, std=std) == first
    assert torch.equal(net[0].mask, mask)


def test_pruned_pointwise_weights_do_not_grow_again() -> None:
    net = random_layers(3)
    prune(net, CONTEXT, pointwise=True)
    pruned = net[1].mask == 0
    assert 0 < int(pruned.sum()) < pruned.numel()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    hold(optimizer, net)
    for _ in range(5):
        optimizer.zero_grad()
        net(torch.randn(2, 3, 8, 8)).square().mean().backward()
        assert net[1].weight.grad[pruned].any()
        optimizer.step()
    assert not net[1].weight[pruned].any()


def test_bad_pruning_is_refused() -> None:
    with pytest.raises(EsccError, match="no decomposed layer"):
        prune(nn.Conv2d(3, 3, 3), CONTEXT)
    with pytest.raises(EsccError, match="not a number from 0 on"):
        prune(random_layers(0), CONTEXT, std=-1.0)
    with pytest.raises(EsccError, match=r"^0: std=50 leaves no coefficient"):
        prune(random_layers(0), CONTEXT, std=50.0)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_learned_ternary_scales_get_the_sums_over_their_index_sets(seed: int) -> None:
    """TTQ (arXiv 1612.01064, eq. 8) with one scale for both signs: the scale is a basis of one tap."""
    generator = torch.Generator().manual_seed(seed)
    layer = DecomposedConv2d(5, 7, (1, 1), 1, rule="ttq")
    layer.coefficients.data.normal_(generator=generator)
    layer.bases.data.fill_(0.3)
    codes = layer.codes()[0][..., 0]
    assert torch.equal(codes != 0, layer.coefficients[..., 0].abs() > 0.05 * layer.coefficients.abs().max())
    upstream = torch.randn(7, 5, generator=generator)
    (layer.weight()[..., 0, 0] * upstream).sum().backward()
    wanted = upstream[codes > 0].sum() - upstream[codes < 0].sum()
    assert layer.bases.grad is not None
    assert float(layer.bases.grad) == pytest.approx(float(wanted), rel=1e-4, abs=1e-5)
