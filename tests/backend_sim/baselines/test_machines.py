"""Every fast model against its oracle, on random layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.backend_sim.baselines import oracle
from tests.backend_sim.baselines.cases import layer, works

from escc.backend_sim.baselines import Baseline, ConvWork, Dense, Eyeriss, Scnn, Sparten
from escc.backend_sim.baselines.counting import active_macs, matches, run_length_entries
from escc.backend_sim.baselines.eyeriss import Mapping, shape_of, traffic
from escc.backend_sim.simulator.energy import EnergyTable
from escc.errors import EsccError

MACHINES: tuple[Baseline, ...] = (
    Eyeriss(),
    Eyeriss().scaled(1024),
    Dense(),
    Dense(gating=True).scaled(1024),
    Scnn(),
    Scnn(spread=True, banks_queued=False).scaled(512),
    Sparten(),
    Sparten(sides="weights", balance="gb-s", lead=1).scaled(256),
)
SMALL_SCNN = Scnn(rows=2, columns=2, weights=2, activations=2, sums=16, samples=None)
SMALL_SPARTEN = Sparten(clusters=3, units=2, chunk=16)


@settings(deadline=None, max_examples=40)
@given(works())
def test_multiplications_are_counted_one_by_one(work: ConvWork) -> None:
    found = oracle.macs(work)
    assert work.macs == found.total()
    assert matches(work) == found[True, True]
    assert active_macs(work) == found[True, True] + found[True, False]


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=200), st.integers(1, 4))
def test_a_run_too_long_takes_an_entry_of_its_own(mask: list[bool], bits: int) -> None:
    # zeros at the end need no entry
    last = max((place for place, value in enumerate(mask) if value), default=-1)
    entries = run = 0
    for value in mask[: last + 1]:
        if value or run == (1 << bits) - 1:
            entries, run = entries + 1, 0
        else:
            run += 1
    assert run_length_entries(np.array(mask, bool), bits) == entries


@settings(deadline=None, max_examples=60)
@given(
    works(),
    st.sampled_from(["group", "channel"]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(3, 40),
)
def test_scnn(work: ConvWork, barrier: str, queued: bool, spread: bool, overlapped: bool, sums: int) -> None:
    machine = replace(SMALL_SCNN, barrier=barrier, banks_queued=queued, spread=spread, sums=sums)
    machine = replace(machine, halo_overlapped=overlapped)
    run = machine.run(work)
    tiles = machine.tiles(work)
    expected = oracle.scnn(machine, work, tiles)
    width = machine.weights * machine.activations
    assert run.cycles == expected["cycles"]
    assert run.multiplications == expected["products"]
    assert run.slots["busy"] == expected["useful"]
    assert run.slots["fragment"] == expected["steps"] * width - expected["products"]
    assert run.slots["bank_conflict"] == expected["extra"] * width
    assert run.sampled == 1.0
    assert tiles.rows * machine.rows * tiles.down >= work.x.shape[1]
    assert tiles.columns * machine.columns * tiles.across >= work.x.shape[2]


@pytest.mark.parametrize("queued", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_sampled_conflicts_are_close_to_all_of_them(queued: bool, stride: int) -> None:
    work = layer(12, 20, 16, density=0.6, stride=stride)
    exact = Scnn(rows=4, columns=4, sums=96, samples=None, banks_queued=queued).run(work)
    some = Scnn(rows=4, columns=4, sums=96, samples=64, banks_queued=queued).run(work)
    assert exact.sampled == 1.0
    assert 0 < some.sampled < 0.5
    # the slowest elements are not those at the map's edge, where products that land nowhere do not collide
    assert some.cycles == pytest.approx(exact.cycles, rel=0.02 if queued else 0.08)
    if not queued:
        conflicts = exact.slots["bank_conflict"]
        assert conflicts > 0.2 * exact.slots["busy"]
        assert some.slots["bank_conflict"] == pytest.approx(conflicts, rel=0.05)
    assert {**some.slots, "bank_conflict": 0, "barrier": 0} == {
        **exact.slots,
        "bank_conflict": 0,
        "barrier": 0,
    }


def test_scnn_halo_by_hand() -> None:
    # 8 x 8 inputs on 2 x 2 elements: tiles of 4 x 4, a 3 x 3 kernel reaches one row or column of 4 beyond
    machine = replace(SMALL_SCNN, sums=64, halo_overlapped=False)
    run = machine.run(layer(3, 8, 6))
    assert machine.tiles(layer(3, 8, 6)).held == 4
    assert run.slots["halo"] // machine.multipliers == 2 * 4 * 4
    assert machine.run(layer(3, 8, 6, kernel=1)).slots["halo"] == 0
    # behind the next group it costs nothing while that takes longer
    hidden = replace(machine, halo_overlapped=True)
    assert hidden.run(layer(3, 8, 6)).slots["halo"] == 0
    assert hidden.run(layer(3, 8, 6, density=0.0)).slots["halo"] == run.slots["halo"]


def test_scnn_cuts_what_its_rams_do_not_hold() -> None:
    work = replace(layer(4, 8, 4, density=1.0), output_nonzeros=100)
    small = replace(SMALL_SCNN, ram_kib=4 * 4 * 4 * 20 / 8192, sums=64)
    whole, cut = small.run(work), replace(small, ram_kib=small.ram_kib / 2).run(work)
    assert (small.tiles(work).down, small.tiles(work).across) == (1, 1)
    assert whole.dram_write_bytes == 0
    assert cut.dram_write_bytes == 250
    # the weights once a pass, the inputs once
    assert cut.mapping["down"] == 2
    assert cut.dram_read_bytes == 2 * whole.dram_read_bytes + work.x_nonzeros * 5 // 2


@settings(deadline=None, max_examples=60)
@given(
    works(),
    st.sampled_from(["two", "weights", "activations", "dense"]),
    st.sampled_from(["none", "gb-s", "gb-h"]),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_sparten(work: ConvWork, sides: str, balance: str, lead: int, clusters: int) -> None:
    machine = replace(SMALL_SPARTEN, sides=sides, balance=balance, lead=lead, clusters=clusters)
    join, expected = machine.join(work), oracle.sparten(machine, work)
    assert join.cycles == expected["cycles"]
    assert join.unit_cycles == expected["units"]
    assert join.cluster_cycles == expected["clusters"]
    machine.run(work)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 999), st.sampled_from(["none", "gb-s", "gb-h"]), st.integers(1, 3))
def test_sparten_with_chunks_of_channels(seed: int, balance: str, lead: int) -> None:
    work = layer(20, 3, 7, density=0.4, seed=seed)
    machine = replace(SMALL_SPARTEN, balance=balance, lead=lead)
    join, expected = machine.join(work), oracle.sparten(machine, work)
    assert (join.cycles, join.unit_cycles) == (expected["cycles"], expected["units"])


@given(st.integers(0, 99), st.floats(0.01, 0.6), st.integers(1, 9))
def test_sparten_with_two_level_masks(seed: int, density: float, cell: int) -> None:
    work = layer(20, 3, 7, density=density, seed=seed)
    plain, shorter = SMALL_SPARTEN.run(work), replace(SMALL_SPARTEN, mask_cell=cell).run(work)
    bits = 0
    for filter_mask in work.weight_mask.reshape(len(work.weight), -1).tolist():
        for first in range(0, len(filter_mask), cell):
            bits += 1 + cell * any(filter_mask[first : first + cell])
    saved = max(0, (work.weight.size - bits) // 8)
    assert plain.dram_read_bytes - shorter.dram_read_bytes == saved
    assert (plain.slots["busy"], plain.events) == (shorter.slots["busy"], shorter.events)


@settings(deadline=None, max_examples=60)
@given(works(), st.tuples(*[st.integers(1, 4)] * 5), st.integers(1, 3), st.integers(1, 2))
def test_eyeriss(work: ConvWork, sizes: tuple[int, ...], g: int, n: int) -> None:
    machine = Eyeriss(batch=n)
    mapping = Mapping(*sizes, g=g, n=n)
    fields = {name: np.array([value]) for name, value in vars(mapping).items()}
    cost = traffic(machine, shape_of(work), **fields)
    expected = oracle.eyeriss(machine, work, mapping)
    assert cost.compute[0] == expected["cycles"]
    assert cost.ifmap_words[0] == expected["inputs"]
    assert 2 * cost.psum_words[0] == expected["sums"]
    assert cost.filter_words[0] * n == expected["filters"]
    if cost.fits[0]:
        best = machine.best_mapping(work)
        fastest, found = machine.run_mapped(work, mapping), machine.run_mapped(work, best)
        assert found.cycles <= 2 * fastest.cycles
        assert machine.run(work) == found


def test_eyeriss_places_sets_on_the_array() -> None:
    work = layer(8, 20, 8)
    # four bands of three rows, 14 columns each: four sets of up to 14, two of up to 28
    for e, sets in ((7, 8), (14, 4), (15, 2), (20, 2)):
        Eyeriss().run_mapped(work, Mapping(e=e, p=1, q=1, r=1, t=sets))
        with pytest.raises(EsccError, match="does not fit"):
            Eyeriss().run_mapped(work, Mapping(e=e, p=1, q=1, r=1, t=sets + 1))


def test_eyeriss_refuses_a_kernel_taller_than_the_array() -> None:
    with pytest.raises(EsccError, match="no row-stationary mapping"):
        Eyeriss().run(layer(1, 20, 1, kernel=13))


@settings(deadline=None, max_examples=40)
@given(works(), st.booleans(), st.integers(1, 4), st.integers(1, 4))
def test_dense_shares_out_the_outputs(work: ConvWork, spread: bool, rows: int, columns: int) -> None:
    machine = Dense(rows=rows, columns=columns, width=4, spread=spread)
    outs, height, width = work.output_shape
    dot = -(-int(np.prod(work.weight.shape[1:])) // 4)
    if not spread:
        most = -(-height // rows) * -(-width // columns) * outs
    else:
        ways = range(1, rows * columns + 1)
        most = min(-(-height * width // n) * -(-outs // (rows * columns // n)) for n in ways)
    assert machine.run(work).cycles == most * dot


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: f"{machine.name}-{machine.multipliers}")
@pytest.mark.parametrize(
    "work",
    [
        layer(3, 32, 16, kernel=7, stride=2),
        layer(32, 14, 48, kernel=1),
        layer(48, 7, 48, groups=48),
        layer(48, 9, 96, groups=3, stride=2),
        layer(300, 1, 100, kernel=1),
        layer(40, 6, 70, density=0.0),
    ],
    ids=["first", "pointwise", "depthwise", "grouped", "dense", "all zero"],
)
def test_every_shape_runs_and_adds_up(machine: Baseline, work: ConvWork) -> None:
    run = machine.run(work)
    assert sum(run.causes.values()) == pytest.approx(run.cycles)
    assert run.multipliers == machine.multipliers
    assert run.slots["busy"] == matches(work) <= run.multiplications <= run.cycles * run.multipliers
    assert 0 <= run.utilisation <= 1
    table = EnergyTable.load()
    energy = run.energy(table, machine.clock_mhz)
    assert all(amount >= 0 for amount in energy.values())
    least = matches(work) * table.costs["multiply8"].value + 64 * (run.dram_read_bytes // 8)
    assert sum(energy.values()) >= least
    assert set(run.energy(EnergyTable.load("eyeriss65"), machine.clock_mhz)) == set(energy) - {"leakage"}


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: f"{machine.name}-{machine.multipliers}")
def test_maps_of_the_network_s_ends_and_a_slow_dram(machine: Baseline) -> None:
    work = layer(16, 14, 32)
    inner, outer = machine.run(work), machine.run(replace(work, x_in_dram=True, y_in_dram=True))
    assert outer.dram_read_bytes >= inner.dram_read_bytes
    assert outer.dram_write_bytes >= inner.dram_write_bytes
    assert outer.dram_write_bytes > 0
    assert outer.cycles == inner.cycles
    gbps = 0.001
    slow = replace(machine, dram_gbps=gbps).run(work)  # pyright: ignore
    moved = slow.dram_read_bytes + slow.dram_write_bytes
    assert slow.cycles - moved * machine.clock_mhz / (1000 * gbps) < max(1, inner.cycles)
    assert slow.slots["wait_dram"] > 0


def test_scaled_machines_have_the_multipliers_asked_for() -> None:
    for machine in (Eyeriss(), Dense(), Scnn(), Sparten()):
        for multipliers in (256, 512, 1024, 2048):
            assert machine.scaled(multipliers).multipliers == multipliers


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 2}, "do not make 2 groups"),
        ({"x": np.ones((3, 2, 2), np.uint8)}, "leave no output"),
        ({"weight": np.ones((4, 2, 3, 3), np.int8)}, "do not fit 3 channels"),
        ({"x": np.ones((3, 9), np.uint8)}, "needs a"),
    ],
)
def test_what_is_no_layer(change: dict[str, Any], message: str) -> None:
    good = ConvWork("layer", np.ones((3, 8, 8), np.uint8), np.ones((4, 3, 3, 3), np.int8))
    with pytest.raises(EsccError, match=message):
        replace(good, **change)
