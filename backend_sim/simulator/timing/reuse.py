"""Timing the same convolutions on many machines without concentrating again.

Concentration knows nothing of time, blocks, rows, rings, FIFOs and MACs (docs/machine.md, "Time"): its
result for an instruction holds for every machine of the same chunk, lanes, units, policy and window. What is
left for each of them is the recurrence of the queues.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from escc.backend_sim.simulator.timing.conv_timing import check_shapes, report
from escc.backend_sim.simulator.timing.engines import Engine, NumpyEngine
from escc.backend_sim.simulator.timing.geometry import plan
from escc.backend_sim.simulator.timing.load import Load, Operands, Order, conv_loads
from escc.backend_sim.simulator.timing.native import (
    FORMS,
    POLICIES,
    NativeEngine,
    Planes,
    library,
    parameter_names,
    raise_status,
)
from escc.backend_sim.simulator.timing.recurrence import item_times
from escc.backend_sim.simulator.timing.work import ConvTiming, ConvWork, Counts, Ternary, TimingArch
from escc.errors import EsccError

CONCENTRATION = ("chunk", "lanes", "units", "policy", "look_ahead", "look_aside")
"""The parameters of a machine that concentration sees."""

FIGURES = tuple(field.name for field in fields(ConvTiming))
WIDE = 4
"""Status of the library: numbers do not fit what is kept; abi.h."""
MARGIN = 128
"""Bytes behind a buffer that the library may read."""


class Instruction(NamedTuple):
    """A convolution: its registers, the bytes it reads (rows, width, chans), uint8, and its coefficients."""

    work: ConvWork
    x: npt.NDArray[np.uint8]
    ternary: Ternary | None


class Reuse(Protocol):
    """Convolutions whose concentration is done once."""

    def timings(self, arch: TimingArch, bands: Sequence[int]) -> Counts:
        """The `FIGURES` of each instruction on ``arch``, cut into ``bands``: (instructions, figures).

        Raises:
            EsccError: ``arch`` differs in what concentration sees.
        """
        ...


def reusing(engine: Engine, arch: TimingArch, instructions: Sequence[Instruction]) -> Reuse:
    """Concentrate for ``arch``, to time by ``engine``.

    Raises:
        EsccError: arrays of another shape, or an input row that is not there.
    """
    for work, x, ternary in instructions:
        check_shapes(work, (1, *x.shape), None if ternary is None else ternary.shape)
    if isinstance(engine, NativeEngine):
        return _NativeReuse(engine, arch, instructions)
    assert isinstance(engine, NumpyEngine)
    return _NumpyReuse(arch, instructions)


def _check(known: TimingArch, asked: TimingArch) -> None:
    for name in CONCENTRATION:
        if getattr(known, name) != getattr(asked, name):
            raise EsccError(
                f"concentrated for {name} {getattr(known, name)}, asked for {getattr(asked, name)}"
            )


@dataclass(frozen=True)
class _OneRow:
    """A machine with one row, whose outputs are therefore in their own order."""

    blocks: int
    rows: int
    macs: int
    units: int
    lanes: int
    chunk: int
    ring_entries: int
    fifo_positions: int
    policy: str
    look_ahead: int
    look_aside: int
    startup_cycles: int

    @classmethod
    def like(cls, arch: TimingArch) -> _OneRow:
        return replace(cls(**{field.name: getattr(arch, field.name) for field in fields(cls)}), rows=1)


class _NumpyReuse:
    def __init__(self, arch: TimingArch, instructions: Sequence[Instruction]) -> None:
        self.arch = _OneRow.like(arch)
        self.instructions = instructions
        self.loads: list[tuple[npt.NDArray[np.bool_], Load]] = []
        for work, x, ternary in instructions:
            rows = plan(work, len(x)).rows
            active = np.ascontiguousarray(x[None, rows - work.x_first] != 0)
            load = conv_loads(self.arch, [Operands(work, active, ternary)])[0]
            self.loads.append((active, load))

    def timings(self, arch: TimingArch, bands: Sequence[int]) -> Counts:
        """See `Reuse`."""
        _check(self.arch, arch)
        found: list[list[int]] = []
        for (work, x, _), (active, load), count in zip(self.instructions, self.loads, bands, strict=True):
            cut = replace(work, bands=count)
            rows = plan(cut, len(x))
            whole = _whole_groups(load, work.outs, arch.rows)
            timing = report(arch, cut, rows, active, whole, item_times(arch, rows, whole, work.outs))
            found.append([int(getattr(timing, name)[0]) for name in FIGURES])
        return np.array(found, np.int64).reshape(len(found), len(FIGURES))


def _whole_groups(load: Load, outs: int, rows: int) -> Load:
    """A load of single outputs in the order of blocks of ``rows`` rows."""
    order = Order(outs, rows)

    def ordered(array: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.unsignedinteger]:
        if rows == 1 or array.shape[-1] == 1 < outs:
            return array
        lines = order.spread(array.reshape(array.size // outs, outs)[:, order.outputs])
        return lines.reshape(*array.shape[:-1], lines.shape[1])

    return replace(load, cycles=ordered(load.cycles), values=ordered(load.values))


class _Kept(ctypes.Structure):
    _fields_ = (
        ("filled", ctypes.c_int64),
        ("cycles", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("value_sum", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
    )


def _address(array: npt.NDArray[np.generic] | None) -> int:
    return 0 if array is None else array.__array_interface__["data"][0]


class _Store:
    """What the library keeps of one instruction of the form combine; ``lines`` of ``stride`` bytes."""

    def __init__(self, arch: TimingArch, work: ConvWork, rows: int) -> None:
        self.stride = -(-work.outs // 64) * 64
        self.chunks = -(-work.chans // arch.chunk)
        self.places = rows * work.width
        self.cycles = np.empty(self.places * self.chunks * self.stride + MARGIN, np.uint8)
        self.values = np.empty(self.places * self.stride + MARGIN, np.uint8)
        self.value_sum = np.zeros(self.places + MARGIN, np.int64)
        self.sums = np.zeros(4 * rows + MARGIN, np.int64)
        self.outs = work.outs

    def kept(self, filled: bool) -> _Kept:
        addresses = [_address(array) for array in (self.cycles, self.values, self.value_sum, self.sums)]
        return _Kept(int(filled), *addresses)

    def ordered(self, rows: int, cycles: npt.NDArray[np.uint8], values: npt.NDArray[np.uint8]) -> _Kept:
        """The same for blocks of ``rows`` rows, in buffers of the same sizes."""
        for count, source, target in (
            (self.places * self.chunks, self.cycles, cycles),
            (self.places, self.values, values),
        ):
            raise_status(
                library().escc_reorder(rows, self.outs, count, _address(source), _address(target)), None
            )
        return _Kept(1, _address(cycles), _address(values), _address(self.value_sum), _address(self.sums))


class _NativeReuse:
    """Loads in the order of the outputs, and once more in that of the number of rows asked for last."""

    def __init__(self, engine: NativeEngine, arch: TimingArch, instructions: Sequence[Instruction]) -> None:
        self.engine, self.arch = engine, _OneRow.like(arch)
        self.instructions = [item._replace(x=np.ascontiguousarray(item.x)) for item in instructions]
        names = parameter_names()
        self.column = {name: index for index, name in enumerate(names)}
        self.parameters = np.array([self._row(item) for item in self.instructions], np.int64)
        self.parameters = self.parameters.reshape(len(self.instructions), len(names))
        self.stores: list[_Store | None] = [self._store(item) for item in self.instructions]
        self.figures = np.zeros((len(self.instructions), len(FIGURES)), np.int64)
        self.x = _pointers([item.x for item in self.instructions])
        packed = [
            None if item.ternary is None else engine.planes(item.ternary, 1) for item in self.instructions
        ]
        self._set(self.arch, [item.work.bands for item in self.instructions])
        status = self._call([store and store.kept(False) for store in self.stores], packed)
        # what does not fit bytes is timed anew each time
        self.wide = np.flatnonzero(status == WIDE).tolist()
        for index in self.wide:
            self.stores[index] = None
            status[index] = 0
        self._raise(status)
        self.rows = 1
        self.kept = [store and store.kept(True) for store in self.stores]
        self.buffers: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]] | None] = []

    def _row(self, item: Instruction) -> list[int]:
        work, x, _ = item
        values: dict[str, int] = vars(work) | {
            "form": FORMS[work.form],
            "policy": POLICIES[self.arch.policy],
            "images": 1,
            "x_rows": len(x),
            "step_image": x.size,
            "step_row": x.strides[0],
            "step_pos": x.strides[1],
            "wide": 0,
        }
        return [values[name] if name in values else getattr(self.arch, name) for name in self.column]

    def _store(self, item: Instruction) -> _Store | None:
        if item.work.form != "combine":
            return None
        return _Store(self.arch, item.work, len(plan(item.work, len(item.x)).rows))

    def _set(self, arch: TimingArch, bands: Sequence[int]) -> None:
        for name in ("blocks", "rows", "macs", "ring_entries", "fifo_positions", "startup_cycles"):
            self.parameters[:, self.column[name]] = getattr(arch, name)
        self.parameters[:, self.column["bands"]] = bands

    def _call(self, kept: list[_Kept | None], packed: list[Planes | None]) -> Counts:
        status = np.zeros(len(self.instructions), np.int64)
        self.engine.time_all(
            self.parameters,
            self.x,
            _pointers([None if planes is None else planes.words for planes in packed]),
            _pointers([None if planes is None else planes.weights for planes in packed]),
            np.array([0 if item is None else ctypes.addressof(item) for item in kept], np.uintp),
            self.figures,
            status,
        )
        return status

    def _raise(self, status: Counts) -> None:
        for index in np.flatnonzero(status).tolist():
            raise_status(int(status[index]), self.instructions[index].work)

    def timings(self, arch: TimingArch, bands: Sequence[int]) -> Counts:
        """See `Reuse`."""
        _check(self.arch, arch)
        if arch.rows != self.rows:
            self._order(arch.rows)
        self._set(arch, bands)
        status = self._call(self.kept, [None] * len(self.instructions))
        for index in [*self.wide, *np.flatnonzero(status == WIDE).tolist()]:
            work, x, ternary = self.instructions[index]
            again = self.engine.conv_timing(arch, replace(work, bands=bands[index]), x[None], ternary)
            self.figures[index] = [int(getattr(again, name)[0]) for name in FIGURES]
            status[index] = 0
        self._raise(status)
        return self.figures.copy()

    def _order(self, rows: int) -> None:
        if rows > 1 and not self.buffers:
            self.buffers = [
                store and (np.empty_like(store.cycles), np.empty_like(store.values)) for store in self.stores
            ]
        for index, store in enumerate(self.stores):
            if store is None:
                continue
            if rows == 1:
                self.kept[index] = store.kept(True)
            else:
                buffers = self.buffers[index]
                assert buffers is not None
                self.kept[index] = store.ordered(rows, *buffers)
        self.rows = rows


def _pointers(arrays: Sequence[npt.NDArray[np.generic] | None]) -> npt.NDArray[np.uintp]:
    return np.array([_address(array) for array in arrays], np.uintp)
