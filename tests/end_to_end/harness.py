"""Compile a torch network and hold the program to the integer reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from escc.backend_sim.simulator import SimResult, simulate
from escc.driver import CompileOptions, compile_module, import_model
from escc.ir.module import Module
from escc.isa.arch import Arch
from escc.isa.assembler import assemble
from escc.isa.disassembler import disassemble
from escc.isa.program import Program
from escc.isa.verify import verify
from escc.passes.reference.float_graph import evaluate
from escc.passes.reference.integer_graph import evaluate_integer


@dataclass(frozen=True)
class Checked:
    """A compiled network that passed every check."""

    module: Module
    program: Program
    result: SimResult
    images: NDArray[np.float32]


def compile_and_check(
    model: nn.Module,
    shape: tuple[int, int, int],
    *,
    images: NDArray[np.float32] | int = 2,
    options: CompileOptions | None = None,
    arch: Arch | None = None,
    timing_images: int | None = 1,
    seed: int = 0,
) -> Checked:
    """Import, compare with torch, compile, verify, simulate, compare with the integer reference, round trip.

    ``images`` is a batch, or how many seeded random ones to draw.
    """
    import torch

    if isinstance(images, int):
        images = np.random.default_rng(seed).standard_normal((images, *shape)).astype(np.float32)
    module = import_model(model, input_shape=shape)
    with torch.inference_mode():
        expected: Any = model(torch.from_numpy(images))
    parts = expected if isinstance(expected, tuple) else (expected,)
    for want, got in zip(parts, evaluate(module, images), strict=True):
        bound = 1e-4 * max(1.0, float(want.abs().max()))
        assert float(np.abs(want.numpy() - got).max()) <= bound
    done = compile_module(module, arch=arch, calibration=images, options=options)
    program = done.program
    assert program is not None
    verify(program)
    result = simulate(program, images, timing_images=timing_images)
    for want, got in zip(evaluate_integer(module, images), result.outputs, strict=True):
        np.testing.assert_array_equal(got, want)
    assert assemble(disassemble(program)).same_as(program)
    return Checked(module, program, result, images)
