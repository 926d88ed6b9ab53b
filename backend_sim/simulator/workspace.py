"""Scratch memory that is allocated once and used again: fresh pages cost more than the arithmetic on them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt


class Workspace:
    """Named scratch arrays of one worker thread. An array is valid until its name is asked for again."""

    def __init__(self) -> None:
        self._buffers: dict[str, npt.NDArray[np.uint8]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An uninitialised C-contiguous array, 64-byte aligned."""
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.nbytes < size:
            raw = np.empty(size + size // 4 + 64, np.uint8)
            skip = -raw.ctypes.data % 64
            buffer = self._buffers[name] = raw[skip:]
        return buffer[:size].view(kind).reshape(shape)
