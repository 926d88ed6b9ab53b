"""Covariance-aware coding: every step lowers what it says it lowers; naive oracles on small cases."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from escc.passes.math.covariance import CovarianceFit, code_layer, refine
from escc.passes.math.quadratic import layer_quadratic, quadratic

EXACT = 1 + 1e-4
"""Codes are scored in float32: equally good ones may change places."""

Float = NDArray[np.float64]


class Case:
    """A random layer: H, w* and somewhere to start from."""

    def __init__(self, seed: int, outputs: int = 4, inputs: int = 3, taps: int = 4, bases: int = 3) -> None:
        rng = np.random.default_rng(seed)
        size = inputs * taps
        samples = rng.standard_normal((4 * size, size)) @ rng.standard_normal((size, size)) / np.sqrt(size)
        self.taps = taps
        self.target = rng.standard_normal((outputs, size))
        self.covariance = samples.T @ samples / len(samples) + 0.1 * np.eye(size)
        self.bases = rng.standard_normal((bases, taps))
        self.scale = rng.uniform(0.5, 2, outputs)
        self.codes = rng.integers(-1, 2, (outputs, inputs, bases)).astype(np.int8)

    def fit(self, penalty: float = 0.01, codes: NDArray[np.int8] | None = None) -> CovarianceFit:
        shared = quadratic(self.covariance, self.target @ self.covariance, self.taps)
        codes = self.codes if codes is None else codes
        return CovarianceFit([shared], self.bases, self.scale, codes, penalty)

    def error(self, weight: Float) -> float:
        """Share of the energy lost, in double precision."""
        difference = self.target - weight
        lost = np.einsum("kn,kn->", difference @ self.covariance, difference)
        return float(lost / np.einsum("kn,kn->", self.target @ self.covariance, self.target))


def weight_of(fit: CovarianceFit) -> Float:
    kernels = np.einsum("kcm,mp->kcp", fit.codes.astype(np.float64), fit.bases)
    return (kernels * fit.scale[:, None, None]).reshape(len(fit.scale), -1)


@given(st.integers(0, 10_000), st.sampled_from([1, 4]), st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_the_error_is_the_one_in_double_precision(seed: int, taps: int, inputs: int) -> None:
    case = Case(seed, inputs=inputs, taps=taps)
    fit = case.fit()
    assert fit.error() == pytest.approx(case.error(weight_of(fit)), rel=1e-3, abs=1e-5)


@given(
    st.integers(0, 10_000), st.sampled_from([0.0, 0.01, 1.0]), st.sampled_from([(3, 4), (150, 1), (40, 9)])
)
@settings(max_examples=30, deadline=None)
def test_no_step_makes_it_worse(seed: int, penalty: float, shape: tuple[int, int]) -> None:
    fit = Case(seed, inputs=shape[0], taps=shape[1]).fit(penalty)
    fit.code_in_order()
    value = fit.objective()
    for step in (fit.sweep, fit.sweep, fit.fit_bases, fit.fit_scale, fit.sweep):
        step()
        assert fit.objective() <= value * EXACT + 1e-6
        value = fit.objective()


def in_order_naively(case: Case, penalty: float) -> NDArray[np.int8]:
    """OBQ as published: the inverse of what is left, one code at a time, the error passed on at once."""
    taps = case.taps
    outputs, inputs, bases = case.codes.shape
    energy = np.diagonal(case.covariance).reshape(inputs, taps).sum(axis=1)
    order = list(np.argsort(-energy, kind="stable"))
    every = np.array(list(itertools.product((-1, 0, 1), repeat=bases)))
    price = penalty * np.einsum("kn,kn->", case.target @ case.covariance, case.target) / (outputs * inputs)
    left = case.target.copy()
    codes = np.zeros_like(case.codes)
    for position, channel in enumerate(order):
        live = np.concatenate([np.arange(c * taps, (c + 1) * taps) for c in order[position:]])
        inverse = np.linalg.inv(case.covariance[np.ix_(live, live)])
        metric = np.linalg.inv(inverse[:taps, :taps])
        here = slice(channel * taps, (channel + 1) * taps)
        for row in range(outputs):
            rest = left[row, here] - case.scale[row] * (every @ case.bases)
            cost = np.einsum("jp,pq,jq->j", rest, metric, rest) + price * (every != 0).sum(axis=1)
            best = int(cost.argmin())
            codes[row, channel] = every[best]
            left[row, live[taps:]] -= rest[best] @ metric @ inverse[:taps, taps:]
    return codes


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("inputs", "taps"), [(6, 4), (150, 1), (20, 9)])
def test_coding_in_order_is_obq(seed: int, inputs: int, taps: int) -> None:
    """Lazy blocks and the Cholesky factor change nothing: 150 x 1 and 20 x 9 columns are two blocks."""
    case = Case(seed, inputs=inputs, taps=taps)
    fit = case.fit(0.02)
    fit.code_in_order()
    expected = in_order_naively(case, 0.02)
    assert np.mean(fit.codes != expected) < 0.01
    assert fit.objective() == pytest.approx(case.fit(0.02, expected).objective(), rel=1e-2)


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_after_sweeps_no_single_code_can_be_better(seed: int) -> None:
    case = Case(seed, outputs=2, inputs=4)
    fit = case.fit(0.05)
    while fit.sweep():
        pass
    value = fit.objective()
    for row, channel in itertools.product(range(2), range(4)):
        for code in itertools.product((-1, 0, 1), repeat=3):
            codes = fit.codes
            codes[row, channel] = code
            assert case.fit(0.05, codes).objective() >= value - 1e-5


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_fitted_bases_and_scales_are_stationary(seed: int) -> None:
    """No small change of the bases (or of a scale) lowers the error in double precision."""
    case = Case(seed, outputs=6, inputs=5)
    fit = case.fit()
    fit.fit_bases()
    error = case.error(weight_of(fit))
    step = 1e-2 * np.random.default_rng(seed).standard_normal(fit.bases.shape)
    for sign in (1, -1):
        fit.bases = fit.bases + sign * step
        assert case.error(weight_of(fit)) >= error - 1e-6
        fit.bases = fit.bases - sign * step


def test_groups_share_their_bases() -> None:
    """Two groups coded together: the error is that of both, and the bases fit both."""
    first, second = Case(1, outputs=6, inputs=5), Case(2, outputs=6, inputs=5)
    parts = [quadratic(case.covariance, case.target @ case.covariance, 4) for case in (first, second)]
    codes = np.concatenate([first.codes, second.codes])
    scale = np.concatenate([first.scale, second.scale])
    fit = CovarianceFit(parts, first.bases, scale, codes, 0.001)
    history = refine(fit, 3, 2, steps=0)
    weight = weight_of(fit)
    lost = [part.energy * case.error(weight[at : at + 6]) for part, case, at in
            zip(parts, (first, second), (0, 6), strict=True)]  # fmt: skip
    assert fit.error() == pytest.approx(sum(lost) / (parts[0].energy + parts[1].energy), rel=1e-3)
    assert fit.objective() == pytest.approx(min(history), rel=1e-4)
    assert history[-1] < 0.7 * history[0]


@pytest.mark.parametrize("seed", range(3))
def test_refining_beats_coding_that_ignores_the_inputs(seed: int) -> None:
    case = Case(seed, outputs=16, inputs=8, taps=9, bases=4)
    blind = CovarianceFit([quadratic(np.eye(72), case.target, 9)], case.bases, case.scale, case.codes, 1e-6)
    refine(blind, 2, 1)
    fit = case.fit(1e-6)
    refine(fit, 2, 2)
    assert fit.error() < 0.8 * case.error(weight_of(blind))


def test_a_higher_price_gives_fewer_coefficients_and_bases_of_8_bits() -> None:
    case = Case(5, outputs=16, inputs=16, taps=9, bases=4)
    shared = [quadratic(case.covariance, case.target @ case.covariance, 9)]
    found = [code_layer(shared, (case.bases, case.scale, case.codes), price) for price in (0.0, 0.05, 0.5)]
    counts = [code.nonzeros for code in found]
    assert counts == sorted(counts, reverse=True)
    assert counts[2] < 0.6 * counts[0]
    assert [code.error for code in found] == sorted(code.error for code in found)
    for code in found:
        assert np.abs(code.bases).max() == 1
        np.testing.assert_allclose(code.bases * 127, np.rint(code.bases * 127), atol=1e-9)
        assert code.objective[-1] < code.objective[0]


def test_a_representable_target_is_found_again() -> None:
    case = Case(11, outputs=6)
    fit = case.fit(0.0)
    case.target = weight_of(fit)
    fit = case.fit(0.0)
    assert fit.sweep() == 0
    assert fit.error() < 1e-6


def test_the_target_undoes_a_linear_change_of_the_inputs() -> None:
    """If earlier layers only scaled the inputs, the target scales the weights back."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 12)) @ rng.standard_normal((12, 12)) + rng.standard_normal(12)
    weight = rng.standard_normal((5, 12))
    factors = rng.uniform(0.5, 2, 12)
    inputs = (x * factors).astype(np.float32)
    found = layer_quadratic(inputs, x @ weight.T + 3.0, weight, taps=3, damping=0.0)
    np.testing.assert_allclose(found.target(), weight / factors, rtol=2e-2, atol=2e-3)
    assert np.linalg.eigvalsh(found.covariance).min() > 0
    np.testing.assert_allclose(found.factor @ found.factor.T, found.covariance, rtol=1e-4, atol=1e-4)
