"""Emission: scheduled layers become a flat list of actions, in an order that is valid one after the other."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from escc.backend_sim.lowering.actions import Action
from escc.backend_sim.lowering.assignment import Assignment, Home
from escc.backend_sim.lowering.cost import BEHIND_RELU, ELSEWHERE, CostModel, density, sparse_byte
from escc.backend_sim.lowering.data import Bundle, LayerData
from escc.backend_sim.lowering.layers import Broadcast, Part, Range, Read
from escc.errors import EsccError
from escc.ir.xdsl import SSAValue
from escc.isa.arch import Arch
from escc.isa.maps import position_pitch


@dataclass
class Pool:
    """The buffers of one role, filled in turn; a region that is still held is not fetched again."""

    addresses: tuple[int, ...]
    _held: list[Hashable] = field(default_factory=list[Hashable])
    _next: int = 0

    def find(self, key: Hashable) -> tuple[int, bool]:
        """(buffer address, whether it already holds ``key``)."""
        if key in self._held:
            return self.addresses[self._held.index(key)], True
        slot = self._next
        self._next = (slot + 1) % len(self.addresses)
        if len(self._held) <= slot:
            self._held.append(key)
        else:
            self._held[slot] = key
        return self.addresses[slot], False


@dataclass(frozen=True)
class View:
    """Rows of a map as an instruction finds them in SRAM: address of ``first`` row, channel ``channel``."""

    address: int
    row: int
    pos: int
    first: int
    rows: int
    channel: int

    def at(self, row: int, channel: int) -> int:
        """Address of a channel of the first position of a row."""
        return self.address + (row - self.first) * self.row + channel - self.channel


@dataclass
class Emitter:
    """Emits the actions of one layer."""

    index: int
    assignment: Assignment
    data: LayerData
    homes: dict[SSAValue, Home]
    arch: Arch
    actions: list[Action] = field(default_factory=list[Action])

    def __post_init__(self) -> None:
        self.layer = self.assignment.layer
        self.model = CostModel(self.layer, self.arch)
        self.pools = {role: Pool(addresses) for role, addresses in self.assignment.buffers.items()}

    def run(self) -> list[Action]:
        """All actions of the layer: for every tile its loads, its instructions, its store."""
        home = self.homes[self.layer.anchor.out]
        for rows, channels in self.assignment.tiles():
            shared = self._bundle("shared", 0, self.data.shared)
            weights = self._bundle("weights", channels, self.data.tiles.get(channels))
            views = [self._operand(index, rows, channels) for index in range(len(self.layer.operands))]
            out = self._output(home, rows, channels)
            parts = self.layer.parts_of(*channels)
            cost = self.model.tile(rows[1] - rows[0], channels[1] - channels[0])
            bands = self.assignment.bands if channels[1] - channels[0] == self.assignment.outs else cost.bands
            for part, low, high in parts:
                registers = {
                    **part.registers,
                    **_output_registers(out, rows, low, self.layer.shape[1]),
                    **self._reads(part, views, rows, low, high),
                }
                coefficients = self._weights(registers, shared, weights, low, high)
                if self.layer.vector:
                    registers["chans"] = high - low
                else:
                    registers |= {"outs": high - low, "bands": min(bands, rows[1] - rows[0])}
                cycles = cost.cycles / len(parts)
                self._add(part.mnemonic, registers, cycles, coefficients)
            if not home.sram:
                share = ELSEWHERE if self.layer.signed else BEHIND_RELU
                self._move("store_map", home, out, channels, share)
        return self.actions

    def _add(self, mnemonic: str, registers: dict[str, int], cycles: float, coefficients: int = 0) -> None:
        self.actions.append(Action(mnemonic, registers, self.index, cycles, coefficients))

    def _buffer(self, role: str, key: Hashable) -> tuple[int, bool]:
        pool = self.pools.get(role)
        if pool is None or not pool.addresses:
            raise EsccError(f"its schedule has no buffer '{role}'", where=self.layer.name)
        return pool.find(key)

    def _bundle(self, role: str, key: Hashable, bundle: Bundle | None) -> tuple[int, Bundle] | None:
        if bundle is None:
            return None
        address, held = self._buffer(role, key)
        if not held:
            self._fits(role, bundle.size)
            registers = {"dram": bundle.address, "sram": address, "size": bundle.size}
            self._add("load_stream", registers, self.model.transfer(bundle.size))
        return address, bundle

    def _operand(self, index: int, rows: Range, channels: Range) -> View | None:
        operand = self.layer.operands[index]
        home = self.homes[operand.value]
        if home.sram:
            return View(home.address, home.row_pitch, home.pos_pitch, 0, home.shape[0], 0)
        span = self.layer.operand_channels(index, *channels)
        if span is None:
            return None
        first, stop = self.layer.operand_rows(index, *rows)
        role = f"in{index}"
        address, held = self._buffer(role, (first, stop, span))
        pos = position_pitch(span[1] - span[0])
        view = View(address, operand.shape[1] * pos, pos, first, stop - first, span[0])
        if not held:
            self._fits(role, view.row * view.rows)
            self._move("load_map", home, view, span, density(operand))
        return view

    def _output(self, home: Home, rows: Range, channels: Range) -> View:
        if home.sram:
            return View(home.address, home.row_pitch, home.pos_pitch, 0, home.shape[0], 0)
        address, _ = self._buffer("out", (rows, channels))
        pos = position_pitch(channels[1] - channels[0])
        view = View(address, home.shape[1] * pos, pos, rows[0], rows[1] - rows[0], channels[0])
        self._fits("out", view.row * view.rows)
        return view

    def _fits(self, role: str, size: int) -> None:
        if size > self.assignment.buffer_bytes[role]:
            raise EsccError(
                f"buffer '{role}' has {self.assignment.buffer_bytes[role]} bytes, a tile needs {size}",
                where=self.layer.name,
                hint="run the pass schedule again",
            )

    def _move(self, mnemonic: str, home: Home, view: View, channels: Range, share: float) -> None:
        registers = {
            "dram": home.at(view.first, channels[0]),
            "sram": view.address,
            "rows": view.rows,
            "cols": home.shape[1],
            "chans": channels[1] - channels[0],
            "dram_row": home.row_pitch,
            "dram_pos": home.pos_pitch,
            "sram_row": view.row,
            "sram_pos": view.pos,
        }
        values = view.rows * home.shape[1] * (channels[1] - channels[0])
        self._add(mnemonic, registers, self.model.transfer(values * sparse_byte(share)))

    def _reads(
        self, part: Part, views: list[View | None], rows: Range, low: int, high: int
    ) -> dict[str, int]:
        registers: dict[str, int] = {}
        for read in part.reads:
            view = views[read.operand]
            assert view is not None
            first, stop = read.channels(low - part.lo, high - part.lo)
            registers |= self._role_registers(read, view, rows, first)
            if read.role == "x":
                registers["chans"] = stop - first
        return registers

    def _role_registers(self, read: Read, view: View, rows: Range, channel: int) -> dict[str, int]:
        operand = self.layer.operands[read.operand]
        if read.role in ("x", "a"):
            names = ("addr", "row", "pos", "first", "rows")
            values = (view.at(view.first, channel), view.row, view.pos, view.first, view.rows)
            found = {f"{read.role}_{name}": value for name, value in zip(names, values, strict=True)}
            return found | {"height": operand.shape[0], "width": operand.shape[1]}
        prefix = "res" if read.role == "residual" else "b"
        if isinstance(operand.rule, Broadcast):
            return {f"{prefix}_addr": view.at(view.first, channel), f"{prefix}_row": 0, f"{prefix}_pos": 0}
        return {
            f"{prefix}_addr": view.at(rows[0], channel),
            f"{prefix}_row": view.row,
            f"{prefix}_pos": view.pos,
        }

    def _weights(
        self,
        registers: dict[str, int],
        shared: tuple[int, Bundle] | None,
        weights: tuple[int, Bundle] | None,
        low: int,
        high: int,
    ) -> int:
        """Set the stream addresses of output channels [low, high); returns the coefficient bytes."""
        coefficients = 0
        for stream in self.layer.streams:
            held = next((h for h in (weights, shared) if h and stream.register in h[1].offsets), None)
            assert held is not None
            address, bundle = held
            skipped = 0 if stream.offsets is None else stream.bytes_of(bundle.first, low)
            registers[stream.register] = address + bundle.offsets[stream.register] + skipped
            if stream.kind == "coefficients":
                coefficients = stream.bytes_of(low, high)
        return coefficients


def _output_registers(view: View, rows: Range, channel: int, columns: int) -> dict[str, int]:
    return {
        "y_addr": view.at(rows[0], channel),
        "y_row": view.row,
        "y_pos": view.pos,
        "y_first": rows[0],
        "y_rows": rows[1] - rows[0],
        "y_cols": columns,
    }
