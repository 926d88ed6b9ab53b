"""Random layers, compiled for SRAMs so small that everything has to be cut, equal the integer reference."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from tests.backend_sim.lowering.builders import (
    FORMS,
    VECTOR_OPERATIONS,
    NetBuilder,
    random_net,
    small_arch,
)
from tests.backend_sim.lowering.running import check_equal

from escc.backend_sim.lowering import compile_module, lower
from escc.backend_sim.lowering.assignment import Assignment, read_assignment
from escc.backend_sim.lowering.operators import extract_layers
from escc.backend_sim.lowering.plan_memory import PlanMemory
from escc.backend_sim.lowering.schedule import Schedule
from escc.errors import EsccError
from escc.ir.module import Module
from escc.ir.passes import PassContext, run_pipeline
from escc.isa.arch import Arch
from escc.isa.program import Program
from escc.isa.verify import verify

KINDS = (*FORMS, "residual", *VECTOR_OPERATIONS)


def compiled(module: Module, arch: Arch, **options: bool) -> tuple[Program, list[Assignment]]:
    scheduled = module.clone()
    run_pipeline(scheduled, [PlanMemory(**options), Schedule()], PassContext(arch=arch))
    layers = extract_layers(scheduled, arch)
    return lower(scheduled, arch), [read_assignment(layer) for layer in layers]


def compiled_if_it_fits(module: Module, arch: Arch) -> tuple[Program, list[Assignment]] | None:
    try:
        return compiled(module, arch)
    except EsccError as error:
        if "smallest tile needs" not in error.message:
            raise
        return None


def smallest_sram(module: Module) -> int:
    """The smallest SRAM of 1, 2, 4, ... KiB that takes the network."""
    sizes = (1, 2, 4, 8, 16, 32, 64)
    return next(size for size in sizes if compiled_if_it_fits(module, small_arch(size)) is not None)


@pytest.mark.parametrize("kind", KINDS)
def test_one_layer_equals_the_reference(kind: str) -> None:
    cuts = Counter[str]()
    for seed in range(6):
        module = random_net(seed, kind=kind)
        smallest = smallest_sram(module)
        for size in (smallest, 2 * smallest):
            program, assignments = compiled(module, small_arch(size))
            verify(program)
            check_equal(module, program, seed)
            for item in assignments:
                cuts["rows"] += item.rows < item.layer.shape[0]
                cuts["channels"] += item.outs < item.layer.outs
                cuts["double"] += any(len(addresses) > 1 for addresses in item.buffers.values())
    # in the smallest SRAM every kind of layer has to be cut both ways, with some room it is double buffered
    assert min(cuts[name] for name in ("rows", "channels", "double")) >= 1


@pytest.mark.parametrize("part", range(4))
def test_networks_equal_the_reference(part: int) -> None:
    reached = Counter[str]()
    for seed in range(part * 20, part * 20 + 20):
        rng = np.random.default_rng([seed, 1])
        module = random_net(seed, layers=int(rng.integers(2, 6)))
        arch = small_arch(int(rng.choice([2, 4, 8, 16, 64])), rows=int(rng.integers(1, 8)))
        found = compiled_if_it_fits(module, arch)
        if found is None:
            continue
        program, assignments = found
        verify(program)
        check_equal(module, program, seed)
        reached["compiled"] += 1
        for item in assignments:
            reached[item.order] += 1
            reached["small channel tile"] += item.outs < min(64, item.layer.outs)
            reached["resident"] += item.layer.anchor.value("place") == "sram"
            reached["shared"] += "shared" in item.buffers
    assert reached["compiled"] >= 16
    assert min(reached[name] for name in ("rows", "small channel tile", "resident", "shared")) >= 1


def test_maps_forced_through_dram_give_the_same() -> None:
    for seed in range(6):
        module = random_net(seed, layers=4)
        arch = small_arch(64)
        program, assignments = compiled(module, arch, keep_on_chip=False)
        verify(program)
        assert all(item.layer.anchor.value("place") == "dram" for item in assignments)
        check_equal(module, program, seed)


def test_several_inputs_and_outputs_and_a_value_used_often() -> None:
    net = NetBuilder(np.random.default_rng(7))
    a, b = net.start(((9, 7, 20), False), ((9, 7, 20), True))
    first = net.add(a, b, signed=True)
    second = net.conv(first, 20, form="ternary", residual=first)
    third = net.concat(first, second, a, first)
    module = net.finish(third, first, net.add(second, second), a)
    for size in (4, 16, 64):
        program = compile_module(module, small_arch(size))
        verify(program)
        check_equal(module, program, size)


def test_networks_that_do_nothing_or_return_a_value_twice() -> None:
    net = NetBuilder(np.random.default_rng(0))
    (x,) = net.start(((3, 4, 5), True))
    nothing = net.finish(x)
    program = compile_module(nothing, small_arch(1))
    verify(program)
    check_equal(nothing, program)
    net = NetBuilder(np.random.default_rng(0))
    x, _ = net.start(((3, 4, 5), True), ((2, 2, 2), False))
    y = net.lookup(x)
    twice = net.finish(y, y)
    program = compile_module(twice, small_arch(1))
    verify(program)
    check_equal(twice, program)


def test_a_classifier_whose_weights_dwarf_the_sram() -> None:
    net = NetBuilder(np.random.default_rng(3))
    (x,) = net.start(((4, 4, 60), False))
    y = net.conv(x, 150, kernel=(4, 4), padding=(0, 0, 0, 0))
    z = net.conv(y, 70, kernel=(1, 1), padding=(0, 0, 0, 0), form="ternary", bases=5)
    module = net.finish(z)
    program, assignments = compiled(module, small_arch(8))
    # 960 weights per output: tiles of a few channels are all that fits beside the input
    assert assignments[0].outs < 8
    verify(program)
    check_equal(module, program)
    # equal tiles of a dense layer roll into a loop
    unrolled = lower(scheduled(module, small_arch(8)), small_arch(8), rolled=False)
    assert len(program.code) < len(unrolled.code) / 2


def scheduled(module: Module, arch: Arch) -> Module:
    copy = module.clone()
    run_pipeline(copy, [PlanMemory(), Schedule()], PassContext(arch=arch))
    return copy


def test_changing_a_coefficient_bit_changes_the_output() -> None:
    net = NetBuilder(np.random.default_rng(5))
    (x,) = net.start(((6, 6, 12), False))
    module = net.finish(net.conv(x, 9, form="ternary", density=0.5))
    program = compile_module(module, small_arch(16))
    assert program.debug is not None
    (entry,) = [e for e in program.debug["layers"][0]["streams"] if e["kind"] == "coefficients"]
    data = program.data_array.copy()
    length = 12 * 4  # mask bits of a row, then its signs
    nonzeros = int(np.unpackbits(data[entry["address"] :], bitorder="little")[:length].sum())
    assert nonzeros
    bit = length + nonzeros - 1
    data[entry["address"] + bit // 8] ^= 1 << bit % 8
    changed = Program(program.arch, program.code, data, program.inputs, program.outputs, program.dram_bytes)
    check_equal(module, program)
    with pytest.raises(AssertionError):
        check_equal(module, changed)
