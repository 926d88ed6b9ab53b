"""Requantisation against integers of Python, at the edges where rounding goes wrong."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.backend_sim.simulator.oracle import rq
from tests.backend_sim.timing.engines import narrow_engines

from escc.backend_sim.simulator.numerics import Finish, Requantizer, Residual, requantize, rescale_table
from escc.backend_sim.simulator.workspace import Workspace

ENGINES = narrow_engines()
EDGE_SUMS = (0, 1, 2, 3, 255, (1 << 20) + 1, (1 << 24) - 1, (1 << 31) - 1)
EDGE_MULTIPLIERS = (0, 1 << 30, (1 << 30) + 1, 3 << 29, (1 << 31) - 1, (1 << 31) - 2)


def defined(acc: int, bias: int, multiplier: int, shift: int) -> int:
    return rq(acc + bias, multiplier, shift)


@pytest.mark.parametrize("shift", range(63))
def test_the_definition_at_every_shift(shift: int) -> None:
    sums = [s * sign for s in EDGE_SUMS for sign in (1, -1)]
    for multiplier in EDGE_MULTIPLIERS:
        got = requantize(np.array(sums), 0, multiplier, shift)
        assert got.tolist() == [rq(s, multiplier, shift) for s in sums]


@pytest.mark.parametrize("shift", range(1, 63))
def test_ties_round_away_from_zero(shift: int) -> None:
    # With m = 2^30 the value is a * 2^30 / 2^s: a tie wherever a * 2^30 is an odd multiple of 2^(s-1).
    half = (1 << (shift - 1)) / (1 << 30)
    if shift <= 30:
        return
    for odd in (1, 3, 5):
        acc = int(odd * half)
        if acc < 1 << 31:
            up = (odd + 1) // 2
            assert requantize(np.array([acc, -acc]), 0, 1 << 30, shift).tolist() == [up, -up]
            assert requantize(np.array([acc - 1, 1 - acc]), 0, 1 << 30, shift).tolist() == [up - 1, 1 - up]


def applied(
    acc: np.ndarray,
    records: np.ndarray,
    finish: Finish,
    signed: bool,
    residual: tuple[np.ndarray, int, int, bool] | None = None,
    bound: int = 1 << 31,
) -> np.ndarray:
    """Run a Requantizer on acc (outs, n): one row of the map per sum; every engine, to the same bytes."""
    outs, count = acc.shape
    requantizer = Requantizer(*records.T.copy())
    second = None
    if residual is not None:
        values, multiplier, shift, res_signed = residual
        table = rescale_table(multiplier, shift, res_signed).astype(np.float64)
        second = Residual(values.reshape(1, count, 1, outs), table, int(np.abs(table).max()))
    given_acc = np.ascontiguousarray(acc.T.reshape(1, count, 1, outs), np.float64)
    found: list[np.ndarray] = []
    for engine in ENGINES:
        # bytes in between belong to something else
        held = np.full((1, count, 2, outs + 3), 77, np.uint8)
        out = held[:, :, 1:, 1:-2]
        typed = out.view(np.int8) if signed else out
        requantizer.apply(given_acc, bound, finish, second, typed, Workspace(engine.maps))
        found.append(held)
        np.testing.assert_array_equal(held, found[0], err_msg=engine.name)
        assert (held[:, :, 0] == 77).all()
        assert (held[..., [0, -2, -1]] == 77).all()
    result = found[0][0, :, 1, 1:-2].T
    return result.view(np.int8) if signed else result


def expected(
    acc: np.ndarray,
    records: np.ndarray,
    finish: Finish,
    residual: tuple[np.ndarray, int, int, bool] | None = None,
) -> list[list[int]]:
    rows: list[list[int]] = []
    for k, (bias, multiplier, shift) in enumerate(records.tolist()):
        row: list[int] = []
        for n, value in enumerate(acc[k].tolist()):
            y = defined(value, bias, multiplier, shift)
            if residual is not None:
                byte = int(residual[0][n, k])
                y += rq(byte - 256 if residual[3] and byte > 127 else byte, residual[1], residual[2])
            low, high = finish.limits
            y = max(low, min(high, y))
            row.append(int(finish.table[y & 255]) if finish.table is not None else y)
        rows.append(row)
    return rows


FINISHES = [
    (Finish(0, 255), False),
    (Finish(0, 100), False),
    (Finish(3, 200), False),
    (Finish(-128, 127), True),
    (Finish(-1, 127), True),
    (Finish(0, 127), True),
    (Finish(0, 0, np.arange(256, dtype=np.uint8)[::-1].copy()), False),
]


@pytest.mark.parametrize(("finish", "signed"), FINISHES)
@pytest.mark.parametrize("shift", range(63))
def test_float_form_equals_the_definition_around_every_boundary(
    shift: int, finish: Finish, signed: bool
) -> None:
    """Sums on both sides of every rounding boundary of the 8-bit range, and the largest ones."""
    records = np.array(
        [[bias, m, shift] for bias, m in product((0, 7, -70000, (1 << 30) + 12345), EDGE_MULTIPLIERS)]
    )
    acc = np.zeros((len(records), 2 * 24 + 4), np.int64)
    for k, (bias, m, _) in enumerate(records.tolist()):
        targets = [0, 1, 2, 99, 100, 127, 128, 199, 254, 255, 256, 300]
        sums = [((2 * t + 1) << shift) // (2 * max(m, 1)) for t in targets]
        near = [min(s, (1 << 31) - 80001) + d for s in sums for d in (0, 1)]
        values = [*near, *(-v for v in near), 1 << 30, -(1 << 30), (1 << 31) - 80000, -(1 << 31) + 80000]
        acc[k] = np.array(values) - bias
    assert applied(acc, records, finish, signed, bound=1 << 32).tolist() == expected(acc, records, finish)


records_of = st.tuples(
    st.integers(-(1 << 22), 1 << 22),
    st.one_of(st.just(0), st.integers(1 << 30, (1 << 31) - 1), st.sampled_from(EDGE_MULTIPLIERS)),
    st.integers(0, 62),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(records_of, min_size=1, max_size=4),
    st.integers(1, 31),
    st.sampled_from(FINISHES),
    st.tuples(st.integers(1 << 30, (1 << 31) - 1), st.integers(0, 62), st.booleans()) | st.none(),
    st.integers(0, 2**32 - 1),
)
def test_random_records(
    records: list[tuple[int, int, int]],
    bits: int,
    finish: tuple[Finish, bool],
    residual: tuple[int, int, bool] | None,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    limit = min(1 << bits, (1 << 31) - (1 << 22))
    acc = rng.integers(-limit, limit, (len(records), 40))
    table = np.array(records)
    second = None
    if residual is not None:
        values = rng.integers(0, 256, (40, len(records)), np.uint8)
        second = (values, *residual)
    got = applied(acc, table, *finish, second, bound=limit)
    assert got.tolist() == expected(acc, table, finish[0], second)


def test_which_form_is_chosen() -> None:
    plain = Requantizer(np.array([100]), np.array([(1 << 31) - 1]), np.array([40]))
    assert plain.float_is_exact(1 << 31)  # what is not exact saturates: 2^52 / 2^40 > 258
    assert plain.float_is_exact(1 << 31, residual_bound=3000)
    assert not plain.float_is_exact(1 << 31, residual_bound=4000)
    fine = Requantizer(np.array([100]), np.array([(1 << 31) - 1]), np.array([50]))
    assert not fine.float_is_exact(1 << 31)
    assert fine.float_is_exact(1 << 21)  # (2^21 + 100) * 2^31 + 2^49 < 2^53
    assert not fine.float_is_exact(1 << 22)
    # 2^30 = 2^30: a tie needs a multiple of 2^(s-1-30)
    assert Requantizer(np.array([0]), np.array([1 << 30]), np.array([41])).tie_free_below == 1 << 10
    assert Requantizer(np.array([0]), np.array([3 << 29]), np.array([20])).tie_free_below == 1 << 53
    assert plain.tie_free_below == 1 << 39


@pytest.mark.parametrize("signed", [False, True])
def test_rescale_table(signed: bool) -> None:
    for multiplier, shift in product((1 << 30, (1 << 31) - 1, -(1 << 31)), (0, 29, 30, 31, 38, 62)):
        table = rescale_table(multiplier, shift, signed)
        for byte in range(256):
            value = byte - 256 if signed and byte > 127 else byte
            assert table[byte] == rq(value, multiplier, shift)
