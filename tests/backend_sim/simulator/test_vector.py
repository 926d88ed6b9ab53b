"""Vector instructions against plain Python loops, on random registers and memory contents."""

from __future__ import annotations

import numpy as np
import pytest
from tests.backend_sim.simulator import oracle
from tests.backend_sim.simulator.machines import Layout, records, run_one

from escc.errors import EsccError
from escc.isa.registers import VecRegisters

ELEMENT_WISE = ("vec_add", "vec_mul", "vec_lut", "vec_fill")
POOLS = ("vec_max", "vec_avg")
MNEMONICS = (*ELEMENT_WISE, *POOLS, "vec_copy")
IMAGES = 3


def pick(rng: np.random.Generator, *values: int) -> int:
    return int(rng.choice(values))


def divisor_records(counts: set[int], rng: np.random.Generator) -> bytes:
    """One record per count in random order: 1 / count as a 31-bit multiplier."""
    rows: list[list[int]] = []
    for count in rng.permutation(sorted(counts)).tolist():
        shift = 30 + (count - 1).bit_length()
        rows.append([count, min(round((1 << shift) / count), (1 << 31) - 1), shift])
    return records(np.array(rows))


def random_vec(mnemonic: str, seed: int) -> tuple[VecRegisters, np.ndarray]:
    """Registers of a vector instruction and SRAM contents (images, bytes) with everything it reads."""
    rng = np.random.default_rng(seed)
    pool, adaptive = mnemonic in POOLS, mnemonic in POOLS and bool(seed % 3 == 0)
    chans = pick(rng, 1, 3, 9)
    height, width = pick(rng, 1, 2, 5, 7), pick(rng, 1, 3, 6)
    kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left = 1, 1, 1, 1, 0, 0
    if adaptive:
        kernel_h, kernel_w = pick(rng, 1, 2, 3, 7), pick(rng, 1, 2, 4)
        total, y_cols = kernel_h, pick(rng, 1, kernel_w)
    elif mnemonic in ELEMENT_WISE:
        total, y_cols = height, pick(rng, 1, width)
    else:
        stride_h, stride_w = pick(rng, 1, 2, 3), pick(rng, 1, 2)
        if pool:
            kernel_h, kernel_w = pick(rng, 1, 2, 3), pick(rng, 1, 2, 4)
            pad_top, pad_left = pick(rng, 0, kernel_h // 2), pick(rng, 0, kernel_w // 2)
        else:
            pad_top, pad_left = pick(rng, -2, 0, 1, 3), pick(rng, -1, 0, 2)
        total = max(1, (height + pad_top - kernel_h) // stride_h + 1)
        y_cols = max(1, (width + pad_left - kernel_w) // stride_w + 1)
    y_first = pick(rng, *range(total))
    y_rows = total - y_first
    a_first = 0 if mnemonic not in ELEMENT_WISE else pick(rng, 0, y_first)
    a_rows = height - a_first
    a_pos, b_pos, y_pos = chans + pick(rng, 0, 2), chans + pick(rng, 0, 1), chans + pick(rng, 0, 3)
    a_row, b_row, y_row = width * a_pos + pick(rng, 0, 4), y_cols * b_pos, y_cols * y_pos + pick(rng, 0, 1)
    if pick(rng, 0, 1):
        b_pos = b_row = 0
    flags = pick(rng, 0, 1) | 2 * pick(rng, 0, 1) | 4 * pick(rng, 0, 1) | 8 * pick(rng, 0, 1)
    flags |= 16 * pick(rng, 0, 1) | 32 * adaptive
    low, high = (-128, 127) if flags & 4 else (0, 255)
    layout = Layout()
    addresses = {
        "a_addr": layout.take(a_rows * a_row),
        "b_addr": layout.take(max(y_rows * b_row, chans)),
        "y_addr": layout.take(y_rows * y_row),
    }
    counts = set(range(1, 50))
    table = divisor_records(counts, rng) if mnemonic == "vec_avg" else rng.bytes(256)
    addresses["table_addr"] = layout.take(len(table))
    sram = rng.integers(0, 256, (IMAGES, layout.used), np.uint8)
    sram[:, addresses["table_addr"] : addresses["table_addr"] + len(table)] = np.frombuffer(table, np.uint8)
    shifts = (0, 30, 31, 33) if mnemonic == "vec_copy" else (29, 30, 31, 36, 62)
    registers = VecRegisters(
        **addresses, a_row=a_row, a_pos=a_pos, a_first=a_first, a_rows=a_rows, height=height, width=width,
        b_row=b_row, b_pos=b_pos, y_row=y_row, y_pos=y_pos, y_first=y_first, y_rows=y_rows, y_cols=y_cols,
        chans=chans, kernel_h=kernel_h, kernel_w=kernel_w, stride_h=stride_h, stride_w=stride_w,
        pad_top=pad_top, pad_left=pad_left, flags=flags, entries=len(counts),
        a_mult=pick(rng, 0, *rng.integers(1 << 30, 1 << 31, 3).tolist()), a_shift=pick(rng, *shifts),
        b_mult=int(rng.integers(1 << 30, 1 << 31)), b_shift=pick(rng, *shifts),
        low=low + pick(rng, 0, 9), high=high - pick(rng, 0, 40),
    )  # fmt: skip
    return registers, sram


def check(mnemonic: str, registers: VecRegisters, sram: np.ndarray) -> None:
    result = run_one(mnemonic, registers, sram)
    for image in range(len(sram)):
        expected = bytearray(sram[image].tobytes())
        oracle.vec(expected, mnemonic, registers)
        assert result[image].tobytes() == bytes(expected), f"image {image}: {registers}"


@pytest.mark.parametrize("mnemonic", MNEMONICS)
def test_random_vector_instructions(mnemonic: str) -> None:
    for seed in range(80):
        registers, sram = random_vec(mnemonic, seed)
        check(mnemonic, registers, sram)


def in_place(mnemonic: str) -> tuple[VecRegisters, np.ndarray]:
    registers, sram = random_vec(mnemonic, 1)
    size = dict(height=2, width=2, a_rows=2, y_rows=2, y_cols=2, a_first=0, y_first=0)
    pitches = dict(a_pos=4, y_pos=4, a_row=8, y_row=8, b_pos=4, b_row=8, chans=3)
    return registers._replace(**size, **pitches, a_addr=0, y_addr=0, b_addr=0), sram


@pytest.mark.parametrize("mnemonic", ["vec_add", "vec_mul", "vec_lut"])
def test_an_operand_may_be_overwritten_in_place(mnemonic: str) -> None:
    check(mnemonic, *in_place(mnemonic))


def test_average_without_a_record_for_its_count() -> None:
    registers, sram = random_vec("vec_avg", 0)
    registers = registers._replace(
        flags=0, kernel_h=3, kernel_w=3, stride_h=1, stride_w=1, pad_top=1, pad_left=1, height=5, width=3,
        a_rows=5, a_first=0, y_first=0, y_rows=1, y_cols=1, entries=1, low=0, high=255, a_row=40, a_pos=10,
    )  # fmt: skip
    sram[:, registers.table_addr : registers.table_addr + 9] = np.frombuffer(
        records(np.array([[9, 1 << 30, 33]])), np.uint8
    )
    with pytest.raises(EsccError, match=r"\(vec_avg\): no divisor record for windows of 4 values"):
        run_one("vec_avg", registers, sram)


def test_a_row_that_is_not_resident() -> None:
    registers, sram = random_vec("vec_max", 1)
    registers = registers._replace(a_first=1, y_first=0, pad_top=0, flags=0)
    with pytest.raises(EsccError, match=r"word \d+ \(vec_max\): a needs the rows 0\.\.\d+, resident are 1"):
        run_one("vec_max", registers, sram)
