"""Bit gather and scatter on butterfly networks, and the dilution identities built from them."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from escc.isa.butterfly import control_bits, gather, scatter, switch_count

words = st.sampled_from([2, 4, 8, 16, 64, 128]).flatmap(
    lambda n: st.tuples(*[st.lists(st.booleans(), min_size=n, max_size=n).map(np.array) for _ in range(3)])
)


def plain_gather(data: np.ndarray, mask: np.ndarray) -> np.ndarray:
    out = np.zeros_like(data)
    out[: mask.sum()] = data[mask]
    return out


def plain_scatter(data: np.ndarray, mask: np.ndarray) -> np.ndarray:
    out = np.zeros_like(data)
    out[mask] = data[: mask.sum()]
    return out


def test_all_words_of_eight_bits() -> None:
    bits = (np.arange(256)[:, None] >> np.arange(8) & 1).astype(bool)
    data, mask = np.broadcast_arrays(bits[:, None], bits[None])
    gathered, scattered = gather(data, mask), scatter(data, mask)
    for i in range(256):
        for j in range(0, 256, 7):
            np.testing.assert_array_equal(gathered[i, j], plain_gather(bits[i], bits[j]))
            np.testing.assert_array_equal(scattered[i, j], plain_scatter(bits[i], bits[j]))


@settings(max_examples=60)
@given(words)
def test_networks_move_bits_and_values(word: tuple[np.ndarray, ...]) -> None:
    data, mask, _ = word
    values = np.arange(1, data.size + 1, dtype=np.int16) * data
    for payload in (data, values):
        np.testing.assert_array_equal(gather(payload, mask), plain_gather(payload, mask))
        np.testing.assert_array_equal(scatter(payload, mask), plain_scatter(payload, mask))
    np.testing.assert_array_equal(scatter(gather(values, mask), mask), values * mask)
    assert sum(stage.size for stage in control_bits(mask)) == switch_count(data.size)


@settings(max_examples=60)
@given(words, st.integers(0, 2**32))
def test_dilution_identities(word: tuple[np.ndarray, ...], seed: int) -> None:
    active, coefficient, negative = word
    sign = negative & coefficient
    values = np.random.default_rng(seed).integers(1, 256, active.size) * active
    match = active & coefficient

    packed = gather(values, active)
    diluted_mask = gather(match, active)
    assert not diluted_mask[active.sum() :].any()
    assert diluted_mask.sum() == match.sum()

    packed_signs = gather(sign, coefficient)
    signs = gather(packed_signs, gather(match, coefficient))
    np.testing.assert_array_equal(signs, gather(sign, match))

    # Signs beside the diluted (not yet dense) vector give the dot product of values and ternary coefficients.
    diluted_signs = gather(sign, active)
    total = np.sum(np.where(diluted_signs, -packed, packed) * diluted_mask)
    assert total == np.sum(values * np.where(coefficient, np.where(sign, -1, 1), 0))
