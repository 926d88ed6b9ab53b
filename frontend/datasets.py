"""Data sets with labels: training and test images as bytes, recognised by what a folder or file holds.

Images stay uint8, a quarter of what floats would take; normalising is done batch by batch by whoever uses
them. Files are untrusted: sizes are checked before memory is taken, and nothing in them is executed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from escc.errors import EsccError
from escc.frontend.dataset_sources import Part, Source, find_source
from escc.frontend.image_arrays import (
    Bytes,
    Images,
    Labels,
    Shape,
    channel_statistics,
    image_shape,
    normalise,
)

Indices = NDArray[np.int64]

HELD_OUT = 5
"""Of a set without a test part, one image in so many is kept for testing."""
DATASETS = (
    "a folder of MNIST-style idx files, CIFAR-10 or CIFAR-100 (binary, Python or as downloaded), "
    "a .npz with x_train, y_train, x_test and y_test, or pictures in train/<class>/ and test/<class>/"
)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images uint8 (N, C, H, W) with labels int64 (N,) in three parts; validation may be empty.

    Attributes:
        format: what the files were, in words.
        classes: number of classes; labels are below it.
        class_names: their names in order where the files tell them, else empty.
        pixels: pixels per image without the border that was added to reach the asked size.
        held_out: the files had no test part, one image in :data:`HELD_OUT` was taken from training.
    """

    format: str
    classes: int
    class_names: tuple[str, ...]
    pixels: int
    held_out: bool
    train_images: Bytes = field(repr=False)
    train_labels: Labels = field(repr=False)
    validation_images: Bytes = field(repr=False)
    validation_labels: Labels = field(repr=False)
    test_images: Bytes = field(repr=False)
    test_labels: Labels = field(repr=False)

    @cached_property
    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return channel_statistics(self.train_images, self.pixels)

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean per channel of the training images in units of 0..1, without an added border."""
        return self._statistics[0]

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation per channel of the training images, as for :attr:`mean`.

        Raises:
            EsccError: a channel is the same everywhere, so it cannot be scaled.
        """
        if min(self._statistics[1]) == 0:
            raise EsccError("a channel of the training images has one value everywhere: give --std")
        return self._statistics[1]

    def normalise(
        self, images: NDArray[Any], mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> Images:
        """A batch (n, C, H, W) as float32 numbers for the network: (x / 255 - mean) / std per channel.

        Where mean or std is not given, that of the training images is taken.

        Raises:
            EsccError: another number of channels, or a std that is not positive.
        """
        return normalise(images, self.mean if mean is None else mean, self.std if std is None else std)


def load_dataset(
    source: str | os.PathLike[str],
    shape: tuple[int, int, int],
    *,
    validation: int = 0,
    limit: int | None = None,
) -> Dataset:
    """Training and test images from a folder or file of any format in :data:`DATASETS`.

    Smaller images get a black border up to ``shape`` (28x28 to 32x32: two pixels on every side), larger ones
    are refused, and so are grey images for a colour network or the other way round. Folders of pictures are
    scaled and cut instead; a set of pictures is grey when all of them are.

    A set without a test part gives up one image in five for it. Those, the validation images and a limited
    selection are always the same and spread evenly over the classes.

    Args:
        source: the folder or file; one folder that lies up to two levels below is found.
        shape: (C, H, W) of the network's input.
        validation: how many training images to set aside.
        limit: how many images at most to take for training, and for testing.

    Raises:
        EsccError: nothing that is recognised, damaged files, or images and labels that do not fit.
    """
    path = Path(source)
    size = image_shape(shape, str(path))
    if validation < 0 or (limit is not None and limit < 1):
        raise EsccError("validation and limit count images", where=str(path))
    found = find_source(path)
    if found is None:
        raise EsccError("not a data set", where=str(path), hint=f"escc reads {DATASETS}")
    labels, train_part, of_test, test_part = _parts(found, path)
    classes = _class_count(found, labels, of_test, path)
    if validation >= len(train_part):
        raise EsccError(
            f"{validation} validation images leave none of {len(train_part)} to train on", where=str(path)
        )
    train_part, validation_part = _set_aside(labels, train_part, validation)
    if limit is not None:
        train_part = train_part[spread(labels[train_part], min(limit, len(train_part)))]
        test_part = test_part[spread(of_test[test_part], min(limit, len(test_part)))]
    return Dataset(
        format=found.format,
        classes=classes,
        class_names=found.class_names,
        pixels=found.pixels("train", size),
        held_out=of_test is labels,
        train_images=found.images("train", size, train_part),
        train_labels=labels[train_part],
        validation_images=found.images("train", size, validation_part),
        validation_labels=labels[validation_part],
        test_images=found.images("train" if of_test is labels else "test", size, test_part),
        test_labels=of_test[test_part],
    )


def load_part(found: Source, part: Part, shape: Shape, limit: int | None, path: Path) -> Bytes:
    """Images of one part of a data set for other uses than training, uint8 (n, C, H, W).

    Args:
        found: the data set.
        part: "test" with a limit gives the first images, as the files have them, to compare with others;
            "train" (for calibration) an even selection of the classes.
        shape: (C, H, W) of the network's input.
        limit: how many images at most.
        path: what errors are about.
    """
    stored, chosen, _labels = _selection(found, part, limit, path)
    return found.images(stored, shape, chosen)


def load_part_labels(found: Source, part: Part, limit: int | None, path: Path) -> Labels:
    """Labels int64 (n,) of the images that :func:`load_part` gives."""
    return _selection(found, part, limit, path)[2]


def _selection(found: Source, part: Part, limit: int | None, path: Path) -> tuple[Part, Indices, Labels]:
    """Which part of the files the images come from, their indices, their labels."""
    # the training images need not be read to get at test images that have files of their own
    if part == "test" and (test := found.labels("test")) is not None:
        return "test", np.arange(len(test), dtype=np.int64)[:limit], test[:limit]
    labels, train_part, _of_test, test_part = _parts(found, path)
    if part == "test":
        return "train", test_part[:limit], labels[test_part[:limit]]
    if limit is not None and limit < len(train_part):
        train_part = train_part[spread(labels[train_part], limit)]
    return "train", train_part, labels[train_part]


def _parts(found: Source, path: Path) -> tuple[Labels, Indices, Labels, Indices]:
    """Labels and indices of the training images, labels and indices of the test images.

    Without a test part both labels are the same array, and the indices exclude each other.
    """
    labels = found.labels("train")
    if labels is None:
        raise EsccError("has no training images", where=str(path))
    everything = np.arange(len(labels), dtype=np.int64)
    test = found.labels("test")
    if test is not None:
        return labels, everything, test, np.arange(len(test), dtype=np.int64)
    train_part, test_part = _set_aside(labels, everything, len(labels) // HELD_OUT)
    if len(test_part) == 0:
        raise EsccError(f"{len(labels)} images are too few to keep some for testing", where=str(path))
    return labels, train_part, labels, test_part


def _class_count(found: Source, labels: Labels, test: Labels, path: Path) -> int:
    most = int(labels.max())
    if found.classes is not None:
        # formats with a fixed number of classes check the labels as they read them
        return found.classes
    if int(test.max()) > most:
        raise EsccError(
            f"the test images have the label {int(test.max())}, the training images at most {most}",
            where=str(path),
        )
    return most + 1


def spread(labels: Labels, count: int) -> Indices:
    """``count`` indices into ``labels``, ascending and evenly over the classes; always the same ones."""
    order = np.argsort(labels, kind="stable")
    places = (2 * np.arange(count, dtype=np.int64) + 1) * len(labels) // max(2 * count, 1)
    return np.sort(order[places])


def _set_aside(labels: Labels, part: Indices, count: int) -> tuple[Indices, Indices]:
    """(what remains of ``part``, ``count`` of it evenly over the classes)."""
    taken = np.zeros(len(part), dtype=np.bool_)
    taken[spread(labels[part], count)] = True
    return part[~taken], part[taken]
