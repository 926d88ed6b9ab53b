"""Static checks of programs: bounds, tokens, own operands, outputs, races."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.isa.programs import small_program

from escc.errors import EsccError
from escc.isa.access import SRAM, Access, accesses
from escc.isa.builder import CodeBuilder
from escc.isa.encoding import decode, encode
from escc.isa.instructions import BY_MNEMONIC, INSTRUCTIONS, Queue
from escc.isa.program import Program
from escc.isa.races import RaceCheck, overlap
from escc.isa.registers import UNITS, ConvRegisters, DmaRegisters, UnitRegisters, VecRegisters
from escc.isa.sequence import Dispatch, expand
from escc.isa.verify import verify


def edited(program: Program, **changes: int) -> Program:
    """The program with the immediate of every `set` of some registers (``conv__outs``) replaced."""
    words: list[int] = []
    wanted = {name.replace("__", "."): value for name, value in changes.items()}
    for word in program.code.tolist():
        instruction, _ = decode(word)
        for name, value in wanted.items():
            if instruction.mnemonic == "set" and word >> 48 == encode("set", name, 0) >> 48:
                word = encode("set", name, value)
        words.append(word)
    assert words != program.code.tolist()
    return replace(program, code=np.array(words, np.uint64))


def without(program: Program, mnemonic: str) -> Program:
    """The program without the last word of a mnemonic."""
    opcodes = (program.code >> np.uint64(56)).tolist()
    last = max(i for i, opcode in enumerate(opcodes) if opcode == BY_MNEMONIC[mnemonic].opcode)
    return replace(program, code=np.delete(program.code, last), debug=None)


def test_the_small_program_is_clean() -> None:
    verify(small_program())
    verify(small_program().stripped())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv__y_addr": 1 << 30}, "(conv_combine), layer features.0: writes SRAM 1073741824.."),
        ({"dma__dram": 1 << 20}, "reads DRAM"),
        ({"conv__coef_addr": (1 << 20) - 1}, "(coefficients), but there are only 1048576 bytes"),
        ({"conv__outs": 0}, "conv.outs is 0, at least 1"),
        ({"conv__x_rows": 3}, "x needs the rows 0..3, resident are 0..2"),
        ({"conv__high": 300}, "conv.low..high is -128..300"),
        ({"conv__bands": 5}, "only 4 output rows"),
        ({"conv__y_cols": 1000, "conv__y_row": 1 << 14}, "needs 3000 partial sums"),
        ({"conv__y_pos": 2}, "y overlaps itself"),
        ({"conv__y_addr": 260}, "its output overlaps its operand x"),
        ({"conv__stride_h": 0}, "conv.stride_h is 0"),
        ({"dma__rows": 3}, "output 'y': is never stored at row 3, column 0, channel 0 (15 values missing)"),
    ],
)
def test_wrong_registers_are_named(changes: dict[str, int], message: str) -> None:
    with pytest.raises(EsccError) as error:
        verify(edited(small_program(), **changes))
    assert message in str(error.value)


def test_a_store_into_the_data_section_is_refused() -> None:
    program = small_program()
    code = program.code.tolist()
    store = next(i for i, word in enumerate(code) if word == encode("store_map"))
    code.insert(store, encode("set", "dma.dram", 0))
    with pytest.raises(EsccError, match="inside the data section"):
        verify(replace(program, code=np.array(code, np.uint64), debug=None))


def test_a_wait_needs_an_earlier_signal() -> None:
    with pytest.raises(EsccError, match=r"word \d+ \(wait\).*token 1"):
        verify(without(small_program(), "signal"))


def test_a_missing_wait_is_a_race_that_names_both() -> None:
    program = without(small_program(), "wait")
    with pytest.raises(
        EsccError, match=r"word \d+ \(store_map\): race: reads SRAM .*conv_combine\) writes SRAM"
    ):
        verify(program)
    verify(program, races=False)


def test_a_mark_needs_its_layer() -> None:
    program = small_program()
    code = program.code.copy()
    code[0] = encode("mark", 1)
    with pytest.raises(EsccError, match="word 0: mark of a layer"):
        verify(replace(program, code=code))


boxes = st.builds(
    Access,
    st.just(SRAM),
    st.booleans(),
    st.just("x"),
    st.integers(0, 60),
    st.integers(1, 4),
    st.integers(0, 40),
    st.integers(1, 4),
    st.integers(0, 12),
    st.integers(1, 6),
)


def addresses(box: Access) -> set[int]:
    return {
        box.base + row * box.row_pitch + col * box.pos_pitch + chan
        for row in range(box.rows)
        for col in range(box.cols)
        for chan in range(box.chans)
    }


@settings(max_examples=200)
@given(boxes, boxes)
def test_overlap_is_exact(first: Access, second: Access) -> None:
    assert overlap(first, second) == bool(addresses(first) & addresses(second))
    assert max(addresses(first)) == first.end - 1
    if first.separate:
        assert len(addresses(first)) == first.rows * first.cols * first.chans


events = st.lists(
    st.one_of(
        st.tuples(st.just("run"), st.integers(0, 2), st.lists(boxes, min_size=1, max_size=2)),
        st.tuples(st.sampled_from(["signal", "wait"]), st.integers(0, 2), st.integers(0, 2)),
    ),
    max_size=14,
)


@settings(max_examples=150)
@given(events)
def test_races_are_those_of_the_reachability_graph(script: list[tuple[str, int, object]]) -> None:
    """The vector clocks against plain graph search over queue order and token edges."""
    check = RaceCheck()
    nodes: list[tuple[int, tuple[Access, ...]]] = []
    before: list[set[int]] = []
    last: dict[int, int] = {}
    signals: dict[int, list[int]] = {}
    for kind, queue, what in script:
        if kind == "wait" and not signals.get(what):  # type: ignore[call-overload]
            assert not check.wait(queue, what)  # type: ignore[arg-type]
            continue
        found = tuple(what) if kind == "run" else ()  # type: ignore[call-overload]
        node = len(nodes)
        ancestors = before[last[queue]] | {last[queue]} if queue in last else set()
        if kind == "wait":
            source = signals[what].pop(0)  # type: ignore[index]
            ancestors |= before[source] | {source}
            assert check.wait(queue, what)  # type: ignore[arg-type]
        elif kind == "signal":
            signals.setdefault(what, []).append(node)  # type: ignore[call-overload]
            check.signal(queue, what)  # type: ignore[arg-type]
        expected = any(
            (a.write or b.write) and addresses(a) & addresses(b)
            for earlier in range(node)
            if earlier not in ancestors and nodes[earlier][0] != queue
            for a in nodes[earlier][1]
            for b in found
        )
        nodes.append((queue, found))
        before.append(ancestors)
        last[queue] = node
        if kind == "run":
            dispatch = Dispatch(node, BY_MNEMONIC["nop"], Queue(queue), -1, None, -1)
            race = check.access(dispatch, found)
            assert (race is not None) == expected
            if race is not None:
                assert addresses(race.first_access) & addresses(race.second_access)
                return


@given(st.data())
def test_any_registers_give_accesses_or_one_error(data: st.DataObject) -> None:
    instruction = data.draw(st.sampled_from([i for i in INSTRUCTIONS if i.unit]))
    assert instruction.unit is not None
    cls: type[UnitRegisters] = UNITS[instruction.unit][1]
    small = st.one_of(st.integers(0, 3), st.integers(-9, 40))
    registers = cls(*[data.draw(small) for _ in cls._fields])
    try:
        found = accesses(instruction.mnemonic, registers)
    except EsccError:
        return
    for access in found.accesses:
        assert access.rows >= 1
        assert access.cols >= 1
        assert access.chans >= 1


def test_pooling_and_copy_windows() -> None:
    source = {"a_addr": 1000, "a_row": 100, "a_pos": 10, "a_first": 2, "a_rows": 5, "height": 9, "width": 9}
    target = {"y_row": 40, "y_pos": 10, "y_first": 1, "y_rows": 2, "y_cols": 4, "chans": 8}
    window = {"kernel_h": 3, "kernel_w": 3, "stride_h": 2, "stride_w": 2, "pad_top": 0, "pad_left": 1}
    pool = VecRegisters(**source, **target, **window)
    a, y = accesses("vec_max", pool).accesses
    assert (a.base, a.rows, a.cols) == (1000, 5, 8)
    assert (y.rows, y.cols, y.write) == (2, 4, True)
    copy = pool._replace(kernel_h=0, kernel_w=0)
    a, _ = accesses("vec_copy", copy).accesses
    assert (a.base, a.rows, a.row_pitch, a.cols, a.pos_pitch) == (1010, 2, 200, 3, 20)
    adaptive = pool._replace(
        flags=32 | 16, kernel_h=4, kernel_w=4, table_addr=4000, entries=2, high=9, y_first=1, a_rows=6
    )
    a, records, _ = accesses("vec_avg", adaptive).accesses
    assert (a.base, a.rows, a.cols) == (1000, 5, 9)
    assert (records.base, records.chans) == (4000, 18)


def test_thousands_of_instructions_are_checked_in_seconds() -> None:
    code = CodeBuilder()
    for tile in range(2000):
        base = 4096 * (tile % 16)
        box = DmaRegisters(0, base, 0, 4, 8, 8, 72, 9, 72, 9)
        code.run("load_map", box)
        code.signal(Queue.DMA, tile % 8)
        code.wait(Queue.BLK, tile % 8)
        code.run("conv_depthwise", _depthwise(base))
        code.signal(Queue.BLK, 8)
        code.wait(Queue.DMA, 8)
        code.run("store_map", box._replace(dram=1 << 12, sram=base + 2048))
    code.emit("halt")
    program = replace(small_program(), code=code.array(), data=b"", inputs=[], outputs=[], dram_bytes=1 << 13)
    start = time.process_time()
    verify(program.stripped())
    assert time.process_time() - start < 4
    assert sum(d.registers is not None for d in expand(program.code)) == 6000


def _depthwise(base: int) -> ConvRegisters:
    source = {"x_addr": base, "x_row": 72, "x_pos": 9, "x_rows": 4, "height": 4, "width": 8, "chans": 8}
    target = {"y_addr": base + 2048, "y_row": 72, "y_pos": 9, "y_rows": 4, "y_cols": 8, "outs": 8}
    window = {name: 1 for name in ("stride_h", "stride_w", "pad_top", "pad_left", "dil_h", "dil_w")}
    streams = {"multiplier": 1, "basis_addr": 1 << 17, "quant_addr": 1 << 18, "high": 255, "bands": 1}
    return ConvRegisters(**source, **target, **window, **streams, kernel_h=3, kernel_w=3)
