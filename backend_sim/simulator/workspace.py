"""Scratch memory that is allocated once and used again: fresh pages cost more than the arithmetic on them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from escc.backend_sim.simulator.timing import NativeMaps


class Workspace:
    """Named scratch arrays of one worker thread. An array is valid until its name is asked for again.

    ``maps``: what does the inner loops; None: numpy.
    """

    def __init__(self, maps: NativeMaps | None = None) -> None:
        self.maps = maps
        self._buffers: dict[str, npt.NDArray[np.uint8]] = {}
        self._arrays: dict[str, dict[tuple[object, ...], npt.NDArray[Any]]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> npt.NDArray[Any]:
        """An uninitialised C-contiguous array, 64-byte aligned."""
        known = self._arrays.setdefault(name, {})
        found = known.get((shape, dtype))
        if found is None:
            found = known[(shape, dtype)] = self._fresh(name, shape, np.dtype(dtype))
        return found

    def _fresh(self, name: str, shape: tuple[int, ...], kind: np.dtype[Any]) -> npt.NDArray[Any]:
        size = math.prod(shape) * kind.itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.nbytes < size:
            raw = np.empty(size + size // 4 + 64, np.uint8)
            skip = -raw.ctypes.data % 64
            buffer = self._buffers[name] = raw[skip:]
            self._arrays[name].clear()
        return buffer[:size].view(kind).reshape(shape)
