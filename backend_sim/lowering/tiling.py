"""Tilings of a layer: how it can be cut, what SRAM each cut needs and what it is estimated to cost.

A tile is a run of output rows (full width) times a run of output channels. Everything an operator needs to
be tiled is asked of its :class:`MachineLayer`; there is no code per operator here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from escc.backend_sim.lowering.allocator import align
from escc.backend_sim.lowering.cost import BEHIND_RELU, ELSEWHERE, CostModel, density, sparse_byte
from escc.backend_sim.lowering.layers import Broadcast, MachineLayer, Range, map_bytes
from escc.isa.arch import Arch

Order = Literal["rows", "channels"]
"""Which loop is the outer one."""
CHANNEL_TILE = 64


@dataclass(frozen=True)
class Placement:
    """Which maps of a layer are in SRAM: one flag per operand, one for the result."""

    operands: tuple[bool, ...]
    result: bool


@dataclass(frozen=True)
class Tiling:
    """One way to cut a layer. ``buffers``: role -> sizes of its buffers (two: double buffered).

    ``cycles``: of ``compute`` and of its transfers, ``dma``; ``head`` of them come before it begins, and
    ``serial`` ones take turns with it.

    Roles: ``shared`` (streams every tile needs, when channels are cut), ``weights``, ``in0``, ``in1``, ...
    for operands in DRAM, ``out`` for a result in DRAM.
    """

    rows: int
    outs: int
    order: Order
    bands: int
    buffers: tuple[tuple[str, tuple[int, ...]], ...]
    cycles: float
    compute: float
    dma: float
    head: float
    serial: float
    dram_bytes: float
    cost: float

    @cached_property
    def sizes(self) -> list[int]:
        """Sizes of all buffers in order."""
        return [size for _, sizes in self.buffers for size in sizes]

    @cached_property
    def need(self) -> int:
        """SRAM bytes of all buffers."""
        return sum(align(size) for size in self.sizes)


def row_tiles(layer: MachineLayer, rows: int) -> list[Range]:
    """Output row runs of at most ``rows`` rows."""
    height = layer.shape[0]
    return [(first, min(first + rows, height)) for first in range(0, height, rows)]


def channel_tiles(layer: MachineLayer, outs: int) -> list[Range]:
    """Output channel runs of at most ``outs`` channels."""
    return [(first, min(first + outs, layer.outs)) for first in range(0, layer.outs, outs)]


@dataclass
class Cuts:
    """What the sizes of tiles imply, per layer; remembered because many tilings share them."""

    layer: MachineLayer
    model: CostModel
    _rows: dict[tuple[int, int], tuple[int, int]] = field(
        default_factory=dict[tuple[int, int], tuple[int, int]]
    )
    _channels: dict[tuple[int, int], tuple[int, int, bool]] = field(
        default_factory=dict[tuple[int, int], tuple[int, int, bool]]
    )
    _weights: dict[int, int] = field(default_factory=dict[int, int])

    @cached_property
    def shared_bytes(self) -> int:
        """Bytes of the streams that every tile needs."""
        return sum(stream.size for stream in self.layer.shared_streams())

    @cached_property
    def channel_bytes(self) -> int:
        """Bytes of all per-channel streams."""
        return sum(stream.size for stream in self.layer.channel_streams())

    def operand_rows(self, operand: int, rows: int) -> tuple[int, int]:
        """(most rows of an operand in a tile, rows over all tiles)."""
        key = (operand, rows)
        if key not in self._rows:
            needs = [self.layer.operand_rows(operand, a, b) for a, b in row_tiles(self.layer, rows)]
            sizes = [high - low for low, high in needs]
            self._rows[key] = max(sizes), sum(sizes)
        return self._rows[key]

    def operand_channels(self, operand: int, outs: int) -> tuple[int, int, bool]:
        """(most channels of an operand in a tile, channels over all tiles, whether tiles differ)."""
        key = (operand, outs)
        if key not in self._channels:
            tiles = channel_tiles(self.layer, outs)
            needs = {self.layer.operand_channels(operand, a, b) for a, b in tiles}
            sizes = [high - low for need in needs if need is not None for low, high in (need,)]
            self._channels[key] = max(sizes), sum(sizes), len(needs) > 1
        return self._channels[key]

    def weight_tile(self, outs: int) -> int:
        """Most bytes of per-channel streams in a tile."""
        if outs not in self._weights:
            streams = self.layer.channel_streams()
            tiles = channel_tiles(self.layer, outs)
            self._weights[outs] = max(sum(stream.bytes_of(a, b) for stream in streams) for a, b in tiles)
        return self._weights[outs]


def tilings(layer: MachineLayer, placement: Placement, arch: Arch, cuts: Cuts | None = None) -> list[Tiling]:
    """The tilings worth considering, cheapest first; each next one needs less SRAM.

    Output-channel tiles are multiples of 64; smaller ones are offered only when none of those can ever fit.
    """
    cuts = cuts or Cuts(layer, CostModel(layer, arch))
    found = [
        tiling
        for outs in _channel_options(layer)
        for tiling in _tilings_of(layer, placement, arch, cuts, outs)
        if tiling.need <= arch.sram_bytes
    ]
    if not found:
        for outs in _small_channel_options(layer, arch):
            found += _tilings_of(layer, placement, arch, cuts, outs)
    return _frontier(found)


def _frontier(found: list[Tiling]) -> list[Tiling]:
    kept: list[Tiling] = []
    for tiling in sorted(found, key=lambda item: (item.cost, item.need)):
        if not kept or tiling.need < kept[-1].need:
            kept.append(tiling)
    return kept


def _row_options(layer: MachineLayer) -> list[int]:
    height = layer.shape[0]
    counts = [n for n in (*range(1, 9), 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64) if n < height]
    return sorted({-(-height // n) for n in (*counts, height)})


def _channel_options(layer: MachineLayer) -> list[int]:
    step = math.lcm(CHANNEL_TILE, layer.unit)
    steps = -(-layer.outs // step)
    counts = [n for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32) if n < steps]
    return [
        layer.outs,
        *sorted({-(-steps // n) * step for n in (*counts, steps)} - {layer.outs}, reverse=True),
    ]


def _small_channel_options(layer: MachineLayer, arch: Arch) -> list[int]:
    """Channel tiles below 64: whole groups of array rows where possible, down to the smallest one."""
    limit = min(CHANNEL_TILE, layer.outs // layer.unit)
    shares = {-(-limit // n) for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, limit)}
    sizes = {size // arch.rows * arch.rows or size for size in shares}
    return sorted({size * layer.unit for size in sizes}, reverse=True)


def _tilings_of(
    layer: MachineLayer, placement: Placement, arch: Arch, cuts: Cuts, outs: int
) -> Iterator[Tiling]:
    channel_count = -(-layer.outs // outs)
    for rows in _row_options(layer):
        row_count = -(-layer.shape[0] // rows)
        orders: tuple[Order, ...] = (
            ("channels", "rows") if min(channel_count, row_count) > 1 else ("channels",)
        )
        smallest = 0
        for order in orders:
            single: set[str] = set()
            while True:
                tiling = tiling_of(layer, placement, cuts, rows, outs, order, single)
                yield tiling
                doubled = [role for role, sizes in tiling.buffers if len(sizes) > 1]
                if not doubled or tiling.need <= arch.sram_bytes // 8:
                    break
                # give up double buffering one role at a time, outputs first: they cost least
                single.add(max(doubled, key=lambda role: (role == "out", role != "weights", role)))
            smallest = tiling.need
        if smallest > arch.sram_bytes:
            # more rows need more
            break


def tiling_of(
    layer: MachineLayer,
    placement: Placement,
    cuts: Cuts,
    rows: int,
    outs: int,
    order: Order,
    single: set[str],
) -> Tiling:
    """The tiling of these sizes: its buffers (``single``: roles that get only one) and its estimated cost."""
    model = cuts.model
    row_count, channel_count = -(-layer.shape[0] // rows), -(-layer.outs // outs)
    steps = row_count * channel_count
    buffers: list[tuple[str, tuple[int, ...]]] = []
    total = serial = head = 0.0
    transfers = 0.0

    def add(role: str, size: int, moved: float, loads: int, exposed: float) -> None:
        nonlocal total, serial, head, transfers
        copies = 2 if loads > 1 and role not in single else 1
        buffers.append((role, (size,) * copies))
        total += moved
        transfers += loads
        head += exposed * (moved / loads)
        if loads > 1 and copies == 1:
            serial += model.transfer(moved, loads)

    shared = cuts.shared_bytes
    weights = cuts.weight_tile(outs)
    if channel_count > 1 and shared:
        add("shared", shared, shared, 1, 0.0)
        shared = 0
    if weights + shared:
        held = 1 if "weights" in single else 2
        again = order == "rows" and channel_count > held
        loads = channel_count * (row_count if again else 1)
        moved = cuts.channel_bytes * (row_count if again else 1) + shared
        # the first tile's weights can often be fetched while the layer before runs
        add("weights", weights + shared, moved, loads, 0.5)
    for index, operand in enumerate(layer.operands):
        if placement.operands[index]:
            continue
        role = f"in{index}"
        held = 1 if role in single else 2
        most_rows, all_rows = cuts.operand_rows(index, rows)
        most_channels, all_channels, differ = cuts.operand_channels(index, outs)
        per_row = not isinstance(operand.rule, Broadcast) and row_count > 1
        loads = (row_count if per_row else 1) * (channel_count if differ else 1)
        repeats = 1
        if not differ and per_row and order == "channels" and row_count > held:
            repeats = channel_count
        if differ and not per_row and order == "rows" and channel_count > held:
            repeats = row_count
        values = (all_rows if per_row else most_rows) * operand.shape[1] * all_channels
        moved = values * sparse_byte(density(operand)) * repeats
        size = map_bytes(most_rows, operand.shape[1], most_channels)
        add(role, size, moved, loads * repeats, 1.0)
    if not placement.result:
        moved = math.prod(layer.shape) * sparse_byte(ELSEWHERE if layer.signed else BEHIND_RELU)
        add("out", map_bytes(rows, layer.shape[1], outs), moved, steps, 1.0)
    full = model.tile(rows, outs)
    compute = _all_tiles(layer, model, rows, outs)
    dma = model.transfer(total, transfers)
    # What is not double buffered takes turns with the computation, which begins when the first transfers are
    # done; where the transfers set the pace, they go on from layer to layer.
    head /= model.arch.bytes_per_cycle
    cycles = serial + max(compute + head, dma - serial)
    cost = cycles + 0.05 * (dma + compute + serial)
    return Tiling(
        rows, outs, order, full.bands, tuple(buffers), cycles, compute, dma, head, serial, total, cost
    )


def _all_tiles(layer: MachineLayer, model: CostModel, rows: int, outs: int) -> float:
    whole_rows, last_rows = divmod(layer.shape[0], rows)
    whole_outs, last_outs = divmod(layer.outs, outs)
    total = 0.0
    for row_count, row_size in ((whole_rows, rows), (1 if last_rows else 0, last_rows)):
        for out_count, out_size in ((whole_outs, outs), (1 if last_outs else 0, last_outs)):
            if row_count and out_count:
                total += row_count * out_count * model.tile(row_size, out_size).cycles
    return total
