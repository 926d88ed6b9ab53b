"""Text form: exact round trips, and errors that name the line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.isa.programs import programs, small_program

from escc.errors import EsccError
from escc.isa.assembler import assemble
from escc.isa.disassembler import code_lines, disassemble
from escc.isa.encoding import encode
from escc.isa.program import Program

TEXT = disassemble(small_program())


@settings(max_examples=50)
@given(programs())
def test_assembling_the_text_gives_the_identical_file(program: Program) -> None:
    assert assemble(disassemble(program)).to_bytes() == program.to_bytes()


@settings(max_examples=40)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=10), st.integers(0, 300))
def test_any_words_and_any_data_survive(words: list[int], size: int) -> None:
    program = replace(
        small_program(),
        code=np.array(words, np.uint64),
        data=np.random.default_rng(size).integers(0, 256, size).astype(np.uint8),
        inputs=[],
        outputs=[],
        dram_bytes=1000,
        debug=None,
    )
    assert assemble(disassemble(program)).to_bytes() == program.to_bytes()


def test_comments_numbers_and_line_ends_are_free() -> None:
    text = TEXT.replace("set dma.size, 0x36", "  set\tdma.size ,54 ; bytes").replace(
        "mark 0", "\n ;x\n\nmark 0x0"
    )
    assert assemble(text).same_as(small_program())
    assert assemble(text.replace("\n", "\r\n")).same_as(small_program())
    assert assemble(text.rstrip("\n")).same_as(small_program())
    assert assemble("; first line\n" + text + "\n\n; last line").same_as(small_program())


def test_loops_are_indented_and_groups_name_their_layer() -> None:
    code = [("loop", 3), ("set", "r1", 5), ("add", "r1", -1), ("loop", 2), ("vec_fill",), ("endloop",)]
    code += [("endloop",), ("halt",)]
    words = [encode(str(line[0]), *line[1:]) for line in code]
    program = replace(small_program(), code=np.array(words, np.uint64), debug=None)
    debug = {"layers": [{"name": "conv1"}], "instructions": [[1, 6, 0]]}
    assert list(code_lines(replace(program, debug=debug))) == [
        "  loop 3",
        "    ; word 1, conv1",
        "    set r1, 5",
        "    add r1, -1",
        "    loop 2",
        "      vec_fill",
        "    endloop",
        "  endloop",
        "  halt",
    ]
    assert "    ; word 1" in list(code_lines(program))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "  load_stream",
            "  load_strem",
            ":LINE: unknown instruction 'load_strem' (did you mean 'load_stream'?)",
        ),
        (
            "set dma.size, 0x36",
            "set dma.sise, 0x36",
            ":LINE: 'dma.sise' is not a register (did you mean 'dma.size'?)",
        ),
        ("set dma.size, 0x36", "set dma.size", ":LINE: set takes 2 operands, not 1"),
        ("set dma.size, 0x36", "set dma.size, -1", ":LINE: set: dma.size cannot hold -1"),
        ("set dma.size, 0x36", "set dma.size 0x36", ":LINE:"),
        ("set dma.size, 0x36", "set dma.size, 0x36 7", ":LINE:"),
        ("wait blk, 0", "wait black, 0", "'black' is not a queue (did you mean 'blk'?)"),
        ("  halt\n.end", "  halt", "(expected"),
        (".dram 274\n", "", "assembly: .dram is missing"),
        (".dram 274\n", ".dram 274\n.dram 274\n", ": a second .dram"),
        (".dram 274\n", ".dramm 274\n", "unexpected"),
        (".dram 274\n", ".dram 27\n", "section data: 54 bytes exceed the DRAM of 27"),
        (".data 54", ".data 55", ".data says 55 bytes and holds 54"),
        ("u48Z", "u4!Z", ".data is not base64"),
        ("u48Z", "u48", ".data is not base64"),
        ("u48Z", "u\u00e98Z", ".data is not base64"),
        (".escc 1", ".escc 2", ":1: text form 2, this escc reads 1 (update escc, or disassemble"),
        (".escc 1", "", ".escc is missing"),
        ("rows = 16", "rows = 0", ".arch: [array] rows = 0 is not allowed"),
        ("s8 scale", "s9 scale", "(expected u8 or s8)"),
        ("scale 0.031", "scale x", "(expected a number)"),
        ('"layers"', "layers", "section debug: not valid JSON"),
        ('.input "x"', '.input "\\x"', "is not a valid quoted text"),
        ("  halt\n", "  .word 0x1ffffffffffffffff\n", "a word has 64 bits"),
    ],
)
def test_mistakes_name_their_line(old: str, new: str, message: str) -> None:
    assert old in TEXT
    line = TEXT[: TEXT.index(old)].count("\n") + 1
    with pytest.raises(EsccError) as error:
        assemble(TEXT.replace(old, new, 1)).to_bytes()
    assert message.replace("LINE", str(line)) in str(error.value)
    assert "\n" not in str(error.value)


@settings(max_examples=150)
@given(st.data())
def test_damaged_text_gives_a_program_or_one_line(data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(TEXT) - 1))
    piece = data.draw(
        st.text(max_size=3) | st.sampled_from([".end", "\n", ";", "0x", '"', ".code\n", "x" * 50])
    )
    damaged = TEXT[:position] + piece + TEXT[position + data.draw(st.integers(0, 3)) :]
    try:
        assemble(damaged).to_bytes()
    except EsccError as failure:
        message = str(failure)
    else:
        message = ""
    assert "\n" not in message


@pytest.mark.parametrize(
    "text", ["", "\n", "hello", "\x00", ".code", ".arch\n", ".data 3 base64\n", ".debug\n{"]
)
def test_texts_that_are_no_program(text: str) -> None:
    with pytest.raises(EsccError):
        assemble(text)


def test_data_in_a_side_file(tmp_path: Path) -> None:
    program = small_program()
    text = disassemble(program, "prog.data")
    assert "base64" not in text
    with pytest.raises(EsccError, match="side files are not allowed"):
        assemble(text)
    with pytest.raises(EsccError, match=r"prog.data: No such file"):
        assemble(text, folder=tmp_path)
    (tmp_path / "prog.data").write_bytes(program.data_array.tobytes())
    assert assemble(text, folder=tmp_path).same_as(program)
    (tmp_path / "prog.data").write_bytes(bytes(54))
    with pytest.raises(EsccError, match="is not the file this text was written with"):
        assemble(text, folder=tmp_path)
