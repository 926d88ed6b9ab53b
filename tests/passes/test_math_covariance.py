"""Covariance-aware coding: every step lowers what it says it lowers; brute force on small cases."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from escc.passes.math.covariance import CovarianceFit, least_squares_target, refine

EXACT = 1 + 1e-5
"""Codes are scored in float32: equally good ones may change places."""


def random_fit(seed: int, *, outputs: int = 4, inputs: int = 3, taps: int = 4, bases: int = 3,
               penalty: float = 0.01) -> CovarianceFit:  # fmt: skip
    rng = np.random.default_rng(seed)
    size = inputs * taps
    samples = rng.standard_normal((4 * size, size)) @ rng.standard_normal((size, size))
    return CovarianceFit(
        target=rng.standard_normal((outputs, size)),
        covariance=samples.T @ samples / len(samples) + 0.1 * np.eye(size),
        bases=rng.standard_normal((bases, taps)),
        scale=rng.uniform(0.5, 2, outputs),
        codes=rng.integers(-1, 2, (outputs, inputs, bases)).astype(np.int8),
        penalty=penalty,
    )


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.01, 1.0]))
@settings(max_examples=40, deadline=None)
def test_no_step_makes_it_worse(seed: int, penalty: float) -> None:
    fit = random_fit(seed, penalty=penalty)
    fit.code_in_order()
    value = fit.objective()
    for step in (fit.sweep, fit.sweep, fit.fit_bases, fit.fit_scale, fit.sweep):
        step()
        assert fit.objective() <= value * EXACT + 1e-9
        value = fit.objective()


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_a_sweep_over_one_channel_is_the_exact_optimum(seed: int) -> None:
    fit = random_fit(seed, outputs=2, inputs=1, penalty=0.05)
    fit.sweep()
    best = 0.0
    for row in range(2):
        values = []
        for code in itertools.product((-1, 0, 1), repeat=3):
            error = fit.target[row] - fit.scale[row] * (np.array(code) @ fit.bases)
            values.append(error @ fit.covariance @ error + 0.05 * np.count_nonzero(code))
        best += min(values)
    assert fit.objective() == pytest.approx(best, rel=1e-4)


def test_white_inputs_need_no_error_feedback() -> None:
    """With H = I the channels do not interact: coding in order is coding each kernel alone."""
    fit = random_fit(3, outputs=5, inputs=4)
    fit.covariance = np.eye(16)
    fit.code_in_order()
    in_order = fit.codes.copy()
    fit.sweep()
    np.testing.assert_array_equal(fit.codes, in_order)


@pytest.mark.parametrize("seed", range(6))
def test_refining_beats_coding_that_ignores_the_inputs(seed: int) -> None:
    fit = random_fit(seed, outputs=16, inputs=8, taps=9, bases=4, penalty=1e-6)
    blind = CovarianceFit(
        fit.target, np.eye(72), fit.bases.copy(), fit.scale.copy(), fit.codes.copy(), fit.penalty
    )
    refine(blind, 2, 1)
    blind.covariance = fit.covariance
    history = refine(fit, 2, 2)
    assert fit.objective() == pytest.approx(min(history))
    assert fit.error() < 0.8 * blind.error()


def test_a_representable_target_is_found_again() -> None:
    fit = random_fit(11, outputs=6, inputs=4, penalty=0.0)
    fit.target = fit.weight()
    start = fit.codes.copy()
    fit.sweep()
    np.testing.assert_array_equal(fit.codes, start)
    assert fit.error() < 1e-12


def test_the_target_undoes_a_linear_change_of_the_inputs() -> None:
    """If earlier layers only scaled the inputs, the target scales the weights back."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000, 12)) @ rng.standard_normal((12, 12)) + rng.standard_normal(12)
    weight = rng.standard_normal((5, 12))
    factors = rng.uniform(0.5, 2, 12)
    target, covariance = least_squares_target(x * factors, x @ weight.T + 3.0, weight, damping=1e-9)
    np.testing.assert_allclose(target, weight / factors, rtol=1e-5)
    assert np.linalg.eigvalsh(covariance).min() > 0
