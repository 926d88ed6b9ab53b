"""Loops: rolling and code generation keep the sequence of instructions exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from escc.backend_sim.lowering.codegen import Writer
from escc.backend_sim.lowering.roller import Leaf, Loop, expand, registers_needed, roll
from escc.isa.instructions import BY_MNEMONIC, MAX_LOOP_NEST
from escc.isa.registers import GENERAL_REGISTERS
from escc.isa.sequence import expand as run_words

NAMES = ("rows", "cols", "chans", "dram", "sram", "dram_row", "dram_pos", "sram_row", "sram_pos")


def move(mnemonic: str, *values: int) -> Leaf:
    return Leaf((mnemonic,), tuple(f"dma.{name}" for name in NAMES[: len(values)]), values, 0)


def token(kind: str, number: int) -> Leaf:
    return Leaf((kind, 0, number), layer=0)


def unrolled(nodes: list[Leaf]) -> list[tuple[object, ...]]:
    return [(leaf.key, leaf.registers, leaf.values) for leaf in nodes]


def words_of(nodes: list[Leaf], *, rolled: bool) -> Writer:
    writer = Writer()
    writer.write(roll(nodes) if rolled else list(nodes))
    writer.emit("halt")
    return writer


def dispatched(writer: Writer, leaves: list[Leaf]) -> list[tuple[object, ...]]:
    """What the sequencer dispatches, with the registers that the leaves set."""
    found: list[tuple[object, ...]] = []
    steps = run_words(np.array(writer.words, np.uint64))
    for step, leaf in zip(steps, leaves, strict=True):
        names = [name.partition(".")[2] for name in leaf.registers]
        values = tuple(getattr(step.registers, name) for name in names)
        operands = () if step.token < 0 else (int(step.queue), step.token)
        found.append(((step.instruction.mnemonic, *operands), leaf.registers, values))
    return found


leaf = st.one_of(
    st.builds(token, st.sampled_from(["wait", "signal"]), st.integers(0, 1)),
    st.builds(
        lambda mnemonic, values: move(mnemonic, *values),
        st.sampled_from(["load_map", "store_map"]),
        st.lists(st.integers(0, 3), min_size=1, max_size=4),
    ),
)


def _sum(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True))


@st.composite
def sequences(draw: st.DrawFn, depth: int = 3) -> list[Leaf]:
    """Random nests of repeated sequences whose registers advance by constants, with odd ones between."""
    found: list[Leaf] = []
    for _ in range(draw(st.integers(1, 3))):
        if depth == 0 or draw(st.booleans()):
            found.append(draw(leaf))
            continue
        body = draw(sequences(depth=depth - 1))
        offsets = [(40,) * len(item.values) for item in body]
        # the same body again with other steps: one run ends where the next begins
        for _ in range(draw(st.integers(1, 2))):
            steps = [draw(st.tuples(*[st.integers(-2, 3)] * len(item.values))) for item in body]
            for _ in range(draw(st.integers(2, 6))):
                for item, offset in zip(body, offsets, strict=True):
                    found.append(Leaf(item.key, item.registers, _sum(item.values, offset), 0))
                offsets = [_sum(offset, step) for offset, step in zip(offsets, steps, strict=True)]
    return found[:400]


@settings(max_examples=60, deadline=None)
@given(sequences())
def test_rolled_words_dispatch_what_unrolled_ones_do(leaves: list[Leaf]) -> None:
    nodes = roll(leaves)
    assert unrolled(list(expand(nodes))) == unrolled(leaves)
    rolled, plain = words_of(leaves, rolled=True), words_of(leaves, rolled=False)
    assert dispatched(rolled, leaves) == dispatched(plain, leaves) == unrolled(leaves)


def nested(outer: int, inner: int) -> list[Leaf]:
    leaves: list[Leaf] = []
    for o in range(outer):
        leaves.append(move("load_map", 4, 5, 6, 1000 * o))
        for i in range(inner):
            leaves += [token("wait", 1), move("store_map", 4, 5, 6, 7000 + 100 * o + 10 * i, i % 2)]
            leaves += [token("signal", 2), move("load_map", 4, 5, 6, 50 * i, 9)]
    return leaves


def test_nested_repetition_becomes_nested_loops_of_constant_size() -> None:
    small, large = nested(5, 12), nested(20, 60)
    rolled = [words_of(leaves, rolled=True) for leaves in (small, large)]
    assert len(rolled[0].words) == len(rolled[1].words) < 60
    assert dispatched(rolled[1], large) == unrolled(large)
    (loop,) = [node for node in roll(large) if isinstance(node, Loop)]
    assert loop.depth == 2
    assert loop.count == 20


def test_what_never_changes_is_set_before_the_loop() -> None:
    leaves = [move("load_map", 4, 5, 6, 10 * i) for i in range(100)]
    words = words_of(leaves, rolled=True).words
    mnemonics = [word >> 56 for word in words]
    body = mnemonics[
        mnemonics.index(BY_MNEMONIC["loop"].opcode) + 1 : mnemonics.index(BY_MNEMONIC["endloop"].opcode)
    ]
    assert body == [BY_MNEMONIC[name].opcode for name in ("mov", "load_map", "add")]


def test_a_register_is_set_only_when_its_value_changes() -> None:
    leaves = [move("load_map", 4, 5), move("store_map", 4, 5), move("load_map", 4, 6), move("load_map", 0, 0)]
    sets = [word for word in words_of(leaves, rolled=False).words if word >> 56 == BY_MNEMONIC["set"].opcode]
    assert len(sets) == 2 + 0 + 1 + 2


def test_loops_stay_within_the_machine() -> None:
    deep = [move("load_map", 1, 1, 1, 1)]
    for level in range(MAX_LOOP_NEST + 2):
        deep = _repeat(deep, level)
    nodes = roll(deep)
    assert unrolled(list(expand(nodes))) == unrolled(deep)
    assert max(node.depth for node in nodes) == MAX_LOOP_NEST
    wide = [move("load_map", *(i * (j + k + 1) for j in range(9))) for i in range(8) for k in range(6)]
    loops = [node for node in roll(wide) if isinstance(node, Loop)]
    assert all(registers_needed(loop) <= GENERAL_REGISTERS for loop in loops)
    assert dispatched(words_of(wide, rolled=True), wide) == unrolled(wide)


def _repeat(body: list[Leaf], level: int) -> list[Leaf]:
    found: list[Leaf] = []
    for number in range(3):
        for item in body:
            values = (*item.values[:3], item.values[3] + number * 11**level) if item.values else ()
            found.append(Leaf(item.key, item.registers, values, 0))
        found.append(token("signal", level))
    return found


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_repeats_stay_as_they_are(count: int) -> None:
    leaves = [move("load_map", i) for i in range(count)]
    assert roll(leaves) == leaves
