"""Images and labels from files: for calibration, and as inputs of the simulator.

What a file is, is decided by its content. Nothing is unpickled. Floating-point images are taken as the
network expects them; 8-bit images are divided by 255. Both are then normalised when a mean and a standard
deviation are given.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from escc.errors import EsccError
from escc.frontend.array_files import FORMATS, IDX_TYPES, head_of, read_idx, read_npy, read_npz
from escc.frontend.image_arrays import (
    Images,
    Labels,
    as_float,
    channels_first,
    checked_labels,
    image_shape,
    normalise,
)
from escc.frontend.pictures import is_picture, picture_files, read_pictures

IMAGE_KEYS = ("images", "x", "data", "x_test", "x_train", "inputs")
LABEL_KEYS = ("labels", "y", "targets", "y_test", "y_train")
CIFAR_RECORD = 3073


def load_images(
    source: str | os.PathLike[str],
    shape: Sequence[int],
    *,
    limit: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Images:
    """Images as float32 (N, C, H, W).

    Args:
        source: a ``.npy`` or ``.npz`` array (N, C, H, W), (N, H, W, C) or (N, H, W); an idx file, plain or
            gzipped; a CIFAR-10 binary batch; a picture or a folder of them (scaled and cut, needs Pillow).
        shape: (C, H, W) of the network's input.
        limit: how many images at most, from the first on.
        mean, std: per channel, applied to images in 0..1.

    Raises:
        EsccError: unreadable, of another shape or type, or empty.
    """
    path = Path(source)
    size = image_shape(shape, str(path))
    if path.is_dir() or is_picture(path):
        files = picture_files(path, limit) if path.is_dir() else [path]
        raw: NDArray[Any] = read_pictures(files, size, path)[0]
    else:
        raw = _read_array(path, IMAGE_KEYS, limit, cifar_images=True)
    raw = channels_first(raw, size, str(path))
    images = as_float(raw if limit is None else raw[:limit], str(path))
    if len(images) == 0:
        raise EsccError("holds no images", where=str(path))
    if not np.isfinite(images).all():
        raise EsccError("holds values that are not finite", where=str(path))
    return normalise(images, mean, std, where=str(path))


def load_labels(source: str | os.PathLike[str], *, limit: int | None = None) -> Labels:
    """Class numbers as int64 (N,), from ``.npy``, ``.npz``, idx or CIFAR-10 binary, or a folder per class.

    Raises:
        EsccError: unreadable, or not one whole number per image.
    """
    path = Path(source)
    if path.is_dir():
        files = picture_files(path, limit)
        classes = sorted({file.parent.name for file in files})
        if any(file.parent == path for file in files):
            raise EsccError("the pictures do not lie in one folder per class", where=str(path))
        return np.array([classes.index(file.parent.name) for file in files], dtype=np.int64)
    raw = _read_array(path, LABEL_KEYS, limit, cifar_images=False)
    return checked_labels(raw if limit is None else raw[:limit], str(path))


def _read_array(path: Path, keys: Sequence[str], limit: int | None, *, cifar_images: bool) -> NDArray[Any]:
    head, size = head_of(path)
    if head.startswith(b"\x93NUMPY"):
        return read_npy(path)
    if head.startswith(b"PK\x03\x04"):
        return read_npz(path, keys)
    if head.startswith(b"\x1f\x8b") or (head[:2] == b"\0\0" and len(head) > 3 and head[2] in IDX_TYPES):
        return read_idx(path, limit)
    if size % CIFAR_RECORD == 0 and head[0] < 10:
        records = np.fromfile(path, dtype=np.uint8).reshape(-1, CIFAR_RECORD)
        return records[:, 1:].reshape(-1, 3, 32, 32) if cifar_images else records[:, 0]
    raise EsccError("not a file of images or labels", where=str(path), hint=f"escc reads {FORMATS}")
