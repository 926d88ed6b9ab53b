"""The sequencer: registers, loops, marks and its limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.isa.programs import words

from escc.errors import EsccError
from escc.isa.encoding import decode, encode
from escc.isa.instructions import Queue
from escc.isa.registers import BY_NAME
from escc.isa.sequence import expand


def code(*lines: tuple[str | int, ...]) -> np.ndarray:
    return np.array([encode(str(line[0]), *line[1:]) for line in lines], np.uint64)


def plain_run(program: list[int], limit: int) -> list[tuple[int, str, int, dict[str, int]]]:
    """The sequencer written naively: recursive loops, registers in one dictionary."""
    registers: dict[int, int] = {}
    out: list[tuple[int, str, int, dict[str, int]]] = []
    layer = -1
    steps = 0

    def block(start: int, stop: int) -> bool:
        nonlocal layer, steps
        pc = start
        while pc < stop:
            steps += 1
            if steps > limit:
                raise EsccError("too long")
            instruction, operands = decode(program[pc])
            name = instruction.mnemonic
            if name == "halt":
                return True
            if name == "set":
                registers[operands[0]] = operands[1]
            elif name == "mov":
                registers[operands[0]] = registers.get(operands[1], 0)
                encode("set", operands[0], registers[operands[0]])
            elif name == "add":
                registers[operands[0]] = registers.get(operands[0], 0) + operands[1]
                encode("set", operands[0], registers[operands[0]])
            elif name == "mark":
                layer = operands[0]
            elif name == "loop":
                depth, end = 1, pc
                while depth:
                    end += 1
                    depth += {"loop": 1, "endloop": -1}.get(decode(program[end]).instruction.mnemonic, 0)
                for _ in range(operands[0]):
                    if block(pc + 1, end):
                        return True
                    steps += 1
                    if steps > limit:
                        raise EsccError("too long")
                pc = end
            elif name in ("wait", "signal") or instruction.unit:
                unit, reads = instruction.unit, instruction.reads
                values = {n: registers.get(BY_NAME[f"{unit}.{n}"].index, 0) for n in reads}
                out.append((pc, name, layer, values))
            pc += 1
        return False

    if not block(0, len(program)):
        raise EsccError("no halt")
    return out


@settings(max_examples=100)
@given(words(), st.booleans())
def test_equal_to_the_naive_sequencer(body: list[int], halted: bool) -> None:
    program = body + ([encode("halt")] if halted else [])
    limit = 3000
    try:
        wanted = plain_run(program, limit)
    except EsccError:
        wanted = None
    if wanted is None:
        with pytest.raises(EsccError, match=r"^word \d+: "):
            list(expand(np.array(program, np.uint64), limit))
        return
    seen = list(expand(np.array(program, np.uint64), limit))
    assert len(seen) == len(wanted)
    for dispatch, (pc, name, layer, values) in zip(seen, wanted, strict=True):
        assert (dispatch.pc, dispatch.instruction.mnemonic, dispatch.layer) == (pc, name, layer)
        for key, value in values.items():
            assert getattr(dispatch.registers, key) == value


def test_loops_add_and_mov() -> None:
    program = code(
        ("set", "r1", 100),
        ("loop", 2),
        ("mark", 4),
        ("loop", 3),
        ("mov", "vec.y_addr", "r1"),
        ("vec_fill",),
        ("add", "r1", 8),
        ("endloop",),
        ("signal", "vec", 5),
        ("endloop",),
        ("loop", 0),
        ("vec_fill",),
        ("endloop",),
        ("halt",),
        ("vec_fill",),
    )
    seen = list(expand(program))
    fills = [d.registers.y_addr for d in seen if d.registers is not None]  # type: ignore[union-attr]
    assert fills == [100, 108, 116, 124, 132, 140]
    assert [d.token for d in seen if d.registers is None] == [5, 5]
    assert {d.queue for d in seen} == {Queue.VEC}
    assert {d.layer for d in seen} == {4}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([("nop",)], "word 1: the program ends without halt"),
        ([], "word 0: the program ends without halt"),
        ([("loop", 3), ("halt",)], "word 0: loop without an endloop"),
        ([("halt",), ("endloop",)], "word 1: endloop without a loop"),
        ([("loop", 1)] * 5 + [("endloop",)] * 5, "word 4: loops nest deeper than 4"),
        ([("loop", 1 << 31), ("endloop",), ("halt",)], "word 1: the program executes more than 1000 words"),
        ([("set", "r0", -1), ("mov", "dma.rows", "r0"), ("halt",)], "word 1: mov: dma.rows cannot hold -1"),
        ([("set", "r0", (1 << 47) - 1), ("add", "r0", 1), ("halt",)], "word 1: add: r0 overflows 48 bits"),
    ],
)
def test_limits_name_the_word(lines: list[tuple[str | int, ...]], message: str) -> None:
    with pytest.raises(EsccError) as error:
        list(expand(code(*lines), 1000))
    assert message in str(error.value)


def test_words_after_halt_are_checked_too() -> None:
    with pytest.raises(EsccError, match="word 1: unknown opcode 0x7f"):
        expand(np.array([encode("halt"), 0x7F << 56], np.uint64))
