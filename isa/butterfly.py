"""Bit gather and bit scatter on butterfly networks, with their control bits.

The gather (parallel extract) runs on an inverse butterfly: stages of distance 1, 2, 4, ..., N/2; the scatter
(parallel deposit) on a butterfly with the stages in the opposite order and the same control words (Hilewitz
and Lee, "Fast bit gather, bit scatter and bit permutation instructions", 2008). A stage of distance D swaps
bit j and bit D + j of a block of 2D where its control bit is set. With r = (set mask bits below the middle
of the block) mod 2D, the control bits are the complement of the word ones(D) << r, seen through bits D..2D-1.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from escc.errors import EsccError

Scalar = TypeVar("Scalar", bound=np.generic)
BoolArray = npt.NDArray[np.bool_]


def control_bits(mask: BoolArray) -> list[BoolArray]:
    """Control bits of every stage for ``mask`` (..., N), N a power of two.

    Returns:
        log2 N arrays of shape (..., N / 2D, D), for D = 1, 2, 4, ..., N/2.
    """
    size = mask.shape[-1]
    if size < 1 or size & (size - 1):
        raise EsccError(f"a butterfly network has a power of two of bits, not {size}")
    below = np.concatenate([np.zeros((*mask.shape[:-1], 1), np.int64), np.cumsum(mask, axis=-1)], axis=-1)
    stages: list[BoolArray] = []
    distance = 1
    while distance < size:
        rotation = below[..., distance : size : 2 * distance, None] % (2 * distance)
        lane = np.arange(distance)
        stages.append((lane >= rotation) | (lane < rotation - distance))
        distance *= 2
    return stages


def gather(data: npt.NDArray[Scalar], mask: BoolArray) -> npt.NDArray[Scalar]:
    """The elements of ``data`` (..., N) under set bits of ``mask``, in order to the front; then zeros."""
    moved = np.where(mask, data, np.zeros_like(data))
    for control in control_bits(mask):
        moved = _stage(moved, control)
    return moved


def scatter(data: npt.NDArray[Scalar], mask: BoolArray) -> npt.NDArray[Scalar]:
    """The first elements of ``data`` (..., N) moved in order to the set bits of ``mask``; zeros elsewhere."""
    moved = data
    for control in reversed(control_bits(mask)):
        moved = _stage(moved, control)
    return np.where(mask, moved, np.zeros_like(moved))


def switch_count(size: int) -> int:
    """Control bits (two-way switches) of a network of ``size`` bits: N/2 log2 N."""
    return size // 2 * (size.bit_length() - 1)


def _stage(data: npt.NDArray[Any], control: BoolArray) -> npt.NDArray[Any]:
    blocks, distance = control.shape[-2:]
    pairs = data.reshape(*data.shape[:-1], blocks, 2, distance)
    low, high = pairs[..., 0, :], pairs[..., 1, :]
    swapped = np.stack([np.where(control, high, low), np.where(control, low, high)], axis=-2)
    return swapped.reshape(data.shape)
