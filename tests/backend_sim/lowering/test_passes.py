"""The memory passes as passes: what they write into the IR, what they refuse, what lower checks."""

from __future__ import annotations

import numpy as np
import pytest
from tests.backend_sim.lowering.builders import NetBuilder, small_arch
from tests.backend_sim.lowering.running import check_equal

from escc.backend_sim.lowering import compile_module, explain, lower
from escc.backend_sim.lowering.operators import extract_layers
from escc.backend_sim.lowering.plan_memory import DRAM_MAPS, SRAM_MAPS, PlanMemory
from escc.backend_sim.lowering.schedule import SRAM_USED, Schedule
from escc.errors import EsccError
from escc.ir.base import LayerOp, from_attribute
from escc.ir.module import Module
from escc.ir.passes import PassContext, parse_pipeline, run_pipeline
from escc.isa.arch import Arch
from escc.isa.instructions import BY_MNEMONIC
from escc.isa.program import Program
from escc.isa.verify import verify


def two_layers(shape: tuple[int, int, int] = (8, 8, 16), outs: int = 16) -> Module:
    net = NetBuilder(np.random.default_rng(0))
    (x,) = net.start((shape, False))
    y = net.conv(x, outs, form="ternary")
    return net.finish(net.max_pool(y, (2, 2), (2, 2), (0, 0, 0, 0)))


def scheduled(module: Module, arch: Arch) -> Module:
    copy = module.clone()
    run_pipeline(copy, [PlanMemory(), Schedule()], PassContext(arch=arch))
    return copy


def anchors(module: Module) -> list[LayerOp]:
    return [op for op in module.layers if op.value("place") is not None]


def test_placement_and_schedule_are_visible_in_the_text() -> None:
    module = scheduled(two_layers(), small_arch(16))
    first, second = anchors(module)
    assert first.value("place") == "sram"
    assert second.value("place") == "dram"
    assert first.value("tile_rows") == 8
    assert first.value("order") == "channels"
    assert first.value("bands") >= 1
    assert len(first.ints("weights_at")) == 1
    text = module.to_text()
    assert 'place = "sram"' in text
    again = Module.from_text(text, module.store)
    assert again.to_text() == text
    assert lower(again, small_arch(16)).same_as(lower(module, small_arch(16)))


def test_high_water_marks() -> None:
    arch = small_arch(16)
    module = scheduled(two_layers(), arch)
    sram_maps, dram_maps, used = (
        from_attribute(module.op.attributes[name]) for name in (SRAM_MAPS, DRAM_MAPS, SRAM_USED)
    )
    assert sram_maps == 8 * 8 * 18
    assert dram_maps == 8 * 8 * 18 + 4 * 4 * 18
    assert sram_maps < used <= arch.sram_bytes


def test_a_map_that_does_not_fit_goes_through_dram() -> None:
    roomy, tight = (scheduled(two_layers((16, 16, 40), 60), small_arch(size)) for size in (64, 4))
    assert anchors(roomy)[0].value("place") == "sram"
    assert anchors(tight)[0].value("place") == "dram"


def test_dram_is_reused_but_inputs_stay() -> None:
    net = NetBuilder(np.random.default_rng(0))
    (x,) = net.start(((8, 8, 16), False))
    y = x
    for _ in range(6):
        y = net.lookup(y)
    module = net.finish(y)
    run_pipeline(module, [PlanMemory(keep_on_chip=False)], PassContext(arch=small_arch(16)))
    size = 8 * 8 * 18
    # the input, the output and two in turn
    assert from_attribute(module.op.attributes[DRAM_MAPS]) == 4 * size
    outputs = [op.value("address") for op in anchors(module)]
    assert module.input_value(0, "address") not in outputs


def test_running_the_passes_again_forgets_the_old_schedule() -> None:
    arch = small_arch(4)
    module = scheduled(two_layers((16, 16, 40), 60), arch)
    fresh = scheduled(two_layers((16, 16, 40), 60), small_arch(64))
    run_pipeline(module, [PlanMemory(), Schedule()], PassContext(arch=small_arch(64)))
    assert module.to_text() == fresh.to_text()


def test_as_pipeline_text() -> None:
    module = two_layers()
    passes = parse_pipeline("plan-memory{keep_on_chip=false},schedule{prefetch=false}")
    run_pipeline(module, passes, PassContext(arch=small_arch(16)))
    assert {"planned", "scheduled"} <= module.facts
    check_equal(module, lower(module, small_arch(16)))
    run_pipeline(module, [PlanMemory()], PassContext(arch=small_arch(16)))
    assert "scheduled" not in module.facts


def test_the_order_of_the_passes_is_enforced() -> None:
    with pytest.raises(EsccError, match="needs planned first"):
        run_pipeline(two_layers(), [Schedule()], PassContext(arch=small_arch(16)))
    with pytest.raises(EsccError, match="needs an architecture"):
        run_pipeline(two_layers(), [PlanMemory()], PassContext())
    with pytest.raises(EsccError, match=r"run the passes plan-memory and schedule first"):
        lower(two_layers(), small_arch(16))


def test_too_little_sram_is_one_line_that_says_what_helps() -> None:
    net = NetBuilder(np.random.default_rng(0))
    (x,) = net.start(((4, 60, 60), False))
    module = net.finish(net.conv(x, 8))
    with pytest.raises(EsccError) as error:
        compile_module(module, small_arch(4))
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith("net.l1 (net.py:1): the smallest tile needs ")
    assert "bytes of SRAM, the machine has 4096 (input rows " in text
    assert "raise memory.sram_kib to at least" in text
    needed = int(text.partition("to at least ")[2].partition(";")[0])
    compile_module(module, small_arch(needed))
    with pytest.raises(EsccError):
        compile_module(module, small_arch(needed - 1))


def test_limits_of_the_array_are_checked() -> None:
    net = NetBuilder(np.random.default_rng(0))
    (x,) = net.start(((9, 40, 16), False))
    wide = net.finish(net.conv(x, 8, form="ternary", density=0.9))
    with pytest.raises(EsccError, match=r"needs 120 partial sums in a row \(40 columns x 3 output rows"):
        compile_module(wide, small_arch(64, psum_entries=100))
    with pytest.raises(EsccError, match=r"a linear combination can reach \d+, 10 bits hold less than 512"):
        compile_module(wide, small_arch(64, z_bits=10))
    heavy = NetBuilder(np.random.default_rng(0))
    (x,) = heavy.start(((1, 1, 1), False))
    y = heavy.conv(x, 2, kernel=(1, 1), padding=(0, 0, 0, 0))
    module = heavy.finish(y)
    (name,) = [name for name in module.store if name.endswith("requant")]
    records = module.store[name].copy()
    records[0, 0] = -(1 << 31)
    replaced = module.store.add("l1.requant", records)
    for op in module.layers:
        if op.symbol("requant"):
            op.set_value("requant", type(op.value("requant"))(replaced))
    with pytest.raises(EsccError, match="the accumulator holds less than"):
        compile_module(module, small_arch(64))


def test_a_schedule_edited_into_nonsense_is_refused() -> None:
    arch = small_arch(16)

    def edited(**changes: int | str | tuple[int, ...]) -> Module:
        module = scheduled(two_layers(), arch)
        for name, value in changes.items():
            anchors(module)[0].set_value(name, value)
        return module

    with pytest.raises(EsccError, match="schedule makes no sense"):
        lower(edited(order="columns"), arch)
    with pytest.raises(EsccError, match="schedule makes no sense"):
        lower(edited(tile_rows=0), arch)
    with pytest.raises(EsccError, match="overlap in SRAM"):
        lower(edited(in0_at=(0,)), arch)
    with pytest.raises(EsccError, match="do not fit into it"):
        lower(edited(in0_at=(16380,)), arch)
    with pytest.raises(EsccError, match="buffer 'in0' has 8 bytes, a tile needs"):
        lower(edited(in0_bytes=8), arch)
    with pytest.raises(EsccError, match="no buffer 'in0'"):
        lower(edited(in0_at=()), arch)
    # another tiling that fits is as good as any
    module = edited(tile_rows=3, bands=2)
    check_equal(module, lower(module, arch))


def test_an_operation_of_another_level_is_refused() -> None:
    module = two_layers()
    convolve = next(op for op in module.layers if op.name == "escalate.convolve")
    requantize = next(op for op in module.layers if op.name == "escalate.requantize")
    requantize.operands = (convolve.x,)
    with pytest.raises(EsccError, match=r"must come from escalate\.convolve|is not requantised"):
        extract_layers(module, small_arch(16))


def test_debug_section_tells_layers_sizes_and_origins() -> None:
    module = two_layers((8, 8, 16), 20)
    program = compile_module(module, small_arch(16))
    assert program.debug is not None
    first, second = program.debug["layers"]
    assert first["name"] == "net.l1"
    assert first["source"] == "net.py:1"
    assert first["op"] == "escalate.convolve ternary"
    assert first["dense_bytes"] == 20 * (16 * 9 + 9)
    assert first["stream_bytes"]["requant"] == 20 * 9
    assert first["stream_bytes"]["bases"] == 4 * 9
    assert first["weight_bytes"] == sum(first["stream_bytes"].values())
    assert second["weight_bytes"] == second["dense_bytes"] == 0
    assert min(first["predicted_cycles"], second["predicted_cycles"]) > 0
    covered = [word for low, high, _ in program.debug["instructions"] for word in range(low, high + 1)]
    assert covered == list(range(len(program.code)))
    for low, _, layer in program.debug["instructions"]:
        assert 0 <= layer < 2
        assert program.code[low] >> np.uint64(56) == BY_MNEMONIC["mark"].opcode
    assert Program.from_bytes(program.to_bytes()).same_as(program)
    check_equal(module, program.stripped())


def test_equal_streams_are_stored_once() -> None:
    net = NetBuilder(np.random.default_rng(0))
    (x,) = net.start(((4, 4, 8), False))
    module = net.finish(net.lookup(net.lookup(x)))
    one = compile_module(module, small_arch(16)).data_array.size
    first, second = (op for op in module.layers)
    second.set_value("table", first.value("table"))
    assert compile_module(module, small_arch(16)).data_array.size == one - 256 == 256


def test_words_do_not_grow_with_the_map() -> None:
    def words(height: int) -> int:
        net = NetBuilder(np.random.default_rng(0))
        (x,) = net.start(((height, 16, 16), False))
        y = net.conv(x, 16)
        module = net.finish(net.max_pool(y, (2, 2), (2, 2), (0, 0, 0, 0)))
        program = compile_module(module, small_arch(4))
        verify(program)
        return len(program.code)

    assert words(512) < words(64) + 40


def test_explain_has_a_line_per_layer() -> None:
    arch = small_arch(16)
    module = scheduled(two_layers(), arch)
    lines = explain(module, arch).splitlines()
    assert len(lines) == 3
    assert lines[0].split()[:2] == ["layer", "operation"]
    assert lines[1].split()[:6] == ["net.l1", "convolve", "ternary", "8x8x16", "dram", "sram"]
    with pytest.raises(EsccError):
        explain(two_layers(), arch)
