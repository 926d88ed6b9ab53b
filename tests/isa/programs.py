"""A small valid program, and random ones, for the tests of this folder."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from escc.isa.arch import Arch
from escc.isa.builder import CodeBuilder
from escc.isa.encoding import encode
from escc.isa.instructions import INSTRUCTIONS, MAX_LOOP_NEST, Instruction, Operand, Queue
from escc.isa.program import MapDescriptor, Program, position_pitch
from escc.isa.registers import BY_INDEX, GENERAL_REGISTERS, REGISTERS, ConvRegisters, DmaRegisters
from escc.isa.sparsemap import encode_row_streams

HEIGHT, WIDTH, CHANS, OUTS, BASES = 4, 5, 6, 3, 2


def small_program() -> Program:
    """One 3 x 3 convolution: load map and operands, combine, store, with tokens between the queues."""
    rng = np.random.default_rng(7)
    coefficients = rng.integers(-1, 2, (OUTS, CHANS, BASES)).astype(np.int8)
    streams = [
        encode_row_streams(coefficients, Arch.default().chunk).tobytes(),
        rng.integers(-9, 10, (BASES, 3, 3)).astype(np.int8).tobytes(),
        b"".join(
            int(bias).to_bytes(4, "little", signed=True) + (1 << 30).to_bytes(4, "little") + bytes([34])
            for bias in rng.integers(-50, 50, OUTS)
        ),
    ]
    data = b"".join(streams)
    x_pos, y_pos = position_pitch(CHANS), position_pitch(OUTS)
    x_size, y_size = HEIGHT * WIDTH * x_pos, HEIGHT * WIDTH * y_pos
    x_dram, y_dram = len(data), len(data) + x_size
    stream_at, x_at, y_at = 64, 256, 1024

    code = CodeBuilder()
    code.emit("mark", 0)
    code.run("load_stream", DmaRegisters(dram=0, sram=stream_at, size=len(data)))
    x_move = DmaRegisters(
        dram=x_dram,
        sram=x_at,
        rows=HEIGHT,
        cols=WIDTH,
        chans=CHANS,
        dram_row=WIDTH * x_pos,
        dram_pos=x_pos,
        sram_row=WIDTH * x_pos,
        sram_pos=x_pos,
    )
    code.run("load_map", x_move)
    code.signal(Queue.DMA, 0)
    code.wait(Queue.BLK, 0)
    code.run("conv_combine", small_convolution(stream_at, [len(s) for s in streams], x_at, y_at))
    code.signal(Queue.BLK, 1)
    code.wait(Queue.DMA, 1)
    y_move = x_move._replace(
        dram=y_dram,
        sram=y_at,
        chans=OUTS,
        dram_row=WIDTH * y_pos,
        dram_pos=y_pos,
        sram_row=WIDTH * y_pos,
        sram_pos=y_pos,
    )
    code.run("store_map", y_move)
    code.emit("halt")
    words = code.array()
    return Program(
        Arch.default(),
        words,
        data,
        [MapDescriptor("x", x_dram, HEIGHT, WIDTH, CHANS, True, 0.031, (CHANS, HEIGHT, WIDTH))],
        [MapDescriptor("y", y_dram, HEIGHT, WIDTH, OUTS, True, 1 / 3, (OUTS, HEIGHT, WIDTH))],
        y_dram + y_size,
        {
            "layers": [{"name": "features.0", "op": "conv2d", "source": "net.py:12"}],
            "instructions": [[0, len(words) - 1, 0]],
        },
    )


def small_convolution(stream_at: int, sizes: list[int], x_at: int, y_at: int) -> ConvRegisters:
    """The registers of the small program's convolution."""
    x_pos, y_pos = position_pitch(CHANS), position_pitch(OUTS)
    return ConvRegisters(
        x_addr=x_at,
        x_row=WIDTH * x_pos,
        x_pos=x_pos,
        x_first=0,
        x_rows=HEIGHT,
        height=HEIGHT,
        width=WIDTH,
        chans=CHANS,
        y_addr=y_at,
        y_row=WIDTH * y_pos,
        y_pos=y_pos,
        y_first=0,
        y_rows=HEIGHT,
        y_cols=WIDTH,
        outs=OUTS,
        kernel_h=3,
        kernel_w=3,
        stride_h=1,
        stride_w=1,
        pad_top=1,
        pad_left=1,
        dil_h=1,
        dil_w=1,
        bases=BASES,
        coef_addr=stream_at,
        basis_addr=stream_at + sizes[0],
        quant_addr=stream_at + sizes[0] + sizes[1],
        low=-128,
        high=127,
        bands=1,
        flags=3,
    )


def operand_values(instruction: Instruction) -> st.SearchStrategy[tuple[int, ...]]:
    """Valid operand values of an instruction, in table order."""
    if instruction.mnemonic == "set":
        return st.sampled_from(REGISTERS).flatmap(
            lambda r: st.tuples(st.just(r.index), st.integers(r.low, r.high))
        )
    return st.tuples(*[_operand(operand) for operand in instruction.operands])


def _operand(operand: Operand) -> st.SearchStrategy[int]:
    if operand.kind == "register":
        return st.sampled_from(sorted(BY_INDEX))
    if operand.kind == "unit_register":
        return st.sampled_from([index for index in sorted(BY_INDEX) if index >= GENERAL_REGISTERS])
    if operand.kind == "queue":
        return st.sampled_from([int(queue) for queue in Queue])
    return st.integers(operand.minimum, operand.maximum)


def words(*, loops: bool = True) -> st.SearchStrategy[list[int]]:
    """Random code with balanced loops."""
    plain = st.sampled_from([i for i in INSTRUCTIONS if i.mnemonic not in ("loop", "endloop")])
    single = plain.flatmap(lambda i: operand_values(i).map(lambda values: [encode(i.mnemonic, *values)]))
    body = st.lists(single, max_size=6).map(_joined)
    if loops:
        for _ in range(MAX_LOOP_NEST):
            inner = body
            looped = st.tuples(st.integers(0, 2**32 - 1), inner).map(
                lambda pair: [encode("loop", pair[0]), *pair[1], encode("endloop")]
            )
            body = st.lists(st.one_of(single, looped), max_size=4).map(_joined)
    return body


def _joined(parts: list[list[int]]) -> list[int]:
    return [word for part in parts for word in part]


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Random programs that pass the program file's checks (their code need not run)."""
    code = np.array(draw(words()), np.uint64)
    data = draw(st.binary(max_size=200))
    address = len(data)
    maps: list[list[MapDescriptor]] = [[], []]
    names = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=8)
    for group in maps:
        for name in draw(st.lists(names.filter(str.isprintable), max_size=3, unique=True)):
            height, width, channels = draw(st.tuples(*[st.integers(1, 9)] * 3))
            shapes = [(channels, height, width), (channels * height * width,)]
            shapes += [()] if height * width * channels == 1 else []
            scale = draw(st.floats(0, 1e30, exclude_min=True, allow_subnormal=False))
            item = MapDescriptor(
                name,
                address,
                height,
                width,
                channels,
                draw(st.booleans()),
                scale,
                draw(st.sampled_from(shapes)),
            )
            group.append(item)
            address += item.size_bytes + draw(st.integers(0, 5))
    debug: dict[str, Any] | None = None
    if draw(st.booleans()):
        layers = [
            {"name": name, "op": "x"} for name in draw(st.lists(names.filter(str.isprintable), max_size=3))
        ]
        ranges = [[0, len(code) - 1, len(layers) - 1]] if layers and len(code) else []
        debug = {"layers": layers, "instructions": ranges, "note": draw(st.text(max_size=5).filter(_encodes))}
    arch = Arch.default().replace(
        rows=draw(st.integers(1, 100)),
        mhz=draw(st.floats(1, 1e5)),
        policy=draw(st.sampled_from(["none", "gather"])),
    )
    return Program(arch, code, data, maps[0], maps[1], address + draw(st.integers(0, 9)), debug)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
