"""Pictures from files as arrays of bytes. Needs Pillow, which is asked for only here."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from escc.errors import EsccError

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
GREY_MODES = ("1", "L", "LA", "La", "I", "F")


def is_picture(path: Path) -> bool:
    """Whether the name says that a file is a picture."""
    return path.suffix.lower() in PICTURES and path.is_file()


def picture_files(folder: Path, limit: int | None = None) -> list[Path]:
    """The pictures in a folder and everything below it, by name.

    Raises:
        EsccError: there are none.
    """
    files = sorted(file for file in folder.rglob("*") if is_picture(file))
    if not files:
        raise EsccError(f"holds no pictures ({', '.join(PICTURES)})", where=str(folder))
    return files if limit is None else files[:limit]


def read_pictures(
    files: Sequence[Path], shape: tuple[int, int, int], where: Path
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Pictures as uint8 (N, C, H, W): short side scaled to fit, middle cut out.

    Returns:
        The images, and which files hold grey pictures (those are turned into what the network takes).

    Raises:
        EsccError: no Pillow, a damaged picture, or a network that takes neither 1 nor 3 channels.
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise EsccError(f"pictures have 1 or 3 channels, the network takes {channels}", where=str(where))
    try:
        pillow: Any = importlib.import_module("PIL.Image")
    except ImportError:
        raise EsccError("reading pictures needs Pillow (pip install pillow)", where=str(where)) from None
    result = np.empty((len(files), channels, height, width), dtype=np.uint8)
    grey = np.zeros(len(files), dtype=np.bool_)
    for index, file in enumerate(files):
        try:
            with pillow.open(file) as picture:
                grey[index] = picture.mode.partition(";")[0] in GREY_MODES
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
    return result, grey
