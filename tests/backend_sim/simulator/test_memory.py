"""Memories: the shared data section behaves like a copy in every image's own memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.backend_sim.simulator import oracle
from tests.backend_sim.simulator.machines import SMALL, program_of, run_program

from escc.backend_sim.simulator.memory import Block, DivergentOperand, Memory
from escc.backend_sim.simulator.meter import sparse_bytes
from escc.backend_sim.simulator.operands import OperandCache
from escc.errors import EsccError
from escc.isa.builder import CodeBuilder
from escc.isa.registers import DmaRegisters
from escc.isa.sparsemap import encode_row_streams

DATA = bytes(np.random.default_rng(7).integers(0, 256, 200, np.uint8))
DRAM, SRAM, IMAGES = 320, 160, 3
ARCH = SMALL.replace(sram_kib=1)


def memory_of(images: int = IMAGES) -> Memory:
    memory = Memory(program_of(CodeBuilder(), arch=ARCH, data=DATA, dram_bytes=DRAM), images)
    memory.maps[:] = np.random.default_rng(8).integers(0, 256, memory.maps.shape, np.uint8)
    return memory


span = st.tuples(st.integers(0, 60), st.integers(1, 60))
actions = st.lists(
    st.one_of(
        st.tuples(st.just("load"), st.integers(0, DRAM - 60), span),
        st.tuples(st.just("write"), st.integers(0, 255), span),
        st.tuples(st.just("read"), st.just(0), span),
        st.tuples(st.just("operand"), st.just(0), span),
        st.tuples(st.just("tail"), st.just(0), span),
    ),
    max_size=20,
)


@settings(max_examples=200, deadline=None)
@given(actions)
def test_streams_and_maps_in_any_order(sequence: list[tuple[str, int, tuple[int, int]]]) -> None:
    memory = memory_of()
    dram = np.concatenate([np.tile(np.frombuffer(DATA, np.uint8), (IMAGES, 1)), memory.maps], axis=1)
    sram = np.zeros((IMAGES, ARCH.sram_bytes), np.uint8)
    for action, value, (start, size) in sequence:
        block = Block(start, 1, 1, size, 0, 0)
        if action == "load":
            memory.load_stream(value, start, size)
            sram[:, start : start + size] = dram[:, value : value + size]
        elif action == "write":
            memory.sram_view(block, write=True)[...] = value
            sram[:, start : start + size] = value
        elif action == "read":
            assert (memory.sram_view(block)[:, 0, 0] == sram[:, start : start + size]).all()
        elif action == "tail":
            assert (memory.tail(start) == sram[0, start:]).all()
        else:
            right = sram[:, start : start + size]
            if (right == right[0]).all():
                assert (memory.operand(start, size)[1] == right[0]).all()
            else:
                with pytest.raises(DivergentOperand, match="differs between images"):
                    memory.operand(start, size)
    everything = memory.sram_view(Block(0, 1, 1, ARCH.sram_bytes, 0, 0))
    assert (everything[:, 0, 0] == sram).all()


def test_equal_keys_mean_equal_bytes() -> None:
    memory = memory_of()
    memory.load_stream(10, 0, 40)
    memory.load_stream(10, 50, 40)
    key, _ = memory.operand(5, 20)
    assert memory.operand(55, 20)[0] == key
    assert memory.operand(54, 20)[0] != key
    # Two streams side by side that also lie side by side in DRAM are one.
    memory.load_stream(10, 100, 10)
    memory.load_stream(20, 110, 10)
    assert memory.operand(100, 20)[0] == memory.operand(0, 20)[0]
    memory.sram_view(Block(6, 1, 1, 1, 0, 0), write=True)[...] = 1
    assert memory.operand(5, 20)[0] != key


def test_coefficients_are_decoded_once_and_again_when_a_byte_changes() -> None:
    values = np.random.default_rng(1).integers(-1, 2, (3, 5, 2))
    stream = encode_row_streams(values, 8).tobytes()
    data = stream + stream
    memory = Memory(program_of(CodeBuilder(), arch=ARCH, data=data, dram_bytes=400), 2)
    cache = OperandCache()
    memory.load_stream(0, 0, len(stream))
    first = cache.coefficients(memory, 0, 3, 5, 2, 8)
    assert (first.ternary == values).all()
    assert first.stream_bytes == len(stream)
    assert cache.coefficients(memory, 0, 3, 5, 2, 8) is first
    memory.load_stream(0, 200, len(stream))
    assert cache.coefficients(memory, 200, 3, 5, 2, 8) is first
    changed = stream[0] ^ 1
    memory.sram_view(Block(0, 1, 1, 1, 0, 0), write=True)[...] = changed
    expected = oracle.row_streams(bytearray([changed]) + bytearray(stream[1:]) + bytearray(9), 0, 3, 5, 2, 8)
    if sum(c != 0 for c in values[0].reshape(-1)) % 8:  # the row keeps its length
        assert (cache.coefficients(memory, 0, 3, 5, 2, 8).ternary == np.array(expected)).all()


def test_bounds_and_the_data_section() -> None:
    memory = memory_of()
    with pytest.raises(EsccError, match="reaches SRAM byte 1024, but there are only 1024"):
        memory.sram_view(Block(1000, 1, 1, 25, 0, 0))
    with pytest.raises(EsccError, match="reaches DRAM byte 320"):
        memory.load_stream(300, 0, 21)
    with pytest.raises(EsccError, match="inside the data section"):
        memory.dram_view(Block(199, 1, 1, 1, 0, 0), write=True)
    with pytest.raises(EsccError, match="crosses the end of the data"):
        memory.dram_view(Block(199, 1, 2, 1, 0, 1))
    with pytest.raises(EsccError, match="they overlap"):
        memory.sram_view(Block(0, 2, 2, 3, 5, 3), write=True)


def test_maps_move_between_dram_and_sram() -> None:
    """A 2 x 3 x 2 tile out of a map of 4 channels, to other pitches and back to another place."""
    build = CodeBuilder()
    tile = dict(rows=2, cols=3, chans=2, sram=40, sram_row=11, sram_pos=3)
    build.run("load_map", DmaRegisters(dram=201, dram_row=20, dram_pos=5, **tile))
    build.run("store_map", DmaRegisters(dram=260, dram_row=9, dram_pos=3, **tile))
    program = program_of(build, arch=ARCH, data=DATA, dram_bytes=DRAM)
    memory = memory_of()
    before = memory.maps.copy()
    run_program(program, memory)
    for image in range(IMAGES):
        for row in range(2):
            for col in range(3):
                for chan in range(2):
                    source = before[image, 201 - 200 + row * 20 + col * 5 + chan]
                    assert memory.sram[image, 40 + row * 11 + col * 3 + chan] == source
                    assert memory.maps[image, 260 - 200 + row * 9 + col * 3 + chan] == source


def test_a_constant_map_loads_from_the_data_section() -> None:
    build = CodeBuilder()
    build.run(
        "load_map",
        DmaRegisters(dram=4, dram_row=10, dram_pos=5, rows=2, cols=2, chans=3, sram_row=6, sram_pos=3),
    )
    memory = memory_of()
    run_program(program_of(build, arch=ARCH, data=DATA, dram_bytes=DRAM), memory)
    wanted = [DATA[4 + 10 * r + 5 * c + k] for r in range(2) for c in range(2) for k in range(3)]
    assert (memory.sram[:, :12] == wanted).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_sparse_bytes(rows: int, cols: int, chans: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 3, (2, rows, cols, chans)).astype(np.uint8)
    expected = [oracle.sparse_bytes(image.reshape(-1, chans).tolist()) for image in values]
    assert sparse_bytes(values).tolist() == expected
