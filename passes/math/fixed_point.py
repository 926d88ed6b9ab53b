"""Fixed-point arithmetic of the machine: multipliers, requantisation, tables, 8-bit rounding (numpy, exact).

The rule every part must reproduce bit for bit: ``v = (acc + bias) * multiplier`` exactly, then
``v / 2**shift`` rounded to the nearest integer, halves away from zero.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Int64 = NDArray[np.int64]

MULTIPLIER_BITS = 31
"""A multiplier that is not zero has exactly this many significant bits: 2**30 <= m < 2**31."""
LARGEST_SHIFT = 62
ACCUMULATOR_LIMIT = 2**31
"""Accumulator plus bias must stay strictly below this in magnitude."""


def fixed_point(factor: float) -> tuple[int, int]:
    """The multiplier and shift nearest to a real factor: factor ~ m / 2**s.

    Args:
        factor: a factor from 0 up to (not including) 2**31.

    Returns:
        (m, s) with 2**30 <= m < 2**31 and 0 <= s <= 62; (0, 0) for zero and for factors below 2**-32, which
        take every 32-bit accumulator to zero. Relative error of m / 2**s at most 2**-31.

    Raises:
        ValueError: factor negative, too large, or not finite.
    """
    if not 0.0 <= factor < 2.0**31:
        raise ValueError(f"a requantisation factor must be in [0, 2^31), found {factor}")
    if factor == 0.0:
        return 0, 0
    fraction, exponent = math.frexp(factor)  # factor = fraction * 2**exponent, 0.5 <= fraction < 1
    multiplier, shift = round(fraction * 2**MULTIPLIER_BITS), MULTIPLIER_BITS - exponent
    if multiplier == 2**MULTIPLIER_BITS:
        multiplier, shift = multiplier // 2, shift - 1
    if shift > LARGEST_SHIFT:
        return 0, 0
    if shift < 0:  # a factor that rounded up to 2**31
        return 2**MULTIPLIER_BITS - 1, 0
    return multiplier, shift


def requantize(accumulator: ArrayLike, bias: ArrayLike, multiplier: ArrayLike, shift: ArrayLike) -> Int64:
    """(accumulator + bias) * multiplier / 2**shift, exactly, rounded to nearest, halves away from zero.

    Args:
        accumulator, bias: integers whose sum is below 2**31 in magnitude.
        multiplier: 0 or 2**30 .. 2**31 - 1.
        shift: 0 .. 62.
        All of them broadcast against each other.

    Returns:
        int64 array; not yet clamped.
    """
    total = np.asarray(accumulator, np.int64) + np.asarray(bias, np.int64)
    product = total * np.asarray(multiplier, np.int64)
    bits = np.asarray(shift, np.int64)
    half = np.where(bits > 0, np.int64(1) << np.maximum(bits - 1, 0), 0)
    return np.sign(product) * ((np.abs(product) + half) >> bits)


def round_half_away(x: ArrayLike) -> NDArray[np.float64]:
    """Nearest integers of real numbers, halves away from zero (the machine's own rounding)."""
    values = np.asarray(x, np.float64)
    whole = np.trunc(values)
    # x - trunc(x) is exact, x + 0.5 is not
    return whole + np.where(np.abs(values - whole) >= 0.5, np.sign(values), 0.0)


def limits(signed: bool) -> tuple[int, int]:
    """Smallest and largest value of an 8-bit integer."""
    return (-128, 127) if signed else (0, 255)


def integer_dtype(signed: bool) -> type[np.int8] | type[np.uint8]:
    """The numpy type of an 8-bit map."""
    return np.int8 if signed else np.uint8


def quantize_input(images: NDArray[Any], scale: float, signed: bool) -> NDArray[Any]:
    """Real numbers to 8-bit integers as the host does it: x / scale in double precision, rounded half to
    even, saturated.

    Returns:
        int8 or uint8 array of the same shape.
    """
    low, high = limits(signed)
    scaled = np.rint(np.asarray(images, np.float64) / scale)
    return np.clip(scaled, low, high).astype(integer_dtype(signed))


def byte_values(signed: bool) -> NDArray[np.int64]:
    """The value each of the 256 bytes stands for: 0..255, or 0..127 followed by -128..-1."""
    values = np.arange(256)
    return np.where(values > 127, values - 256, values) if signed else values


def balanced_ternary(values: NDArray[Any], planes: int) -> NDArray[np.int8]:
    """Digits in {-1, 0, 1} on a new last axis, lowest first: values = sum over i of digit_i * 3**i.

    Args:
        values: integers of magnitude at most (3**planes - 1) / 2 (121 for 5 planes).

    Raises:
        ValueError: a value too large for that many planes.
    """
    rest = np.asarray(values, np.int64)
    if rest.size and int(np.abs(rest).max()) > (3**planes - 1) // 2:
        raise ValueError(f"{planes} balanced ternary digits hold at most {(3**planes - 1) // 2}")
    digits: list[NDArray[np.int64]] = []
    for _ in range(planes):
        digit = (rest + 1) % 3 - 1
        digits.append(digit)
        rest = (rest - digit) // 3
    return np.stack(digits, axis=-1).astype(np.int8)
