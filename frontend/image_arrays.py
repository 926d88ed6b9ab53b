"""Arrays of images: which axis is which, what fits the network, and the numbers the network sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from escc.errors import EsccError

Images = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Labels = NDArray[np.int64]
Shape = tuple[int, int, int]

MAX_CLASSES = 1 << 16
STATISTICS_BATCH = 1 << 12


def image_shape(shape: Sequence[int], where: str) -> Shape:
    """(C, H, W) of a network's input.

    Raises:
        EsccError: the network does not take images.
    """
    if len(shape) != 3:
        raise EsccError(f"the network takes inputs of shape {tuple(shape)}, not images", where=where)
    return int(shape[0]), int(shape[1]), int(shape[2])


def kind_of(raw: NDArray[Any]) -> str:
    """Type and shape for an error: ``uint8 (60000, 28, 28)``."""
    return f"{raw.dtype.name} {tuple(raw.shape)}"


def channels_first(raw: NDArray[Any], shape: Shape, where: str) -> NDArray[Any]:
    """A view (N, C, H, W) of images of exactly ``shape`` that lie in any usual layout.

    Raises:
        EsccError: of another shape.
    """
    channels, height, width = shape
    if raw.ndim == 3 and (raw.shape == shape or raw.shape == (height, width, channels)):
        raw = raw[None]
    if raw.ndim == 4 and raw.shape[1:] == shape:
        return raw
    if raw.ndim == 4 and raw.shape[1:] == (height, width, channels):
        return raw.transpose(0, 3, 1, 2)
    if raw.ndim == 3 and channels == 1 and raw.shape[1:] == (height, width):
        return raw[:, None]
    raise EsccError(
        f"images are {kind_of(raw)}, the network takes (N, {channels}, {height}, {width})", where=where
    )


def fit_bytes(raw: NDArray[Any], shape: Shape, chosen: NDArray[np.int64] | None, where: str) -> Bytes:
    """Images of a data set as uint8 (n, C, H, W), with a black border where they are smaller than asked.

    Args:
        raw: uint8 (N, H, W), (N, C, H, W) or (N, H, W, C).
        shape: (C, H, W) of the network's input. The border is the same on both sides; where the difference
            is odd, the lower and right side get the odd row or column.
        chosen: which images, by index; None takes all, without a copy where they fit as they are.
        where: what errors are about.

    Raises:
        EsccError: another type, number of channels, or larger than the network's input.
    """
    if raw.dtype != np.uint8:
        hint = "store them as uint8, 0..255" if raw.dtype.kind == "f" else None
        raise EsccError(
            f"images of a data set are uint8 (0..255), these are {kind_of(raw)}", where=where, hint=hint
        )
    images = _as_channels_first(raw, shape, where)
    _channels, height, width = shape
    high, wide = images.shape[2:]
    if high > height or wide > width:
        raise EsccError(
            f"images of {high}x{wide} are larger than the network's input of {height}x{width}",
            where=where,
            hint="scale them first; escc scales only folders of pictures",
        )
    if (high, wide) == (height, width):
        picked = images if chosen is None else images[chosen]
        return np.require(picked, requirements=["C", "W"])
    result = np.zeros((len(images) if chosen is None else len(chosen), *shape), dtype=np.uint8)
    top, left = (height - high) // 2, (width - wide) // 2
    inside = result[:, :, top : top + high, left : left + wide]
    inside[...] = images if chosen is None else images[chosen]
    return result


def _as_channels_first(raw: NDArray[Any], shape: Shape, where: str) -> NDArray[Any]:
    channels, height, width = shape
    if raw.ndim not in (3, 4) or 0 in raw.shape:
        raise EsccError(f"not images: {kind_of(raw)}", where=where)
    layouts = [raw[:, None]] if raw.ndim == 3 else [raw, raw.transpose(0, 3, 1, 2)]
    matching = [layout for layout in layouts if layout.shape[1] == channels]
    if not matching:
        has = next((item.shape[1] for item in layouts if item.shape[1] in (1, 3)), layouts[-1].shape[1])
        raise EsccError(
            f"images of {has} channel(s), the network takes {channels}",
            where=where,
            hint="escc does not turn grey images into colour ones or back",
        )
    # (N, 3, 32, 3) could be either: what fits into the network decides, then the order of torch
    fitting = [item for item in matching if item.shape[2] <= height and item.shape[3] <= width]
    return (fitting or matching)[0]


def checked_labels(raw: NDArray[Any], where: str) -> Labels:
    """Class numbers as int64 (N,) from whole numbers (N,) or (N, 1).

    Raises:
        EsccError: other shapes and types, negative or absurdly large numbers.
    """
    if raw.ndim == 2 and raw.shape[1] == 1:
        raw = raw[:, 0]
    if raw.ndim != 1 or raw.dtype.kind not in "iu":
        raise EsccError(f"labels are one whole number per image, not {kind_of(raw)}", where=where)
    if len(raw) == 0:
        raise EsccError("holds no labels", where=where)
    if int(raw.min()) < 0:
        raise EsccError("holds a negative label", where=where)
    if int(raw.max()) >= MAX_CLASSES:
        raise EsccError(f"holds the label {int(raw.max())}; classes are numbered from 0 on", where=where)
    return raw.astype(np.int64)


# -- numbers ------------------------------------------------------------------------------------------------


def as_float(raw: NDArray[Any], where: str) -> Images:
    """float32 images: bytes divided by 255, floating-point values as they are."""
    if raw.dtype == np.uint8:
        return (raw.astype(np.float32) / np.float32(255)).astype(np.float32)
    if raw.dtype.kind == "f":
        return raw.astype(np.float32)
    raise EsccError(f"images of type {raw.dtype.name}; expected uint8 (0..255) or float", where=where)


def normalise(
    images: NDArray[Any], mean: Sequence[float] | None, std: Sequence[float] | None, *, where: str = "images"
) -> Images:
    """(x - mean) / std per channel as float32 (N, C, H, W), x = bytes / 255 or values as they are.

    Args:
        images: uint8 or floating-point (N, C, H, W).
        mean, std: one number per channel, in units of 0..1; None stands for 0 and 1.
        where: what errors are about.

    Raises:
        EsccError: another number of channels, or a std that is not positive.
    """
    values = as_float(images, where)
    if mean is None and std is None:
        return values
    channels = values.shape[1]
    shift = np.asarray([0.0] * channels if mean is None else mean, dtype=np.float32)
    scale = np.asarray([1.0] * channels if std is None else std, dtype=np.float32)
    if shift.shape != (channels,) or scale.shape != (channels,) or not (scale > 0).all():
        raise EsccError(f"mean and std take {channels} numbers, std positive ones", where=where)
    return cast("Images", (values - shift[:, None, None]) / scale[:, None, None])


def channel_statistics(images: Bytes, pixels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation (of the population) per channel, in units of 0..1.

    Exact sums of integers, so the figures do not depend on the order of the images.

    Args:
        images: uint8 (N, C, H, W), N > 0; black borders do not change the sums.
        pixels: pixels per image that count, H * W without the border.
    """
    means: list[float] = []
    stds: list[float] = []
    level = np.arange(256, dtype=np.int64)
    for channel in range(images.shape[1]):
        histogram = np.zeros(256, dtype=np.int64)
        # counting converts to int64: in batches, or it would take eight times the data set
        for start in range(0, len(images), STATISTICS_BATCH):
            batch = images[start : start + STATISTICS_BATCH, channel]
            histogram += np.bincount(batch.ravel(), minlength=256)
        count = len(images) * pixels
        total, squares = int(histogram @ level), int(histogram @ (level * level))
        means.append(total / count / 255)
        # n * sum of squares - square of the sum, in whole numbers: no cancellation
        stds.append(math.sqrt(count * squares - total * total) / count / 255)
    return tuple(means), tuple(stds)
