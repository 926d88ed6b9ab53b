"""Tokens and prefetch: enough of them, none too many, and loads early enough to hide behind computation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.backend_sim.lowering.builders import NetBuilder, random_images, random_net, small_arch

from escc.backend_sim.lowering.actions import Action, overlap
from escc.backend_sim.lowering.lower import lower
from escc.backend_sim.lowering.plan_memory import PlanMemory
from escc.backend_sim.lowering.prefetch import hoist_loads
from escc.backend_sim.lowering.schedule import Schedule
from escc.backend_sim.lowering.sync import Token, synchronise
from escc.backend_sim.simulator import simulate
from escc.backend_sim.simulator.result import TimedResult
from escc.errors import EsccError
from escc.ir.module import Module
from escc.ir.passes import PassContext, run_pipeline
from escc.isa.access import Access
from escc.isa.arch import Arch
from escc.isa.instructions import Queue
from escc.isa.program import Program
from escc.isa.races import overlap as exact_overlap
from escc.isa.verify import verify


@st.composite
def boxes(draw: st.DrawFn, pitch: int | None = None) -> Access:
    chans = draw(st.integers(1, 6))
    pos = draw(st.integers(chans, 9)) if pitch is None else pitch
    cols = draw(st.integers(1, 4))
    row = cols * pos + draw(st.sampled_from([0, 0, 3]))
    rows = draw(st.integers(1, 4))
    return Access(
        "SRAM", draw(st.booleans()), "x", draw(st.integers(0, 60)), rows, row, cols, pos, min(chans, pos)
    )


@given(boxes(), boxes())
def test_overlap_never_misses_a_shared_byte(a: Access, b: Access) -> None:
    assert overlap(a, b) or not exact_overlap(a, b)


@given(boxes(pitch=7), boxes(pitch=7))
def test_overlap_is_exact_for_boxes_of_one_map(a: Access, b: Access) -> None:
    a, b = (box._replace(cols=1, row_pitch=7) for box in (a, b))
    assert overlap(a, b) == exact_overlap(a, b)


def load(sram: int, size: int) -> Action:
    return Action("load_stream", {"dram": 0, "sram": sram, "size": size}, 0, size)


def fill(address: int, size: int) -> Action:
    registers = {"y_addr": address, "y_row": size, "y_pos": size, "y_rows": 1, "y_cols": 1, "chans": size}
    return Action("vec_fill", registers, 0, 100.0)


def test_one_token_orders_many_conflicts() -> None:
    items = synchronise([load(0, 8), load(8, 8), fill(0, 4), fill(8, 4), fill(12, 4)])
    tokens = [item for item in items if isinstance(item, Token)]
    # the first fill waits for the first load, the second for the second; the third knows by then
    assert [token.kind for token in tokens] == ["signal", "signal", "wait", "wait"]
    assert {token.queue for token in tokens if token.kind == "wait"} == {Queue.VEC}


def test_no_conflict_no_token() -> None:
    actions = [load(0, 8), fill(8, 8), load(16, 8), fill(24, 8)]
    assert synchronise(actions) == actions


def test_order_through_the_third_queue_needs_no_token() -> None:
    store = Action(
        "store_map",
        {
            "dram": 64,
            "sram": 0,
            "rows": 1,
            "cols": 1,
            "chans": 4,
            "dram_row": 4,
            "dram_pos": 4,
            "sram_row": 4,
            "sram_pos": 4,
        },
        0,
        10.0,
    )
    items = synchronise([fill(0, 4), store, fill(0, 4), load(0, 4), fill(0, 4)])
    kinds = [(item.kind, item.queue) for item in items if isinstance(item, Token)]
    assert kinds.count(("wait", Queue.DMA)) == 2
    assert kinds.count(("wait", Queue.VEC)) == 2


@pytest.mark.parametrize("seed", range(6))
def test_every_token_is_needed(seed: int) -> None:
    """Without any one pair of wait and signal the verifier finds a race (or a wait without a signal)."""
    module = random_net(seed, layers=3)
    arch = small_arch(16)
    run_pipeline(module, [PlanMemory(), Schedule()], PassContext(arch=arch))
    program = lower(module, arch, rolled=False)
    verify(program)
    opcodes = program.code >> np.uint64(56)
    waits, signals = np.flatnonzero(opcodes == 8), np.flatnonzero(opcodes == 9)
    assert len(waits) == len(signals) > 0
    rng = np.random.default_rng(seed)
    for chosen in rng.choice(len(waits), min(4, len(waits)), replace=False).tolist():
        word = waits[chosen]
        token = int(program.code[word]) & 63
        same = [int(at) for at in signals if int(program.code[at]) & 63 == token]
        earlier = int((program.code[waits[: chosen + 1]] & np.uint64(63) == token).sum())
        code = program.code.copy()
        code[int(word)] = code[same[earlier - 1]] = 0  # nop
        cut = Program(arch, code, program.data, program.inputs, program.outputs, program.dram_bytes)
        with pytest.raises(EsccError, match="race"):
            verify(cut)


def test_loads_move_up_to_the_last_use_of_their_buffer() -> None:
    naive = [load(0, 8), fill(0, 8), load(8, 8), fill(8, 8), load(0, 8), fill(0, 8), load(8, 8), fill(8, 8)]
    order = [(a.mnemonic, a.registers.get("sram", a.registers.get("y_addr"))) for a in hoist_loads(naive)]
    assert order == [
        *[("load_stream", 0), ("load_stream", 8), ("vec_fill", 0), ("load_stream", 0)],
        *[("vec_fill", 8), ("load_stream", 8), ("vec_fill", 0), ("vec_fill", 8)],
    ]


def test_a_load_does_not_move_further_than_it_has_to() -> None:
    naive = [*(fill(100 + 8 * i, 8) for i in range(9)), load(0, 120), fill(0, 8)]
    hoisted = hoist_loads(naive)
    # 120 cycles to hide twice over, 100 in each instruction
    assert [a.mnemonic for a in hoisted].index("load_stream") == 6


def conv_chain(rng: np.random.Generator) -> Module:
    net = NetBuilder(rng)
    (x,) = net.start(((12, 12, 32), False))
    for _ in range(5):
        x = net.conv(x, 32, form="ternary", density=0.5, bases=6)
    return net.finish(x)


def cycles(module: Module, arch: Arch, *, prefetch: bool) -> TimedResult:
    program = lower(module, arch, prefetch=prefetch)
    result = simulate(program, random_images(module, 1, np.random.default_rng(2)))
    assert result.timed is not None
    return result.timed


def test_weights_of_the_next_layer_load_while_a_layer_computes() -> None:
    module = conv_chain(np.random.default_rng(1))
    arch = small_arch(32, dram_latency_cycles=100)
    run_pipeline(module, [PlanMemory(), Schedule()], PassContext(arch=arch))
    # every map stays on chip, so behind the first layer only weights move
    for layer in cycles(module, arch, prefetch=True).layers[1:5]:
        assert layer.queues[Queue.DMA]["busy"][0] > 100
        assert layer.queues[Queue.BLK]["wait_dma"][0] == 0


def test_prefetch_hides_transfers_of_tiles() -> None:
    module = conv_chain(np.random.default_rng(1))
    arch = small_arch(8, dram_latency_cycles=100, units=6)
    run_pipeline(module, [PlanMemory(keep_on_chip=False), Schedule()], PassContext(arch=arch))
    early, late = (int(cycles(module, arch, prefetch=flag).timeline.total[0]) for flag in (True, False))
    assert early < 0.9 * late
