"""The formats of :mod:`escc.frontend.datasets`: which one a folder or file is, and how its parts are read."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from escc.errors import EsccError
from escc.frontend.array_files import NpzFile, head_of, read_idx
from escc.frontend.image_arrays import Bytes, Labels, Shape, checked_labels, fit_bytes

Part = Literal["train", "test"]
Arrays = tuple[NDArray[Any], NDArray[Any]]
"""Images as they lie in the files, and their labels."""


class Source(ABC):
    """A data set that has been found but not read.

    Attributes:
        format: what it is, in words.
        classes: number of classes where the format fixes it.
        class_names: names of the classes where they are known.
    """

    format: str
    classes: int | None = None
    class_names: tuple[str, ...] = ()

    @abstractmethod
    def labels(self, part: Part) -> Labels | None:
        """int64 (N,) of one part; None where the files have no such part."""

    @abstractmethod
    def images(self, part: Part, shape: Shape, chosen: NDArray[np.int64]) -> Bytes:
        """uint8 (n, C, H, W) of a part that there is: the images with the given indices, in that order."""

    @abstractmethod
    def pixels(self, part: Part, shape: Shape) -> int:
        """Pixels per image, not counting a border that was added to reach ``shape``."""


class ArraySource(Source):
    """A data set whose files hold arrays. Each part is read once and kept as long as the source."""

    def __init__(
        self,
        where: Path,
        format: str,
        read: Callable[[Part], Arrays | None],
        classes: int | None = None,
    ) -> None:
        self.where = where
        self.format = format
        self.classes = classes
        self._read = read
        self._parts: dict[Part, tuple[NDArray[Any], Labels] | None] = {}

    def _part(self, part: Part) -> tuple[NDArray[Any], Labels] | None:
        if part not in self._parts:
            arrays = self._read(part)
            if arrays is None:
                self._parts[part] = None
            else:
                images, labels = arrays[0], checked_labels(arrays[1], f"{self.where} ({part})")
                if len(images) != len(labels):
                    raise EsccError(
                        f"{len(images)} {part} images, but {len(labels)} labels", where=str(self.where)
                    )
                if self.classes is not None and int(labels.max()) >= self.classes:
                    raise EsccError(
                        f"the label {int(labels.max())} in a set of {self.classes} classes",
                        where=str(self.where),
                    )
                self._parts[part] = images, labels
        return self._parts[part]

    def labels(self, part: Part) -> Labels | None:
        found = self._part(part)
        return None if found is None else found[1]

    def _raw(self, part: Part) -> NDArray[Any]:
        found = self._part(part)
        if found is None:
            raise EsccError(f"has no {part} images", where=str(self.where))
        return found[0]

    def images(self, part: Part, shape: Shape, chosen: NDArray[np.int64]) -> Bytes:
        raw = self._raw(part)
        return fit_bytes(raw, shape, None if len(chosen) == len(raw) else chosen, str(self.where))

    def pixels(self, part: Part, shape: Shape) -> int:
        raw = self._raw(part)
        return int(np.prod(raw.shape[1:])) // shape[0]


def find_source(path: Path) -> Source | None:
    """The data set at ``path``: itself, or the only one up to two folders below.

    Raises:
        EsccError: missing or unreadable, or several data sets below.
    """
    if not path.is_dir():
        head, _size = head_of(path)
        return _npz_source(path) if head.startswith(b"PK\x03\x04") else None
    level = [path]
    for _depth in range(3):
        found = [source for folder in level if (source := _folder_source(folder)) is not None]
        if len(found) > 1:
            raise EsccError("holds several data sets", where=str(path), hint="name the folder of one of them")
        if found:
            return found[0]
        level = sorted(child for folder in level for child in folder.iterdir() if child.is_dir())
    return None


def _folder_source(folder: Path) -> Source | None:
    return _idx_source(folder)


# -- idx ----------------------------------------------------------------------------------------------------

IDX_NAME = re.compile(r"(.*?)(train|t10k|test)-(images|labels)[-.]idx[13]-ubyte(\.gz)?")


def _idx_source(folder: Path) -> Source | None:
    """MNIST's four files, as of MNIST, Fashion-MNIST, KMNIST and EMNIST."""
    files: dict[str, dict[tuple[Part, str], Path]] = {}
    # sorted: a file that is there plain and gzipped is read plain, so that comes last
    for file in sorted((file for file in folder.iterdir() if file.is_file()), reverse=True):
        if found := IDX_NAME.fullmatch(file.name):
            part: Part = "train" if found[2] == "train" else "test"
            files.setdefault(found[1], {})[part, found[3]] = file
    if not files:
        return None
    if len(files) > 1:
        raise EsccError(f"holds several sets of idx files ({', '.join(sorted(files))})", where=str(folder))
    (named,) = files.values()

    def read(part: Part) -> Arrays | None:
        both = named.get((part, "images")), named.get((part, "labels"))
        if both == (None, None):
            return None
        if both[0] is None or both[1] is None:
            raise EsccError(
                f"has idx {'labels' if both[0] is None else 'images'} of the {part} part only",
                where=str(folder),
            )
        return read_idx(both[0]), read_idx(both[1])

    return ArraySource(folder, "idx files (MNIST)", read)


# -- npz ----------------------------------------------------------------------------------------------------

NPZ_NAMES: tuple[dict[Part, tuple[str, str]], ...] = (
    {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")},
    {"train": ("train_images", "train_labels"), "test": ("test_images", "test_labels")},
    {"train": ("images", "labels")},
    {"train": ("x", "y")},
)


def _npz_source(path: Path) -> Source | None:
    with NpzFile(path) as archive:
        names = set(archive.names)
    keys = next((item for item in NPZ_NAMES if names & set(item["train"])), None)
    if keys is None:
        return None

    def read(part: Part) -> Arrays | None:
        pair = keys.get(part)
        if pair is None or not names & set(pair):
            return None
        missing = [name for name in pair if name not in names]
        if missing:
            raise EsccError(f"holds no array '{missing[0]}'", where=str(path))
        with NpzFile(path) as archive:
            return archive.read(pair[0]), archive.read(pair[1])

    return ArraySource(path, ".npz arrays", read)
