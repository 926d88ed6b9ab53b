"""Damaged and hostile data sets: one line that names the place, no code run, no memory spent."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.frontend.attacks import Touch
from tests.generators.data_sets import (
    Content,
    cifar_files,
    idx_bytes,
    modern_pickle,
    python_2_pickle,
    random_content,
    tar_bytes,
    write_files,
    write_idx,
    write_npz,
    write_pictures,
)

from escc.errors import EsccError
from escc.frontend.data import load_images, load_labels
from escc.frontend.datasets import load_dataset
from escc.frontend.symbolic_pickle import Stand, read_pickle

Shape = tuple[int, int, int]
GREY = random_content((1, 4, 5), 6, 3)
COLOUR = random_content((3, 4, 5), 6, 3)
CIFAR_10 = random_content((3, 32, 32), 5, 1, classes=10)


def idx(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """An idx folder after a change."""

    def write(path: Path) -> None:
        path.mkdir()
        write_idx(path, GREY)
        change(path)

    return write


def npz(**arrays: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as stream:
            np.savez(stream, **arrays)

    return write


def keras(content: Content, **changed: Any) -> Callable[[Path], None]:
    arrays: dict[str, Any] = {
        "x_train": content.train,
        "y_train": content.train_labels,
        "x_test": content.test,
        "y_test": content.test_labels,
    }
    return npz(**{name: value for name, value in {**arrays, **changed}.items() if value is not None})


def cifar(**changed: bytes | None) -> Callable[[Path], None]:
    """A folder of CIFAR-10 in Python's form, with files replaced or missing."""

    def write(path: Path) -> None:
        files: dict[str, bytes | None] = {**cifar_files(CIFAR_10, 10, python_2_pickle), **changed}
        write_files(path, {name: data for name, data in files.items() if data is not None})

    return write


def batch(data: Any, labels: Any) -> bytes:
    return pickle.dumps({"data": data, "labels": labels}, protocol=2)


def binary(labels: list[int], extra: int = 0) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        files = cifar_files(CIFAR_10, 10, None)
        records = b"".join(bytes([label]) + bytes(3072) for label in labels)
        write_files(path, {**files, "data_batch_2.bin": records + bytes(extra)})

    return write


def pictures(channels: int, **folders: list[int]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        for name, labels in folders.items():
            images = random_content((channels, 4, 5), len(labels), 1).train
            write_pictures(path / name, images, np.array(labels))

    return write


def bomb(path: Path) -> None:
    """An honest header, 20 MB that pack into 20 kB."""
    path.mkdir()
    write_idx(path, GREY)
    images = np.zeros((1 << 18, 10, 8), dtype=np.uint8)
    (path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))


def zip_bomb(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez_compressed(stream, x_train=np.zeros((1 << 20, 8), np.uint8), y_train=np.zeros(3))


def false_header(path: Path) -> None:
    """A member that promises 2**60 bytes."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "|u1", "fortran_order": False, "shape": (1 << 30, 1 << 15, 1 << 15)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", stream.getvalue())
        archive.writestr("labels.npy", stream.getvalue())


def many_sizes(path: Path) -> None:
    """More dimensions than an array can have."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (1,) * 99})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", stream.getvalue() + b"x")
        archive.writestr("labels.npy", stream.getvalue() + b"x")


def objects(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, images=np.array([Touch(path.parent / "marker")], dtype=object), labels=np.arange(1))


def several(path: Path) -> None:
    for name in ("a", "b"):
        (path / name).mkdir(parents=True)
        write_idx(path / name, GREY)


def prefixes(path: Path) -> None:
    path.mkdir()
    for name in ("emnist-letters-train", "emnist-digits-train"):
        (path / f"{name}-images-idx3-ubyte").write_bytes(b"")


def truncated(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def tar(files: dict[str, bytes], cut: int | None = None) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(tar_bytes(files)[:cut])

    return write


def twice(path: Path) -> None:
    files = cifar_files(CIFAR_10, 10, None)
    path.write_bytes(tar_bytes({**files, "deeper/test_batch.bin": b""}))


TRAIN, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TEN = cifar_files(CIFAR_10, 10, python_2_pickle)
REFUSED: dict[str, tuple[Callable[[Path], object], Shape, str]] = {
    "missing": (lambda path: None, (1, 4, 5), "no such file"),
    "empty file": (lambda path: path.write_bytes(b""), (1, 4, 5), "is empty"),
    "text": (lambda path: path.write_text("hello"), (1, 4, 5), "not a data set.*MNIST.*CIFAR"),
    "empty folder": (lambda path: path.mkdir(), (1, 4, 5), "not a data set"),
    "single idx file": (
        lambda path: path.write_bytes(gzip.compress(idx_bytes(GREY.train[:, 0]))),
        (1, 4, 5),
        "not a data set.*folder",
    ),
    "several": (several, (1, 4, 5), "several data sets"),
    "several prefixes": (prefixes, (1, 4, 5), "several sets of idx files .*digits.*letters"),
    # what does not fit the network
    "grey into colour": (idx(lambda path: None), (3, 4, 5), r"of 1 channel.*the network takes 3"),
    "colour into grey": (keras(COLOUR), (1, 4, 5), r"of 3 channel.*the network takes 1"),
    "too large": (idx(lambda path: None), (1, 4, 4), "4x5 are larger than the network's input of 4x4"),
    "no images at all": (
        keras(GREY, x_train=np.arange(6)),
        (1, 4, 5),
        r"are uint8 \(0..255\), these are int64 \(6,\)",
    ),
    "bytes without shape": (keras(GREY, x_train=np.zeros(6, np.uint8)), (1, 4, 5), "not images: uint8"),
    "floats": (keras(GREY, x_train=GREY.train / 255), (1, 4, 5), "are uint8.*float64.*store them as uint8"),
    "no image network": (idx(lambda path: None), (1, 4), "not images"),  # pyright: ignore[reportAssignmentType]
    "grey pictures": (pictures(1, train=[0, 1], test=[0]), (3, 4, 5), "pictures are grey"),
    "coloured pictures": (pictures(3, train=[0, 1], test=[0]), (1, 4, 5), "pictures are coloured"),
    "two channels": (pictures(3, train=[0, 1], test=[0]), (2, 4, 5), "pictures have 1 or 3 channels"),
    # labels
    "fewer labels": (
        idx(lambda path: (path / LABELS).write_bytes(gzip.compress(idx_bytes(np.zeros(5, np.uint8))))),
        (1, 4, 5),
        "6 train images, but 5 labels",
    ),
    "unknown test label": (keras(GREY, y_test=np.array([0, 1, 4])), (1, 4, 5), "the label 4, .* at most 3"),
    "negative label": (keras(GREY, y_test=np.array([0, -1, 1])), (1, 4, 5), r"\(test\): .*negative"),
    "huge label": (keras(GREY, y_train=np.arange(6) << 40), (1, 4, 5), "the label 5497558138880"),
    "one-hot labels": (keras(GREY, y_train=np.eye(6)), (1, 4, 5), "one whole number per image"),
    "unknown test class": (pictures(1, train=[0, 1], test=[2]), (1, 4, 5), "no training pictures .*'c2'"),
    "no classes": (pictures(1, x=[0], y=[1]), (1, 4, 5), "several data sets"),
    "a CIFAR label of 10": (binary([3, 10]), (3, 32, 32), "data_batch_2.bin: the label 10 in a set of 10"),
    "a pickled label of 10": (
        cifar(data_batch_3=batch(np.zeros((1, 3072), np.uint8), [10])),
        (3, 32, 32),
        "data_batch_3: labels that are not numbers from 0 to 9",
    ),
    "pickled labels fewer": (
        cifar(data_batch_3=batch(np.zeros((2, 3072), np.uint8), [1])),
        (3, 32, 32),
        r"images of shape \(2, 3072\) to 1 labels",
    ),
    # parts that are not there
    "no training labels": (keras(GREY, y_train=None), (1, 4, 5), "no array 'y_train'"),
    "no idx labels": (
        idx(lambda path: (path / LABELS).unlink()),
        (1, 4, 5),
        "has idx images of the train part",
    ),
    "test only": (
        idx(lambda path: [(path / name).unlink() for name in (TRAIN, LABELS)]),
        (1, 4, 5),
        "no training images",
    ),
    "too few to split": (npz(images=GREY.train[:4], labels=np.arange(4)), (1, 4, 5), "4 images are too few"),
    "a batch missing": (cifar(data_batch_4=None), (3, 32, 32), "data_batch_4 missing"),
    "a batch missing in a tar": (tar({"test_batch": b""}), (3, 32, 32), "data_batch_1, .* missing"),
    # damage
    "truncated gzip": (
        idx(lambda path: truncated(path / TRAIN)),
        (1, 4, 5),
        f"{TRAIN}: a damaged or truncated",
    ),
    "truncated npz": (
        lambda path: (keras(GREY)(path), truncated(path)),
        (1, 4, 5),
        "damaged or truncated zip",
    ),
    "longer idx": (
        idx(lambda path: (path / TRAIN).write_bytes(gzip.compress(idx_bytes(GREY.train[:, 0]) + b"!"))),
        (1, 4, 5),
        "longer than its header",
    ),
    "cut records": (binary([1, 2], 5), (3, 32, 32), "6151 bytes are no whole number of records"),
    "truncated pickle": (cifar(data_batch_1=TEN["data_batch_1"][:2000]), (3, 32, 32), "damaged or truncated"),
    "no dictionary": (cifar(data_batch_1=pickle.dumps([1])), (3, 32, 32), "not of a data set"),
    "no pixels": (cifar(data_batch_1=pickle.dumps({"labels": [1]})), (3, 32, 32), "without 'data'"),
    "wide pixels": (
        cifar(data_batch_1=batch(np.zeros((1, 3072), np.int64), [1])),
        (3, 32, 32),
        "array of type i8 in a pickle",
    ),
    "truncated tar": (tar(TEN, 9000), (3, 32, 32), "damaged or truncated archive"),
    # attacks
    "gzip bomb": (bomb, (1, 10, 8), "refused: .* say they hold 20971520"),
    "zip bomb": (zip_bomb, (1, 8, 8), "zip bomb"),
    "false header": (false_header, (1, 4, 5), "damaged .npz"),
    "sizes without end": (many_sizes, (1, 4, 5), "damaged .npz"),
    "objects in npz": (objects, (1, 4, 5), "Python objects"),
    "tar bomb": (tar({"zeros": bytes(1 << 23), **TEN}), (3, 32, 32), "unpacks to more than it can hold"),
    "a file twice": (twice, (3, 32, 32), "test_batch.bin occurs twice"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_one_line(name: str, tmp_path: Path) -> None:
    write, shape, message = REFUSED[name]
    write(tmp_path / "x")
    with pytest.raises(EsccError, match=message) as caught:
        load_dataset(tmp_path / "x", shape)
    assert str(tmp_path / "x") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("validation", "limit", "message"),
    [(6, None, "leave none"), (-1, None, "count images"), (0, 0, "count images")],
)
def test_counts_that_make_no_sense(validation: int, limit: int | None, message: str, tmp_path: Path) -> None:
    write_idx(tmp_path, GREY)
    with pytest.raises(EsccError, match=message):
        load_dataset(tmp_path, (1, 4, 5), validation=validation, limit=limit)


def test_a_constant_channel_has_no_std(tmp_path: Path) -> None:
    keras(GREY, x_train=np.full((6, 4, 5), 51, np.uint8))(tmp_path / "x.npz")
    dataset = load_dataset(tmp_path / "x.npz", (1, 4, 5))
    assert dataset.mean == (0.2,)
    with pytest.raises(EsccError, match="give --std"):
        _ = dataset.std
    dataset.normalise(dataset.test_images, std=[1.0])


def test_images_and_labels_are_refused_alike(tmp_path: Path) -> None:
    several(tmp_path / "x")
    for load in (lambda: load_images(tmp_path / "x", (1, 4, 5)), lambda: load_labels(tmp_path / "x")):
        with pytest.raises(EsccError, match="several data sets"):
            load()


# -- pickles ------------------------------------------------------------------------------------------------


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.what = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.what


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("place", ["value", "key", "array", "label"])
def test_pickles_run_nothing(protocol: int, place: str, tmp_path: Path) -> None:
    touch: Any = Touch(tmp_path / "marker")
    content: dict[Any, Any] = {"data": np.zeros((1, 3072), np.uint8), "labels": [3]}
    if place == "value":
        content["filenames"] = [touch]
    elif place == "key":
        content[touch] = 1
    elif place == "array":
        content["data"] = np.array([touch], dtype=object)
    else:
        content["labels"] = [touch]
    write_files(tmp_path / "x", {**TEN, "data_batch_1": pickle.dumps(content, protocol=protocol)})
    if protocol < 2:
        # older than the published files: not even looked at as CIFAR
        with pytest.raises(EsccError, match="not a data set"):
            load_dataset(tmp_path / "x", (3, 32, 32))
    with pytest.raises(EsccError, match=r"refused: loading this file would use \w+\.mkdir"):
        read_pickle(pickle.dumps(content, protocol=protocol), "file")
    if protocol >= 2:
        with pytest.raises(EsccError, match=r"x/data_batch_1: refused: .*\.mkdir, which no data set needs"):
            load_dataset(tmp_path / "x", (3, 32, 32))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("function", [eval, getattr, np.load, np.memmap, pickle.loads, Stand])
def test_pickles_call_nothing_else_either(function: Callable[..., Any]) -> None:
    data = pickle.dumps({"data": Call(function, "1")})
    with pytest.raises(EsccError, match="refused: loading this file would use"):
        read_pickle(data, "file")


HOSTILE = {
    # the table of remembered objects would take 64 GiB
    "memo": b"\x80\x02}r\xff\xff\xff\xff.",
    "text memo": b"\x80\x02}p4294967295\n.",
    "huge bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x.",
    "huge frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"}.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent": b"\x80\x02K\x01Q.",
    "out of band": b"\x80\x05\x97.",
    "deep": b"\x80\x02" + b"(" * 100_000 + b"]" + b"l" * 100_000 + b".",
    "new object": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "attributes of a stand-in": b"\x80\x02}U\x04datacnumpy\ndtype\n}U\x04nameU\x04evilsbs.",
    "slots of a stand-in": b"\x80\x02}U\x04datacnumpy\ndtype\nN}U\x04nameU\x04evils\x86bs.",
    "array without state": b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\n)Rs.",
    "a function as array": b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\ns.",
    "huge array": b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\n)R(K\x01\x8a\x08"
    + b"\xff" * 7
    + b"\x0f\x85cnumpy\ndtype\nU\x02u1\x85R\x89U\x01xtbs.",
    "sizes without end": b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\n)R(K\x01("
    + b"K\x01" * 99
    + b"tcnumpy\ndtype\nU\x02u1\x85R\x89U\x01xtbs.",
    "negative sizes": b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\n)R(K\x01"
    b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86cnumpy\ndtype\nU\x02u1\x85R\x89U\x01xtbs.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_one_line(name: str) -> None:
    with pytest.raises(EsccError, match=r"^file: "):
        read_pickle(HOSTILE[name], "file")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_in_pickles_of_every_protocol(protocol: int, order: Any) -> None:
    array = np.asarray(np.random.default_rng(1).integers(0, 256, (3, 7), dtype=np.uint8), order=order)
    read = read_pickle(pickle.dumps({"data": array, b"x": [2**70]}, protocol=protocol), "file")
    np.testing.assert_array_equal(read["data"], array)
    assert read["x"] == [2**70]


# -- damage anywhere ----------------------------------------------------------------------------------------


def write_one(folder: Path, name: str) -> tuple[Path, Path, Shape]:
    """A data set of a format: the source, the file in it to damage, the shape."""
    source = folder / name
    if name == "idx":
        source.mkdir()
        write_idx(source, GREY)
        return source, source / TRAIN, (1, 4, 5)
    if name == "npz":
        write_npz(source, COLOUR, packed=True)
        return source, source, (3, 4, 5)
    if name == "tar":
        source.write_bytes(tar_bytes(TEN))
        return source, source, (3, 32, 32)
    write_files(source, TEN if name == "python" else cifar_files(CIFAR_10, 10, modern_pickle(5)))
    return source, source / "data_batch_2", (3, 32, 32)


@settings(max_examples=120, deadline=None)
@given(data=st.data(), name=st.sampled_from(["idx", "npz", "python", "modern", "tar"]))
def test_damage_is_told_in_one_line_or_reads_as_other_bytes(data: st.DataObject, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, file, shape = write_one(Path(folder), name)
        content = bytearray(file.read_bytes())
        # most of a file is pixels: the first and last bytes are where the structure is
        place = data.draw(st.integers(0, min(200, len(content) - 1)))
        place = data.draw(st.sampled_from([place, len(content) - 1 - place]))
        if data.draw(st.booleans()):
            del content[place:]
        else:
            content[place] ^= data.draw(st.integers(1, 255))
        file.write_bytes(content)
        refusal = ""
        try:
            dataset = load_dataset(source, shape)
        except EsccError as error:
            refusal = str(error)
        else:
            assert dataset.train_images.shape[1:] == shape
            assert len(dataset.train_images) == len(dataset.train_labels)
        assert not refusal or (folder in refusal and "\n" not in refusal)
