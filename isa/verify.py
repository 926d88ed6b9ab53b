"""Static checks of a program, on the instructions as the sequencer dispatches them, before anything runs.

Registers of every instruction, SRAM and DRAM bounds, room for partial sums, tokens (every wait has an
earlier signal), overwriting of an instruction's own operands, outputs completely stored, and races between
the queues.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from escc.errors import EsccError
from escc.isa.access import DRAM, SRAM, Access, accesses, partial_sums
from escc.isa.instructions import BY_MNEMONIC
from escc.isa.maps import MapDescriptor
from escc.isa.program import Program
from escc.isa.races import Race, RaceCheck, box_view, overlap
from escc.isa.registers import ConvFlags, ConvRegisters, DmaRegisters
from escc.isa.sequence import Dispatch, expand
from escc.isa.sparsemap import row_offsets

IN_PLACE = ("a", "b", "residual")
"""Operands that may be the very box the instruction writes: value by value, read before written."""


class Measure(Protocol):
    """Bytes of the row streams at the start of a buffer: the last of `escc.isa.sparsemap.row_offsets`."""

    def __call__(
        self, buffer: npt.NDArray[np.uint8], outs: int, chans: int, bases: int, *, two_level: bool
    ) -> int: ...


def measure_streams(
    buffer: npt.NDArray[np.uint8], outs: int, chans: int, bases: int, *, two_level: bool
) -> int:
    """`Measure` by its definition."""
    return row_offsets(buffer, outs, chans, bases, two_level=two_level)[-1]


def verify(program: Program, *, races: bool = True, measure: Measure = measure_streams) -> None:
    """Check ``program`` without running it.

    Args:
        races: also look for races between the queues (about half of the time).
        measure: tells the length of coefficient streams; another one must give the same, and be quicker.

    Raises:
        EsccError: the first thing that is wrong, naming the instruction's word and layer.
    """
    _Verifier(program, races, measure).run()


class _Verifier:
    def __init__(self, program: Program, races: bool, measure: Measure) -> None:
        self._program = program
        self._limits = {SRAM: program.arch.sram_bytes, DRAM: program.dram_bytes}
        self._data = program.data_array
        self._check = RaceCheck()
        self._races = races
        self._streams = _Streams(program.arch.sram_bytes, measure)
        self._outputs = [_Stored(item) for item in program.outputs]

    def run(self) -> None:
        self._check_marks()
        for dispatch in expand(self._program.code):
            try:
                if dispatch.registers is None:
                    self._token(dispatch)
                else:
                    self._instruction(dispatch)
            except EsccError as error:
                if error.where:
                    raise
                raise EsccError(error.message, where=self._place(dispatch)) from None
        for output in self._outputs:
            output.check(self._program)

    def _token(self, dispatch: Dispatch) -> None:
        if dispatch.instruction.mnemonic == "signal":
            self._check.signal(dispatch.queue, dispatch.token)
        elif not self._check.wait(dispatch.queue, dispatch.token):
            raise EsccError(f"waits for token {dispatch.token}, but no signal before it is left")

    def _instruction(self, dispatch: Dispatch) -> None:
        registers, mnemonic = dispatch.registers, dispatch.instruction.mnemonic
        assert registers is not None
        found, stream = accesses(mnemonic, registers)
        if isinstance(registers, ConvRegisters):
            sums, room = partial_sums(registers), self._program.arch.psum_entries
            if sums > room:
                raise EsccError(f"needs {sums} partial sums in a row of the array, which holds {room}")
            if stream >= 0:
                self._bounds(found[stream])
                size = self._streams.measure(registers)
                exact = found[stream]._replace(chans=size)
                found = (*found[:stream], exact, *found[stream + 1 :])
        for access in found:
            self._bounds(access)
        if isinstance(registers, DmaRegisters):
            self._dma(mnemonic, registers, found)
        else:
            _check_own_operands(found)
        if self._races:
            race = self._check.access(dispatch, found)
            if race is not None:
                raise self._race_error(race)

    def _dma(self, mnemonic: str, registers: DmaRegisters, found: tuple[Access, ...]) -> None:
        if mnemonic == "load_stream":
            self._streams.load(registers, self._data)
        elif mnemonic == "store_map":
            target = found[0]
            if target.base < self._data.size:
                raise EsccError(f"writes DRAM byte {target.base}, inside the data section")
            for output in self._outputs:
                output.store(target)

    def _bounds(self, access: Access) -> None:
        limit = self._limits[access.memory]
        if access.end > limit:
            verb = "writes" if access.write else "reads"
            raise EsccError(
                f"{verb} {access.memory} {access.base}..{access.end - 1} ({access.operand}), "
                f"but there are only {limit} bytes"
            )

    def _check_marks(self) -> None:
        if self._program.debug is None:
            return
        layers = len(self._program.debug.get("layers", []))
        code = self._program.code
        marks = np.flatnonzero(code >> np.uint64(56) == BY_MNEMONIC["mark"].opcode)
        bad = marks[(code[marks] & np.uint64(0xFFFFFFFF)) >= layers]
        if bad.size:
            raise EsccError(
                f"mark of a layer the debug section lacks ({layers} layers)", where=f"word {bad[0]}"
            )

    def _place(self, dispatch: Dispatch) -> str:
        layer = self._program.layer_name(dispatch.layer)
        return f"{dispatch.text}, layer {layer}" if layer is not None else dispatch.text

    def _race_error(self, race: Race) -> EsccError:
        def told(access: Access) -> str:
            verb = "writes" if access.write else "reads"
            return f"{verb} {access.memory} {access.base}..{access.end - 1} ({access.operand})"

        return EsccError(
            f"race: {told(race.second_access)}, while {self._place(race.first)} {told(race.first_access)}; "
            "no token orders the two",
            where=self._place(race.second),
        )


def _check_own_operands(found: tuple[Access, ...]) -> None:
    *reads, y = found
    for read in reads:
        if read.base >= y.end or y.base >= read.end:
            continue
        in_place = read.operand in IN_PLACE and read[3:] == y[3:]
        if not in_place and overlap(read, y):
            raise EsccError(f"its output overlaps its operand {read.operand} in SRAM")


class _Streams:
    """The operand streams in SRAM that come from the data section: they tell the length of coefficients."""

    def __init__(self, size: int, measure: Measure) -> None:
        self._measure = measure
        self._bytes = np.zeros(size, np.uint8)
        self._measured: dict[tuple[int, int, int, int, bool], int] = {}

    def load(self, registers: DmaRegisters, data: npt.NDArray[np.uint8]) -> None:
        """Follow a load_stream."""
        start, stop = registers.sram, registers.sram + registers.size
        content = data[registers.dram : registers.dram + registers.size]
        self._bytes[start : start + content.size] = content
        self._bytes[start + content.size : stop] = 0
        for key in [k for k, size in self._measured.items() if k[0] < stop and start < k[0] + size]:
            del self._measured[key]

    def measure(self, registers: ConvRegisters) -> int:
        """Bytes of the coefficient stream of a conv_combine."""
        two_level = bool(registers.flags & ConvFlags.TWO_LEVEL)
        shape = (registers.outs, registers.chans, registers.bases)
        key = (registers.coef_addr, *shape, two_level)
        size = self._measured.get(key)
        if size is None:
            content = self._bytes[registers.coef_addr :]
            size = self._measured[key] = self._measure(content, *shape, two_level=two_level)
        return size


class _Stored:
    """Which bytes of an output map the program stores (what lies in an input already counts as stored)."""

    def __init__(self, item: MapDescriptor) -> None:
        self._item = item
        self._covered = np.zeros(item.size_bytes, np.bool_)

    def store(self, access: Access) -> None:
        """Follow a store_map."""
        base, end = self._item.address, self._item.address + self._item.size_bytes
        low, high = max(base, access.base), min(end, access.end)
        if low >= high:
            return
        written = np.zeros(access.end - access.base, np.bool_)
        box_view(written, access)[...] = True
        self._covered[low - base : high - base] |= written[low - access.base : high - access.base]

    def check(self, program: Program) -> None:
        """Raise EsccError unless every value is covered."""
        item = self._item
        for source in program.inputs:
            if source.address <= item.address < source.address + source.size_bytes:
                return
        box = Access(
            DRAM,
            True,
            "y",
            item.address,
            item.height,
            item.row_pitch,
            item.width,
            item.pos_pitch,
            item.channels,
        )
        missing = np.argwhere(~box_view(self._covered, box))
        if len(missing):
            row, col, chan = missing[0].tolist()
            raise EsccError(
                f"is never stored at row {row}, column {col}, channel {chan} ({len(missing)} values missing)",
                where=f"output {item.name!r}",
            )
