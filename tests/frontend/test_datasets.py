"""Data sets: what is written in any format is what is read, and what does not fit is one line."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.generators.data_sets import (
    Content,
    cifar_files,
    modern_pickle,
    python_2_pickle,
    random_content,
    tar_bytes,
    write_files,
    write_idx,
    write_npz,
    write_pictures,
)

from escc.frontend.data import load_images, load_labels
from escc.frontend.datasets import Dataset, load_dataset, spread
from escc.frontend.image_arrays import normalise

Shape = tuple[int, int, int]
SEEDS = st.integers(0, 2**32 - 1)
CIFAR = (3, 32, 32)


def check(dataset: Dataset, content: Content, border: int = 0) -> None:
    """The data set is the content, in a black border of so many pixels."""
    assert not dataset.held_out
    assert len(dataset.validation_images) == len(dataset.validation_labels) == 0
    for images, labels, part, numbers in (
        (dataset.train_images, dataset.train_labels, content.train, content.train_labels),
        (dataset.test_images, dataset.test_labels, content.test, content.test_labels),
    ):
        assert images.dtype == np.uint8
        assert images.flags.writeable
        assert images.flags.c_contiguous
        assert labels.dtype == np.int64
        sides = ((0, 0), (0, 0), (border, border), (border, border))
        np.testing.assert_array_equal(images, np.pad(part, sides))
        np.testing.assert_array_equal(labels, numbers)


# -- round trips --------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    seed=SEEDS,
    sizes=st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 9), st.integers(1, 9)),
    border=st.integers(0, 2),
    packed=st.booleans(),
    dot=st.booleans(),
    below=st.sampled_from(["", "MNIST/raw"]),
)
def test_idx_folders(
    seed: int, sizes: tuple[int, int, int, int], border: int, packed: bool, dot: bool, below: str
) -> None:
    high, wide, train, test = sizes
    content = random_content((1, high, wide), train, test, classes=10, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / below).mkdir(parents=True, exist_ok=True)
        write_idx(Path(folder) / below, content, packed=packed, dot=dot)
        dataset = load_dataset(folder, (1, high + 2 * border, wide + 2 * border))
    assert dataset.classes == 10
    check(dataset, content, border)


@settings(max_examples=25, deadline=None)
@given(
    seed=SEEDS,
    shape=st.tuples(st.sampled_from([1, 3]), st.integers(4, 7), st.integers(4, 7)),
    border=st.integers(0, 2),
    channels_last=st.booleans(),
    column=st.booleans(),
    packed=st.booleans(),
)
def test_npz_files(
    seed: int, shape: Shape, border: int, channels_last: bool, column: bool, packed: bool
) -> None:
    content = random_content(shape, 6, 4, seed=seed)
    channels, high, wide = shape
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "anything"
        write_npz(path, content, channels_last=channels_last, column=column, packed=packed)
        dataset = load_dataset(path, (channels, high + 2 * border, wide + 2 * border))
    assert dataset.classes == 4
    check(dataset, content, border)


@settings(max_examples=30, deadline=None)
@given(
    seed=SEEDS,
    classes=st.sampled_from([10, 100]),
    protocol=st.sampled_from(["binary", "python 2", 2, 3, 4, 5]),
    packing=st.sampled_from(["folder", "below", "tar", "tar.gz"]),
    border=st.sampled_from([0, 4]),
)
def test_cifar(seed: int, classes: int, protocol: str | int, packing: str, border: int) -> None:
    content = random_content(CIFAR, 7, 3, classes=classes, seed=seed)
    write = python_2_pickle if protocol == "python 2" else None
    files = cifar_files(content, classes, modern_pickle(protocol) if isinstance(protocol, int) else write)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        if packing in ("folder", "below"):
            write_files(source / "cifar-batches" if packing == "below" else source, files)
        else:
            source = source / "download"
            source.write_bytes(tar_bytes(files, packed=packing == "tar.gz"))
        dataset = load_dataset(source, (3, 32 + 2 * border, 32 + 2 * border))
        images = load_images(source, CIFAR)
    assert dataset.classes == classes
    assert dataset.format == f"CIFAR-{classes} ({'binary' if protocol == 'binary' else 'Python'})"
    check(dataset, content, border)
    np.testing.assert_array_equal(images, normalise(content.test, None, None))


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, channels=st.sampled_from([1, 3]), held=st.sampled_from(["test", "val"]))
def test_pictures_in_train_and_test(seed: int, channels: int, held: str) -> None:
    random = np.random.default_rng(seed)
    # as the folders list them: by class, then by name
    train_labels, test_labels = (
        np.sort(np.r_[0:3, random.integers(0, 3, 4)]),
        np.sort(random.integers(0, 3, 3)),
    )
    images = random.integers(0, 256, (10, channels, 4, 5), dtype=np.uint8)
    content = Content(images[:7], train_labels, images[7:], test_labels)
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder) / "train", content.train, content.train_labels)
        write_pictures(Path(folder) / held, content.test, content.test_labels)
        dataset = load_dataset(folder, (channels, 4, 5))
        np.testing.assert_array_equal(load_labels(folder), test_labels)
        np.testing.assert_array_equal(load_labels(folder, part="train"), train_labels)
    check(dataset, content)
    assert dataset.class_names == ("c0", "c1", "c2")


def test_the_val_pictures_are_taken_where_the_test_pictures_have_no_classes(tmp_path: Path) -> None:
    content = random_content(CIFAR, 8, 4, classes=1)
    write_pictures(tmp_path / "train", content.train, content.train_labels)
    write_pictures(tmp_path / "val", content.test, content.test_labels)
    write_pictures(tmp_path, random_content(CIFAR, 1, 1).test, np.array([7]))
    (tmp_path / "c7").rename(tmp_path / "test")
    check(load_dataset(tmp_path, CIFAR), content)


def test_pictures_are_scaled(tmp_path: Path) -> None:
    content = random_content((3, 12, 9), 8, 4, classes=1)
    write_pictures(tmp_path / "train", content.train, content.train_labels)
    write_pictures(tmp_path / "test", content.test, content.test_labels)
    dataset = load_dataset(tmp_path, (3, 4, 4))
    assert dataset.train_images.shape == (8, 3, 4, 4)
    assert dataset.pixels == 16


def test_one_grey_picture_in_a_colour_set_is_no_grey_set(tmp_path: Path) -> None:
    content = random_content((3, 4, 4), 8, 2, classes=1)
    write_pictures(tmp_path / "train", content.train, content.train_labels)
    write_pictures(tmp_path / "test", content.test[:, :1], content.test_labels)
    dataset = load_dataset(tmp_path, (3, 4, 4))
    np.testing.assert_array_equal(dataset.test_images, np.repeat(content.test[:, :1], 3, axis=1))


# -- parts --------------------------------------------------------------------------------------------------


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), data=st.data())
def test_a_selection_is_even(labels: list[int], data: st.DataObject) -> None:
    numbers = np.array(labels, dtype=np.int64)
    count = data.draw(st.integers(0, len(labels)))
    chosen = spread(numbers, count)
    assert len(chosen) == count
    assert (np.diff(chosen) > 0).all()
    for label in set(labels):
        share = labels.count(label) * count / len(labels)
        assert abs(int((numbers[chosen] == label).sum()) - share) <= 1


@settings(max_examples=25, deadline=None)
@given(
    seed=SEEDS,
    count=st.integers(6, 40),
    tested=st.booleans(),
    validation=st.integers(0, 4),
    limit=st.none() | st.integers(1, 50),
)
def test_parts_are_disjoint_and_complete(
    seed: int, count: int, tested: bool, validation: int, limit: int | None
) -> None:
    content = random_content((1, 2, 4), count, 9, seed=seed)
    content.train[:, 0, 0, 0] = np.arange(count)  # which image it is
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "set.npz"
        if tested:
            write_npz(path, content)
        else:
            np.savez(path, images=content.train, labels=content.train_labels)
        dataset = load_dataset(path, (1, 2, 4), validation=validation, limit=limit)
        same = load_dataset(path, (1, 2, 4), validation=validation, limit=limit)
    np.testing.assert_array_equal(dataset.train_images, same.train_images)
    assert dataset.held_out == (not tested)
    parts = [
        (dataset.train_images, dataset.train_labels),
        (dataset.validation_images, dataset.validation_labels),
    ]
    if not tested:
        parts.append((dataset.test_images, dataset.test_labels))
    seen: list[int] = []
    for images, labels in parts:
        which = images[:, 0, 0, 0]
        np.testing.assert_array_equal(images, content.train[which])
        np.testing.assert_array_equal(labels, content.train_labels[which])
        seen += which.tolist()
    assert len(seen) == len(set(seen))
    held = 0 if tested else count // 5
    left = count - held - validation
    assert len(dataset.validation_images) == validation
    assert len(dataset.train_images) == (left if limit is None else min(left, limit))
    tests = 9 if tested else held
    assert len(dataset.test_images) == (tests if limit is None else min(tests, limit))


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, channels=st.sampled_from([1, 3]), border=st.integers(0, 2))
def test_mean_and_std_are_those_of_the_pixels_without_the_border(
    seed: int, channels: int, border: int
) -> None:
    content = random_content((channels, 5, 4), 9, 2, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        write_npz(Path(folder) / "x.npz", content)
        dataset = load_dataset(Path(folder) / "x.npz", (channels, 5 + 2 * border, 4 + 2 * border))
    unit = content.train / 255
    np.testing.assert_allclose(dataset.mean, unit.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, unit.std(axis=(0, 2, 3)), rtol=1e-12)
    batch = dataset.normalise(dataset.train_images[2:5])
    assert batch.dtype == np.float32
    inside = batch[:, :, border : border + 5, border : border + 4]
    expected = (unit[2:5] - np.reshape(dataset.mean, (-1, 1, 1))) / np.reshape(dataset.std, (-1, 1, 1))
    np.testing.assert_allclose(inside, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(
        dataset.normalise(content.test, [0.0] * channels, [1.0] * channels),
        normalise(content.test, None, None),
    )


def test_an_odd_border_is_wider_below_and_on_the_right(tmp_path: Path) -> None:
    content = random_content((1, 4, 4), 3, 2, classes=2)
    write_idx(tmp_path, content)
    images = load_dataset(tmp_path, (1, 7, 5)).train_images
    np.testing.assert_array_equal(images, np.pad(content.train, ((0, 0), (0, 0), (1, 2), (0, 1))))


def test_an_unclear_layout_is_the_one_that_fits_or_torch_s(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x_train=images, y_train=np.arange(10), x_test=images, y_test=np.arange(10))
    np.testing.assert_array_equal(load_dataset(tmp_path / "x.npz", (3, 8, 3)).test_images, images)
    np.testing.assert_array_equal(
        load_dataset(tmp_path / "x.npz", (3, 3, 8)).test_images, images.transpose(0, 3, 1, 2)
    )


# -- calibration and inputs ---------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, limit=st.none() | st.integers(1, 12))
def test_images_and_labels_of_one_part_belong_together(seed: int, limit: int | None) -> None:
    content = random_content((1, 4, 5), 11, 6, seed=seed)
    mean, std = [0.3], [0.2]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_idx(folder / ".", content)
        write_npz(folder / "x.npz", content)
        files = folder, folder / "x.npz"
        for source in files:
            images = load_images(source, (1, 4, 5), limit=limit, mean=mean, std=std)
            np.testing.assert_array_equal(images, normalise(content.test[:limit], mean, std))
            np.testing.assert_array_equal(load_labels(source, limit=limit), content.test_labels[:limit])
            images = load_images(source, (1, 4, 5), limit=limit, part="train")
            labels = load_labels(source, limit=limit, part="train")
            assert len(images) == len(labels) == min(limit or 11, 11)
            chosen = spread(content.train_labels, len(images)) if source is folder else np.s_[:limit]
            np.testing.assert_array_equal(images, normalise(content.train[chosen], None, None))
            np.testing.assert_array_equal(labels, content.train_labels[chosen])


def test_calibration_on_a_plain_folder_of_pictures_sees_every_class(tmp_path: Path) -> None:
    content = random_content((3, 4, 4), 12, 1)
    write_pictures(tmp_path, content.train, np.repeat([0, 1, 2, 3], 3))
    assert load_labels(tmp_path, limit=4).tolist() == [0, 0, 0, 1]
    assert load_labels(tmp_path, limit=4, part="train").tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(
        load_images(tmp_path, (3, 4, 4), limit=4, part="train"), normalise(content.train[::3], None, None)
    )
    assert len(load_images(tmp_path, (3, 4, 4))) == 12
