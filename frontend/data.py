"""Images and labels from files: for calibration, and as inputs of the simulator.

What a file is, is decided by its content. Nothing is unpickled. Floating-point images are taken as the
network expects them; 8-bit images are divided by 255. Both are then normalised when a mean and a standard
deviation are given.
"""

from __future__ import annotations

import gzip
import importlib
import math
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from escc.errors import EsccError
from escc.frontend.zip_guard import GuardedZip

Images = NDArray[np.float32]
Labels = NDArray[np.int64]

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
IMAGE_KEYS = ("images", "x", "data", "x_test", "x_train", "inputs")
LABEL_KEYS = ("labels", "y", "targets", "y_test", "y_train")
IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
CIFAR_RECORD = 3073
MAX_BYTES = 16 << 30
FORMATS = ".npy, .npz, idx, CIFAR-10 binary, or a folder of pictures"


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
    if len(shape) != 3:
        raise EsccError(f"the network takes inputs of shape {tuple(shape)}, not images", where=str(path))
    size = (int(shape[0]), int(shape[1]), int(shape[2]))
    if path.is_dir() or _is_picture(path):
        raw = _read_pictures(path, size, limit)
    else:
        raw = _read_array(path, IMAGE_KEYS, limit, cifar_images=True)
    images = _as_float(_channels_first(raw, size, path), path)
    if limit is not None:
        images = images[:limit]
    if len(images) == 0:
        raise EsccError("holds no images", where=str(path))
    if not np.isfinite(images).all():
        raise EsccError("holds values that are not finite", where=str(path))
    return _normalise(images, mean, std, path)


def load_labels(source: str | os.PathLike[str], *, limit: int | None = None) -> Labels:
    """Class numbers as int64 (N,), from ``.npy``, ``.npz``, idx or CIFAR-10 binary, or a folder per class.

    Raises:
        EsccError: unreadable, or not one whole number per image.
    """
    path = Path(source)
    if path.is_dir():
        files = _picture_files(path, limit)
        classes = sorted({file.parent.name for file in files})
        if any(file.parent == path for file in files):
            raise EsccError("the pictures do not lie in one folder per class", where=str(path))
        return np.array([classes.index(file.parent.name) for file in files], dtype=np.int64)
    raw = _read_array(path, LABEL_KEYS, limit, cifar_images=False)
    if raw.ndim == 2 and raw.shape[1] == 1:
        raw = raw[:, 0]
    if raw.ndim != 1 or raw.dtype.kind not in "iu":
        raise EsccError(f"labels are one whole number per image, not {_kind(raw)}", where=str(path))
    labels = raw.astype(np.int64) if limit is None else raw[:limit].astype(np.int64)
    if len(labels) == 0 or int(labels.min()) < 0:
        raise EsccError("holds no labels" if len(labels) == 0 else "holds a negative label", where=str(path))
    return labels


# -- arrays -------------------------------------------------------------------------------------------------


def _read_array(path: Path, keys: Sequence[str], limit: int | None, *, cifar_images: bool) -> NDArray[Any]:
    try:
        with path.open("rb") as stream:
            head = stream.read(16)
        size = path.stat().st_size
    except FileNotFoundError:
        raise EsccError("no such file", where=str(path)) from None
    except OSError as error:
        raise EsccError(f"cannot read: {error.strerror}", where=str(path)) from None
    if size == 0:
        raise EsccError("the file is empty", where=str(path))
    if head.startswith(b"\x93NUMPY"):
        return _read_npy(path)
    if head.startswith(b"PK\x03\x04"):
        return _read_npz(path, keys)
    if head.startswith(b"\x1f\x8b") or (head[:2] == b"\0\0" and len(head) > 3 and head[2] in IDX_TYPES):
        return _read_idx(path, limit)
    if size % CIFAR_RECORD == 0 and head[0] < 10:
        records = np.fromfile(path, dtype=np.uint8).reshape(-1, CIFAR_RECORD)
        return records[:, 1:].reshape(-1, 3, 32, 32) if cifar_images else records[:, 0]
    raise EsccError("not a file of images or labels", where=str(path), hint=f"escc reads {FORMATS}")


def _read_npy(path: Path) -> NDArray[Any]:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError):
        raise EsccError("a damaged .npy file, or one with Python objects in it", where=str(path)) from None


def _read_npz(path: Path, keys: Sequence[str]) -> NDArray[Any]:
    with GuardedZip(path):
        pass  # sizes and names are sane
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files)
            if not names:
                raise EsccError("holds no arrays", where=str(path))
            name = next((key for key in keys if key in names), names[0] if len(names) == 1 else None)
            if name is None:
                raise EsccError(
                    f"holds the arrays {', '.join(names[:6])}; expected one of {', '.join(keys)}",
                    where=str(path),
                )
            return archive[name]
    except (ValueError, OSError, EOFError, SyntaxError, zlib.error, KeyError):
        raise EsccError("a damaged .npz file, or one with Python objects in it", where=str(path)) from None


def _read_idx(path: Path, limit: int | None) -> NDArray[Any]:
    """The format of MNIST's files: 0, 0, type, dimensions, then big-endian sizes and values."""
    try:
        with path.open("rb") as probe:
            packed = probe.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as stream:
            head = stream.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in IDX_TYPES or not 1 <= head[3] <= 4:
                raise EsccError("not an idx file", where=str(path), hint=f"escc reads {FORMATS}")
            sizes = list(struct.unpack(f">{head[3]}I", stream.read(4 * head[3])))
            if limit is not None:
                sizes[0] = min(sizes[0], limit)
            kind = np.dtype(IDX_TYPES[head[2]])
            count = math.prod(sizes) * kind.itemsize
            if count > MAX_BYTES:
                raise EsccError(f"refused: says it holds {count} bytes", where=str(path))
            # read in pieces: a false header must not reserve what the file does not hold
            pieces: list[bytes] = []
            left = count
            while left and (piece := stream.read(min(left, 1 << 24))):
                pieces.append(piece)
                left -= len(piece)
    except (OSError, EOFError, zlib.error, struct.error):
        raise EsccError("a damaged or truncated idx file", where=str(path)) from None
    if left:
        raise EsccError("a truncated idx file", where=str(path))
    return np.frombuffer(b"".join(pieces), dtype=kind).reshape(sizes)


# -- pictures -----------------------------------------------------------------------------------------------


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES and path.is_file()


def _picture_files(folder: Path, limit: int | None) -> list[Path]:
    files = sorted(file for file in folder.rglob("*") if _is_picture(file))
    if not files:
        raise EsccError(f"holds no pictures ({', '.join(PICTURES)})", where=str(folder))
    return files if limit is None else files[:limit]


def _read_pictures(path: Path, shape: tuple[int, int, int], limit: int | None) -> NDArray[np.uint8]:
    """Pictures as uint8 (N, C, H, W): short side scaled to fit, middle cut out."""
    channels, height, width = shape
    if channels not in (1, 3):
        raise EsccError(f"pictures have 1 or 3 channels, the network takes {channels}", where=str(path))
    files = _picture_files(path, limit) if path.is_dir() else [path]
    try:
        pillow: Any = importlib.import_module("PIL.Image")
    except ImportError:
        raise EsccError("reading pictures needs Pillow (pip install pillow)", where=str(path)) from None
    result = np.empty((len(files), channels, height, width), dtype=np.uint8)
    for index, file in enumerate(files):
        try:
            with pillow.open(file) as picture:
                image = picture.convert("RGB" if channels == 3 else "L")
        except Exception as error:  # Pillow raises many kinds for damaged files
            raise EsccError(f"cannot read the picture: {error}", where=str(file)) from None
        scale = max(height / image.height, width / image.width)
        if scale != 1:
            size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
            image = image.resize(size, pillow.Resampling.BILINEAR)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        pixels = np.asarray(image.crop((left, top, left + width, top + height)), dtype=np.uint8)
        result[index] = pixels.reshape(height, width, channels).transpose(2, 0, 1)
    return result


# -- shape and type -----------------------------------------------------------------------------------------


def _channels_first(raw: NDArray[Any], shape: tuple[int, int, int], path: Path) -> NDArray[Any]:
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
        f"images are {_kind(raw)}, the network takes (N, {channels}, {height}, {width})", where=str(path)
    )


def _kind(raw: NDArray[Any]) -> str:
    return f"{raw.dtype.name} {tuple(raw.shape)}"


def _as_float(raw: NDArray[Any], path: Path) -> Images:
    if raw.dtype == np.uint8:
        return (raw.astype(np.float32) / np.float32(255)).astype(np.float32)
    if raw.dtype.kind == "f":
        return raw.astype(np.float32)
    raise EsccError(f"images of type {raw.dtype.name}; expected uint8 (0..255) or float", where=str(path))


def _normalise(
    images: Images, mean: Sequence[float] | None, std: Sequence[float] | None, path: Path
) -> Images:
    if mean is None and std is None:
        return images
    channels = images.shape[1]
    shift = np.asarray([0.0] * channels if mean is None else mean, dtype=np.float32)
    scale = np.asarray([1.0] * channels if std is None else std, dtype=np.float32)
    if shift.shape != (channels,) or scale.shape != (channels,) or not (scale > 0).all():
        raise EsccError(f"mean and std take {channels} numbers, std positive ones", where=str(path))
    return cast("Images", (images - shift[:, None, None]) / scale[:, None, None])
