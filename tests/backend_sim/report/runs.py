"""Results to draw: random small networks on small machines, compiled and simulated."""

from __future__ import annotations

from functools import cache

import numpy as np
from tests.backend_sim.lowering.builders import random_images, random_net, small_arch

from escc.backend_sim.lowering import compile_module
from escc.backend_sim.simulator import SimResult, simulate
from escc.errors import EsccError
from escc.isa.program import Program

SEEDS = range(6)


@cache
def random_program(seed: int) -> tuple[Program, list[np.ndarray]]:
    """A program of several layers on the smallest SRAM that takes it, and two images for it."""
    module = random_net(seed, layers=1 + seed % 4)
    for kib in (2, 4, 8, 16, 32, 64):
        try:
            program = compile_module(module, small_arch(kib))
        except EsccError as error:
            if "smallest tile needs" not in error.message:
                raise
            continue
        return program, list(random_images(module, 2, np.random.default_rng(seed)))
    raise AssertionError("no SRAM is large enough")


@cache
def random_result(seed: int) -> SimResult:
    """The program run on two timed images."""
    program, images = random_program(seed)
    return simulate(program, images, timing_images=2)
