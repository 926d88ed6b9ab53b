"""CIFAR-10 and CIFAR-100 as their authors publish them: binary records, Python pickles, or a tar of either.

Formats: https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from escc.errors import EsccError
from escc.frontend.array_files import head_of
from escc.frontend.symbolic_pickle import read_pickle
from escc.frontend.zip_guard import MAX_RATIO, SMALL_MEMBER

PIXELS = 3 * 32 * 32
MAX_FILE_BYTES = 256 << 20
MAX_TAR_BYTES = 1 << 30

Arrays = tuple[NDArray[np.uint8], NDArray[Any]]


@dataclass(frozen=True)
class Layout:
    """One published form of the data sets.

    Attributes:
        format: what it is, in words.
        train, test: names of the files of both parts.
        classes: number of classes.
        label_bytes: bytes before the pixels of a binary record, the last of them is the class; 0: pickles.
        key: name of the labels in a pickle.
    """

    format: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    classes: int
    label_bytes: int = 0
    key: str = ""


BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
LAYOUTS = (
    Layout("CIFAR-10 (binary)", tuple(f"{name}.bin" for name in BATCHES), ("test_batch.bin",), 10, 1),
    Layout("CIFAR-10 (Python)", BATCHES, ("test_batch",), 10, key="labels"),
    Layout("CIFAR-100 (binary)", ("train.bin",), ("test.bin",), 100, 2),
    Layout("CIFAR-100 (Python)", ("train",), ("test",), 100, key="fine_labels"),
)
NAMES = {name for layout in LAYOUTS for name in layout.train + layout.test}

Cifar = tuple[Layout, Callable[[Literal["train", "test"]], Arrays]]
"""The form that was found, and what reads its parts."""


def cifar_folder(folder: Path) -> Cifar | None:
    """CIFAR files in a folder; None where there are none.

    Raises:
        EsccError: some of the files are missing (when they are known by now).
    """
    names = {file.name for file in folder.iterdir() if file.name in NAMES and file.is_file()}
    layout = _layout(names, str(folder))
    if layout is None:
        return None
    if layout.key and head_of(folder / layout.train[0])[0][:1] != b"\x80":
        return None  # 'train' and 'test' are names of anything; a pickle of this age starts so

    def read(name: str) -> bytes:
        path = folder / name
        if head_of(path)[1] > MAX_FILE_BYTES:
            raise EsccError(f"refused: more than {MAX_FILE_BYTES} bytes", where=str(path))
        return path.read_bytes()

    return layout, _reader(layout, read, str(folder))


def cifar_tar(path: Path) -> Cifar | None:
    """A .tar or .tar.gz of CIFAR files, as downloaded; nothing is unpacked to disk. None: something else.

    Raises:
        EsccError: damaged, or it unpacks to more than such an archive can hold.
    """
    head, size = head_of(path)
    packed = head.startswith(b"\x1f\x8b")
    most = min(max(SMALL_MEMBER, MAX_RATIO * size), MAX_TAR_BYTES)
    files: dict[str, bytes] = {}
    begun = False
    try:
        with gzip.open(path) if packed else path.open("rb") as stream:
            limited = _Limited(cast("IO[bytes]", stream), most, str(path))
            with tarfile.open(fileobj=cast("IO[bytes]", limited), mode="r|") as archive:
                begun = True
                for member in archive:
                    name = PurePosixPath(member.name).name
                    content = archive.extractfile(member) if name in NAMES and member.isreg() else None
                    if content is None:
                        continue
                    if name in files or member.size > MAX_FILE_BYTES:
                        raise EsccError(f"refused: {name} occurs twice or is too large", where=str(path))
                    files[name] = content.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError):
        if not begun:
            return None
        raise EsccError("a damaged or truncated archive", where=str(path)) from None
    layout = _layout(set(files), str(path))
    # each file is read once, and let go then
    return None if layout is None else (layout, _reader(layout, files.pop, str(path)))


class _Limited(io.RawIOBase):
    """A stream that ends in an error once it gave more than it may."""

    def __init__(self, stream: IO[bytes], most: int, where: str) -> None:
        super().__init__()
        self._stream = stream
        self._left = most
        self._where = where

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(size if 0 <= size <= self._left else self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise EsccError("refused: the archive unpacks to more than it can hold", where=self._where)
        return data


def _layout(names: set[str], where: str) -> Layout | None:
    found = [layout for layout in LAYOUTS if names & set(layout.train + layout.test)]
    # binary files win over pickles that lie beside them
    layout = next((item for item in found if names >= set(item.train + item.test)), None)
    if layout is None and found and found[0].classes == 10:
        missing = sorted(set(found[0].train + found[0].test) - names)
        raise EsccError(f"{found[0].format}: {', '.join(missing)} missing", where=where)
    return layout


def _reader(
    layout: Layout, read: Callable[[str], bytes], where: str
) -> Callable[[Literal["train", "test"]], Arrays]:
    def part(name: Literal["train", "test"]) -> Arrays:
        batches = [
            _decode(layout, read(file), f"{where}/{file}")
            for file in (layout.train if name == "train" else layout.test)
        ]
        return np.concatenate([images for images, _ in batches]), np.concatenate(
            [item for _, item in batches]
        )

    return part


def _decode(layout: Layout, data: bytes, where: str) -> Arrays:
    if layout.label_bytes:
        record = layout.label_bytes + PIXELS
        if len(data) == 0 or len(data) % record:
            raise EsccError(f"{len(data)} bytes are no whole number of records of {record}", where=where)
        records = np.frombuffer(data, dtype=np.uint8).reshape(-1, record)
        pixels, labels = records[:, layout.label_bytes :], records[:, layout.label_bytes - 1]
    else:
        content = read_pickle(data, where)
        pixels, numbers = content.get("data"), content.get(layout.key)
        if not isinstance(pixels, np.ndarray) or not isinstance(numbers, list):
            raise EsccError(f"a pickle without 'data' and '{layout.key}'", where=where)
        if not all(type(item) is int and 0 <= item < layout.classes for item in cast("list[Any]", numbers)):
            raise EsccError(f"labels that are not numbers from 0 to {layout.classes - 1}", where=where)
        labels = np.array(numbers, dtype=np.int64)
        pixels = cast("NDArray[np.uint8]", pixels)
        if pixels.shape != (len(labels), PIXELS):
            raise EsccError(
                f"images of shape {pixels.shape} to {len(labels)} labels; expected ({len(labels)}, {PIXELS})",
                where=where,
            )
    if int(labels.max(initial=0)) >= layout.classes:
        raise EsccError(f"the label {int(labels.max())} in a set of {layout.classes} classes", where=where)
    return pixels.reshape(-1, 3, 32, 32), labels
