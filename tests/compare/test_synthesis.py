"""Drawn weights and activations: repeatable, and with the statistics that are stated."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from escc.compare.statistics import (
    NETWORKS,
    SPECTRUM_DECAY,
    find_network,
    geometric_mean,
    tail_energy,
)
from escc.compare.synthesis import (
    drawn_weight,
    generator,
    kernel_codes,
    natural_images,
    plane_codes,
    prune,
    quantize_weight,
    smooth_bases,
    spread_bases,
    threshold,
)
from escc.errors import EsccError


def test_numbers_of_a_layer_depend_on_seed_and_name_alone() -> None:
    first = drawn_weight(generator(3, "layer1.conv1"), (8, 4, 3, 3))
    assert np.array_equal(first, drawn_weight(generator(3, "layer1.conv1"), (8, 4, 3, 3)))
    for other in (generator(4, "layer1.conv1"), generator(3, "layer1.conv2")):
        assert not np.array_equal(first, drawn_weight(other, (8, 4, 3, 3)))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 3), (5, 5), (2, 4), (7, 7)])
def test_bases_are_orthonormal(rows: int, columns: int) -> None:
    taps = rows * columns
    flat = smooth_bases(rows, columns).reshape(taps, taps)
    assert np.allclose(flat @ flat.T, np.eye(taps))
    # the first one is the mean
    assert np.allclose(flat[0], flat[0, 0])
    count = min(5, taps)
    mixed = spread_bases(rows, columns, count).reshape(count, taps)
    assert np.allclose(mixed @ mixed.T, np.eye(count))
    # over the same directions
    assert np.allclose(mixed @ flat[:count].T @ flat[:count], mixed)


def test_spectrum_of_drawn_kernels_is_the_stated_one() -> None:
    kernels = drawn_weight(generator(0, "x"), (96, 96, 3, 3)).reshape(-1, 9).astype(np.float64)
    energy = np.sort(np.linalg.eigvalsh(kernels.T @ kernels))[::-1]
    tails = [energy[count:].sum() / energy.sum() for count in (5, 6)]
    assert tails == pytest.approx([tail_energy(5, 9), tail_energy(6, 9)], abs=0.01)
    # measured on trained layers: 0.149 and 0.087
    assert tails == pytest.approx([0.149, 0.087], abs=0.015)
    assert energy[1] / energy[0] == pytest.approx(SPECTRUM_DECAY, abs=0.05)


def test_scales_vary_over_both_channels() -> None:
    weight = drawn_weight(generator(0, "x"), (128, 128, 3, 3))
    for axes in ((1, 2, 3), (0, 2, 3)):
        deviation = np.log(np.sqrt((weight**2).mean(axis=axes))).std()
        assert 0.15 < deviation < 0.26


@given(st.integers(1, 300), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_pruning_keeps_the_largest(size: int, density: float, seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal(size).reshape(1, size, 1, 1)
    kept = prune(values, density)
    assert kept.sum() == round(density * size)
    if 0 < kept.sum() < size:
        assert np.abs(values[kept]).min() >= np.abs(values[~kept]).max()


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1))
def test_quantised_weights_are_zero_exactly_where_they_were_pruned(seed: int, density: float) -> None:
    weight = np.random.default_rng(seed).standard_normal((4, 6, 3, 3)).astype(np.float32)
    weight[1] *= 1e-3
    weight[2] = 0
    kept = prune(weight, density)
    integers = quantize_weight(weight, kept)
    assert integers.dtype == np.int8
    assert np.array_equal(integers != 0, kept)
    same = kept & (weight != 0)
    assert np.array_equal(np.sign(integers)[same], np.sign(weight)[same])
    assert np.abs(quantize_weight(weight)[0]).max() == 127


@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
def test_codes_have_the_density_and_stand_for_the_weight(density: float) -> None:
    weight = drawn_weight(generator(0, "codes"), (48, 32, 3, 3))
    codes, scale = kernel_codes(weight, spread_bases(3, 3, 5), density)
    assert codes.shape == (48, 32, 5)
    assert np.mean(codes != 0) == pytest.approx(density, abs=1e-3)
    assert set(np.unique(codes)) <= {-1, 0, 1}
    assert (scale > 0).all()
    # every basis about as often as the others
    shares = np.mean(codes != 0, axis=(0, 1)) / density
    assert shares.min() > 0.6
    assert shares.max() < 1.5
    again = np.einsum("k,kcm,mrs->kcrs", scale, codes, spread_bases(3, 3, 5))
    assert np.sum(again * weight) / np.sum(again**2) == pytest.approx(1, abs=0.15)


def test_no_code_at_all_leaves_scales_positive() -> None:
    codes, scale = kernel_codes(np.ones((2, 2, 3, 3), np.float32), spread_bases(3, 3, 5), 0.0)
    assert not codes.any()
    assert (scale > 0).all()


@pytest.mark.parametrize("planes", [1, 2, 3, 4])
def test_planes_code_exactly_the_pruned_weights(planes: int) -> None:
    weight = drawn_weight(generator(0, "planes"), (32, 64, 1, 1))
    digits, scale = plane_codes(weight, 0.25, planes)
    assert digits.shape == (32, 64, planes)
    again = scale[:, None] * (digits * 3.0 ** -np.arange(planes)).sum(axis=-1)
    kept = prune(weight[:, :, 0, 0], 0.25)
    assert np.array_equal(again != 0, kept)
    error = np.sum((again - weight[:, :, 0, 0] * kept) ** 2) / np.sum((weight[:, :, 0, 0] * kept) ** 2)
    assert error < {1: 0.5, 2: 0.2, 3: 0.05, 4: 0.03}[planes]


@given(st.lists(st.floats(-100, 100), min_size=4, max_size=200, unique=True), st.floats(0.1, 0.9))
def test_the_threshold_lets_the_share_through(values: list[float], density: float) -> None:
    tensor = torch.tensor(values, dtype=torch.float64)
    above = int((tensor > threshold(tensor, density)).sum())
    assert abs(above - density * len(values)) <= 1


def test_images_are_smooth_and_repeatable() -> None:
    images = natural_images((3, 64, 64), 2, 5)
    assert np.array_equal(images, natural_images((3, 64, 64), 2, 5))
    assert not np.array_equal(images[0], images[1])
    assert images.std(axis=(1, 2, 3)) == pytest.approx([1, 1], abs=1e-3)
    # neighbours are alike, unlike those of noise
    steps = np.abs(np.diff(images, axis=-1)).mean() / np.abs(images).mean()
    # white noise: 1.41
    assert steps < 0.8
    assert np.corrcoef(images[0, 0].ravel(), images[0, 1].ravel())[0, 1] > 0.5


def test_every_figure_has_its_source() -> None:
    for network in NETWORKS:
        stated = network.statistics
        for item in (stated.coefficients, stated.weights, stated.inner, stated.joined):
            assert 0 < item.value <= 1
            assert item.source
        assert bool(stated.profile) == bool(stated.profile_source)
    with pytest.raises(EsccError, match="did you mean 'resnet50'"):
        find_network("resnet5")


def test_scaled_statistics_say_so_and_stay_densities() -> None:
    stated = find_network("vgg16-cifar").statistics
    other = stated.scaled(weights=2.0, activations=1.5)
    assert other.weights.value == 2 * stated.weights.value
    assert other.weights.source.startswith("2 times: ")
    assert other.coefficients == stated.coefficients
    assert max(other.profile) == 0.95
    assert stated.scaled() == stated


def test_geometric_means_by_hand() -> None:
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
    assert geometric_mean([3.0]) == pytest.approx(3.0)
    assert math.isnan(geometric_mean([]))


def test_the_tail_of_a_spectrum() -> None:
    assert tail_energy(0, 9) == pytest.approx(1.0)
    assert tail_energy(9, 9) == 0.0
    assert tail_energy(1, 2) == pytest.approx(SPECTRUM_DECAY / (1 + SPECTRUM_DECAY))
