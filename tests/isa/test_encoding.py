"""The tables and the word codec."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.isa.programs import operand_values

from escc.errors import EsccError
from escc.isa.builder import CodeBuilder
from escc.isa.encoding import decode, decode_code, encode
from escc.isa.instructions import BY_OPCODE, INSTRUCTIONS, OPCODE_LOW, Instruction, Queue
from escc.isa.registers import BY_INDEX, BY_NAME, REGISTERS, UNITS, ConvRegisters, DmaRegisters, VecRegisters
from escc.isa.sequence import expand

random_words = st.sampled_from(INSTRUCTIONS).flatmap(lambda i: st.tuples(st.just(i), operand_values(i)))


def test_the_tables_are_consistent() -> None:
    assert len(BY_OPCODE) == len(INSTRUCTIONS)
    assert len(BY_INDEX) == len(BY_NAME) == len(REGISTERS)
    assert max(BY_INDEX) < 256
    for instruction in INSTRUCTIONS:
        bits = [bit for operand in instruction.operands for bit in range(operand.low, operand.high + 1)]
        assert len(bits) == len(set(bits))
        assert all(0 <= bit < OPCODE_LOW for bit in bits)
        assert (instruction.unit is None) == (not instruction.reads)
        if instruction.unit is not None:
            assert set(instruction.reads) <= set(UNITS[instruction.unit][1]._fields)
    for unit, (base, cls) in UNITS.items():
        names = [BY_INDEX[base + slot].name for slot in range(len(cls._fields))]
        assert names == [f"{unit}.{name}" for name in cls._fields]


@given(random_words)
def test_words_round_trip(pair: tuple[Instruction, tuple[int, ...]]) -> None:
    instruction, operands = pair
    word = encode(instruction.mnemonic, *operands)
    assert 0 <= word < 1 << 64
    assert word >> 56 == instruction.opcode
    assert decode(word) == (instruction, operands)


@given(st.lists(random_words, max_size=20))
def test_the_array_decoder_agrees(pairs: list[tuple[Instruction, tuple[int, ...]]]) -> None:
    code = np.array([encode(i.mnemonic, *operands) for i, operands in pairs], np.uint64)
    decoded = decode_code(code)
    for index, (instruction, operands) in enumerate(pairs):
        padded = (*operands, 0, 0)[:2]
        assert decoded.opcode[index] == instruction.opcode
        assert (decoded.first[index], decoded.second[index]) == padded


@given(
    st.integers(0, 2**64 - 1) | random_words.map(lambda p: encode(p[0].mnemonic, *p[1])), st.integers(0, 63)
)
def test_any_word_decodes_to_itself_or_is_refused(word: int, bit: int) -> None:
    for candidate in (word, word ^ (1 << bit)):
        code = np.array([0, candidate], np.uint64)
        try:
            instruction, operands = decode(candidate)
        except EsccError:
            with pytest.raises(EsccError, match=r"^word 1: "):
                decode_code(code)
        else:
            assert encode(instruction.mnemonic, *operands) == candidate
            decode_code(code)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("jump",), "unknown instruction 'jump'"),
        (("set", "r0"), "set takes 2 operands, not 1"),
        (("set", "conv.nothing", 1), "'conv.nothing' is not a register"),
        (("set", "conv.outs", 1 << 24), r"conv.outs cannot hold 16777216 \(allowed 0..16777215\)"),
        (("set", "conv.pad_top", -(1 << 15) - 1), "cannot hold"),
        (("set", 250, 1), "no register number 250"),
        (("mov", "r1", "r2"), "r1 is not a unit register"),
        (("mov", "dma.rows", "dma.cols"), "outside 0..31"),
        (("add", "r1", 1 << 47), "outside"),
        (("wait", "dma", 64), "token 64 is outside 0..63"),
        (("wait", 3, 0), "no queue number 3"),
        (("signal", "lsu", 0), "'lsu' is not a queue"),
        (("loop", 1 << 32), "count 4294967296 is outside"),
    ],
)
def test_bad_operands_are_named(words: tuple[str | int, ...], message: str) -> None:
    mnemonic, *operands = words
    with pytest.raises(EsccError, match=message):
        encode(str(mnemonic), *operands)


@given(st.data())
def test_the_builder_sets_what_an_instruction_reads(data: st.DataObject) -> None:
    """Random instructions, loops and writes: each instruction sees exactly the registers asked for."""
    code = CodeBuilder()
    wanted: list[tuple[str, DmaRegisters | ConvRegisters | VecRegisters]] = []
    queued = [i for i in INSTRUCTIONS if i.unit]

    def run() -> tuple[str, DmaRegisters | ConvRegisters | VecRegisters]:
        instruction = data.draw(st.sampled_from(queued))
        assert instruction.unit is not None
        cls = UNITS[instruction.unit][1]
        small = st.integers(0, 2)
        registers = cls(*[data.draw(small) for _ in cls._fields])
        code.run(instruction.mnemonic, registers)
        return instruction.mnemonic, registers

    for _ in range(data.draw(st.integers(0, 4))):
        kind = data.draw(st.sampled_from(["run", "loop", "set", "mov"]))
        if kind == "loop":
            count = data.draw(st.integers(0, 3))
            with code.loop(count):
                body = [run(), run()]
            wanted += body * count
        elif kind == "mov":
            code.emit("add", "r1", 1)
            code.emit("mov", data.draw(st.sampled_from(["vec.y_rows", "conv.outs", "dma.rows"])), "r1")
        elif kind == "set":
            code.set("dma.cols", data.draw(st.integers(0, 2)))
        wanted.append(run())
    code.emit("halt")
    seen = list(expand(code.array()))
    assert len(seen) == len(wanted)
    for dispatch, (mnemonic, registers) in zip(seen, wanted, strict=True):
        assert dispatch.instruction.mnemonic == mnemonic
        for name in dispatch.instruction.reads:
            assert getattr(dispatch.registers, name) == getattr(registers, name)


def test_the_builder_leaves_out_what_is_known() -> None:
    code = CodeBuilder()
    registers = DmaRegisters(dram=64, sram=0, size=8)
    code.run("load_stream", registers)
    code.run("load_stream", registers._replace(sram=8))
    code.run("load_stream", registers._replace(sram=8, rows=9))
    code.signal(Queue.DMA, 3)
    assert len(code) == 2 + 1 + 1 + 1 + 1 + 1
    with pytest.raises(EsccError, match="does not read"):
        code.run("load_stream", VecRegisters())
    with pytest.raises(EsccError, match=r"dma.size cannot hold -1"):
        code.run("load_stream", registers._replace(size=-1))
