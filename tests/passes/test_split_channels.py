"""A map between a convolution and a depthwise one in slices: the same integers, less traffic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.passes.networks import Net

from escc.backend_sim.simulator import simulate
from escc.driver import compile_module
from escc.ir.base import map_shape, module_path
from escc.ir.module import Module
from escc.ir.passes import PassContext, make_pass, run_pipeline
from escc.isa.arch import Arch
from escc.passes.reference.integer_graph import evaluate_integer
from escc.passes.split_channels import slice_of

HEIGHT, WIDTH, CHANNELS = 16, 16, 8
IMAGES = np.random.default_rng(1).normal(size=(4, CHANNELS, HEIGHT, WIDTH)).astype(np.float32)
BEFORE = ["calibrate", "quantize-hybrid"]
BEHIND = ["reorder-linear-combination", "plan-memory", "schedule"]


def machine(sram_kib: int, rows: int = 4) -> Arch:
    return Arch.default().replace(sram_kib=sram_kib, blocks=2, rows=rows)


def network(seed: int, expanded: int, *, ternary: bool = True, stride: int = 2) -> Module:
    """Expand, depthwise, project: the map between has `expanded` channels."""
    net = Net(HEIGHT, WIDTH, CHANNELS, seed)
    if ternary:
        y = net.random_decomposed(net.x, expanded, 3, activation="relu")
    else:
        y = net.random_conv(net.x, expanded, 1, activation="silu")
    y = net.random_conv(y, expanded, 3, groups=expanded, stride=(stride, stride), activation="relu")
    return net.finish(net.random_conv(y, CHANNELS, 1))


def quantized(module: Module, arch: Arch) -> Module:
    passes = [make_pass(name) for name in BEFORE]
    run_pipeline(module, passes, PassContext(arch=arch, calibration=IMAGES))
    return module


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.sampled_from([17, 24, 40, 64]), st.booleans(), st.integers(1, 2))
def test_slices_give_the_same_integers(seed: int, expanded: int, ternary: bool, stride: int) -> None:
    arch = machine(10)
    module = quantized(network(seed, expanded, ternary=ternary, stride=stride), arch)
    wanted = evaluate_integer(module, IMAGES)[0]
    run_pipeline(module, [make_pass("split-channels")], PassContext(arch=arch))
    np.testing.assert_array_equal(evaluate_integer(module, IMAGES)[0], wanted)
    split = any(op.name == "escalate.concat" for op in module.layers)
    # 256 positions of `expanded` channels, of 8, and 64 or 256 of the result
    assert split == (
        slice_of(arch, (16, 16, 8), (16, 16, expanded), (16 // stride,) * 2 + (expanded,)) is not None
    )
    slices = [op for op in module.layers if op.name == "escalate.quantized_conv2d"]
    assert len(slices) == 3 if not split else len(slices) >= 5 and len(slices) % 2 == 1


def test_slices_are_whole_groups_of_rows() -> None:
    # map bytes: 256 * 9 of the input, 256 * 72 between, 64 * 72 of the result
    shapes = (16, 16, 8), (16, 16, 64), (8, 8, 64)
    # all of it: between and its larger neighbour
    assert slice_of(machine(24), *shapes) is None
    # 1024 * 16 * 63/64 - 2304 - 4608 = 9216 bytes, 36 a position: 32 channels and their masks
    assert slice_of(machine(16), *shapes) == 32
    assert slice_of(machine(16, rows=12), *shapes) == 24
    assert slice_of(machine(16, rows=64), *shapes) is None
    # not even one group beside input and results; twice the result
    assert slice_of(machine(7), *shapes) is None
    assert slice_of(machine(9), *shapes) is None


def test_layers_that_others_read_stay_whole() -> None:
    net = Net(HEIGHT, WIDTH, CHANNELS, 0)
    y = net.random_conv(net.x, 64, 1)
    z = net.random_conv(y, 64, 3, groups=64, residual=y)
    module = quantized(net.finish(net.random_conv(z, 4, 1)), machine(16))
    run_pipeline(module, [make_pass("split-channels")], PassContext(arch=machine(16)))
    assert [map_shape(op.out)[2] for op in module.layers] == [64, 64, 4]


@pytest.mark.parametrize("ternary", [True, False])
def test_the_map_between_stays_on_the_chip(ternary: bool) -> None:
    arch, programs = machine(16), []
    for names in (BEHIND, ["split-channels", *BEHIND]):
        module = quantized(network(3, 64, ternary=ternary), arch)
        done = compile_module(module, passes=",".join(names), arch=arch)
        assert done.program is not None
        programs.append(done.program)
        np.testing.assert_array_equal(
            simulate(done.program, IMAGES[:2]).outputs[0], evaluate_integer(done.module, IMAGES[:2])[0]
        )
    whole, split = (simulate(program, IMAGES[:1]) for program in programs)
    traffic = [
        sum(float(layer.event(f"dram_{way}_bits")[0]) for layer in result.layers for way in ("read", "write"))
        for result in (whole, split)
    ]
    assert traffic[1] < 0.7 * traffic[0]
    names = [layer["name"] for layer in (programs[1].debug or {})["layers"]]
    assert len(names) > len(set(names)), "slices keep the name of their layer"


def test_paths_stay() -> None:
    module = quantized(network(0, 64), machine(16))
    paths = {module_path(op) for op in module.layers}
    run_pipeline(module, [make_pass("split-channels")], PassContext(arch=machine(16)))
    assert {module_path(op) for op in module.layers} == paths
