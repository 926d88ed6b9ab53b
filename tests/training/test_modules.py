"""Layers that learn: what they compute, what their gradients are, and that small maps take an equal road."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from escc.errors import EsccError
from escc.frontend.custom_ops import fake_quantize
from escc.passes.math.basis import reconstruct
from escc.passes.math.fixed_point import round_half_away
from escc.passes.math.thresholds import ternarize
from escc.training.modules import (
    RULES,
    ActivationQuantizer,
    Conv2d,
    DecomposedConv2d,
    FrozenDecomposedConv2d,
    Linear,
    matmul_conv2d,
)


def layer(rule: str, basis_bits: int = 0, bases: int = 4, seed: int = 0) -> DecomposedConv2d:
    made = DecomposedConv2d(
        6,
        6,
        (3, 3),
        bases,
        stride=(2, 1),
        padding=(1, 1),
        groups=2,
        bias=True,
        rule=rule,
        basis_bits=basis_bits,
    )
    torch.manual_seed(seed)
    with torch.no_grad():
        for tensor in (made.bases, made.coefficients, cast("Tensor", made.bias)):
            tensor.normal_()
        made.scale.uniform_(0.5, 2.0)
    return made


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bits", [0, 8])
def test_weight_is_the_sum_over_the_codes(rule: str, bits: int) -> None:
    made = layer(rule, bits)
    coefficients, bases = made.codes()
    expected = reconstruct(bases.double().numpy(), coefficients.numpy(), made.scale.detach().numpy())
    np.testing.assert_allclose(made.weight().detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    if rule != "none":
        assert set(coefficients.unique().tolist()) == {-1.0, 0.0, 1.0}
    if bits:
        steps = bases.double() / (float(bases.abs().max()) / 127)
        np.testing.assert_allclose(steps.numpy(), steps.round().numpy(), atol=1e-4)


def test_the_rules_of_the_papers() -> None:
    made = layer("twn")
    coefficients, bases = made.codes()
    codes, sizes = ternarize(made.coefficients.detach().numpy(), axis=(0, 1))
    np.testing.assert_array_equal(coefficients.numpy(), codes)
    expected = made.bases.detach().numpy() * sizes.reshape(-1, 1, 1)
    np.testing.assert_allclose(bases.numpy(), expected, rtol=1e-5)
    latent = layer("fixed").coefficients.detach()
    codes = layer("fixed").codes()[0]
    assert torch.equal(codes, latent.sign() * (latent.abs() > 0.5))
    codes = layer("ttq").codes()[0]
    assert torch.equal(codes, latent.sign() * (latent.abs() > 0.05 * latent.abs().amax((0, 1))))


@pytest.mark.parametrize("rule", RULES)
def test_pruned_coefficients_stay_zero_and_out_of_the_statistics(rule: str) -> None:
    made = layer(rule)
    made.mask[:, ::2] = 0
    codes, bases = made.codes()
    assert not codes[:, ::2].any()
    alone = DecomposedConv2d(2, 6, (3, 3), 4, rule=rule)
    alone.bases.data.copy_(made.bases.data)
    alone.coefficients.data.copy_(made.coefficients.data[:, 1:2].expand(-1, 2, -1))
    assert torch.equal(alone.codes()[0][:, :1], codes[:, 1:2])
    torch.testing.assert_close(alone.codes()[1], bases)
    made.weight().square().sum().backward()
    assert made.coefficients.grad is not None
    assert not made.coefficients.grad[:, ::2].any()


@pytest.mark.parametrize("rule", ["none", "twn", "ttq"])
def test_gradients_are_those_of_the_weight_the_layer_uses(rule: str) -> None:
    """Straight through: as if the used coefficients and bases were the parameters."""
    made = layer(rule, 8)
    target = torch.randn_like(made.weight())
    (made.weight() * target).sum().backward()
    codes, bases = made.codes()
    codes.requires_grad_()
    bases.requires_grad_()
    weight = torch.einsum("k,kcm,mrs->kcrs", made.scale, codes, bases)
    (weight * target).sum().backward()
    assert codes.grad is not None
    assert bases.grad is not None
    sizes = torch.ones(4)
    if rule == "twn":
        sizes = (
            torch.from_numpy(ternarize(made.coefficients.detach().numpy(), axis=(0, 1))[1]).float().view(-1)
        )
    torch.testing.assert_close(made.bases.grad, bases.grad * sizes[:, None, None])
    torch.testing.assert_close(made.coefficients.grad, codes.grad / sizes)


def test_a_fixed_latent_leaves_its_window_no_further() -> None:
    made = DecomposedConv2d(2, 2, (1, 1), 1, rule="fixed")
    made.bases.data.fill_(1.0)
    made.coefficients.data.copy_(torch.tensor([[2.0, 2.0], [-2.0, 0.3]])[..., None])
    (made.weight()[..., 0, 0] * torch.tensor([[1.0, -1.0], [1.0, -1.0]])).sum().backward()
    assert made.coefficients.grad is not None
    # descent goes against the gradient: only the two that would move outwards are stopped
    assert made.coefficients.grad[..., 0].tolist() == [[1.0, 0.0], [0.0, -1.0]]


@pytest.mark.parametrize("rule", RULES)
def test_frozen_form_computes_the_same(rule: str) -> None:
    made = layer(rule, 8)
    x = torch.randn(3, 6, 7, 5)
    frozen = FrozenDecomposedConv2d(made)
    torch.testing.assert_close(frozen(x), made(x))
    assert frozen.coefficients.dtype == (torch.float32 if rule == "none" else torch.int8)


def test_composition_is_not_rounded_by_autocast() -> None:
    made = layer("none")
    with torch.autocast("cpu", torch.bfloat16):
        weight, result = made.weight(), made(torch.randn(1, 6, 5, 5))
    assert weight.dtype == torch.float32
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(weight, made.weight(), rtol=0, atol=0)


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_matmul_convolution_is_convolution(data: st.DataObject) -> None:
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, stride, dilation = (data.draw(pair) for _ in range(3))
    padding = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    size = tuple(dilation[axis] * (kernel[axis] - 1) + data.draw(st.integers(1, 4)) for axis in (0, 1))
    seed = data.draw(st.integers(0, 1000))
    torch.manual_seed(seed)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, *kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64) if seed % 2 else None
    ours = matmul_conv2d(x, weight, bias, stride, padding, dilation)
    theirs = nn.functional.conv2d(x, weight, bias, stride, padding, dilation)
    torch.testing.assert_close(ours, theirs)
    direction = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, (x, weight), direction),
        torch.autograd.grad(theirs, (x, weight), direction),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_small_wide_maps_are_trained_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []

    def count(x: Tensor, *rest: object) -> Tensor:
        calls.append(tuple(x.shape))
        return matmul_conv2d(x, *rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr("escc.training.modules.matmul_conv2d", count)
    wide, narrow = Conv2d(256, 256, 3, padding=1), Conv2d(64, 256, 3, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        for module, size in ((wide, 2), (wide, 8), (narrow, 2)):
            module(torch.randn(1, module.in_channels, size, size))
        with torch.no_grad():
            wide(torch.randn(1, 256, 2, 2))
    wide(torch.randn(1, 256, 2, 2))
    assert calls == [(1, 256, 2, 2)]


@pytest.mark.parametrize("make", [lambda: Conv2d(3, 4, 3), lambda: Linear(6, 4)])
def test_dense_weights_on_the_8_bit_grid(make: Callable[[], Conv2d | Linear]) -> None:
    dense = make()
    dense.weight.data[0] = 0.0
    dense.weight_bits = 8
    used = dense.used_weight().detach().double().flatten(1)
    weight = dense.weight.detach().double().flatten(1)
    step = weight.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
    np.testing.assert_allclose((used / step).numpy(), round_half_away((weight / step).numpy()), atol=1e-4)
    dense.used_weight().sum().backward()
    assert torch.equal(cast("Tensor", dense.weight.grad), torch.ones_like(dense.weight))


@pytest.mark.parametrize("signed", [True, False])
def test_activation_quantizer(signed: bool) -> None:
    quantizer = ActivationQuantizer(0.25, signed)
    values = torch.tensor([0.0, 0.125, 0.375, 10.0, 32.0, 63.7, 64.0, 1000.0])
    x = (torch.cat([values, -values]) if signed else values).requires_grad_()
    low, high = (-128, 127) if signed else (0, 255)
    expected = np.clip(round_half_away(x.detach().numpy().astype(np.float64) / 0.25), low, high) * 0.25
    result = quantizer(x)
    np.testing.assert_array_equal(result.detach().numpy(), expected)
    assert torch.equal(result, fake_quantize(x, 0.25, signed))
    result.sum().backward()
    inside = (x >= (low - 0.5) * 0.25) & (x <= (high + 0.5) * 0.25)
    assert x.grad is not None
    assert torch.equal(x.grad, inside.float())


def test_a_loaded_scale_is_used() -> None:
    quantizer = ActivationQuantizer()
    quantizer.load_state_dict(ActivationQuantizer(0.5).state_dict())
    assert quantizer(torch.tensor([0.6])).item() == 0.5


def test_bad_options() -> None:
    with pytest.raises(EsccError, match="unknown rule 'inq'"):
        DecomposedConv2d(2, 2, (3, 3), 2, rule="inq")
    with pytest.raises(EsccError, match="bases of 4 bits"):
        DecomposedConv2d(2, 2, (3, 3), 2, basis_bits=4)
    with pytest.raises(EsccError, match="padding 'same'"):
        DecomposedConv2d.like(nn.Conv2d(2, 2, 3, padding="same"), 3)
