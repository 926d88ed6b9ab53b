"""The same rules on published machines: how far sums of cells are from silicon and from synthesis.

Figures of the machines: EIE, ISCA 2016, table 2; SparTen, MICRO 2019, table 4; SCNN, ISCA 2017, tables 2 and
4; Eyeriss, JSSC 2017. The rules know neither layout density nor control, so the ratio is below one, and the
more so the more of a chip is neither arithmetic nor memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from escc.backend_sim.area.cells import UM2_PER_MM2, Area, Cells, Part
from escc.backend_sim.area.table import AreaTable

FROM_16_NM = 1 / 0.22
"""45 nm over 16 nm: CACTI's SRAM shrinks to 0.40 at 28 nm, SRAM cells from 0.127 to 0.070 um2 from there."""
FROM_65_NM = (45 / 65) ** 2
"""45 nm over 65 nm: CACTI's SRAM arrays shrink by the same."""


@dataclass(frozen=True)
class Check:
    """A published machine: ``area`` by the rules, ``published_mm2`` brought to the node of the table."""

    name: str
    area: Area
    published_mm2: float
    note: str

    @property
    def ratio(self) -> float:
        """By the rules over published."""
        return self.area.total_mm2 / self.published_mm2


def checks(table: AreaTable | None = None) -> list[Check]:
    """The four machines with a published area."""
    chosen = table or AreaTable.load()
    return [
        Check("EIE PE", eie_pe(chosen), 0.638, "45 nm; 0.024 mm2 of it are filler cells"),
        Check("SparTen cluster", sparten_cluster(chosen), 0.766, "45 nm, 32 units"),
        Check("SCNN PE", scnn_pe(chosen), 0.123 * FROM_16_NM, "16 nm, times 4.5"),
        Check("Eyeriss core", eyeriss_core(chosen), 12.25 * FROM_65_NM, "65 nm, times 0.48; a placed chip"),
    ]


def eie_pe(table: AreaTable) -> Area:
    """One of EIE's 64 processing elements: three SRAMs, 16-bit arithmetic, a queue of 8."""
    cells = Cells(table)
    arithmetic = cells.multiplier(16, 16) + cells.adder(32) + cells.registers(16 * 16)
    return _area(
        table,
        Part("sram", "matrix", 1, _sram(table, 128), "128 KiB"),
        Part("sram", "pointers", 2, _sram(table, 16), "16 KiB"),
        Part("sram", "activations", 1, _sram(table, 2), "2 KiB"),
        Part("registers", "activations", 2, cells.registers(64 * 16), "64 x 16 bits"),
        Part("mac", "arithmetic", 1, arithmetic, "16 x 16 bit multiply, add, 16 shared weights"),
        Part("fifo", "queue", 1, cells.registers(8 * 20), "8 x 20 bits"),
    )


def sparten_cluster(table: AreaTable, units: int = 32, chunk: int = 128) -> Area:
    """A SparTen cluster: ``units`` inner joins on chunks of ``chunk`` values.

    A unit holds a chunk of its filter and its copy of the input chunk, both double buffered.
    """
    cells = Cells(table)
    stored = chunk * 9
    permute = cells.butterfly(units, 32)
    return _area(
        table,
        Part("buffers", "chunks", 2 * units, cells.memory(2 * stored), f"two of {stored} bits"),
        Part("prefix_sum", "counts", 2 * units, cells.prefix_count(chunk), f"{chunk} bits"),
        Part("priority_encoder", "matches", units, cells.priority_encoder(chunk), f"{chunk} bits"),
        Part("mac", "multiply-accumulate", units, cells.multiplier(8, 8) + cells.adder(32), "8 x 8 bits"),
        Part("registers", "sums", units, cells.registers(2 * 32), "two of 32 bits"),
        Part("permute", "network", 1, permute, f"butterfly of {units} x 32 bits"),
    )


def scnn_pe(table: AreaTable, weights: int = 4, activations: int = 4) -> Area:
    """An SCNN processing element: ``weights`` x ``activations`` multipliers of 16 bits."""
    cells = Cells(table)
    products = weights * activations
    banks = 2 * products
    return _area(
        table,
        Part("sram", "IARAM and OARAM", 2, _sram(table, 10), "10 KiB"),
        Part("fifo", "weights", 1, cells.registers(50 * weights * 20), f"50 x {weights} x 20 bits"),
        Part("mac", "multipliers", products, cells.multiplier(16, 16), "16 x 16 bits"),
        Part("crossbar", "scatter", banks, cells.multiplexer(products, 24), f"{products} inputs of 24 bits"),
        Part("accumulators", "banks", 2 * banks, cells.memory(32 * 24), "32 x 24 bits"),
        Part("accumulators", "adders", banks, cells.adder(24), "24 bits"),
    )


def eyeriss_core(table: AreaTable, elements: int = 168, buffer_kib: float = 108) -> Area:
    """Eyeriss: ``elements`` processing elements with three scratchpads, a global buffer of ``buffer_kib``."""
    cells = Cells(table)
    return _area(
        table,
        Part("sram", "global buffer", 1, _sram(table, buffer_kib), f"{buffer_kib:g} KiB"),
        Part("scratchpads", "filter", elements, cells.memory(224 * 16), "224 x 16 bits"),
        Part("scratchpads", "ifmap and sums", elements, cells.registers(36 * 16), "36 x 16 bits, registers"),
        Part(
            "mac",
            "multiply-accumulate",
            elements,
            cells.multiplier(16, 16) + cells.adder(32),
            "16 x 16 bits, 32-bit add",
        ),
    )


def _sram(table: AreaTable, kib: float) -> float:
    return table.sram_mm2(kib) * UM2_PER_MM2


def _area(table: AreaTable, *parts: Part) -> Area:
    return Area(parts, table.node_nm)


def text(found: list[Check] | None = None) -> Iterator[str]:
    """The checks as rows of a Markdown table."""
    yield "| machine | by these rules, mm2 | published, mm2 at 45 nm | ratio | |"
    yield "|---|---|---|---|---|"
    for check in found or checks():
        sums = f"{check.area.total_mm2:.3f} | {check.published_mm2:.3f} | {check.ratio:.2f}"
        yield f"| {check.name} | {sums} | {check.note} |"
