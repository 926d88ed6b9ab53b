"""The events the simulator counts: the component each belongs to, the row of the energy table it costs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """A counted event: ``cost`` names the row of the energy table; SRAM bytes cost by its size."""

    name: str
    component: str
    cost: str
    meaning: str


SRAM_READ, SRAM_WRITE = "sram_read", "sram_write"

EVENTS: tuple[Event, ...] = (
    Event("dram_read_bits", "dram", "dram_bit", "bits moved from DRAM"),
    Event("dram_write_bits", "dram", "dram_bit", "bits moved to DRAM"),
    Event("dram_activates", "dram", "dram_activate", "DRAM rows opened"),
    Event("sram_read_bytes", "sram", SRAM_READ, "bytes read from the SRAM"),
    Event("sram_write_bytes", "sram", SRAM_WRITE, "bytes written to the SRAM"),
    Event("ring_bits", "ring_buffer", "register_bit", "bits written to and read from the ring buffers"),
    Event(
        "dilution_bit_levels",
        "dilution",
        "logic_bit",
        "bits through one level of mask logic or butterfly",
    ),
    Event("operand_bits", "operand_registers", "register_bit", "tap and table bits read"),
    Event(
        "coefficient_bits",
        "operand_registers",
        "scratch_read_bit",
        "coefficient bits read from the memories of the rows",
    ),
    Event("moved_bits", "concentration", "mux_bit", "activation bits through the concentration multiplexers"),
    Event("lane_adds", "linear_combination", "add16", "activations added or subtracted in a lane"),
    Event("z_adds", "linear_combination", "add32", "dense vectors added to a sum Z"),
    Event("z_bits", "linear_combination", "register_bit", "bits of Z read and written"),
    Event("fifo_bits", "fifo", "register_bit", "bits pushed to and popped from the FIFOs"),
    Event("products", "mac", "multiply8", "multiplications, in 8 x 8 bit equivalents"),
    Event("sum_adds", "mac", "add32", "additions to a partial sum"),
    Event("sum_bits", "partial_sums", "register_bit", "bits of partial sums updated under the window"),
    Event("sum_bits_read", "partial_sums", "scratch_read_bit", "bits of partial sums that come back"),
    Event("sum_bits_written", "partial_sums", "scratch_write_bit", "bits of partial sums that leave"),
    Event("requantize_multiplies", "requantisation", "multiply32", "32-bit multiplications"),
    Event("requantize_adds", "requantisation", "add32", "additions of requantisation: bias, rounding"),
    Event("vector_ops", "vector_unit", "add16", "additions, comparisons and moves of the vector unit"),
    Event("vector_products", "vector_unit", "multiply8", "8 x 8 bit multiplications of the vector unit"),
)

COMPONENTS: tuple[str, ...] = (*dict.fromkeys(event.component for event in EVENTS), "leakage")
COSTS: tuple[str, ...] = tuple(
    dict.fromkeys(event.cost for event in EVENTS if event.cost not in (SRAM_READ, SRAM_WRITE))
)
