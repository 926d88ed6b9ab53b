"""Every instruction of the machine in plain Python loops over one image's bytes: slow, and written only from
the machine specification. It shares no code with the simulator; registers are read by name."""

from __future__ import annotations

from typing import Any

Memory = bytearray


def rq(value: int, multiplier: int, shift: int) -> int:
    """value * multiplier / 2^shift, rounded half away from zero."""
    product = value * multiplier
    if shift == 0:
        return product
    size = (abs(product) + (1 << (shift - 1))) >> shift
    return -size if product < 0 else size


def integer(memory: Memory, address: int, signed: bool) -> int:
    value = memory[address]
    return value - 256 if signed and value > 127 else value


def word(memory: Memory, address: int, signed: bool = True) -> int:
    return int.from_bytes(memory[address : address + 4], "little", signed=signed)


def clamp(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))


def row_streams(memory: Memory, address: int, outs: int, chans: int, bases: int, chunk: int) -> list[Any]:
    """Coefficients [k][c][m], bit by bit."""
    bit = 8 * address

    def take() -> int:
        nonlocal bit
        value = memory[bit // 8] >> bit % 8 & 1
        bit += 1
        return value

    result: list[Any] = []
    for _ in range(outs):
        row = [[0] * bases for _ in range(chans)]
        order = [
            (c, m)
            for first in range(0, chans, chunk)
            for m in range(bases)
            for c in range(first, min(first + chunk, chans))
        ]
        for c, m in order:
            row[c][m] = take()
        for c, m in order:
            if row[c][m] and take():
                row[c][m] = -1
        bit = -(-bit // 8) * 8
        result.append(row)
    return result


def kernel(memory: Memory, r: Any, index: int) -> list[list[int]]:
    base = r.basis_addr + index * r.kernel_h * r.kernel_w
    return [
        [integer(memory, base + i * r.kernel_w + j, True) for j in range(r.kernel_w)]
        for i in range(r.kernel_h)
    ]


def conv(memory: Memory, mnemonic: str, r: Any, chunk: int) -> dict[int, int]:
    """Run a convolution on ``memory``; returns {basis: largest |Z|} (combine only)."""

    def x(row: int, col: int, c: int) -> int:
        if not (0 <= row < r.height and 0 <= col < r.width):
            return 0
        assert r.x_first <= row < r.x_first + r.x_rows, "not resident"
        return integer(memory, r.x_addr + (row - r.x_first) * r.x_row + col * r.x_pos + c, bool(r.flags & 1))

    coefficients: list[Any] = []
    if mnemonic == "conv_combine":
        coefficients = row_streams(memory, r.coef_addr, r.outs, r.chans, r.bases, chunk)
    largest: dict[int, int] = {}
    results: list[tuple[int, int]] = []
    for oy in range(r.y_first, r.y_first + r.y_rows):
        for ox in range(r.y_cols):
            for k in range(r.outs):
                acc = 0
                for i in range(r.kernel_h):
                    for j in range(r.kernel_w):
                        row = oy * r.stride_h - r.pad_top + i * r.dil_h
                        col = ox * r.stride_w - r.pad_left + j * r.dil_w
                        if mnemonic == "conv_combine":
                            for m in range(r.bases):
                                z = sum(coefficients[k][c][m] * x(row, col, c) for c in range(r.chans))
                                largest[m] = max(largest.get(m, 0), abs(z))
                                acc += z * kernel(memory, r, m)[i][j]
                        elif mnemonic == "conv_dense":
                            for c in range(r.chans):
                                acc += x(row, col, c) * kernel(memory, r, k * r.chans + c)[i][j]
                        else:
                            acc += x(row, col, k // r.multiplier) * kernel(memory, r, k)[i][j]
                record = r.quant_addr + 9 * k
                value = rq(acc + word(memory, record), word(memory, record + 4), memory[record + 8])
                if r.flags & 4:
                    place = r.res_addr + (oy - r.y_first) * r.res_row + ox * r.res_pos + k
                    value += rq(integer(memory, place, bool(r.flags & 8)), r.res_mult, r.res_shift)
                if r.flags & 16:
                    value = memory[r.table_addr + (clamp(value, -128, 127) & 255)]
                else:
                    value = clamp(value, r.low, r.high)
                results.append((r.y_addr + (oy - r.y_first) * r.y_row + ox * r.y_pos + k, value & 255))
    for address, value in results:
        memory[address] = value
    return largest


def _window(index: int, stride: int, pad: int, taps: int, extent: int) -> tuple[list[int], int]:
    covered = [index * stride - pad + t for t in range(taps)]
    return [i for i in covered if 0 <= i < extent], taps


def _adaptive(index: int, extent: int, total: int) -> list[int]:
    first = index * extent // total
    stop = ((index + 1) * extent + total - 1) // total
    return list(range(first, stop))


def vec(memory: Memory, mnemonic: str, r: Any) -> None:
    """Run a vector instruction on ``memory``."""

    def a(row: int, col: int, c: int) -> int:
        assert r.a_first <= row < r.a_first + r.a_rows, "not resident"
        return integer(memory, r.a_addr + (row - r.a_first) * r.a_row + col * r.a_pos + c, bool(r.flags & 1))

    results: list[tuple[int, int]] = []
    for oy in range(r.y_first, r.y_first + r.y_rows):
        for ox in range(r.y_cols):
            for c in range(r.chans):
                value = _element(memory, mnemonic, r, a, oy, ox, c)
                results.append((r.y_addr + (oy - r.y_first) * r.y_row + ox * r.y_pos + c, value & 255))
    for address, value in results:
        memory[address] = value


def _element(memory: Memory, mnemonic: str, r: Any, a: Any, oy: int, ox: int, c: int) -> int:
    if mnemonic == "vec_fill":
        return 0
    if mnemonic in ("vec_add", "vec_mul"):
        other = integer(memory, r.b_addr + (oy - r.y_first) * r.b_row + ox * r.b_pos + c, bool(r.flags & 2))
        if mnemonic == "vec_mul":
            return clamp(rq(a(oy, ox, c) * other, r.a_mult, r.a_shift), r.low, r.high)
        value = rq(a(oy, ox, c), r.a_mult, r.a_shift) + rq(other, r.b_mult, r.b_shift)
        if r.flags & 8:
            return memory[r.table_addr + (clamp(value, -128, 127) & 255)]
        return clamp(value, r.low, r.high)
    if mnemonic == "vec_lut":
        return memory[r.table_addr + (a(oy, ox, c) & 255)]
    if mnemonic == "vec_copy":
        row, col = oy * r.stride_h - r.pad_top, ox * r.stride_w - r.pad_left
        if not (0 <= row < r.height and 0 <= col < r.width):
            return 0
        if r.a_mult == 0:
            return a(row, col, c)
        return clamp(rq(a(row, col, c), r.a_mult, r.a_shift), r.low, r.high)
    if r.flags & 32:
        rows, cols = _adaptive(oy, r.height, r.kernel_h), _adaptive(ox, r.width, r.kernel_w)
        full = len(rows) * len(cols)
    else:
        rows, high = _window(oy, r.stride_h, r.pad_top, r.kernel_h, r.height)
        cols, wide = _window(ox, r.stride_w, r.pad_left, r.kernel_w, r.width)
        full = high * wide
    values = [a(row, col, c) for row in rows for col in cols]
    if mnemonic == "vec_max":
        return max(values) if values else (-128 if r.flags & 1 else 0)
    count = full if r.flags & (16 | 32) else len(values)
    for entry in range(r.entries):
        record = r.table_addr + 9 * entry
        if word(memory, record, signed=False) == count:
            average = rq(sum(values), word(memory, record + 4), memory[record + 8])
            return clamp(average, r.low, r.high)
    raise AssertionError("no divisor record")


def sparse_bytes(values: list[list[int]]) -> int:
    """SparseMap bytes of positions: per position its mask, and a byte for each non-zero."""
    return sum(-(-len(position) // 8) + sum(1 for value in position if value) for position in values)
