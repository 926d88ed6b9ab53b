"""Time of a transfer between DRAM and SRAM, and the DRAM rows it opens (docs/machine.md, "DMA and DRAM").

The compiler's cost model and the simulator ask the same functions.
"""

from __future__ import annotations

from functools import lru_cache
from math import floor, gcd

from escc.isa.arch import Arch


def rows_of_range(address: int, size: int, row_bytes: int) -> int:
    """DRAM rows that ``size`` bytes from ``address`` on lie in."""
    return (address + size - 1) // row_bytes - address // row_bytes + 1 if size else 0


@lru_cache(maxsize=8192)
def rows_of_box(
    address: int, rows: int, cols: int, chans: int, row_pitch: int, pos_pitch: int, row_bytes: int
) -> int:
    """DRAM rows that a box of bytes lies in, each counted once (`DmaRegisters` names the arguments)."""
    if not (rows and cols and chans):
        return 0
    run = (cols - 1) * pos_pitch + chans
    # gaps shorter than a DRAM row leave out none
    close = pos_pitch - chans < row_bytes
    if close and row_pitch - run < row_bytes:
        return rows_of_range(address, (rows - 1) * row_pitch + run, row_bytes)
    met: set[int] = set()
    across = [0] if close else [col * pos_pitch for col in range(cols)]
    length = run if close else chans
    for row in range(rows):
        for offset in across:
            first = address + row * row_pitch + offset
            met.update(range(first // row_bytes, (first + length - 1) // row_bytes + 1))
    return len(met)


def requests(arch: Arch, moved: int, activates: int) -> int:
    """Requests that a transfer of ``moved`` bytes is cut into: none crosses a DRAM row it has to open."""
    return max(-(-moved // arch.dram_request_bytes), activates)


def transfer_cycles(arch: Arch, moved: int, activates: int) -> int:
    """Cycles of a transfer of ``moved`` bytes that opens ``activates`` rows; exact for decimal parameters.

    The latency, and then the longest of: the bytes over the bandwidth and what the DMA waits for answers
    while all its requests are in flight; and the row cycles of the rows over the banks.
    """
    up, down = _cycles_per_byte(arch.mhz, arch.dram_gbps)
    latency = arch.dram_latency_cycles
    data = -(-moved * up // down)
    count = requests(arch, moved, activates)
    waits = (count - 1) // arch.dram_requests if count else 0
    if waits:
        # one request takes moved * up / (down * count) cycles on the bus
        short = latency * down * count + (1 - arch.dram_requests) * moved * up
        if short > 0:
            data = -(-(moved * up * count + waits * short) // (down * count))
    return latency + max(data, -(-activates * arch.dram_row_cycles // arch.dram_banks))


def expected_cycles(arch: Arch, size: float, count: float = 1.0) -> float:
    """Cycles of ``count`` transfers of ``size`` bytes together, each from a row on: an estimate."""
    if size <= 0 or count <= 0:
        return count * arch.dram_latency_cycles
    latency, mean = arch.dram_latency_cycles, size / count
    activates = -(-mean // arch.dram_row_bytes)
    number = max(-(-mean // arch.dram_request_bytes), activates)
    waits = floor((number - 1) / arch.dram_requests)
    bus = mean / arch.bytes_per_cycle
    data = bus + waits * max(0.0, latency + (1 - arch.dram_requests) * bus / number)
    return count * (latency + max(data, activates * arch.dram_row_cycles / arch.dram_banks))


@lru_cache(maxsize=64)
def _cycles_per_byte(mhz: float, gbps: float) -> tuple[int, int]:
    """mhz / (1000 * gbps) of the decimal figures, as numerator and denominator."""
    (up, over), (by, under) = _decimal(mhz), _decimal(gbps)
    up, down = up * under, over * by * 1000
    common = gcd(up, down)
    return up // common, down // common


def _decimal(value: float) -> tuple[int, int]:
    """The shortest decimal that is ``value``, as numerator and denominator."""
    digits, _, power = repr(value).partition("e")
    whole, _, part = digits.partition(".")
    exponent = int(power or 0) - len(part)
    return int(whole + part) * 10 ** max(exponent, 0), 10 ** max(-exponent, 0)
