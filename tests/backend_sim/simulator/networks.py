"""A small network as a hand-written program, and a naive interpreter of whole programs."""

from __future__ import annotations

from typing import Any

import numpy as np
from tests.backend_sim.simulator import oracle
from tests.backend_sim.simulator.machines import SMALL, records

from escc.isa.arch import Arch
from escc.isa.builder import CodeBuilder
from escc.isa.instructions import Queue
from escc.isa.maps import position_pitch
from escc.isa.program import MapDescriptor, Program
from escc.isa.registers import ConvRegisters, DmaRegisters, VecRegisters
from escc.isa.sequence import expand
from escc.isa.sparsemap import encode_row_streams

BANDS = 2


class Data:
    """The data section and the streams in it: (DRAM address, size)."""

    def __init__(self) -> None:
        self.content = bytearray()

    def put(self, stream: bytes) -> tuple[int, int]:
        """Append a stream."""
        self.content += b"\0" * (-len(self.content) % 4)
        address = len(self.content)
        self.content += stream
        return address, len(stream)


def requant(rng: np.random.Generator, outs: int, shift: int) -> bytes:
    rows = [rng.integers(-500, 500, outs), rng.integers(1 << 30, 1 << 31, outs), np.full(outs, shift)]
    return records(np.stack(rows, axis=1))


def network(seed: int = 0, size: int = 6, arch: Arch = SMALL, debug: bool = True) -> Program:
    """Dense stem, ternary layer with residual, depthwise layer, max pool, global average: two outputs.

    Input (3, size, size) u8; outputs: the pooled map (8, size/2, size/2) u8 and its averages (8,) s8.
    """
    rng = np.random.default_rng(seed)
    data, build = Data(), CodeBuilder()
    p3, p8, half = position_pitch(3), position_pitch(8), size // 2
    ternary = rng.integers(-1, 2, (8, 8, 3))
    ternary[rng.random(ternary.shape) < 0.3] = 0
    streams = [
        data.put(rng.integers(-90, 91, (8, 3, 3, 3)).astype(np.int8).tobytes()),
        data.put(requant(rng, 8, 38)),
        data.put(encode_row_streams(ternary, arch.chunk).tobytes()),
        data.put(rng.integers(-90, 91, (3, 3, 3)).astype(np.int8).tobytes()),
        data.put(requant(rng, 8, 40)),
        data.put(rng.integers(-90, 91, (8, 3, 3)).astype(np.int8).tobytes()),
        data.put(requant(rng, 8, 37)),
        data.put(records(np.array([[half * half, 1 << 30, 30 + 2]]))),
    ]
    x_at = len(data.content) + -len(data.content) % 4
    data.content += b"\0" * (x_at - len(data.content))
    maps = MapDescriptor("image", x_at, size, size, 3, False, 1 / 255, (3, size, size))
    pooled = MapDescriptor("pooled", x_at + maps.size_bytes, half, half, 8, False, 0.02, (8, half, half))
    means = MapDescriptor("means", pooled.address + pooled.size_bytes, 1, 1, 8, True, 0.05, (8,))
    # SRAM: image, three maps, the small ones, then the streams
    image, first, second, third = 0, 200, 600, 1000
    small, last, place = 1400, 1500, 1600
    build.run(
        "load_map",
        DmaRegisters(
            dram=x_at, sram=image, rows=size, cols=size, chans=3,
            dram_row=maps.row_pitch, dram_pos=p3, sram_row=size * p3, sram_pos=p3,
        ),
    )  # fmt: skip
    sram: list[int] = []
    for address, length in streams:
        sram.append(place)
        build.run("load_stream", DmaRegisters(dram=address, sram=place, size=length))
        place += length
    build.signal(Queue.DMA, 0)
    common: dict[str, Any] = dict(
        height=size, width=size, x_rows=size, y_rows=size, y_cols=size, outs=8, y_row=size * p8, y_pos=p8,
        kernel_h=3, kernel_w=3, stride_h=1, stride_w=1, pad_top=1, pad_left=1, dil_h=1, dil_w=1,
        low=0, high=255, bands=BANDS,
    )  # fmt: skip
    eight: dict[str, Any] = dict(x_row=size * p8, x_pos=p8, chans=8)
    build.emit("mark", 0)
    build.wait(Queue.BLK, 0)
    build.run(
        "conv_dense",
        ConvRegisters(
            **common, x_addr=image, x_row=size * p3, x_pos=p3, chans=3, y_addr=first,
            basis_addr=sram[0], quant_addr=sram[1],
        ),
    )  # fmt: skip
    build.emit("mark", 1)
    build.run(
        "conv_combine",
        ConvRegisters(
            **common, **eight, x_addr=first, y_addr=second, bases=3, coef_addr=sram[2], basis_addr=sram[3],
            quant_addr=sram[4], res_addr=first, res_row=size * p8, res_pos=p8, res_mult=3 << 29,
            res_shift=31, flags=4,
        ),
    )  # fmt: skip
    build.emit("mark", 2)
    build.run(
        "conv_depthwise",
        ConvRegisters(
            **common, **eight, x_addr=second, y_addr=third, multiplier=1, basis_addr=sram[5],
            quant_addr=sram[6],
        ),
    )  # fmt: skip
    build.signal(Queue.BLK, 1)
    build.emit("mark", 3)
    build.wait(Queue.VEC, 1)
    build.run(
        "vec_max",
        VecRegisters(
            a_addr=third, a_row=size * p8, a_pos=p8, a_rows=size, height=size, width=size, y_addr=small,
            y_row=half * p8, y_pos=p8, y_rows=half, y_cols=half, chans=8, kernel_h=2, kernel_w=2,
            stride_h=2, stride_w=2,
        ),
    )  # fmt: skip
    build.emit("mark", 4)
    build.run(
        "vec_avg",
        VecRegisters(
            a_addr=small, a_row=half * p8, a_pos=p8, a_rows=half, height=half, width=half, y_addr=last,
            y_row=p8, y_pos=p8, y_rows=1, y_cols=1, chans=8, kernel_h=1, kernel_w=1, table_addr=sram[7],
            entries=1, low=-128, high=127, flags=4 | 32,
        ),
    )  # fmt: skip
    build.signal(Queue.VEC, 2)
    build.wait(Queue.DMA, 2)
    for target, source in ((pooled, small), (means, last)):
        build.run(
            "store_map",
            DmaRegisters(
                dram=target.address, sram=source, rows=target.height, cols=target.width, chans=8,
                dram_row=target.row_pitch, dram_pos=p8, sram_row=target.row_pitch, sram_pos=p8,
            ),
        )  # fmt: skip
    build.emit("halt")
    names = ["stem.conv", "block.conv", "block.depthwise", "pool", "mean"]
    layers = [{"name": name, "op": "nn", "source": f"net.py:{i + 1}"} for i, name in enumerate(names)]
    return Program(
        arch,
        build.array(),
        bytes(data.content),
        [maps],
        [pooled, means],
        means.address + means.size_bytes,
        {"layers": layers, "instructions": []} if debug else None,
    )


def interpret(program: Program, image: np.ndarray) -> list[np.ndarray]:
    """Outputs of one image (*torch_shape integers), instruction by instruction in plain Python."""
    item = program.inputs[0]
    dram = bytearray(program.dram_bytes)
    dram[: len(program.data)] = bytes(program.data)
    sram = bytearray(program.arch.sram_bytes)
    values = image.reshape(item.channels, item.height, item.width)
    for row in range(item.height):
        for col in range(item.width):
            for c in range(item.channels):
                place = item.address + row * item.row_pitch + col * item.pos_pitch + c
                dram[place] = int(values[c, row, col]) & 255
    for step in expand(program.code):
        r: Any = step.registers
        if r is None:
            continue
        name = step.instruction.mnemonic
        if name == "load_stream":
            sram[r.sram : r.sram + r.size] = dram[r.dram : r.dram + r.size]
        elif name.endswith("_map"):
            for row in range(r.rows):
                for col in range(r.cols):
                    for c in range(r.chans):
                        a = r.dram + row * r.dram_row + col * r.dram_pos + c
                        b = r.sram + row * r.sram_row + col * r.sram_pos + c
                        if name == "load_map":
                            sram[b] = dram[a]
                        else:
                            dram[a] = sram[b]
        elif name.startswith("conv"):
            oracle.conv(sram, name, r, program.arch.chunk)
        else:
            oracle.vec(sram, name, r)
    outputs: list[np.ndarray] = []
    for m in program.outputs:
        got = np.zeros((m.channels, m.height, m.width), np.int64)
        for row in range(m.height):
            for col in range(m.width):
                for c in range(m.channels):
                    place = m.address + row * m.row_pitch + col * m.pos_pitch + c
                    got[c, row, col] = oracle.integer(dram, place, m.signed)
        outputs.append(got.reshape(m.torch_shape))
    return outputs
