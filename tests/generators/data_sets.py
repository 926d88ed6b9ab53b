"""Writers of data sets in every format escc reads, from the same arrays."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Content:
    """Images uint8 (N, C, H, W) and labels int64 (N,) of both parts."""

    train: Bytes
    train_labels: NDArray[np.int64]
    test: Bytes
    test_labels: NDArray[np.int64]

    def parts(self) -> Iterable[tuple[str, Bytes, NDArray[np.int64]]]:
        return ("train", self.train, self.train_labels), ("test", self.test, self.test_labels)


def random_content(
    shape: tuple[int, int, int], train: int, test: int, *, classes: int = 4, seed: int = 0
) -> Content:
    """Random bytes; the training labels reach ``classes`` - 1."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, train)
    labels[random.integers(train)] = classes - 1
    return Content(
        random.integers(0, 256, (train, *shape), dtype=np.uint8),
        labels,
        random.integers(0, 256, (test, *shape), dtype=np.uint8),
        random.integers(0, classes, test),
    )


def idx_bytes(array: Bytes) -> bytes:
    """An idx file of bytes."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: Path, content: Content, *, packed: bool = True, dot: bool = False) -> None:
    """MNIST's four files, of grey images."""
    for part, images, labels in content.parts():
        for kind, array in (("images", images[:, 0]), ("labels", labels.astype(np.uint8))):
            name = f"{'t10k' if part == 'test' else part}-{kind}{'.' if dot else '-'}idx{array.ndim}-ubyte"
            data = idx_bytes(array)
            (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(data, 1) if packed else data)


def write_npz(
    path: Path, content: Content, *, channels_last: bool = False, column: bool = False, packed: bool = False
) -> None:
    """Keras' names; optionally its layout of CIFAR (images (N, H, W, C), labels (N, 1))."""
    arrays: dict[str, Any] = {}
    for part, images, labels in content.parts():
        arrays[f"x_{part}"] = images.transpose(0, 2, 3, 1) if channels_last else images
        arrays[f"y_{part}"] = labels[:, None] if column else labels
    with path.open("wb") as stream:
        (np.savez_compressed if packed else np.savez)(stream, **arrays)


def python_2_pickle(images: Bytes, labels: NDArray[np.int64], key: str) -> bytes:
    """A batch as Python 2 wrote the published ones: protocol 2, texts and pixels as byte strings."""

    def text(value: bytes) -> bytes:
        return (
            b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<I", len(value))
        ) + value

    pixels = images.reshape(len(images), -1)
    numbers = b"".join(b"K" + bytes([int(label)]) for label in labels)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87R(K\x01"
        + b"".join(b"J" + struct.pack("<i", size) for size in pixels.shape)
        + b"\x86cnumpy\ndtype\nq\x03U\x02u1K\x00K\x01\x87R"
        + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + text(pixels.tobytes())
        + b"tb"
    )
    names = b"]r\x07\x00\x00\x00(" + text(b"one.png") + text(b"two.png") + b"e"
    return (
        b"\x80\x02}q\x00("
        + text(b"data")
        + array
        + text(key.encode())
        + b"]("
        + numbers
        + b"e"
        + text(b"filenames")
        + names
        + b"u."
    )


def modern_pickle(protocol: int) -> Callable[[Bytes, NDArray[np.int64], str], bytes]:
    """What this Python and numpy write for such a batch."""

    def write(images: Bytes, labels: NDArray[np.int64], key: str) -> bytes:
        pixels = images.reshape(len(images), -1)
        return pickle.dumps({"data": pixels, key: labels.tolist()}, protocol=protocol)

    return write


def cifar_files(
    content: Content, classes: int, write: Callable[[Bytes, NDArray[np.int64], str], bytes] | None
) -> dict[str, bytes]:
    """CIFAR's files by name: pickles that ``write`` makes, or binary records for None."""
    key = "labels" if classes == 10 else "fine_labels"
    files: dict[str, bytes] = {}
    for part, images, labels in content.parts():
        if classes == 100:
            names = [part]
        else:
            names = ["test_batch"] if part == "test" else [f"data_batch_{index}" for index in range(1, 6)]
        cuts = np.array_split(np.arange(len(images)), len(names))
        for name, cut in zip(names, cuts, strict=True):
            if write is not None:
                files[name] = write(images[cut], labels[cut], key)
                continue
            columns = [labels[cut, None].astype(np.uint8), images[cut].reshape(len(cut), -1)]
            coarse = [np.full((len(cut), 1), 19, np.uint8)] if classes == 100 else []
            files[name + ".bin"] = np.hstack(coarse + columns).tobytes()
    return files


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Plain files in a folder that may be new."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def tar_bytes(files: dict[str, bytes], *, packed: bool = True) -> bytes:
    """An archive with the files in one folder."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz" if packed else "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"cifar/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def write_pictures(folder: Path, images: Bytes, labels: NDArray[np.int64]) -> None:
    """PNG files in folders c0, c1, ..."""
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / f"c{label}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        Image.fromarray(pixels).save(place / f"{index:04}.png")
