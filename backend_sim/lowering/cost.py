"""Estimated cycles of a tile: the small model that picks tile sizes and bands.

It knows the structure of the machine (rows, blocks, ring entries, MACs) and assumes half of the activations
behind a ReLU-like function, and next to none of the others, to be zero; the simulator's cycle counts come
from the real bits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

from escc.backend_sim.lowering.layers import MachineLayer, Operand, Window
from escc.ir.xdsl import BlockArgument
from escc.isa.arch import Arch
from escc.isa.dram import expected_cycles

BEHIND_RELU, ELSEWHERE = 0.5, 0.97
"""Shares of non-zero activations."""
SPREAD = 1.2
"""Bases and rows wait for the slowest of them: cycles over the mean, in square roots of the mean."""
MAX_BANDS = 64


def density(operand: Operand) -> float:
    """Expected share of non-zeros of an input map: images have few zeros, and so have maps with signs."""
    image = isinstance(operand.value, BlockArgument)
    return ELSEWHERE if image or operand.signed else BEHIND_RELU


def sparse_byte(share: float) -> float:
    """SparseMap bytes of an activation."""
    return 0.125 + share


@dataclass(frozen=True)
class TileCost:
    """Estimated cycles of one tile and the bands that give them."""

    cycles: float
    bands: int


@dataclass
class CostModel:
    """Estimates for the tiles of one layer (remembered: the search asks for the same sizes again)."""

    layer: MachineLayer
    arch: Arch
    _known: dict[tuple[int, int], TileCost] = field(default_factory=dict[tuple[int, int], TileCost])

    def __post_init__(self) -> None:
        if self.layer.work is not None:
            self._combine, self._multiply = self._position_cycles()

    def tile(self, rows: int, outs: int) -> TileCost:
        """Cycles of a tile of ``rows`` output rows and ``outs`` output channels."""
        found = self._known.get((rows, outs))
        if found is None:
            found = self._vector(rows, outs) if self.layer.work is None else self._convolution(rows, outs)
            self._known[rows, outs] = found
        return found

    def transfer(self, size: float, count: float = 1.0) -> float:
        """Cycles of ``count`` transfers of ``size`` bytes together."""
        return expected_cycles(self.arch, size, count)

    def _instructions(self, outs: int) -> tuple[int, int]:
        """(instructions, outputs of each) for a tile of ``outs`` channels."""
        largest = max(part.hi - part.lo for part in self.layer.parts)
        each = min(outs, largest)
        return -(-outs // each), each

    def _vector(self, rows: int, outs: int) -> TileCost:
        count, each = self._instructions(outs)
        steps = rows * self.layer.shape[1] * self.layer.taps * -(-each // self.arch.vector_lanes)
        return TileCost(count * (self.arch.vector_startup_cycles + steps), 1)

    def _convolution(self, rows: int, outs: int) -> TileCost:
        layer, arch = self.layer, self.arch
        count, each = self._instructions(outs)
        groups = -(-each // arch.rows)
        height, width, _ = layer.operands[0].shape
        rule = layer.operands[0].rule
        assert isinstance(rule, Window)
        best = TileCost(float("inf"), 1)
        for bands in range(1, min(rows, MAX_BANDS) + 1):
            band_rows = -(-rows // bands)
            read = min((band_rows - 1) * rule.stride + rule.extent, height)
            combine = read * width * self._combine
            multiply = min(band_rows * rule.stride, read) * width * self._multiply
            rounds = -(-groups * bands // arch.blocks)
            cycles = count * (arch.startup_cycles + rounds * (max(combine, multiply) + 8))
            if cycles < best.cycles:
                best = TileCost(cycles, bands)
        return best

    def _position_cycles(self) -> tuple[float, float]:
        """Cycles per input position of a row's linear combination and of its MAC part."""
        layer, arch, work = self.layer, self.arch, self.layer.work
        assert work is not None
        channels = layer.operands[0].shape[2] // max(len(layer.parts), 1)
        chunks = -(-channels // arch.chunk)
        share = density(layer.operands[0])
        active = share * min(channels, arch.chunk)
        if work.form == "depthwise":
            return 1.0, self._multiplications(share)
        if work.form == "dense":
            return chunks * max(1.0, active / arch.units), chunks * self._multiplications(active)
        issue = self._issue(active, active * work.density)
        filled = work.bases * (1 - (1 - min(work.density * share, 1.0)) ** channels)
        return chunks * -(-work.bases // arch.units) * issue, self._multiplications(filled)

    def _issue(self, active: float, matches: float) -> float:
        """Cycles that the combination of one basis takes on an entry of ``active`` non-zero activations."""
        lanes = self.arch.lanes
        vectors = ceil(active / lanes) * (1 - (1 - matches / max(active, 1.0)) ** lanes)
        reach = {"none": 1, "window": 1 + self.arch.look_ahead}.get(self.arch.policy)
        mean = max(matches / lanes, vectors / reach if reach else 0.0)
        return max(1.0, mean + SPREAD * mean**0.5)

    def _multiplications(self, values: float) -> float:
        """Mean MAC cycles of ``values`` pushed values over the phases of the stride."""
        part, work = self.layer.parts[0], self.layer.work
        assert work is not None
        per_axis: list[list[int]] = []
        for size, stride, dilation in zip(
            work.kernel,
            (part.registers["stride_h"], part.registers["stride_w"]),
            (part.registers["dil_h"], part.registers["dil_w"]),
            strict=True,
        ):
            per_axis.append(
                [
                    sum((phase - tap * dilation) % stride == 0 for tap in range(size))
                    for phase in range(stride)
                ]
            )
        total = 0.0
        macs = self.arch.macs
        for rows in per_axis[0]:
            for columns in per_axis[1]:
                # a kernel as large as the map (a linear layer) lands on few outputs only
                taps = min(rows * columns, self.layer.shape[0] * self.layer.shape[1])
                if taps:
                    total += ceil(values / (macs // taps)) if taps <= macs else values * -(-taps // macs)
        return total / (len(per_axis[0]) * len(per_axis[1]))
