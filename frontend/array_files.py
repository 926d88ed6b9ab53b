"""Arrays from files nobody vouches for: .npy, .npz and idx, with sizes checked before memory is taken.

Nothing is unpickled. A header that promises more than the file can hold is refused before it is believed.
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from escc.errors import EsccError
from escc.frontend.zip_guard import MAX_RATIO, SMALL_MEMBER, GuardedZip

IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
MAX_BYTES = 16 << 30
PIECE = 1 << 22
FORMATS = ".npy, .npz, idx, CIFAR-10 binary, or a folder of pictures"


def head_of(path: Path, count: int = 16) -> tuple[bytes, int]:
    """The first bytes of a file and its size in bytes.

    Raises:
        EsccError: missing, unreadable or empty.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(count)
        size = path.stat().st_size
    except FileNotFoundError:
        raise EsccError("no such file", where=str(path)) from None
    except OSError as error:
        raise EsccError(f"cannot read: {error.strerror}", where=str(path)) from None
    if size == 0:
        raise EsccError("the file is empty", where=str(path))
    return head, size


# -- numpy's formats ----------------------------------------------------------------------------------------


def read_npy(path: Path) -> NDArray[Any]:
    """The array in a .npy file, mapped into memory and read where it is used."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError):
        raise EsccError("a damaged .npy file, or one with Python objects in it", where=str(path)) from None


class NpzFile:
    """The arrays of a .npz file by name. Use as a context manager; read-only arrays come out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = GuardedZip(path)
        self.names = [name.removesuffix(".npy") for name in self._zip.members if name.endswith(".npy")]
        if not self.names:
            self._zip.__exit__(None, None, None)
            raise EsccError("holds no arrays", where=str(path))

    def __enter__(self) -> NpzFile:
        return self

    def __exit__(self, *_error: object) -> None:
        self._zip.__exit__(None, None, None)

    def read(self, name: str) -> NDArray[Any]:
        """One array. Its header must describe exactly the bytes that follow it.

        Raises:
            EsccError: damaged, of an unknown version, or made of Python objects.
        """
        data = self._zip.read(f"{name}.npy", MAX_BYTES)
        stream = io.BytesIO(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about files that Python 2 wrote
                version = np.lib.format.read_magic(stream)
                if version == (1, 0):
                    shape, fortran, kind = np.lib.format.read_array_header_1_0(stream)
                else:
                    shape, fortran, kind = np.lib.format.read_array_header_2_0(stream)
        except Exception:  # a damaged header can raise anything on the way to a tuple
            raise self._damaged(name) from None
        start = stream.tell()
        promised = math.prod(shape) * kind.itemsize if min(shape, default=0) >= 0 else -1
        if kind.hasobject or kind.itemsize == 0 or len(data) - start != promised or len(shape) > 8:
            raise self._damaged(name)
        flat: NDArray[Any] = np.frombuffer(data, dtype=kind, offset=start)
        return flat.reshape(shape, order="F" if fortran else "C")

    def _damaged(self, name: str) -> EsccError:
        return EsccError(
            f"'{name}': a damaged .npz file, or one with Python objects in it", where=str(self.path)
        )


def read_npz(path: Path, keys: Sequence[str]) -> NDArray[Any]:
    """The array under the first of ``keys`` that a .npz file has; a lone array goes by any name."""
    with NpzFile(path) as archive:
        names = archive.names
        name = next((key for key in keys if key in names), names[0] if len(names) == 1 else None)
        if name is None:
            raise EsccError(
                f"holds the arrays {', '.join(names[:6])}; expected one of {', '.join(keys)}",
                where=str(path),
            )
        return archive.read(name)


# -- idx ----------------------------------------------------------------------------------------------------


def read_idx(path: Path, limit: int | None = None) -> NDArray[Any]:
    """The format of MNIST's files, plain or gzipped: 0, 0, type, dimensions, big-endian sizes, values.

    Args:
        path: the file.
        limit: how many entries of the first dimension to read at most.

    Raises:
        EsccError: no idx file, damaged, or of another length than its header says.
    """
    head, size = head_of(path, 2)
    packed = head == b"\x1f\x8b"
    # what the file can hold: nothing honest packs better than this, and a bomb must not get memory
    most = min(max(SMALL_MEMBER, MAX_RATIO * size), MAX_BYTES) if packed else size
    try:
        with gzip.open(path) if packed else path.open("rb") as stream:
            start = stream.read(4)
            if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in IDX_TYPES or not 1 <= start[3] <= 4:
                raise EsccError("not an idx file", where=str(path), hint=f"escc reads {FORMATS}")
            sizes = list(struct.unpack(f">{start[3]}I", stream.read(4 * start[3])))
            kind = np.dtype(IDX_TYPES[start[2]])
            cut = limit is not None and limit < sizes[0]
            sizes[0] = limit if limit is not None and cut else sizes[0]
            count = math.prod(sizes) * kind.itemsize
            if count > most:
                if not packed:
                    raise EsccError("a truncated idx file", where=str(path))
                raise EsccError(f"refused: {size} bytes say they hold {count}", where=str(path))
            result = np.empty(sizes, dtype=kind)
            room = result.reshape(-1).view(np.uint8).data
            done = 0
            while done < count and (got := stream.readinto(room[done : done + PIECE])):
                done += got
            # reading the end is what makes gzip compare its check sum
            if done == count and not cut and stream.read(1):
                raise EsccError("longer than its header says", where=str(path))
    except (OSError, EOFError, zlib.error, struct.error):
        raise EsccError("a damaged or truncated idx file", where=str(path)) from None
    if done < count:
        raise EsccError("a truncated idx file", where=str(path))
    return result
