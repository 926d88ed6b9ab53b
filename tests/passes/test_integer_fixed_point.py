"""Fixed-point multipliers, requantisation and the other 8-bit arithmetic."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from escc.passes.math.fixed_point import (
    balanced_ternary,
    byte_values,
    fixed_point,
    quantize_input,
    requantize,
    round_half_away,
)

LARGEST = 2**31 - 1


def rounded(value: Fraction) -> int:
    """Nearest integer, halves away from zero, by the book."""
    whole = math.floor(abs(value) + Fraction(1, 2))
    return whole if value >= 0 else -whole


@given(st.floats(2.0**-32, 2.0**31, exclude_max=True))
def test_multiplier_is_normalised_and_close(factor: float) -> None:
    m, s = fixed_point(factor)
    assert 2**30 <= m < 2**31
    assert 0 <= s <= 62
    assert abs(Fraction(m, 2**s) - Fraction(factor)) <= Fraction(factor) / 2**31


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (0.0, (0, 0)),
        (1.0, (2**30, 30)),
        (0.5, (2**30, 31)),
        (2.0**30, (2**30, 0)),
        (2.0**-32, (2**30, 62)),
        (2.0**-33, (0, 0)),
        (1e-300, (0, 0)),
        (1 - 2.0**-40, (2**30, 30)),
        (2.0**31 * (1 - 2.0**-40), (LARGEST, 0)),
    ],
)
def test_multiplier_edges(factor: float, expected: tuple[int, int]) -> None:
    assert fixed_point(factor) == expected


@pytest.mark.parametrize("factor", [-1.0, 2.0**31, math.inf, math.nan])
def test_multiplier_refuses(factor: float) -> None:
    with pytest.raises(ValueError, match="factor"):
        fixed_point(factor)


def test_requantize_small_numbers_exhaustively() -> None:
    """Every accumulator and bias of a small range, with multipliers that make exact halves common."""
    accumulators = np.arange(-40, 41)
    for bias, m, s in itertools.product((-3, 0, 2), (2**30, 3 * 2**29, 2**30 + 1, LARGEST), (30, 31, 32, 34)):
        expected = [rounded(Fraction((int(a) + bias) * m, 2**s)) for a in accumulators]
        assert requantize(accumulators, bias, m, s).tolist() == expected


@given(
    st.integers(-LARGEST, LARGEST),
    st.one_of(st.just(0), st.integers(2**30, LARGEST)),
    st.integers(0, 62),
)
def test_requantize_anywhere(total: int, m: int, s: int) -> None:
    assert int(requantize(total, 0, m, s)) == rounded(Fraction(total * m, 2**s))


def test_requantize_rounds_halves_away_from_zero() -> None:
    assert requantize([1, -1, 3, -3], 0, 2**30, 31).tolist() == [1, -1, 2, -2]
    assert requantize([LARGEST, -LARGEST], 0, LARGEST, 62).tolist() == [1, -1]


@given(st.floats(-1e6, 1e6))
def test_round_half_away(x: float) -> None:
    assert round_half_away(x) == rounded(Fraction(x))


def test_round_half_away_just_below_a_half() -> None:
    below = np.nextafter(0.5, 0.0)
    assert round_half_away([below, -below, 0.5, -0.5, 2.5, -2.5]).tolist() == [0, 0, 1, -1, 3, -3]


def test_inputs_round_half_to_even_and_saturate() -> None:
    x = np.array([0.5, 1.5, -0.5, -1.5, 1e9, -1e9], np.float32)
    assert quantize_input(x, 1.0, True).tolist() == [0, 2, 0, -2, 127, -128]
    assert quantize_input(x, 1.0, False).tolist() == [0, 2, 0, 0, 255, 0]
    assert quantize_input(x, 0.5, True).dtype == np.int8


def test_bytes_as_values() -> None:
    assert byte_values(False).tolist() == list(range(256))
    assert byte_values(True).tolist() == np.arange(256).astype(np.uint8).view(np.int8).tolist()


@pytest.mark.parametrize(("planes", "largest"), [(5, 121), (6, 364)])
def test_balanced_ternary_is_lossless(planes: int, largest: int) -> None:
    values = np.arange(-largest, largest + 1)
    digits = balanced_ternary(values, planes)
    assert set(digits.flat) <= {-1, 0, 1}
    assert (digits @ 3 ** np.arange(planes) == values).all()
    with pytest.raises(ValueError, match=f"at most {largest}"):
        balanced_ternary(np.array([largest + 1]), planes)
