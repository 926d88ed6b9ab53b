"""The native coder: the codes of the numpy one, in every instruction set, and nothing without a library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from escc.passes.math import native_coding
from escc.passes.math.coding import code_costs, codewords, encode, encode_numpy

needs_library = pytest.mark.skipif(not native_coding.LIBRARY.exists(), reason="no compiler, hence no library")


def problem(seed: int, bases: int, outputs: int, inputs: int) -> tuple[NDArray[Any], ...]:
    """Projections, Gram matrix, penalties; every other seed with bases and kernels that are zero."""
    rng = np.random.default_rng(seed)
    kernels = rng.standard_normal((bases, 9)).astype(np.float32) / 3
    rows = 2 * rng.standard_normal((outputs, inputs, 9)).astype(np.float32)
    if seed % 2:
        kernels[rng.random(bases) < 0.3] = 0
        rows[rng.random((outputs, inputs)) < 0.3] = 0
    penalty = (rng.random(outputs) * rng.choice([0.0, 0.01, 0.3])).astype(np.float32)
    return rows @ kernels.T, kernels @ kernels.T, penalty


def halves(gram: NDArray[Any]) -> NDArray[np.float64]:
    table = codewords(len(gram))
    return 0.5 * np.einsum("jm,jm->j", table @ gram.astype(np.float64), table)


@needs_library
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_codes_are_those_of_the_definition(bases: int, outputs: int, inputs: int, seed: int) -> None:
    beta, gram, penalty = problem(seed, bases, outputs, inputs)
    wanted = encode_numpy(beta, halves(gram), penalty)
    costs, tried = code_costs(beta, gram, penalty, wanted), 0
    for variant in range(3):
        table, half = codewords(bases), halves(gram).astype(np.float32)
        found = native_coding.encode(beta, penalty, table, half, variant=variant)
        if found is None:
            break
        tried += 1
        assert found.dtype == np.int8
        # two codes as good as each other may change places where BLAS adds in another order
        np.testing.assert_allclose(code_costs(beta, gram, penalty, found), costs, atol=1e-5)
    assert tried > 0


@needs_library
def test_the_native_coder_is_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("escc.passes.math.coding.encode_numpy", None)
    beta, gram, penalty = problem(2, 6, 3, 50)
    assert encode(beta, gram, penalty).shape == beta.shape


def test_without_a_library_numpy_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native_coding.library.cache_clear()
    monkeypatch.setattr(native_coding, "LIBRARY", tmp_path / "coding.so")
    try:
        beta, gram, penalty = problem(4, 5, 3, 50)
        np.testing.assert_array_equal(encode(beta, gram, penalty), encode_numpy(beta, halves(gram), penalty))
        (tmp_path / "coding.so").write_bytes(b"no library")
        native_coding.library.cache_clear()
        assert native_coding.library() is None
    finally:
        native_coding.library.cache_clear()
