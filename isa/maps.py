"""Descriptors of the maps through which a program meets the outside world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


def position_pitch(channels: int) -> int:
    """Bytes from one position of a map to the next: one slot per channel and its mask bits."""
    return channels + (channels + 7) // 8


@dataclass(frozen=True)
class MapDescriptor:
    """An input or output map in DRAM, position-major (height, width, channels), 8 bits per value.

    ``scale`` is the real value of the integer 1; ``torch_shape`` the shape of the tensor in torch order
    without its batch dimension (the same number of values).
    """

    name: str
    address: int
    height: int
    width: int
    channels: int
    signed: bool
    scale: float
    torch_shape: tuple[int, ...]

    @property
    def pos_pitch(self) -> int:
        """Bytes from one position to the next."""
        return position_pitch(self.channels)

    @property
    def row_pitch(self) -> int:
        """Bytes from one row to the next."""
        return self.width * self.pos_pitch

    @property
    def size_bytes(self) -> int:
        """Bytes the map occupies in DRAM."""
        return self.height * self.row_pitch

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type of a value: int8 or uint8."""
        return np.dtype(np.int8 if self.signed else np.uint8)
