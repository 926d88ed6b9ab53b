"""The host's side: images to the integers of an input map and output maps back, in torch's order of axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from escc.backend_sim.simulator.memory import Memory
from escc.errors import EsccError
from escc.isa.program import MapDescriptor


def quantize_input(item: MapDescriptor, images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Images (N, *torch_shape) as the integers of the map, same shape, int8 or uint8.

    Floats become ``x / scale`` (float64) rounded half to even and saturated; integers must have the map's own
    type already.

    Raises:
        EsccError: another shape or type, or a value that is not a number.
    """
    where = f"input {item.name!r}"
    if images.shape[1:] != item.torch_shape or images.ndim != len(item.torch_shape) + 1:
        wanted = ", ".join(str(size) for size in ("N", *item.torch_shape))
        got = ", ".join(str(size) for size in images.shape)
        raise EsccError(f"the images have shape ({got}), the program takes ({wanted})", where=where)
    if images.dtype == item.dtype:
        return images
    if images.dtype.kind != "f":
        raise EsccError(
            f"the images are {images.dtype}, the program takes {item.dtype}, or floats to quantise",
            where=where,
        )
    scaled = np.rint(images.astype(np.float64) / item.scale)
    if np.isnan(scaled).any():
        raise EsccError("the images hold values that are not numbers (NaN)", where=where)
    limits = np.iinfo(item.dtype)
    return np.clip(scaled, limits.min, limits.max).astype(item.dtype)


def write_input(memory: Memory, item: MapDescriptor, values: npt.NDArray[Any]) -> None:
    """Put integers (N, *torch_shape) into the map in DRAM."""
    ordered = values.reshape(len(values), item.channels, item.height, item.width).transpose(0, 2, 3, 1)
    memory.map_view(item).view(item.dtype)[...] = ordered


def read_output(memory: Memory, item: MapDescriptor) -> npt.NDArray[Any]:
    """The map in DRAM as integers (N, *torch_shape), int8 or uint8."""
    values = memory.map_view(item).view(item.dtype).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(values).reshape(len(values), *item.torch_shape)


def random_images(item: MapDescriptor, count: int, seed: int) -> npt.NDArray[Any]:
    """Seeded stand-ins for images: (count, *torch_shape) integers of the map's type.

    Half of the values are zero, the others spread evenly, like the activations behind a ReLU.
    """
    generator = np.random.default_rng(seed)
    limits = np.iinfo(item.dtype)
    shape = (count, *item.torch_shape)
    values = generator.integers(limits.min, limits.max, shape, item.dtype, endpoint=True)
    values[generator.random(shape) < 0.5] = 0
    return values
