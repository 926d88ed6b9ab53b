"""Small convolutions worked out on paper; the arithmetic stands beside each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.backend_sim.timing.cases import Machine, issue_cycles

from escc.backend_sim.simulator.timing import ConvTiming, ConvWork, conv_timing
from escc.backend_sim.simulator.timing.work import Bits


def bits(text: str) -> Bits:
    """'1101' to a mask; blanks and bars are for the reader."""
    return np.array([letter == "1" for letter in text if letter in "01"])


def issued(machine: Machine, diluted: str) -> int:
    """Issue cycles of one sum whose diluted vectors are ``diluted``: all channels active, ones match."""
    mask = bits(diluted)
    return int(issue_cycles(machine, np.ones((1, mask.size), dtype=np.bool_), mask[None, :, None])[0, 0, 0])


@pytest.mark.parametrize(
    ("diluted", "ahead", "aside", "cycles"),
    [
        # Blank heads are free: only the second vector is issued.
        ("0000 0100 0000", 2, 2, 1),
        # Look-ahead 1: lanes 2, 3 of the head take lanes 2, 3 of the next vector, which is left blank.
        ("1100 0011", 1, 0, 1),
        # Same lanes: nothing fits without look-aside.
        ("1100 1100", 1, 0, 2),
        # Look-aside 1: offset +1 fills lane 3 from lane 0 (wrapping); then -1 fills lane 2 from lane 1.
        ("1100 1100", 1, 1, 1),
        # Lanes 0 and 1 are both two lanes away from the empty lanes 2 and 3: +2 moves both at once.
        ("1100 1100", 1, 2, 1),
        # Distance 2 is out of reach of look-ahead 1 although the vector between is blank: it is skipped only
        # when it is the head.
        ("1100 0000 0011", 1, 0, 2),
        ("1100 0000 0011", 2, 0, 1),
        # Nearest first: the head takes lane 3 of vector 1; vector 1 keeps lane 0, then takes lane 3 of
        # vector 2. Two cycles, four values.
        ("0110 1001 0001", 2, 0, 2),
    ],
)
def test_window(diluted: str, ahead: int, aside: int, cycles: int) -> None:
    machine = Machine(lanes=4, look_ahead=ahead, look_aside=aside)
    assert issued(machine, diluted) == cycles


def test_other_policies() -> None:
    # 5 matches in 4 vectors of 4, one blank: none issues the 3 others, gather ceil(5 / 4).
    diluted = "1100 0000 0100 1001"
    assert issued(Machine(lanes=4, policy="none"), diluted) == 3
    assert issued(Machine(lanes=4, policy="gather"), diluted) == 2


def test_dilution_packs_the_active_channels() -> None:
    # Active channels 1, 3, 4, 6; coefficients at 0, 1, 6, 7. Packed: 1, 3 | 4, 6 with matches 1 0 | 0 1: two
    # vectors of 2 lanes; +1 look-aside is not needed, lane 1 moves straight up: one cycle. Unpacked it
    # would be four vectors with matches in the first and the last.
    active, coefficient = bits("01011010")[None], bits("11000011")[None, :, None]
    assert issue_cycles(Machine(policy="none"), active, coefficient).tolist() == [[[2]]]
    assert issue_cycles(Machine(look_aside=0), active, coefficient).tolist() == [[[1]]]


def point(**changes: int) -> ConvWork:
    """A 1 x 1 convolution of one row of positions."""
    values = {"outs": 1, "chans": 4, "height": 1, "width": 2, "y_rows": 1, "y_cols": 2, **changes}
    return ConvWork("combine", **values)


def ones(work: ConvWork) -> tuple[Bits, Bits]:
    """All activations and all coefficients non-zero."""
    x = np.ones((1, work.height, work.width, work.chans), dtype=np.bool_)
    return x, np.ones((work.outs, work.chans, work.bases), dtype=np.bool_)


def lc_of(timing: ConvTiming) -> list[int]:
    return [int(part[0]) for part in timing.lc_causes.values()]


def mac_of(timing: ConvTiming) -> list[int]:
    return [int(part[0]) for part in timing.mac_causes.values()]


def test_one_row() -> None:
    # 4 matches in 2 lanes: 2 issue cycles per position. Arrival at 1, works 1-3, pushes at 3, MAC 3-4;
    # second entry (one slot: arrives at its release, 3) works 3-5, MAC 5-6. With 10 cycles of start-up: 16.
    work = point()
    timing = conv_timing(Machine(startup_cycles=10), work, *ones(work))
    assert timing.cycles == [16]
    assert lc_of(timing) == [4, 1, 0, 0, 11]  # busy, input, row, FIFO; idle 5-6 and start-up
    assert mac_of(timing) == [2, 4, 10]  # waits 0-3 and 4-5
    assert timing.matches == [8]
    assert timing.issue_cycles == [4]
    assert timing.dilution_words == [2]
    assert timing.products == [2]
    assert timing.fifo_pushes == [2]
    # An entry is one mask byte and four values; one row reads it.
    assert timing.ring_entries == [2]
    assert timing.ring_bytes_written == [10]
    assert timing.ring_bytes_read == [10]


def test_full_fifo() -> None:
    # Four bases on four units: 1 cycle per position (4 matches in 4 lanes), n = 4 values, t = 1 tap, one
    # multiplier: 4 MAC cycles. One FIFO position.
    #   entry 0: 1-2, push 2, MAC 2-6        entry 1: 2-3, push 3 (0 was popped at 2), MAC 6-10
    #   entry 2: 3-4, waits for pop 1 at 6, push 6, MAC 10-14
    work = point(bases=4, width=3, y_cols=3)
    timing = conv_timing(Machine(units=4, lanes=4, ring_entries=8), work, *ones(work))
    assert timing.cycles == [14]
    assert lc_of(timing) == [3, 1, 0, 2, 8]
    assert mac_of(timing) == [12, 2, 0]
    assert timing.fifo_values == [12]
    # Two positions: entry 2 pushes at 4, when nothing is in the way, and the LC part is done earlier.
    timing = conv_timing(Machine(units=4, lanes=4, ring_entries=8, fifo_positions=2), work, *ones(work))
    assert timing.cycles == [14]
    assert lc_of(timing) == [3, 1, 0, 0, 10]


def test_another_row_holds_the_ring() -> None:
    # Output 0 needs 3 cycles (6 of 6 coefficients, 2 lanes), output 1 one cycle (2 of 6). One slot: entry 1
    # arrives when row 0 has finished, at 4; row 1 finished at 2 and waits 2 cycles. 1-4, 4-7, MAC 7-8.
    work = point(outs=2, chans=6)
    x, mask = ones(work)
    mask[1, 2:] = False
    machine = Machine(rows=2, policy="none")
    timing = conv_timing(machine, work, x, mask)
    assert timing.cycles == [8]
    # Row 0: busy 6, input 1, idle 7-8. Row 1: busy 1-2 and 4-5, input 1, row 2-4, idle 5-8.
    assert lc_of(timing) == [8, 2, 2, 0, 4]
    # Two slots: row 1 goes on at once (arrival 2), nothing waits for a row; row 0 decides the time.
    timing = conv_timing(replace(machine, ring_entries=2), work, x, mask)
    assert timing.cycles == [8]
    assert lc_of(timing) == [8, 2, 0, 0, 6]


def test_units_share_bases() -> None:
    # Bases 0, 1, 2 on two units: unit 0 has bases 0 and 2. Cycles (lanes 2): basis 0: 4 of 4 -> 2; basis 1:
    # 2 -> 1; basis 2: none -> still 1. Unit 0: 2 + 1 = 3, unit 1: 1. Entry: 3 cycles; 1-4, then n = 2
    # values (basis 2 has no match) with one multiplier: 4-6.
    work = point(bases=3, width=1, y_cols=1)
    x, mask = ones(work)
    mask[0, 2:, 1] = mask[0, :, 2] = False
    timing = conv_timing(Machine(units=2, policy="none"), work, x, mask)
    assert timing.cycles == [6]
    assert timing.lc_busy == [3]
    assert timing.products == [2]
    assert timing.issue_cycles == [3]


def test_chunks_of_a_position_push_once() -> None:
    # 20 channels in chunks of 8, 8, 4: with 2 lanes 4, 4, 2 cycles. 1-5, 5-9, 9-11, then the push: MAC 11-12.
    work = point(chans=20, width=1, y_cols=1)
    timing = conv_timing(Machine(), work, *ones(work))
    assert timing.cycles == [12]
    assert timing.fifo_pushes == [1]
    assert timing.ring_entries == [3]
    assert timing.ring_bytes_written == [3 + 20]


def test_taps_and_multipliers() -> None:
    # 3 x 3 kernel, padding 1, map 3 x 3, depthwise, one output, all non-zero: taps per position
    #   4 6 4 / 6 9 6 / 4 6 4. Four multipliers: 1, ceil(6/4) = 2, ceil(9/4) = 3 cycles.
    # MAC: 4 * 1 + 4 * 2 + 3 = 15; products 4 * 4 + 4 * 6 + 9 = 49, each its own update.
    work = ConvWork(
        "depthwise", outs=1, chans=1, height=3, width=3, y_rows=3, y_cols=3, kernel_h=3, kernel_w=3,
        pad_top=1, pad_left=1,
    )  # fmt: skip
    x = np.ones((1, 3, 3, 1), dtype=np.bool_)
    timing = conv_timing(Machine(macs=4), work, x)
    assert timing.mac_busy == [15]
    assert timing.products == [49]
    assert timing.psum_updates == [49]
    # Stride 2, output 2 x 2: even positions (the padding puts outputs at rows 0 and 2) meet tap 1 of their
    # own output, odd ones taps of both neighbours: 1 2 1 / 2 4 2 / 1 2 1, one cycle each.
    work = replace(work, stride_h=2, stride_w=2, y_rows=2, y_cols=2)
    timing = conv_timing(Machine(macs=4), work, x)
    assert timing.mac_busy == [9]
    assert timing.products == [16]


def test_several_values_share_the_multipliers() -> None:
    # Dense, 5 channels of which 3 non-zero, 2 units: ceil(3/2) = 2 LC cycles. One tap, two multipliers: two
    # values a cycle, ceil(3/2) = 2 MAC cycles with one update each; three products.
    work = ConvWork("dense", outs=1, chans=5, height=1, width=1, y_rows=1, y_cols=1)
    timing = conv_timing(Machine(macs=2, units=2), work, bits("10101")[None, None, None])
    assert timing.cycles == [1 + 2 + 2]
    assert timing.products == [3]
    assert timing.psum_updates == [2]
    assert timing.matches == [0]


def test_bands_and_blocks() -> None:
    # 1 x 1 dense convolution of 4 rows of one position, 8 channels, one unit, 8 multipliers: a full row costs
    # 1 + 8 + 1 = 10 cycles, an empty one 1 + 1 + 0 = 2. Rows 0 and 3 full, four bands of a row, one group.
    work = ConvWork("dense", outs=1, chans=8, height=4, width=1, y_rows=4, y_cols=1, bands=4)
    x = np.zeros((1, 4, 1, 8), dtype=np.bool_)
    x[0, [0, 3]] = True
    machine = Machine(macs=8)
    # Two blocks: items 0, 2 and 1, 3: 10 + 2 each.
    assert conv_timing(replace(machine, blocks=2), work, x).cycles == [12]
    # Three blocks: items 0 and 3 fall on the same one. More blocks are not always faster.
    assert conv_timing(replace(machine, blocks=3), work, x).cycles == [20]
    assert conv_timing(replace(machine, blocks=4), work, x).cycles == [10]
    # One band: 1 + (8 + 1 + 1 + 8) + 1.
    assert conv_timing(machine, replace(work, bands=1), x).cycles == [20]


def test_bands_read_their_halo_again() -> None:
    # 3 x 1 kernel, padding 1, 4 rows: bands of 2 rows read rows 0-2 and 1-3: 6 entries instead of 4.
    work = ConvWork("dense", outs=1, chans=1, height=4, width=1, y_rows=4, y_cols=1, kernel_h=3, pad_top=1)
    x = np.ones((1, 4, 1, 1), dtype=np.bool_)
    assert conv_timing(Machine(), work, x).ring_entries == [4]
    assert conv_timing(Machine(), replace(work, bands=2), x).ring_entries == [6]
    # Either way the same products: 2 + 3 + 3 + 2 taps.
    assert conv_timing(Machine(), replace(work, bands=2), x).products == [10]


def test_a_strided_kernel_skips_rows() -> None:
    # 1 x 1 with stride 2 on 5 rows and 4 columns: rows 0, 2, 4 are read, every column of them.
    work = ConvWork("dense", outs=1, chans=1, height=5, width=4, y_rows=3, y_cols=2, stride_h=2, stride_w=2)
    x = np.ones((1, 5, 4, 1), dtype=np.bool_)
    timing = conv_timing(Machine(), work, x)
    assert timing.ring_entries == [12]
    assert timing.products == [6]


def test_depthwise_channels_of_a_group() -> None:
    # 3 channels, multiplier 2, groups of 4 outputs: channels 0, 1 and channel 2. Non-zeros: channels 0, 2.
    # Entries of 1 + 1 bytes and 1 + 1 bytes, read by 4 and by 2 rows.
    work = ConvWork("depthwise", outs=6, chans=3, height=1, width=1, y_rows=1, y_cols=1, multiplier=2)
    timing = conv_timing(Machine(rows=4), work, bits("101")[None, None, None])
    assert timing.ring_bytes_written == [4]
    assert timing.ring_bytes_read == [4 * 2 + 2 * 2]
    # Outputs 0, 1, 4, 5 multiply; 2 and 3 have a zero.
    assert timing.products == [4]
    assert timing.fifo_pushes == [6]


def test_look_ahead_anomaly() -> None:
    # A longer window may be slower, rarely: here with lanes 4, look-aside 1, vectors 1100 1110 0111.
    # Look-ahead 1: head 0 takes lane 2 of vector 1 (offset 0) and its lane 0 into lane 3 (+1), and leaves
    # 0100. Head 1 takes lanes 2 and 3 of vector 2 (0), then its lane 1 into lane 0 (+1): two cycles.
    # Look-ahead 2: head 0 takes lane 2 of vector 1 and lane 3 of vector 2 (both offset 0) and is full; they
    # are left 1100 and 0110. Head 1 takes lane 2 of vector 2; its lane 1 cannot reach lane 3: three cycles.
    machine = Machine(lanes=4, look_aside=1)
    assert issued(replace(machine, look_ahead=1), "1100 1110 0111") == 2
    assert issued(replace(machine, look_ahead=2), "1100 1110 0111") == 3


def test_more_lanes_may_be_slower() -> None:
    # Packed values 0 0 1 1: two lanes cut them into 00 11 (one vector issued), three into 001 1.. (two,
    # unless the window moves the last one).
    assert issued(Machine(lanes=2, policy="none"), "0011") == 1
    assert issued(Machine(lanes=3, policy="none"), "0011") == 2


def test_more_units_may_be_slower() -> None:
    # Bases 0 and 3 cost 4 cycles, bases 1 and 2 one (1 lane). Two units: bases 0, 2 and 1, 3: 5 cycles.
    # Three units: bases 0 and 3 share a unit: 8 cycles.
    work = point(bases=4, width=1, y_cols=1)
    x, mask = ones(work)
    mask[0, 1:, 1:3] = False
    machine = Machine(lanes=1, macs=4)
    assert conv_timing(replace(machine, units=2), work, x, mask).lc_busy == [5]
    assert conv_timing(replace(machine, units=3), work, x, mask).lc_busy == [8]
