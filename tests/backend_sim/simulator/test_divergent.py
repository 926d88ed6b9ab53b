"""Operand streams that come from an image's own memory: each image then has its own kernels."""

from __future__ import annotations

import numpy as np
import pytest
from tests.backend_sim.simulator.machines import SMALL, program_of, records
from tests.backend_sim.simulator.networks import interpret

from escc.backend_sim.simulator import simulate
from escc.isa.builder import CodeBuilder
from escc.isa.instructions import Queue
from escc.isa.program import MapDescriptor, Program
from escc.isa.registers import ConvRegisters, DmaRegisters

QUANT = records(np.array([[0, 1 << 30, 31], [3, 1 << 30, 32]]))


def program() -> Program:
    """Input: 4 values and 2 x 4 weights of a 1 x 1 dense convolution; output: its 2 values."""
    image = MapDescriptor("image", 24, 1, 1, 12, True, 0.1, (12,))
    y = MapDescriptor("y", 24 + image.size_bytes, 1, 1, 2, True, 0.1, (2,))
    build = CodeBuilder()
    build.run("load_stream", DmaRegisters(dram=0, sram=100, size=18))
    build.run("load_stream", DmaRegisters(dram=24, sram=0, size=12))
    build.signal(Queue.DMA, 0)
    build.wait(Queue.BLK, 0)
    build.run(
        "conv_dense",
        ConvRegisters(
            x_addr=0, x_row=4, x_pos=4, x_rows=1, height=1, width=1, chans=4, y_addr=200, y_row=2, y_pos=2,
            y_rows=1, y_cols=1, outs=2, kernel_h=1, kernel_w=1, stride_h=1, stride_w=1, dil_h=1, dil_w=1,
            basis_addr=4, quant_addr=100, low=-128, high=127, bands=1, flags=3,
        ),
    )  # fmt: skip
    build.signal(Queue.BLK, 1)
    build.wait(Queue.DMA, 1)
    build.run(
        "store_map",
        DmaRegisters(
            dram=y.address, sram=200, rows=1, cols=1, chans=2, dram_row=3, dram_pos=3, sram_row=2, sram_pos=2
        ),
    )
    dram = y.address + y.size_bytes
    data = QUANT + bytes(6)
    return program_of(build, arch=SMALL, data=data, dram_bytes=dram, inputs=[image], outputs=[y])


@pytest.mark.parametrize("timed", [0, 2, 5])
def test_every_image_runs_with_its_own_kernels(timed: int) -> None:
    made = program()
    images = np.random.default_rng(2).integers(-20, 20, (5, 12), np.int8)
    result = simulate(made, images, timing_images=timed)
    for index, image in enumerate(images):
        assert result.outputs[0][index].tolist() == interpret(made, image)[0].tolist()
    assert len(np.unique(result.outputs[0])) > 3
    if timed:
        assert len(result.cycles) == timed
        alone = simulate(made, images[1:2])
        assert alone.cycles[0] == result.cycles[1]
