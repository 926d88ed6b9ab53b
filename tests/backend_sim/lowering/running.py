"""Running compiled programs functionally, and comparing them with the integer reference."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.backend_sim.lowering.builders import random_images

from escc.backend_sim.simulator.execute import execute
from escc.backend_sim.simulator.host import read_output, write_input
from escc.backend_sim.simulator.memory import Memory
from escc.backend_sim.simulator.operands import OperandCache
from escc.backend_sim.simulator.workspace import Workspace
from escc.ir.module import Module
from escc.isa.program import Program
from escc.isa.sequence import expand
from escc.passes.reference.integer_graph import evaluate_integer


def run(program: Program, images: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """The outputs of a program, (N, *torch_shape) integers each."""
    memory = Memory(program, len(images[0]))
    for item, values in zip(program.inputs, images, strict=True):
        write_input(memory, item, values)
    execute(program, list(expand(program.code)), memory, OperandCache(), Workspace())
    return [read_output(memory, item) for item in program.outputs]


def check_equal(module: Module, program: Program, seed: int = 0, count: int = 2) -> None:
    """The program gives, bit for bit, what the integer reference gives on the module."""
    images = random_images(module, count, np.random.default_rng(seed))
    for expected, actual in zip(evaluate_integer(module, images), run(program, images), strict=True):
        assert expected.dtype == actual.dtype
        np.testing.assert_array_equal(actual, expected)
