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
from escc.frontend.dataset_sources import Part, Source, find_source
from escc.frontend.datasets import load_part, load_part_labels
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

IMAGE_KEYS = ("images", "x", "data", "x_{part}", "{part}_images", "x_test", "x_train", "inputs")
LABEL_KEYS = ("labels", "y", "targets", "y_{part}", "{part}_labels", "y_test", "y_train")
CIFAR_RECORD = 3073


def load_images(
    source: str | os.PathLike[str],
    shape: Sequence[int],
    *,
    limit: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    part: Part = "test",
) -> Images:
    """Images as float32 (N, C, H, W).

    Args:
        source: a ``.npy`` or ``.npz`` array (N, C, H, W), (N, H, W, C) or (N, H, W); an idx file, plain or
            gzipped; a CIFAR-10 binary batch; a picture or a folder of them (scaled and cut, needs Pillow);
            a data set as :func:`escc.frontend.datasets.load_dataset` takes it, except that pictures in
            <class>/ without train/ and test/ above are taken whole.
        shape: (C, H, W) of the network's input.
        limit: how many images at most: the first ones, except of the training part of a data set and of
            folders of pictures for calibration, which are thinned out evenly.
        mean, std: per channel, applied to images in 0..1.
        part: which images of a data set: "test" to run the network on, "train" to calibrate it.

    Raises:
        EsccError: unreadable, of another shape or type, or empty.
    """
    path = Path(source)
    size = image_shape(shape, str(path))
    raw: NDArray[Any]
    if (found := _data_set(path)) is not None:
        raw = load_part(found, part, size, limit, path)
    elif path.is_dir() or is_picture(path):
        files = _pictures(path, part, limit) if path.is_dir() else [path]
        raw = read_pictures(files, size, path)[0]
    else:
        raw = _read_array(path, IMAGE_KEYS, part, limit, cifar_images=True)
    raw = channels_first(raw, size, str(path))
    images = as_float(raw if limit is None else raw[:limit], str(path))
    if len(images) == 0:
        raise EsccError("holds no images", where=str(path))
    if not np.isfinite(images).all():
        raise EsccError("holds values that are not finite", where=str(path))
    return normalise(images, mean, std, where=str(path))


def load_labels(source: str | os.PathLike[str], *, limit: int | None = None, part: Part = "test") -> Labels:
    """Class numbers as int64 (N,), of the images that :func:`load_images` gives for the same arguments.

    From ``.npy``, ``.npz``, idx or CIFAR-10 binary, from a folder per class, or from a data set.

    Raises:
        EsccError: unreadable, or not one whole number per image.
    """
    path = Path(source)
    if (found := _data_set(path)) is not None:
        return load_part_labels(found, part, limit, path)
    if path.is_dir():
        files = _pictures(path, part, limit)
        classes = sorted({file.parent.name for file in files})
        if any(file.parent == path for file in files):
            raise EsccError("the pictures do not lie in one folder per class", where=str(path))
        return np.array([classes.index(file.parent.name) for file in files], dtype=np.int64)
    raw = _read_array(path, LABEL_KEYS, part, limit, cifar_images=False)
    return checked_labels(raw if limit is None else raw[:limit], str(path))


def _data_set(path: Path) -> Source | None:
    """The data set in a folder or archive; single arrays and plain pictures are none."""
    if not path.is_dir() and (is_picture(path) or head_of(path)[0].startswith(b"PK\x03\x04")):
        return None
    return find_source(path, trees=False)


def _pictures(folder: Path, part: Part, limit: int | None) -> list[Path]:
    files = picture_files(folder)
    if limit is None or limit >= len(files):
        return files
    # sorted by class: the first ones would all show the same
    return (
        [files[index * len(files) // limit] for index in range(limit)] if part == "train" else files[:limit]
    )


def _read_array(
    path: Path, keys: Sequence[str], part: Part, limit: int | None, *, cifar_images: bool
) -> NDArray[Any]:
    head, size = head_of(path)
    if head.startswith(b"\x93NUMPY"):
        return read_npy(path)
    if head.startswith(b"PK\x03\x04"):
        return read_npz(path, [key.format(part=part) for key in keys])
    if head.startswith(b"\x1f\x8b") or (head[:2] == b"\0\0" and len(head) > 3 and head[2] in IDX_TYPES):
        return read_idx(path, limit)
    if size % CIFAR_RECORD == 0 and head[0] < 10:
        records = np.fromfile(path, dtype=np.uint8).reshape(-1, CIFAR_RECORD)
        return records[:, 1:].reshape(-1, 3, 32, 32) if cifar_images else records[:, 0]
    raise EsccError("not a file of images or labels", where=str(path), hint=f"escc reads {FORMATS}")
