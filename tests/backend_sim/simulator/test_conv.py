"""Convolution instructions against plain Python loops, on random registers and memory contents."""

from __future__ import annotations

import numpy as np
import pytest
from tests.backend_sim.simulator import oracle
from tests.backend_sim.simulator.machines import SMALL, Layout, records, run_one

from escc.backend_sim.simulator import conv
from escc.errors import EsccError
from escc.isa.arch import Arch
from escc.isa.registers import ConvRegisters
from escc.isa.sparsemap import encode_row_streams

FORMS = ("conv_combine", "conv_dense", "conv_depthwise")
ARCH = SMALL.replace(chunk=8)
IMAGES = 3


def pick(rng: np.random.Generator, *values: int) -> int:
    return int(rng.choice(values))


def random_requant(rng: np.random.Generator, outs: int, spread: int) -> np.ndarray:
    """Records whose results fall around the 8-bit range for sums around ``spread``."""
    shift = rng.integers(30, 63, outs) if rng.random() < 0.3 else 30 + int(rng.integers(0, 12)) + 0 * outs
    shift = np.broadcast_to(shift, (outs,))
    multiplier = rng.integers(1 << 30, 1 << 31, outs)
    multiplier[rng.random(outs) < 0.1] = 0
    return np.stack([rng.integers(-spread, spread + 1, outs), multiplier, shift], axis=1)


def random_conv(mnemonic: str, seed: int) -> tuple[ConvRegisters, np.ndarray]:
    """Registers of a small convolution and SRAM contents (images, bytes) with everything it reads."""
    rng = np.random.default_rng(seed)
    kernel_h, kernel_w = pick(rng, 1, 1, 2, 3), pick(rng, 1, 1, 2, 3)
    stride_h, stride_w = pick(rng, 1, 1, 2, 3), pick(rng, 1, 1, 2)
    dil_h, dil_w = pick(rng, 1, 1, 2), pick(rng, 1, 2)
    pad_top, pad_left = pick(rng, 0, 1, 2), pick(rng, 0, 1, 2)
    y_total, y_cols = pick(rng, 1, 2, 4), pick(rng, 1, 3)
    # Any height does: outputs below or right of the map read zeros.
    height = max(1, (y_total - 1) * stride_h + (kernel_h - 1) * dil_h + 1 - pad_top - pick(rng, 0, 1, 2))
    width = max(1, (y_cols - 1) * stride_w + (kernel_w - 1) * dil_w + 1 - pad_left + pick(rng, -1, 0, 2))
    y_first = pick(rng, *range(y_total))
    y_rows = y_total - y_first
    multiplier, bases = pick(rng, 1, 2), pick(rng, 1, 2, 3)
    chans = pick(rng, 1, 3, 9)
    outs = chans * multiplier if mnemonic == "conv_depthwise" else pick(rng, 1, 2, 5)
    # Rows that are needed and inside the map, and some around them.
    needed = [
        row
        for y in range(y_first, y_total)
        for t in range(kernel_h)
        if 0 <= (row := y * stride_h - pad_top + t * dil_h) < height
    ]
    x_first = min(needed, default=0) - pick(rng, 0, 1)
    x_rows = max(needed, default=0) + 1 - x_first + pick(rng, 0, 1)
    x_pos, y_pos, res_pos = chans + pick(rng, 0, 2), outs + pick(rng, 0, 3), outs + pick(rng, 0, 1)
    x_row, y_row = width * x_pos + pick(rng, 0, 5), y_cols * y_pos + pick(rng, 0, 1)
    res_row = y_cols * res_pos
    layout = Layout()
    addresses = {
        "x_addr": layout.take(x_rows * x_row),
        "y_addr": layout.take(y_rows * y_row),
        "res_addr": layout.take(y_rows * res_row),
        "table_addr": layout.take(256),
    }
    flags = pick(rng, 0, 1) | 2 * pick(rng, 0, 1) | 4 * pick(rng, 0, 1) | 8 * pick(rng, 0, 1)
    flags |= 16 * pick(rng, 0, 0, 1)
    low, high = (-128, 127) if flags & 2 else (0, 255)
    low, high = low + pick(rng, 0, 0, 7), high - pick(rng, 0, 0, 60)
    kernels = {"conv_combine": bases, "conv_dense": outs * chans, "conv_depthwise": outs}[mnemonic]
    coefficients = rng.integers(-1, 2, (outs, chans, bases)) * (rng.random((outs, chans, bases)) < 0.7)
    streams = {
        "coef_addr": encode_row_streams(coefficients, ARCH.chunk).tobytes(),
        "basis_addr": rng.integers(-128, 128, kernels * kernel_h * kernel_w).astype(np.int8).tobytes(),
        "quant_addr": records(random_requant(rng, outs, pick(rng, 100, 1 << 20))),
    }
    for name, content in streams.items():
        addresses[name] = layout.take(len(content))
    sram = rng.integers(0, 256, (IMAGES, layout.used), np.uint8)
    sram *= rng.random(sram.shape) < 0.7
    sram[1:, addresses["table_addr"] :] = sram[0, addresses["table_addr"] :]
    for name, content in streams.items():
        sram[:, addresses[name] : addresses[name] + len(content)] = np.frombuffer(content, np.uint8)
    return (
        ConvRegisters(
            **addresses,
            x_row=x_row,
            x_pos=x_pos,
            x_first=x_first,
            x_rows=x_rows,
            height=height,
            width=width,
            chans=chans,
            y_row=y_row,
            y_pos=y_pos,
            y_first=y_first,
            y_rows=y_rows,
            y_cols=y_cols,
            outs=outs,
            kernel_h=kernel_h,
            kernel_w=kernel_w,
            stride_h=stride_h,
            stride_w=stride_w,
            pad_top=pad_top,
            pad_left=pad_left,
            dil_h=dil_h,
            dil_w=dil_w,
            bases=bases,
            multiplier=multiplier,
            res_row=res_row,
            res_pos=res_pos,
            res_mult=int(rng.integers(1 << 30, 1 << 31)),
            res_shift=pick(rng, 0, 28, 30, 31, 35, 62),
            low=low,
            high=high,
            bands=1,
            flags=flags,
        ),
        sram,
    )


def check(mnemonic: str, registers: ConvRegisters, sram: np.ndarray, arch: Arch = ARCH) -> None:
    result = run_one(mnemonic, registers, sram, arch)
    for image in range(len(sram)):
        expected = bytearray(sram[image].tobytes())
        oracle.conv(expected, mnemonic, registers, arch.chunk)
        assert result[image].tobytes() == bytes(expected), f"image {image}: {registers}"


@pytest.mark.parametrize("mnemonic", FORMS)
@pytest.mark.parametrize("part", range(4))
def test_random_convolutions(mnemonic: str, part: int) -> None:
    for seed in range(part * 25, part * 25 + 25):
        registers, sram = random_conv(mnemonic, seed)
        check(mnemonic, registers, sram)


@pytest.mark.parametrize("mnemonic", FORMS)
def test_in_many_blocks(mnemonic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into blocks of one image, a few outputs and single rows, the result is the same."""
    monkeypatch.setattr(conv, "BLOCK_BYTES", 64)
    monkeypatch.setattr(conv, "LEAST_OUTS", 2)
    for seed in range(1000, 1020):
        registers, sram = random_conv(mnemonic, seed)
        check(mnemonic, registers, sram)


@pytest.mark.parametrize("mnemonic", FORMS)
def test_where_float32_is_not_exact(mnemonic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a lower bound for float32 the sums go through float64 and, when dense, through parts."""
    monkeypatch.setattr(conv, "FLOAT32_EXACT", 1)
    for seed in range(2000, 2015):
        registers, sram = random_conv(mnemonic, seed)
        check(mnemonic, registers, sram)


def wide_dense() -> tuple[ConvRegisters, np.ndarray]:
    """A 1x1 dense convolution of 700 channels with the largest weights: sums up to 700 * 255 * 127 > 2^24."""
    chans, outs = 700, 3
    rng = np.random.default_rng(5)
    sram = np.zeros((2, 12000), np.uint8)
    sram[:, : 4 * chans] = rng.integers(250, 256, (2, 4 * chans))
    weights = np.full((outs, chans), 127, np.int8)
    weights[1] = rng.integers(-128, 128, chans)
    weights[2] = -128
    sram[:, 3000 : 3000 + outs * chans] = weights.view(np.uint8).reshape(-1)
    # y = sum - (sum of the first position): one unit in a sum of 22 million shows
    sums = weights.astype(np.int64) @ sram[0, :chans].astype(np.int64)
    quant = np.array([[-value, 1 << 30, 30] for value in sums])
    sram[:, 6000 : 6000 + 9 * outs] = np.frombuffer(records(quant), np.uint8)
    registers = ConvRegisters(
        x_addr=0, x_row=2 * chans, x_pos=chans, x_rows=2, height=2, width=2, chans=chans,
        y_addr=8000, y_row=2 * outs, y_pos=outs, y_rows=2, y_cols=2, outs=outs,
        kernel_h=1, kernel_w=1, stride_h=1, stride_w=1, dil_h=1, dil_w=1,
        basis_addr=3000, quant_addr=6000, low=-128, high=127, bands=1, flags=2,
    )  # fmt: skip
    return registers, sram


def test_dense_sums_beyond_float32() -> None:
    registers, sram = wide_dense()
    check("conv_dense", registers, sram)


def test_the_accumulator_is_checked_on_the_data() -> None:
    registers, sram = wide_dense()
    quant = np.array([[(1 << 31) - 22_000_000, 1 << 30, 60]] * 3)
    sram[:, 6000:6027] = np.frombuffer(records(quant), np.uint8)
    with pytest.raises(EsccError, match=r"word \d+ \(conv_dense\): output channel 0: sum 2\d+ does not fit"):
        run_one("conv_dense", registers, sram)


def ternary_line(chans: int, value: int) -> tuple[ConvRegisters, np.ndarray]:
    """One position, one output, one basis of 1: Z = chans * value."""
    stream = encode_row_streams(np.ones((1, chans, 1), np.int8), SMALL.chunk)
    sram = np.zeros((1, 8000), np.uint8)
    sram[:, :chans] = value
    sram[:, 5000 : 5000 + len(stream)] = stream
    sram[:, 6000] = 1
    sram[:, 6100:6109] = np.frombuffer(records(np.array([[0, 1 << 30, 43]])), np.uint8)
    registers = ConvRegisters(
        x_addr=0, x_row=chans, x_pos=chans, x_rows=1, height=1, width=1, chans=chans,
        y_addr=7000, y_row=1, y_pos=1, y_rows=1, y_cols=1, outs=1, bases=1,
        kernel_h=1, kernel_w=1, stride_h=1, stride_w=1, dil_h=1, dil_w=1,
        coef_addr=5000, basis_addr=6000, quant_addr=6100, low=0, high=255, bands=1,
    )  # fmt: skip
    return registers, sram


def test_z_width_is_checked_on_the_data() -> None:
    # 2056 * 255 = 524280 < 2^19 = 524288, 2057 * 255 = 524535 is beyond 20 bits
    registers, sram = ternary_line(2056, 255)
    assert run_one("conv_combine", registers, sram)[0, 7000] == 64  # 524280 / 2^13 = 63.999
    registers, sram = ternary_line(2057, 254)
    assert run_one("conv_combine", registers, sram)[0, 7000] == 64  # 522478 / 2^13 = 63.78
    registers, sram = ternary_line(2057, 255)
    with pytest.raises(EsccError, match="Z of output 0, basis 0 is 524535: beyond 20 bits"):
        run_one("conv_combine", registers, sram)


def test_refusals_name_the_instruction() -> None:
    registers, sram = ternary_line(64, 1)
    cases = [
        (registers._replace(x_first=1), "needs the rows 0..0, resident are 1..1"),
        (registers._replace(stride_h=0), "conv.stride_h is 0"),
        (registers._replace(x_addr=SMALL.sram_bytes - 4), "reaches SRAM byte"),
        (registers._replace(high=256), "not a range inside 0..255"),
        (registers._replace(width=2000, y_cols=2000, x_addr=0, x_pos=0, y_pos=1), "2000 partial sums"),
    ]
    for wrong, message in cases:
        with pytest.raises(EsccError, match=message) as caught:
            run_one("conv_combine", wrong, sram)
        assert str(caught.value).startswith("word ")
        assert "(conv_combine)" in str(caught.value)
    sram[:, 6108] = 63
    with pytest.raises(EsccError, match="requantisation record 0 has shift 63"):
        run_one("conv_combine", registers, sram)
