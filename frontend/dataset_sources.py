"""The formats of :mod:`escc.frontend.datasets`: which one a folder or file is, and how its parts are read."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from escc.errors import EsccError
from escc.frontend.array_files import MAX_BYTES, NpzFile, head_of, read_idx
from escc.frontend.cifar import cifar_folder, cifar_tar
from escc.frontend.image_arrays import Bytes, Labels, Shape, checked_labels, fit_bytes
from escc.frontend.pictures import is_picture, read_pictures

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
        return math.prod(raw.shape[1:]) // shape[0]


class PictureSource(Source):
    """Pictures in one folder per class; they are decoded when they are asked for, and only those."""

    format = "pictures in one folder per class"

    def __init__(self, where: Path, train: Path, test: Path | None) -> None:
        self.where = where
        self.class_names = tuple(sorted(folder.name for folder in class_folders(train)))
        self.classes = len(self.class_names)
        self._files: dict[Part, list[tuple[Path, int]]] = {"train": self._listed(train)}
        if test is not None:
            self._files["test"] = self._listed(test)
        self._grey: bool | None = None

    def _listed(self, folder: Path) -> list[tuple[Path, int]]:
        found: list[tuple[Path, int]] = []
        for place in class_folders(folder):
            if place.name not in self.class_names:
                raise EsccError(f"no training pictures of the class '{place.name}'", where=str(folder))
            number = self.class_names.index(place.name)
            found += [(file, number) for file in sorted(place.iterdir()) if is_picture(file)]
        return found

    def labels(self, part: Part) -> Labels | None:
        files = self._files.get(part)
        return None if files is None else np.array([number for _, number in files], dtype=np.int64)

    def images(self, part: Part, shape: Shape, chosen: NDArray[np.int64]) -> Bytes:
        needed = len(chosen) * math.prod(shape)
        if needed > MAX_BYTES:
            raise EsccError(
                f"{len(chosen)} pictures take {needed >> 30} GiB", where=str(self.where), hint="limit them"
            )
        files = self._files[part]
        images, grey = read_pictures([files[index][0] for index in chosen], shape, self.where)
        if len(chosen) > 0 and self._grey is None:
            self._grey = bool(grey.all())
        # single grey pictures in a colour set are common and lose nothing; the other way something is lost
        if self._grey if shape[0] == 3 else not grey.all():
            kind = "grey" if shape[0] == 3 else "coloured"
            raise EsccError(
                f"the pictures are {kind}, the network takes {shape[0]} channel(s)",
                where=str(self.where),
                hint="escc does not turn grey images into colour ones or back",
            )
        return images

    def pixels(self, part: Part, shape: Shape) -> int:
        return shape[1] * shape[2]


def find_source(path: Path, *, trees: bool = True) -> Source | None:
    """The data set at ``path``: itself, or the only one up to two folders below.

    Args:
        path: a folder or a file.
        trees: take pictures in <class>/ without a train/ above for a data set.

    Raises:
        EsccError: missing or unreadable, or several data sets below.
    """
    if not path.is_dir():
        head, _size = head_of(path)
        return _npz_source(path) if head.startswith(b"PK\x03\x04") else _cifar_source(path)
    level = [path]
    try:
        for _depth in range(3):
            found = [source for folder in level if (source := _folder_source(folder, trees)) is not None]
            if len(found) > 1:
                raise EsccError(
                    "holds several data sets", where=str(path), hint="name the folder of one of them"
                )
            if found:
                return found[0]
            level = sorted(child for folder in level for child in folder.iterdir() if child.is_dir())
    except OSError as error:
        raise EsccError(f"cannot read: {error.strerror}", where=str(error.filename or path)) from None
    return None


def _folder_source(folder: Path, trees: bool) -> Source | None:
    return _idx_source(folder) or _cifar_source(folder) or _picture_source(folder, trees)


def _cifar_source(path: Path) -> Source | None:
    found = cifar_folder(path) if path.is_dir() else cifar_tar(path)
    return None if found is None else ArraySource(path, found[0].format, found[1], found[0].classes)


# -- pictures -----------------------------------------------------------------------------------------------

TEST_FOLDERS = ("test", "val", "valid", "validation")


def class_folders(folder: Path) -> list[Path]:
    """The folders in a folder that hold pictures themselves, by name."""
    if not folder.is_dir():
        return []
    return sorted(
        child for child in folder.iterdir() if child.is_dir() and any(map(is_picture, child.iterdir()))
    )


def _picture_source(folder: Path, trees: bool) -> Source | None:
    """train/<class>/ beside test/<class>/ (or val, where the test pictures have no classes), or <class>/."""
    if class_folders(folder / "train"):
        # ImageNet's test pictures are not in classes, its val ones are
        test = next((folder / name for name in TEST_FOLDERS if class_folders(folder / name)), None)
        return PictureSource(folder, folder / "train", test)
    classes = class_folders(folder) if trees else []
    if not classes or any(map(is_picture, folder.iterdir())):
        return None
    if wrong := {place.name for place in classes} & {"train", *TEST_FOLDERS}:
        raise EsccError(
            f"the pictures in {'/, '.join(sorted(wrong))}/ do not lie in one folder per class",
            where=str(folder),
        )
    return PictureSource(folder, folder, None)


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
