"""Counting bits, for numpy before 2.0 too."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_BITS_OF = np.array([value.bit_count() for value in range(256)], np.uint8)


def bit_counts(values: npt.NDArray[np.unsignedinteger[Any]]) -> npt.NDArray[np.uint8]:
    """How many bits of each number are set."""
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(values)
    return counted_by_byte(values)


def counted_by_byte(values: npt.NDArray[np.unsignedinteger[Any]]) -> npt.NDArray[np.uint8]:
    """`bit_counts` with nothing of numpy 2."""
    each = np.ascontiguousarray(values).view(np.uint8).reshape(*values.shape, values.itemsize)
    return _BITS_OF[each].sum(axis=-1, dtype=np.uint8)
