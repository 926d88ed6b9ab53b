"""The area of a machine that an architecture file describes.

The parts are those that the energy model (docs/machine.md, Energy) counts events of. What the time model
takes for granted is paid for: a read port of the ring buffer for every row, as rows drift apart; a
requantiser for every row, as requantisation takes no time; two bit gathers for every unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from escc.backend_sim.area.cells import Area, Cells, Part
from escc.backend_sim.area.table import AreaTable
from escc.isa.arch import Arch

VALUE_BITS = 8
SIGNED_BITS = VALUE_BITS + 1
"""An activation with the sign of its coefficient."""
PSUM_BITS = 32
LANE_BITS = 16
GATHERS = 2
"""Bit gathers of a coefficient word: the activation mask and the sign mask (docs/machine.md)."""


def area(arch: Arch, table: AreaTable | None = None) -> Area:
    """The area of ``arch`` by component.

    Args:
        arch: any machine.
        table: cell areas; the shipped 45 nm table by default.
    """
    cells = Cells(table or AreaTable.load())
    parts = (*_memory(arch, cells), *_blocks(arch, cells), *_rows(arch, cells), *_units(arch, cells))
    return Area((*parts, *_vector(arch, cells)), cells.table.node_nm)


def _memory(arch: Arch, cells: Cells) -> Iterator[Part]:
    yield Part("sram", "global SRAM", 1, 1e6 * cells.table.sram_mm2(arch.sram_kib), f"{arch.sram_kib} KiB")


def _blocks(arch: Arch, cells: Cells) -> Iterator[Part]:
    entry = arch.chunk * (VALUE_BITS + 1)
    counter = math.ceil(math.log2(arch.rows + 1))
    bits = arch.ring_entries * (entry + counter)
    yield Part(
        "ring_buffer",
        "entries",
        arch.blocks,
        cells.registers(bits),
        f"{arch.ring_entries} x ({entry} bits of mask and values, {counter} of read counter), registers",
    )
    yield Part(
        "ring_buffer",
        "read ports",
        arch.blocks * arch.rows,
        cells.multiplexer(arch.ring_entries, entry),
        f"{entry} bits out of {arch.ring_entries} entries, for every row",
    )


def _rows(arch: Arch, cells: Cells) -> Iterator[Part]:
    count, bases = arch.blocks * arch.rows, cells.table.bases
    bits = bases * arch.z_bits
    yield Part(
        "operand_registers",
        "coefficients and taps",
        count,
        cells.memory(8192 * cells.table.operand_kib),
        f"{cells.table.operand_kib:g} KiB memory: {cells.table.operand_why}",
    )
    yield Part(
        "linear_combination",
        "sums Z",
        count,
        cells.registers(bits),
        f"{bases} of {arch.z_bits} bits, registers",
    )
    places = arch.fifo_positions
    yield Part("fifo", "places", count, cells.registers(places * bits), f"{places} x {bits} bits, registers")
    yield Part(
        "mac",
        "multipliers and adders",
        count * arch.macs,
        cells.multiplier(8, arch.z_bits) + cells.adder(PSUM_BITS),
        f"8 x {arch.z_bits} bits, {PSUM_BITS}-bit add",
    )
    sums = PSUM_BITS * arch.psum_entries
    yield Part(
        "partial_sums",
        "memory",
        count,
        cells.memory(sums, arch.macs),
        f"{arch.psum_entries} x {PSUM_BITS} bits in {arch.macs} banks",
    )
    held = cells.table.window_sums
    yield Part(
        "partial_sums",
        "under the window",
        count,
        cells.registers(held * PSUM_BITS),
        f"{held} of {PSUM_BITS} bits, registers: {cells.table.window_why}",
    )
    yield Part(
        "requantisation",
        "requantisers",
        count,
        cells.table.um2("multiply32") + 2 * cells.adder(PSUM_BITS),
        "32 x 32 bit multiply, two adds",
    )


def _units(arch: Arch, cells: Cells) -> Iterator[Part]:
    count = arch.blocks * arch.rows * arch.units
    chunk, lanes = arch.chunk, arch.lanes
    gather = cells.prefix_count(chunk) + cells.butterfly(chunk, 1)
    yield Part(
        "dilution",
        "masks and signs",
        count,
        cells.logic(chunk) + GATHERS * gather,
        f"AND and {GATHERS} gathers of {chunk} bits: prefix count, butterfly network",
    )
    if arch.policy == "gather":
        yield Part(
            "concentration",
            "value gather",
            count,
            cells.butterfly(chunk, SIGNED_BITS),
            f"butterfly network of {chunk} x {SIGNED_BITS} bits",
        )
    # A unit is at its own vector of the entry, and blank vectors are skipped: any vector in any place.
    vectors = math.ceil(chunk / lanes)
    held = 1 + min(arch.look_ahead, vectors - 1) if arch.policy == "window" else 1
    yield Part(
        "concentration",
        "vector selection",
        count,
        held * cells.multiplexer(vectors, lanes * SIGNED_BITS),
        f"{held} x one of {vectors} vectors of {lanes} x {SIGNED_BITS} bits",
    )
    if held > 1:
        sides = min(1 + 2 * arch.look_aside, lanes)
        inputs = 1 + (held - 1) * sides
        yield Part(
            "concentration",
            "window",
            count,
            cells.registers(held * lanes * SIGNED_BITS) + lanes * cells.multiplexer(inputs, SIGNED_BITS),
            f"{held} vectors of registers, {lanes} lanes with {inputs} inputs",
        )
    yield Part(
        "linear_combination",
        "lanes",
        count,
        lanes * cells.adder(LANE_BITS) + cells.adder(PSUM_BITS),
        f"{lanes} {LANE_BITS}-bit adders, one of {PSUM_BITS} bits",
    )


def _vector(arch: Arch, cells: Cells) -> Iterator[Part]:
    each = cells.adder(LANE_BITS) + cells.multiplier(8, 8)
    each += cells.table.um2("multiply32") + 2 * cells.adder(PSUM_BITS)
    yield Part("vector_unit", "lanes", arch.vector_lanes, each, "add, 8 x 8 bit multiply, requantiser")
