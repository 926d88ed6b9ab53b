"""Time of transfers: by hand, and request by request."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from escc.isa.arch import Arch
from escc.isa.dram import expected_cycles, requests, rows_of_box, rows_of_range, transfer_cycles

DEFAULT = Arch.default()


def test_bandwidth_by_hand() -> None:
    # 12.8 GB/s at 800 MHz: 16 bytes a cycle, latency 100
    assert [transfer_cycles(DEFAULT, size, 1) for size in (1, 16, 17, 1600)] == [103, 103, 103, 200]
    # one activate: 48 cycles of one of 16 banks, 3 cycles; without it a byte takes its own cycle
    assert transfer_cycles(DEFAULT, 1, 0) == 101
    assert transfer_cycles(DEFAULT, 0, 0) == 100
    # 0.1 GB/s at 300 MHz: 1/3 byte a cycle, 3 cycles a byte; in floating point 3.0000000000000004
    slow = DEFAULT.replace(dram_gbps=0.1, mhz=300.0, dram_latency_cycles=0)
    assert [transfer_cycles(slow, size, 1) for size in (1, 2, 7)] == [3, 6, 21]


def test_requests_in_flight_by_hand() -> None:
    # docs/machine.md: 20 requests of 4 cycles, 8 in flight, answers after 100
    few = DEFAULT.replace(dram_requests=8)
    assert requests(few, 1280, 1) == 20
    assert transfer_cycles(few, 1280, 1) == 2 * 104 + 100 + 16
    assert transfer_cycles(DEFAULT, 1280, 1) == 100 + 80
    # one at a time: each of three requests of 64 bytes takes 100 + 4
    assert transfer_cycles(DEFAULT.replace(dram_requests=1), 192, 1) == 3 * 104
    # 26 requests of 4 cycles cover latency and answer, 25 do not: 1 * (104 - 100) more
    assert transfer_cycles(DEFAULT.replace(dram_requests=26), 27 * 64, 1) == 100 + 27 * 4
    assert transfer_cycles(DEFAULT.replace(dram_requests=25), 27 * 64, 1) == 100 + 27 * 4 + 4


def test_activates_by_hand() -> None:
    # docs/machine.md: 40 rows of the map in 40 rows of the DRAM, 3 bytes each
    assert rows_of_box(0, 40, 1, 8, 4096, 9, 2048) == 40
    assert requests(DEFAULT, 120, 40) == 40
    assert transfer_cycles(DEFAULT, 120, 40) == 100 + 40 * 48 // 16
    # one bank: a row every 48 cycles
    assert transfer_cycles(DEFAULT.replace(dram_banks=1), 120, 40) == 100 + 40 * 48


def test_rows_by_hand() -> None:
    assert rows_of_range(0, 2048, 2048) == 1
    assert rows_of_range(2047, 2, 2048) == 2
    assert rows_of_range(5, 0, 2048) == 0
    # 3 positions of 4 bytes with a pitch of 100 in rows of 32: bytes 30..33, 130..133, 230..233
    assert rows_of_box(30, 1, 3, 4, 0, 100, 32) == 2 + 1 + 1
    # two rows of 5 positions that touch: bytes 0..49
    assert rows_of_box(0, 2, 5, 5, 25, 5, 32) == 2
    assert rows_of_box(0, 0, 5, 5, 25, 5, 32) == 0


@given(
    st.integers(0, 99),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(0, 300),
    st.integers(0, 90),
    st.sampled_from([1, 7, 16, 32, 64]),
)
def test_rows_are_those_of_the_bytes(
    address: int, rows: int, cols: int, chans: int, row_pitch: int, pos_pitch: int, row_bytes: int
) -> None:
    met = {
        (address + r * row_pitch + c * pos_pitch + k) // row_bytes
        for r in range(rows)
        for c in range(cols)
        for k in range(chans)
    }
    assert rows_of_box(address, rows, cols, chans, row_pitch, pos_pitch, row_bytes) == len(met)
    stream = {(address + k) // row_bytes for k in range(chans)}
    assert rows_of_range(address, chans, row_bytes) == len(stream)


def stepped(arch: Arch, moved: int, activates: int) -> int:
    """docs/machine.md, request by request in exact fractions."""
    latency = arch.dram_latency_cycles
    count = max(-(-moved // arch.dram_request_bytes), activates)
    bus = Fraction(str(arch.mhz)) / (1000 * Fraction(str(arch.dram_gbps))) * moved / max(count, 1)
    done: list[Fraction] = []
    for index in range(count):
        sent = done[index - arch.dram_requests] if index >= arch.dram_requests else Fraction(0)
        before = done[-1] if done else Fraction(0)
        done.append(max(sent + latency, before) + bus)
    end = done[-1] if done else Fraction(latency)
    opening = Fraction(activates * arch.dram_row_cycles, arch.dram_banks)
    return max(ceil(end), latency + ceil(opening))


machines = st.builds(
    DEFAULT.replace,
    mhz=st.sampled_from([800.0, 333.3, 1000.0]),
    dram_gbps=st.sampled_from([0.1, 3.2, 12.8, 25.6, 1000.0]),
    dram_latency_cycles=st.integers(0, 300),
    dram_request_bytes=st.sampled_from([1, 16, 64, 100]),
    dram_requests=st.integers(1, 40),
    dram_banks=st.integers(1, 16),
    dram_row_cycles=st.integers(0, 100),
)


@given(machines, st.integers(0, 3000), st.integers(0, 60))
def test_equals_the_steps(arch: Arch, moved: int, activates: int) -> None:
    activates = min(activates, moved)
    assert transfer_cycles(arch, moved, activates) == stepped(arch, moved, activates)


@given(machines, st.integers(1, 5000), st.integers(1, 60), st.integers(1, 20))
def test_a_better_dram_never_costs_cycles(arch: Arch, moved: int, activates: int, more: int) -> None:
    cycles = transfer_cycles(arch, moved, activates)
    better = {
        "dram_gbps": arch.dram_gbps * more,
        "dram_requests": arch.dram_requests + more,
        "dram_banks": arch.dram_banks + more,
        "dram_latency_cycles": max(0, arch.dram_latency_cycles - more),
        "dram_row_cycles": max(0, arch.dram_row_cycles - more),
    }
    for name, value in better.items():
        assert transfer_cycles(arch.replace(**{name: value}), moved, activates) <= cycles, name
    assert transfer_cycles(arch, moved + more, activates) >= cycles


@pytest.mark.parametrize(("size", "count"), [(4096.0, 1.0), (100000.0, 7.0), (64.0, 1.0)])
def test_expectation_is_near_aligned_transfers(size: float, count: float) -> None:
    each = int(size / count)
    wanted = count * transfer_cycles(DEFAULT, each, -(-each // DEFAULT.dram_row_bytes))
    assert expected_cycles(DEFAULT, size, count) == pytest.approx(wanted, rel=0.02)
    few = DEFAULT.replace(dram_requests=4)
    wanted = count * transfer_cycles(few, each, -(-each // DEFAULT.dram_row_bytes))
    assert expected_cycles(few, size, count) == pytest.approx(wanted, rel=0.02)
