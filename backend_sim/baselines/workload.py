"""What a baseline machine is given, one layer with its real values, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from escc.backend_sim.simulator.energy import EVENTS, EnergyTable
from escc.errors import EsccError

Values = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

BUSY = "busy"
WAIT_DRAM = "wait_dram"
REGISTER_KIB = 0.5
"""Storage inside a processing element up to this size costs register bits; anything larger is an SRAM of its
own size, as the coefficient memories and partial sums of escc's own machine are."""

DRAM_ROW_BYTES = 2048
"""Bytes of a DRAM row, as on escc's own machine; weights and maps are streams: a row is opened once."""

_COSTS = {event.name: event for event in EVENTS}


@dataclass(frozen=True)
class ConvWork:
    """One convolution of one image. A dense layer is a 1 x 1 convolution of a 1 x 1 map.

    ``x``: (C, H, W) int8 or uint8 activations as stored, real zeros are stored zeros. ``weight``: (K, C /
    groups, R, S) int8, pruned weights are zeros; every machine gets its own. ``stride``, ``dilation``: (rows,
    columns). ``padding``: (top, left, bottom, right), zeros. ``output_nonzeros``: non-zero values of the
    output map after its activation, None when not known (then counted as dense). ``x_in_dram``,
    ``y_in_dram``: the map is an input or output of the whole network, which no machine has on chip.
    """

    name: str
    x: Values
    weight: Values
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    output_nonzeros: int | None = None
    x_in_dram: bool = False
    y_in_dram: bool = False

    def __post_init__(self) -> None:
        if self.x.ndim != 3 or self.weight.ndim != 4:
            raise EsccError("a layer needs a (C, H, W) input and (K, C, R, S) weights", where=self.name)
        chans, outs = self.x.shape[0], self.weight.shape[0]
        if self.groups < 1 or chans % self.groups or outs % self.groups:
            raise EsccError(f"{chans} and {outs} channels do not make {self.groups} groups", where=self.name)
        if self.weight.shape[1] * self.groups != chans:
            raise EsccError(f"weights {self.weight.shape} do not fit {chans} channels", where=self.name)
        if min(*self.stride, *self.dilation) < 1 or min(self.padding) < 0 or min(self.output_shape) < 1:
            raise EsccError("stride, padding or dilation leave no output", where=self.name)

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(K, rows, columns)."""
        top, left, bottom, right = self.padding
        _, height, width = self.x.shape
        outs, _, kernel_h, kernel_w = self.weight.shape
        rows = (height + top + bottom - (kernel_h - 1) * self.dilation[0] - 1) // self.stride[0] + 1
        columns = (width + left + right - (kernel_w - 1) * self.dilation[1] - 1) // self.stride[1] + 1
        return outs, rows, columns

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the dense layer, padding counted like values."""
        outs, rows, columns = self.output_shape
        return outs * rows * columns * int(np.prod(self.weight.shape[1:]))

    @property
    def is_dense_layer(self) -> bool:
        """A matrix times a vector: one position, one tap."""
        return self.x.shape[1:] == (1, 1) and self.weight.shape[2:] == (1, 1)

    @cached_property
    def x_mask(self) -> Mask:
        """Non-zero activations, (C, H, W)."""
        return self.x != 0

    @cached_property
    def weight_mask(self) -> Mask:
        """Non-zero weights, (K, C / groups, R, S)."""
        return self.weight != 0

    @cached_property
    def padded_mask(self) -> Mask:
        """`x_mask` with its padding around it, (C, H + top + bottom, W + left + right)."""
        top, left, bottom, right = self.padding
        return np.pad(self.x_mask, ((0, 0), (top, bottom), (left, right)))

    @property
    def x_nonzeros(self) -> int:
        """Non-zero activations."""
        return int(np.count_nonzero(self.x_mask))

    @property
    def weight_nonzeros(self) -> int:
        """Non-zero weights."""
        return int(np.count_nonzero(self.weight_mask))

    @property
    def y_nonzeros(self) -> int:
        """Non-zero outputs; all of them when that is not known."""
        return int(np.prod(self.output_shape)) if self.output_nonzeros is None else self.output_nonzeros


@dataclass(frozen=True)
class BufferUse:
    """Bytes moved in and out of a storage array of ``kib`` KiB, summed over its ``count`` equal instances."""

    name: str
    kib: float
    count: int
    read_bytes: float
    write_bytes: float


@dataclass(frozen=True)
class LayerRun:
    """What a layer costs on a machine.

    ``cycles``: of the machine's clock, waits for DRAM included. ``multiplications``: products formed, gated
    ones and idle multipliers left out. ``slots``: every multiplier of every cycle by what it did: "busy" when
    it multiplied two non-zero operands, else the reason why it did not; they sum to cycles * multipliers.
    ``events``: counts of the energy table's events, DRAM and buffers left out. ``sampled``: share of the
    steps that were looked at where a count is an estimate, 1 if it is exact. ``note``: how a layer that the
    machine's paper does not describe was mapped. ``mapping``: the tiling that was chosen, by name.
    """

    name: str
    cycles: int
    multipliers: int
    multiplications: int
    slots: Mapping[str, int]
    events: Mapping[str, float]
    buffers: tuple[BufferUse, ...]
    dram_read_bytes: int
    dram_write_bytes: int
    sampled: float = 1.0
    note: str = ""
    mapping: Mapping[str, int] = field(default_factory=dict[str, int])

    def __post_init__(self) -> None:
        assert sum(self.slots.values()) == self.cycles * self.multipliers, (
            f"{self.name}: cycles without a cause"
        )
        assert min(self.slots.values(), default=0) >= 0, f"{self.name}: negative slots"
        assert set(self.events) <= set(_COSTS), f"{self.name}: events the energy table does not know"

    @property
    def causes(self) -> dict[str, float]:
        """Cycles by what the multipliers did, their mean; sums to ``cycles``."""
        return {name: count / self.multipliers for name, count in self.slots.items()}

    @property
    def utilisation(self) -> float:
        """Share of the multiplier cycles that were busy."""
        return self.slots.get(BUSY, 0) / max(1, self.cycles * self.multipliers)

    def energy(self, table: EnergyTable, clock_mhz: float) -> dict[str, float]:
        """Energy by event and buffer, in the table's unit; leakage of the SRAMs only where that is pJ."""
        found: dict[str, float] = {}

        def add(name: str, amount: float) -> None:
            found[name] = found.get(name, 0.0) + amount

        for moved in (self.dram_read_bytes, self.dram_write_bytes):
            add("dram", 8 * moved * table.costs["dram_bit"].value)
            add("dram", -(-moved // DRAM_ROW_BYTES) * table.costs["dram_activate"].value)
        for name, count in self.events.items():
            add(name, count * table.costs[_COSTS[name].cost].value)
        leakage_uw = 0.0
        for item in self.buffers:
            if item.kib <= REGISTER_KIB:
                bits = 8 * (item.read_bytes + item.write_bytes)
                add(item.name, bits * table.costs["register_bit"].value)
                continue
            add(item.name, item.read_bytes * table.sram_read(item.kib))
            add(item.name, item.write_bytes * table.sram_write(item.kib))
            leakage_uw += item.count * table.sram_leakage_uw(item.kib)
        if table.unit == "pJ":
            # microwatts times microseconds are picojoules
            add("leakage", leakage_uw * self.cycles / clock_mhz)
        return found


class Baseline(Protocol):
    """A machine: its parameters are frozen fields, ``run`` is a function of them and the layer alone."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    @property
    def multipliers(self) -> int:
        """Multipliers of the whole machine."""
        ...

    @property
    def clock_mhz(self) -> float:
        """Its clock."""
        ...

    def scaled(self, multipliers: int) -> Baseline:
        """The same machine with another number of multipliers, as the comparison runs it."""
        ...

    def run(self, work: ConvWork) -> LayerRun:
        """One layer, one image.

        Raises:
            EsccError: the machine has no mapping for the layer.
        """
        ...


def wait_for_dram(cycles: int, moved_bytes: int, clock_mhz: float, dram_gbps: float | None) -> int:
    """Cycles to add so that ``moved_bytes`` fit beside ``cycles``, overlapped perfectly; no limit: none."""
    if dram_gbps is None:
        return 0
    return max(0, -int(-moved_bytes * clock_mhz // (1000 * dram_gbps)) - cycles)
