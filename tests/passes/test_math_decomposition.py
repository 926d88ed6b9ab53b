"""The mathematics of decomposition: SVD, thresholds, exact ternary coding, the alternation."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from escc.passes.math import coding
from escc.passes.math.basis import principal_kernels, reconstruct, relative_error, svd_decompose
from escc.passes.math.coding import code_costs, codewords, descend, encode, encode_single
from escc.passes.math.fitting import SingleFit
from escc.passes.math.ternary import (
    Decomposition,
    fit_ternary,
    refit_scale,
    svd_float,
    svd_ternary,
    tap_ternary,
)
from escc.passes.math.thresholds import magnitude_mask, residual_planes, ternarize

Array = NDArray[Any]


def random_weight(seed: int, outputs: int, inputs: int, side: int) -> Array:
    """Kernels with correlated taps and outputs of different size, like trained ones."""
    rng = np.random.default_rng(seed)
    rows, columns = np.divmod(np.arange(side * side), side)
    distance = np.abs(rows[:, None] - rows) + np.abs(columns[:, None] - columns)
    mix = np.linalg.cholesky(0.6**distance)
    taps = rng.standard_normal((outputs, inputs, side * side)) @ mix.T
    taps *= rng.uniform(0.3, 2.0, (outputs, 1, 1))
    return taps.reshape(outputs, inputs, side, side).astype(np.float32)


def squared_error(weight: Array, fit: Decomposition) -> float:
    return float(np.sum((weight.astype(np.float64) - fit.weight()) ** 2))


weights = st.builds(
    random_weight,
    seed=st.integers(0, 2**32 - 1),
    outputs=st.integers(1, 6),
    inputs=st.integers(1, 6),
    side=st.sampled_from([1, 2, 3, 5]),
)


@given(weights, st.integers(1, 25))
@settings(max_examples=40, deadline=None)
def test_svd_error_is_the_tail_energy(weight: Array, bases: int) -> None:
    kernels, energies = principal_kernels(weight)
    flat = kernels.reshape(len(kernels), -1)
    np.testing.assert_allclose(flat @ flat.T, np.eye(len(flat)), atol=1e-12)
    total = float(np.sum(weight.astype(np.float64) ** 2))
    assert energies.sum() == pytest.approx(total)
    chosen, coefficients = svd_decompose(weight, bases)
    error = float(np.sum((weight - reconstruct(chosen, coefficients, np.ones(len(weight)))) ** 2))
    assert error == pytest.approx(energies[bases:].sum(), abs=1e-9 * total)
    # Eckart-Young: no other set of that many kernels does better, a random one least of all
    random = np.linalg.qr(np.random.default_rng(0).standard_normal((flat.shape[1], len(chosen))))[0]
    rows = weight.reshape(-1, flat.shape[1]).astype(np.float64)
    assert error <= float(np.sum((rows - rows @ random @ random.T) ** 2)) + 1e-9 * total


@given(weights)
@settings(max_examples=20, deadline=None)
def test_all_bases_lose_nothing(weight: Array) -> None:
    fit = svd_float(weight, weight.shape[2] * weight.shape[3])
    np.testing.assert_allclose(fit.weight(), weight, atol=1e-5 * float(np.abs(weight).max()))


@pytest.mark.parametrize(
    ("draw", "error", "density"),
    [
        (lambda rng, n: rng.standard_normal(n), 0.192, 0.576),
        (lambda rng, n: rng.laplace(size=n), 0.283, 0.496),
        (lambda rng, n: rng.uniform(-1, 1, n), 0.1115, 0.650),
    ],
    ids=["gaussian", "laplace", "uniform"],
)
def test_ternary_weight_rule_on_known_distributions(draw: Any, error: float, density: float) -> None:
    values = draw(np.random.default_rng(1), 400_000)
    codes, scale = ternarize(values)
    assert relative_error(values, scale * codes) == pytest.approx(error, abs=2e-3)
    assert np.count_nonzero(codes) / codes.size == pytest.approx(density, abs=2e-3)


def test_thresholds_are_shared_over_the_axes_given() -> None:
    values = np.random.default_rng(2).standard_normal((3, 4, 5)) * np.array([1.0, 10.0, 100.0])[:, None, None]
    codes, scale = ternarize(values, axis=(1, 2))
    assert scale.shape == (3, 1, 1)
    for k in range(3):
        alone, own = ternarize(values[k])
        np.testing.assert_array_equal(codes[k], alone)
        assert scale[k].item() == pytest.approx(own.item())


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_each_residual_plane_takes_its_own_energy_away(seed: int, planes: int) -> None:
    values = np.random.default_rng(seed).standard_normal(300)
    codes, scales = residual_planes(values, planes)
    left = float(values @ values)
    for plane in range(planes):
        rest = values - codes[:, : plane + 1] @ scales[: plane + 1]
        left -= np.count_nonzero(codes[:, plane]) * scales[plane] ** 2
        assert float(rest @ rest) == pytest.approx(left, rel=1e-9)


def test_magnitude_rule_uses_the_spread_of_the_whole_layer() -> None:
    values = np.array([[1.0, -1.0], [0.1, -0.1]])
    assert magnitude_mask(values, 1.0).tolist() == [[True, True], [False, False]]
    assert magnitude_mask(values, 0.0).all()


@pytest.mark.parametrize("bases", [1, 2, 3, 5])
def test_half_of_the_codes_and_their_negatives_are_all(bases: int) -> None:
    half = codewords(bases)
    assert not half[0].any()
    both = {tuple(code) for code in np.concatenate([half, -half]).tolist()}
    assert both == set(itertools.product((-1, 0, 1), repeat=bases))
    assert len(half) == (3**bases + 1) // 2
    with pytest.raises(ValueError, match="1 to 9 bases"):
        codewords(10)


def cost(beta: Array, gram: Array, mu: Array, codes: Array) -> Array:
    values = codes.astype(np.float64)
    energy = np.einsum("kcm,mn,kcn->kc", values, gram, values)
    return 0.5 * energy + mu[:, None] * (codes != 0).sum(2) - np.einsum("kcm,kcm->kc", values, beta)


@given(
    seed=st.integers(0, 2**32 - 1),
    bases=st.integers(1, 5),
    outputs=st.integers(1, 7),
    inputs=st.integers(1, 40),
    block=st.sampled_from([7, 40, 1024]),
    product=st.sampled_from([50, 3000, 1 << 18]),
)
@settings(max_examples=40, deadline=None)
def test_coder_finds_the_best_code_of_all(
    seed: int, bases: int, outputs: int, inputs: int, block: int, product: int
) -> None:
    rng = np.random.default_rng(seed)
    kernels = rng.standard_normal((bases, 9))
    beta, gram = rng.standard_normal((outputs, inputs, 9)) @ kernels.T, kernels @ kernels.T
    mu = rng.uniform(0, 1, outputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coding, "BLOCK", block)
        patch.setattr(coding, "PRODUCT", product)
        coding._blocks.cache_clear()  # pyright: ignore[reportPrivateUsage]
        codes = encode(beta, gram, mu)
    coding._blocks.cache_clear()  # pyright: ignore[reportPrivateUsage]
    every = np.array(list(itertools.product((-1, 0, 1), repeat=bases)), dtype=np.int8)
    best = np.full((outputs, inputs), np.inf)
    for code in every:
        best = np.minimum(best, cost(beta, gram, mu, np.broadcast_to(code, beta.shape)))
    np.testing.assert_allclose(cost(beta, gram, mu, codes), best, atol=1e-4)


@given(seed=st.integers(0, 2**32 - 1), bases=st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_descent_never_worsens_a_code(seed: int, bases: int) -> None:
    rng = np.random.default_rng(seed)
    kernels = rng.standard_normal((bases, 9))
    beta, gram = rng.standard_normal((4, 20, 9)) @ kernels.T, kernels @ kernels.T
    mu = rng.uniform(0, 1, 4)
    start = rng.integers(-1, 2, beta.shape).astype(np.int8)
    first = descend(beta, gram, mu, start)
    assert (cost(beta, gram, mu, first) <= cost(beta, gram, mu, start) + 1e-4).all()
    best = cost(beta, gram, mu, encode(beta, gram, mu))
    assert (best <= cost(beta, gram, mu, descend(beta, gram, mu, first, sweeps=3)) + 1e-4).all()


@given(weights, st.integers(1, 5), st.sampled_from([0.0, 0.02, 0.2]), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_alternation_never_raises_its_objective(
    weight: Array, bases: int, penalty: float, every: int
) -> None:
    fit = fit_ternary(weight, bases, penalty, exact_every=every, steps=0)
    assert all(after <= before for before, after in itertools.pairwise(fit.objective))
    nonzeros = np.count_nonzero(fit.coefficients)
    final = fit.error(weight) + penalty * nonzeros / (weight.shape[0] * weight.shape[1])
    assert final <= (fit.objective[-1] if fit.objective else 1.0) + 1e-5
    assert (fit.scale > 0).all()
    assert np.abs(fit.bases).max() == pytest.approx(1.0)
    assert set(np.unique(fit.coefficients)) <= {-1, 0, 1}


def test_alternation_beats_one_shot_rules_with_fewer_non_zeros() -> None:
    weight = random_weight(3, 32, 32, 3)
    ours, one_shot = fit_ternary(weight, 5, 0.02), svd_ternary(weight, 5)
    assert ours.error(weight) < 0.8 * one_shot.error(weight)
    assert ours.density < one_shot.density


def test_a_fit_that_exists_is_found() -> None:
    rng = np.random.default_rng(4)
    kernels = rng.standard_normal((3, 9))
    codes = rng.integers(-1, 2, (16, 24, 3))
    weight = ((codes @ kernels) * rng.uniform(0.5, 2.0, (16, 1, 1))).reshape(16, 24, 3, 3)
    assert fit_ternary(weight, 3, 0.0, steps=0).error(weight) < 1e-9
    assert fit_ternary(weight, 3, 0.0).error(weight) < 1e-4


def test_bases_lie_on_the_8_bit_grid_at_little_cost() -> None:
    weight = random_weight(5, 16, 16, 3)
    real, grid = fit_ternary(weight, 6, steps=0), fit_ternary(weight, 6)
    np.testing.assert_allclose(grid.bases * 127, np.rint(grid.bases * 127), atol=1e-4)
    assert grid.error(weight) < real.error(weight) + 2e-3


def test_larger_penalty_is_sparser_and_more_bases_are_closer() -> None:
    weight = random_weight(6, 24, 24, 3)
    by_penalty = [fit_ternary(weight, 5, penalty) for penalty in (0.0, 0.02, 0.1)]
    assert by_penalty[0].density > by_penalty[1].density > by_penalty[2].density
    errors = [fit_ternary(weight, bases, 0.0).error(weight) for bases in (3, 5, 7)]
    assert errors[0] > errors[1] > errors[2]


def test_planes_of_single_weights_and_large_kernels() -> None:
    single = random_weight(7, 32, 32, 1)
    errors = [fit_ternary(single, planes, 0.0).error(single) for planes in (1, 2, 3, 4)]
    assert errors[0] < 0.25
    assert errors[-1] < 3e-3
    assert all(after < 0.5 * before for before, after in itertools.pairwise(errors))
    large = random_weight(8, 6, 6, 7)
    fit = fit_ternary(large, 8, 0.0)
    assert fit.bases.shape == (8, 7, 7)
    assert fit.error(large) < svd_ternary(large, 8).error(large)


def test_a_large_layer_fitted_from_a_sample_is_as_good() -> None:
    weight = random_weight(9, 64, 64, 3)
    whole, sampled = fit_ternary(weight, 5, 0.02), fit_ternary(weight, 5, 0.02, sample=1000)
    assert sampled.objective[-1] < 1.03 * whole.objective[-1]
    weight = random_weight(14, 96, 64, 1)
    whole, sampled = fit_ternary(weight, 4, 0.02), fit_ternary(weight, 4, 0.02, sample=800)
    assert sampled.objective[-1] < 1.01 * whole.objective[-1]


def test_degenerate_layers() -> None:
    zero = fit_ternary(np.zeros((4, 3, 3, 3), dtype=np.float32), 5)
    assert not zero.coefficients.any()
    assert (zero.scale > 0).all()
    assert not zero.weight().any()
    weight = random_weight(10, 4, 3, 3)
    weight[1] = 0
    fit = fit_ternary(weight, 5)
    assert not fit.coefficients[1].any()
    assert np.isfinite(fit.weight()).all()
    one = fit_ternary(random_weight(11, 1, 1, 3), 9, 0.0)
    assert np.isfinite(one.weight()).all()


def test_plain_ternary_weights_are_a_special_case() -> None:
    weight = random_weight(12, 8, 8, 3)
    fit = tap_ternary(weight)
    for k in range(8):
        codes, scale = ternarize(weight[k])
        np.testing.assert_allclose(fit.weight()[k], scale * codes, rtol=1e-6)


def test_scale_is_the_least_squares_one() -> None:
    weight = random_weight(13, 8, 8, 3)
    fit = svd_ternary(weight, 5)
    scale = refit_scale(weight, fit.bases, fit.coefficients, fit.scale)
    best = squared_error(weight, Decomposition(fit.bases, fit.coefficients, scale))
    for factor in (0.97, 1.03):
        assert best < squared_error(
            weight, Decomposition(fit.bases, fit.coefficients, scale * np.float32(factor))
        )


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_codes_of_single_weights_are_the_best(bases: int, outputs: int, inputs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # sums of small integers meet often, and so do the lines
    taps = rng.integers(-3, 4, bases).astype(np.float64) if seed % 2 else rng.standard_normal(bases)
    values = 2 * rng.standard_normal((outputs, inputs))
    penalty = rng.random(outputs) * rng.choice([0.0, 0.01, 0.3])
    codes = encode_single(values, taps, penalty)
    beta, gram = values[..., None] * taps, np.outer(taps, taps)
    best = code_costs(beta, gram, penalty, encode(beta, gram, penalty))
    np.testing.assert_allclose(code_costs(beta, gram, penalty, codes), best, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_statistics_of_single_weights_are_those_of_their_codes(
    bases: int, outputs: int, inputs: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = (rng.standard_normal((outputs, inputs, 1)) * rng.integers(0, 2, (outputs, 1, 1))).astype(
        np.float32
    )
    taps = 3.0 ** -np.arange(bases, dtype=np.float64)[:, None]
    fit = SingleFit(rows, 0.02, taps, rng.uniform(0.2, 2.0, outputs))
    fit.recode(exact=True)
    fit.refit(rounds=2)
    codes = fit.codes()
    rest = rows[..., 0] - fit.scale[:, None] * (codes @ fit.bases[:, 0])
    expected = (np.sum(rest**2) + 0.02 * np.count_nonzero(codes)) / rows.size
    assert fit.nonzeros == np.count_nonzero(codes)
    np.testing.assert_allclose(fit.objective(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(fit.usage(), np.count_nonzero(codes, axis=(0, 1)))
