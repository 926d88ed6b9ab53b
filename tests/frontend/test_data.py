"""Images and labels from files of every kind, and one line for everything that does not fit."""

from __future__ import annotations

import gzip
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests.frontend.attacks import Touch

from escc.errors import EsccError
from escc.frontend.data import load_images, load_labels

SHAPE = (3, 4, 5)
RNG = np.random.default_rng(3)
BYTES = RNG.integers(0, 256, (6, *SHAPE), dtype=np.uint8)
UNIT = (BYTES / np.float32(255)).astype(np.float32)


def idx(array: NDArray[np.uint8]) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


def test_arrays_of_every_layout(tmp_path: Path) -> None:
    path = tmp_path / "x.anything"
    for array in (BYTES, BYTES.transpose(0, 2, 3, 1), UNIT, UNIT.astype(np.float64)):
        with path.open("wb") as stream:
            np.save(stream, array)
        images = load_images(path, SHAPE)
        assert images.dtype == np.float32
        np.testing.assert_allclose(images, UNIT, atol=1e-7)
    with path.open("wb") as stream:
        np.savez(stream, other=np.zeros(3), images=BYTES, labels=np.arange(6))
    np.testing.assert_array_equal(load_images(path, SHAPE, limit=2), UNIT[:2])
    np.testing.assert_array_equal(load_labels(path, limit=4), [0, 1, 2, 3])
    with path.open("wb") as stream:
        np.save(stream, BYTES[0])
    assert load_images(path, SHAPE).shape == (1, *SHAPE)


def test_idx_files_plain_and_packed(tmp_path: Path) -> None:
    grey = RNG.integers(0, 256, (9, 4, 5), dtype=np.uint8)
    labels = np.arange(9, dtype=np.uint8)
    for name, pack in (("plain", bytes), ("packed", gzip.compress)):
        (tmp_path / name).write_bytes(pack(idx(grey)))
        (tmp_path / f"{name}.labels").write_bytes(pack(idx(labels)))
        images = load_images(tmp_path / name, (1, 4, 5), limit=7)
        np.testing.assert_array_equal(images, (grey[:7, None] / np.float32(255)).astype(np.float32))
        np.testing.assert_array_equal(load_labels(tmp_path / f"{name}.labels"), labels)


def test_cifar_10_binary(tmp_path: Path) -> None:
    records = RNG.integers(0, 256, (4, 3073), dtype=np.uint8)
    records[:, 0] = [3, 1, 4, 1]
    (tmp_path / "data_batch_1.bin").write_bytes(records.tobytes())
    images = load_images(tmp_path / "data_batch_1.bin", (3, 32, 32))
    assert images.shape == (4, 3, 32, 32)
    assert images[2, 1, 0, 7] == np.float32(records[2, 1 + 1024 + 7]) / np.float32(255)
    np.testing.assert_array_equal(load_labels(tmp_path / "data_batch_1.bin"), [3, 1, 4, 1])


def test_normalisation(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", BYTES)
    images = load_images(tmp_path / "x.npy", SHAPE, mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.1])
    expected = (UNIT - np.reshape([0.5, 0.4, 0.3], (3, 1, 1))) / np.reshape([0.2, 0.2, 0.1], (3, 1, 1))
    np.testing.assert_allclose(images, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(EsccError, match="take 3 numbers"):
        load_images(tmp_path / "x.npy", SHAPE, std=[1.0])


def test_pictures(tmp_path: Path) -> None:
    for name, colour in (("b/1.png", (255, 0, 51)), ("a/2.png", (0, 255, 102))):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (12, 8), colour).save(tmp_path / name)
    images = load_images(tmp_path, SHAPE)
    np.testing.assert_allclose(images[:, :, 2, 2], [[0, 1, 0.4], [1, 0, 0.2]], atol=1e-6)
    np.testing.assert_array_equal(load_labels(tmp_path), [0, 1])
    assert load_images(tmp_path / "a" / "2.png", (1, 9, 9)).shape == (1, 1, 9, 9)
    (tmp_path / "a" / "3.png").write_bytes(b"\x89PNG damaged")
    with pytest.raises(EsccError, match="cannot read the picture"):
        load_images(tmp_path, SHAPE)


def test_pictures_without_pillow_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(EsccError, match="needs Pillow"):
        load_images(tmp_path, SHAPE)


def saved(array: NDArray[np.generic]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as stream:
            np.save(stream, array)

    return write


def pickled(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, np.array([Touch(path.parent / "marker")]), allow_pickle=True)


def pickled_archive(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, images=np.array([Touch(path.parent / "marker")], dtype=object))


def archive_of_two(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, a=BYTES, b=BYTES)


def huge_idx(path: Path) -> None:
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**31, 2**10, 5)))


def lying_idx(path: Path) -> None:
    path.write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">3I", 10**6, 4, 5) + bytes(7))


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such file"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "text": (lambda path: path.write_text("hello"), "not a file of images"),
    "other shape": (
        saved(np.zeros((2, 3, 9, 9), np.float32)),
        r"float32 \(2, 3, 9, 9\), the network takes \(N, 3, 4, 5\)",
    ),
    "other type": (saved(np.zeros((2, *SHAPE), np.int64)), "images of type int64"),
    "no images": (saved(np.zeros((0, *SHAPE), np.float32)), "holds no images"),
    "not finite": (saved(np.full((1, *SHAPE), np.nan, np.float32)), "not finite"),
    "truncated": (lambda path: (saved(BYTES)(path), path.write_bytes(path.read_bytes()[:200])), "damaged"),
    "pickle": (pickled, "Python objects"),
    "pickle in npz": (pickled_archive, "Python objects"),
    "npz without a known name": (archive_of_two, "holds the arrays a, b"),
    "broken gzip": (lambda path: path.write_bytes(b"\x1f\x8b broken"), "damaged or truncated idx"),
    "gzip of text": (lambda path: path.write_bytes(gzip.compress(b"hello")), "not an idx file"),
    "huge idx": (huge_idx, "refused"),
    "lying idx": (lying_idx, "truncated idx"),
    "empty folder": (lambda path: path.mkdir(), "holds no pictures"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_one_line(name: str, tmp_path: Path) -> None:
    write, message = WRONG[name]
    write(tmp_path / "x")
    with pytest.raises(EsccError, match=message) as caught:
        load_images(tmp_path / "x", SHAPE)
    assert str(tmp_path / "x") in str(caught.value)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 2), np.int64), "one whole number per image"),
        (np.zeros(3, np.float32), "one whole number per image"),
        (np.zeros(0, np.int64), "no labels"),
        (np.array([1, -1]), "negative"),
    ],
)
def test_labels_that_do_not_fit(array: NDArray[np.generic], message: str, tmp_path: Path) -> None:
    saved(array)(tmp_path / "y")
    with pytest.raises(EsccError, match=message):
        load_labels(tmp_path / "y")


def test_a_network_without_image_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EsccError, match="not images"):
        load_images(tmp_path, (7,))
