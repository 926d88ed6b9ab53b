"""A dense array of dot products: the DCNN that SCNN is compared with (Parashar et al., ISCA 2017)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from escc.backend_sim.baselines.counting import active_macs, ceil_div, matches, near_square
from escc.backend_sim.baselines.workload import BUSY, WAIT_DRAM, BufferUse, ConvWork, LayerRun, wait_for_dram


@dataclass(frozen=True)
class Dense:
    """``rows`` x ``columns`` elements, each a dot product of ``width`` multipliers a cycle.

    An element computes outputs one after the other, ceil(C / groups * R * S / width) cycles each,
    from inputs in its own buffer. ``spread`` False: elements share out the map only, a tile of outputs
    each, as in DCNN. True: they are shared out over positions and output channels, whichever way is
    fastest. ``gating``: a zero activation costs no multiplication, but its cycle (DCNN-opt).
    ``map_kib``: all buffers for maps; what fits is not moved to DRAM. ``sums``: partial sums of an
    element, so many outputs use an input vector while it is at hand.
    """

    name: str = "DCNN"
    rows: int = 8
    columns: int = 8
    width: int = 16
    spread: bool = False
    gating: bool = False
    map_kib: float = 2048.0
    filter_kib: float = 32.0
    sums: int = 32
    word_bits: int = 16
    psum_bits: int = 24
    clock_mhz: float = 1000.0
    dram_gbps: float | None = None

    @property
    def multipliers(self) -> int:
        """Multipliers of the whole array."""
        return self.rows * self.columns * self.width

    def scaled(self, multipliers: int = 1024) -> Dense:
        """A dense array of equal multipliers: words of 8 bits, work shared out in the fastest way."""
        rows, columns = near_square(max(1, multipliers // self.width))
        factor = rows * columns / (self.rows * self.columns)
        return replace(
            self,
            name="dense",
            rows=rows,
            columns=columns,
            spread=True,
            map_kib=self.map_kib * factor / 2,
            filter_kib=self.filter_kib / 2,
            word_bits=8,
            clock_mhz=800.0,
        )

    def run(self, work: ConvWork) -> LayerRun:
        """One layer, one image."""
        outs, rows, columns = work.output_shape
        dot = ceil_div(int(np.prod(work.weight.shape[1:])), self.width)
        parts, most = self._shares(outs, rows, columns)
        compute = most * dot
        useful = matches(work)
        word = self.word_bits / 8
        x_bytes, y_bytes = int(work.x.size * word), int(outs * rows * columns * word)
        stays = x_bytes + y_bytes <= self.map_kib * 1024
        read = int(work.weight.size * word) + (x_bytes if work.x_in_dram or not stays else 0)
        written = y_bytes if work.y_in_dram or not stays else 0
        wait = wait_for_dram(compute, read + written, self.clock_mhz, self.dram_gbps)
        macs = work.macs
        formed = active_macs(work) if self.gating else macs
        vectors = outs * rows * columns * dot
        ways = parts["positions"]
        return LayerRun(
            name=work.name,
            cycles=compute + wait,
            multipliers=self.multipliers,
            multiplications=formed,
            slots={
                BUSY: useful,
                "zero_operand": macs - useful,
                "fragment": vectors * self.width - macs,
                "unused_elements": compute * self.multipliers - vectors * self.width,
                WAIT_DRAM: wait * self.multipliers,
            },
            events={"products": formed * word**2, "sum_adds": formed},
            buffers=(
                BufferUse(
                    "map_buffers",
                    self.map_kib / (self.rows * self.columns),
                    self.rows * self.columns,
                    ceil_div(outs // work.groups, self.sums) * work.groups
                    * rows * columns * dot * self.width * word,
                    y_bytes + x_bytes * (work.x_in_dram or not stays),
                ),
                # elements that share out positions work in step and take the same weights
                BufferUse(
                    "filter_buffer", self.filter_kib, 1, vectors / ways * self.width * word,
                    work.weight.size * word,
                ),
                BufferUse(
                    "operand_registers", 0.0625, self.rows * self.columns, vectors * self.width * 2 * word,
                    vectors * self.width * word,
                ),
                BufferUse(
                    "accumulators", self.sums * self.psum_bits / 8192, self.rows * self.columns,
                    vectors * self.psum_bits / 8, vectors * self.psum_bits / 8,
                ),
            ),
            dram_read_bytes=read,
            dram_write_bytes=written,
            mapping=parts,
        )  # fmt: skip

    def _shares(self, outs: int, rows: int, columns: int) -> tuple[dict[str, int], int]:
        """Parts of positions and of output channels, and outputs of the element that has most."""
        if not self.spread:
            tile = ceil_div(rows, self.rows) * ceil_div(columns, self.columns)
            used = ceil_div(rows, ceil_div(rows, self.rows)) * ceil_div(
                columns, ceil_div(columns, self.columns)
            )
            return {"positions": used, "filters": 1}, tile * outs
        elements, positions = self.rows * self.columns, rows * columns
        best: tuple[int, int] | None = None
        for ways in range(1, min(elements, positions) + 1):
            most = ceil_div(positions, ways) * ceil_div(outs, elements // ways)
            # of equally fast ways the one with most positions reads the fewest weights
            if best is None or most <= best[0]:
                best = most, ways
        assert best is not None
        most, ways = best
        return {"positions": ways, "filters": min(outs, elements // ways)}, most
