"""Options of the commands that read images: how they are normalised."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Numbers = tuple[float, ...]


def parse_numbers(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> Numbers | None:
    """``0.49,0.48,0.45`` as a tuple."""
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"'{value}' is not a number per channel such as 0.49,0.48,0.45") from None


def normalisation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--mean`` and ``--std``: the normalisation a network was trained with."""
    decorators = [
        click.option("--mean", callback=parse_numbers, metavar="A[,B,C]",
                     help="Subtracted from images in 0..1, per channel; as the network was trained."),
        click.option("--std", callback=parse_numbers, metavar="A[,B,C]",
                     help="Then divided by, per channel."),
    ]  # fmt: skip
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def calibration_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--calibration`` with its number and normalisation."""
    decorators = [
        click.option("--calibration", type=click.Path(),
                     help="Images for the activation scales (.npy, .npz, idx, folder); of a data set the "
                          "training images."),
        click.option("--calibration-images", "calibration_count", default=512, show_default=True,
                     type=click.IntRange(1), help="How many of them to use."),
    ]  # fmt: skip
    command = normalisation_options(command)
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def calibration_images(
    shape: tuple[int, ...], source: str | None, count: int | None, mean: Numbers | None, std: Numbers | None
) -> NDArray[np.float32] | None:
    """At most ``count`` calibration images, of a data set its training images; None without a source."""
    if source is None:
        return None
    from escc.frontend.data import load_images

    return load_images(source, shape, limit=count, mean=mean, std=std, part="train")
