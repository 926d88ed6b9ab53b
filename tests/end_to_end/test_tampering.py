"""The simulator learns from the program file and from nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from tests.end_to_end.harness import Checked, compile_and_check

from escc.backend_sim.simulator import simulate
from escc.driver import CompileOptions
from escc.errors import EsccError
from escc.frontend import zoo
from escc.isa.container import fix_checksums
from escc.isa.program import Program


@pytest.fixture(scope="module")
def checked() -> Checked:
    model = zoo.settle(zoo.build("resnet8", num_classes=10, seed=3), (3, 32, 32), seed=3)
    return compile_and_check(model, (3, 32, 32), options=CompileOptions(bases=4), images=4)


def coefficient_bytes(program: Program) -> list[tuple[int, int]]:
    """(first byte, bytes) of the coefficient stream of each ternary layer, in the data section."""
    layers = (program.debug or {})["layers"]
    return [
        (stream["address"], stream["bytes"])
        for layer in layers
        for stream in layer.get("streams", [])
        if stream["kind"] == "coefficients"
    ]


def test_a_flipped_coefficient_bit_changes_the_output(checked: Checked) -> None:
    content = checked.program.to_bytes()
    data = bytes(checked.program.data_array)
    start = content.index(data)
    changed = 0
    streams = coefficient_bytes(checked.program)
    assert streams
    for first, size in streams:
        damaged = bytearray(content)
        damaged[start + first + size - 1] ^= 1  # a sign bit or padding of the last output channel
        with pytest.raises(EsccError, match=r"checksum|damaged"):
            Program.from_bytes(bytes(damaged))
        repaired = Program.from_bytes(fix_checksums(bytes(damaged)))
        result = simulate(repaired, checked.images, timing_images=None)
        changed += not np.array_equal(result.outputs[0], checked.result.outputs[0])
    assert changed >= 1


def test_a_flipped_sign_bit_of_the_first_coefficient_changes_a_layer(checked: Checked) -> None:
    content = checked.program.to_bytes()
    start = content.index(bytes(checked.program.data_array))
    first, size = coefficient_bytes(checked.program)[-1]
    different = 0
    for offset in range(size // 2, size // 2 + 16):
        damaged = bytearray(content)
        damaged[start + first + offset] ^= 0x10
        try:
            program = Program.from_bytes(fix_checksums(bytes(damaged)))
            result = simulate(program, checked.images, timing_images=None)
        except EsccError:
            different += 1  # a mask bit moved the end of the stream, and the machine noticed
            continue
        different += not np.array_equal(result.outputs[0], checked.result.outputs[0])
    assert different >= 8


def test_the_debug_section_changes_nothing(checked: Checked) -> None:
    stripped = Program.from_bytes(checked.program.stripped().to_bytes())
    assert stripped.debug is None
    result = simulate(stripped, checked.images, timing_images=1)
    np.testing.assert_array_equal(result.outputs[0], checked.result.outputs[0])
    np.testing.assert_array_equal(result.cycles, checked.result.cycles)


def test_a_changed_instruction_changes_the_run(checked: Checked) -> None:
    code = checked.program.code.copy()
    rng = np.random.default_rng(0)
    noticed = 0
    for word in rng.choice(len(code), 24, replace=False):
        damaged = code.copy()
        damaged[word] ^= np.uint64(1 << int(rng.integers(0, 16)))
        program = Program(
            checked.program.arch, damaged, checked.program.data, checked.program.inputs,
            checked.program.outputs, checked.program.dram_bytes, None,
        )  # fmt: skip
        try:
            result = simulate(program, checked.images, timing_images=1)
        except EsccError:
            noticed += 1
            continue
        same = np.array_equal(result.outputs[0], checked.result.outputs[0])
        noticed += not (same and np.array_equal(result.cycles, checked.result.cycles))
    assert noticed >= 12  # the rest are marks, unused high bits and values that do not matter
