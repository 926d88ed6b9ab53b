"""Properties of the machine, on random bits.

Not among them, because they do not hold (counter-examples in test_by_hand.py): more lanes (another cut of the
packed vectors; a multiple of the lanes never hurts the policies none and gather), more look-ahead (greedy
choice), more units (bases share them otherwise), more blocks and more rows (items are dealt otherwise).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.backend_sim.timing.cases import Machine, issue_cycles, random_case

from escc.backend_sim.simulator.timing import conv_timing
from escc.backend_sim.simulator.timing.work import Bits, Counts

SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def chunks(draw: st.DrawFn) -> tuple[Bits, Bits]:
    """Activations (positions, n) and coefficients (outs, n, bases) of one chunk."""
    generator = np.random.default_rng(draw(SEEDS))
    chans, outs, bases = draw(st.integers(1, 80)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    densities = st.floats(0, 1)
    active = generator.random((3, chans)) < draw(densities)
    return active, generator.random((outs, chans, bases)) < draw(densities)


def matches(active: Bits, coefficients: Bits) -> Counts:
    return np.einsum("pc,kcm->pmk", active.astype(np.int64), coefficients.astype(np.int64))


@settings(deadline=None)
@given(chunks(), st.integers(1, 20))
def test_gather_is_the_rounded_quotient(chunk: tuple[Bits, Bits], lanes: int) -> None:
    cycles = issue_cycles(Machine(policy="gather", lanes=lanes), *chunk)
    np.testing.assert_array_equal(cycles, -(-matches(*chunk) // lanes))


@settings(deadline=None)
@given(chunks(), st.integers(1, 20), st.integers(0, 4), st.integers(0, 4))
def test_window_lies_between_gather_and_none(
    chunk: tuple[Bits, Bits], lanes: int, ahead: int, aside: int
) -> None:
    machine = Machine(lanes=lanes, look_ahead=ahead, look_aside=aside)
    window = issue_cycles(machine, *chunk)
    assert (window <= issue_cycles(replace(machine, policy="none"), *chunk)).all()
    assert (window >= issue_cycles(replace(machine, policy="gather"), *chunk)).all()
    # A cycle empties its head and at most look_ahead other vectors.
    assert (window * (1 + ahead) >= issue_cycles(replace(machine, policy="none"), *chunk)).all()


@settings(deadline=None)
@given(chunks(), st.integers(1, 20))
def test_no_look_ahead_is_no_concentration(chunk: tuple[Bits, Bits], lanes: int) -> None:
    window = issue_cycles(Machine(lanes=lanes, look_ahead=0, look_aside=3), *chunk)
    np.testing.assert_array_equal(window, issue_cycles(Machine(lanes=lanes, policy="none"), *chunk))


@settings(deadline=None)
@given(chunks(), st.integers(1, 8), st.integers(2, 4), st.sampled_from(["none", "gather"]))
def test_a_multiple_of_the_lanes_is_never_slower(
    chunk: tuple[Bits, Bits], lanes: int, times: int, policy: str
) -> None:
    machine = Machine(policy=policy, lanes=lanes)
    assert (
        issue_cycles(replace(machine, lanes=lanes * times), *chunk) <= issue_cycles(machine, *chunk)
    ).all()


@settings(deadline=None)
@given(chunks(), st.integers(1, 8))
def test_an_ideal_window_gathers(chunk: tuple[Bits, Bits], lanes: int) -> None:
    """A window over the whole entry that reaches every lane loses nothing against gather."""
    machine = Machine(lanes=lanes, look_ahead=80, look_aside=lanes)
    np.testing.assert_array_equal(
        issue_cycles(machine, *chunk), issue_cycles(replace(machine, policy="gather"), *chunk)
    )


@settings(deadline=None)
@given(SEEDS, st.sampled_from(["ring_entries", "fifo_positions", "macs"]), st.integers(1, 20))
def test_deeper_queues_and_more_multipliers_are_never_slower(seed: int, name: str, more: int) -> None:
    """Every time is a maximum of sums of earlier ones; deeper queues drop terms, multipliers lower some."""
    case = random_case(seed)
    better = replace(case.arch, **{name: getattr(case.arch, name) + more})
    before = conv_timing(case.arch, case.work, case.x, case.mask)
    after = conv_timing(better, case.work, case.x, case.mask)
    assert (after.cycles <= before.cycles).all()
    assert (after.lc_busy == before.lc_busy).all()


@settings(deadline=None)
@given(SEEDS, st.integers(1, 3))
def test_events_do_not_depend_on_the_queues(seed: int, more: int) -> None:
    case = random_case(seed)
    deep = replace(case.arch, ring_entries=case.arch.ring_entries + more, fifo_positions=9, blocks=5)
    before = conv_timing(case.arch, case.work, case.x, case.mask)
    after = conv_timing(deep, case.work, case.x, case.mask)
    for name in vars(before):
        if name.startswith(("lc_wait", "lc_idle", "mac_wait", "mac_idle")) or name == "cycles":
            continue
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name), err_msg=name)


@settings(deadline=None)
@given(SEEDS)
def test_a_further_non_zero_is_never_a_lost_match(seed: int) -> None:
    """Matches, products and ring bytes grow with the activations."""
    case = random_case(seed)
    before = conv_timing(case.arch, case.work, case.x, case.mask)
    full = conv_timing(case.arch, case.work, np.ones_like(case.x), case.mask)
    for name in ("matches", "products", "fifo_values", "ring_bytes_written", "ring_bytes_read"):
        assert (getattr(full, name) >= getattr(before, name)).all()


@pytest.mark.parametrize("seed", range(30))
def test_bands_multiply_the_same(seed: int) -> None:
    """However the output rows are cut, the same products are made; only halo rows are read again."""
    case = random_case(seed)
    one = conv_timing(case.arch, replace(case.work, bands=1), case.x, case.mask)
    cut = conv_timing(case.arch, replace(case.work, bands=4), case.x, case.mask)
    np.testing.assert_array_equal(one.products, cut.products)
    assert (cut.ring_entries >= one.ring_entries).all()
