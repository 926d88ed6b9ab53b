"""The budget options of ``escc compile``: settings per layer instead of the same for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from escc.cli.images import Numbers
from escc.errors import EsccError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from escc.budget.search import Goal, Images, Outcome
    from escc.driver import CompileOptions
    from escc.ir.module import Module
    from escc.isa.arch import Arch
    from escc.progress import Progress

LIMITS = ("budget_bytes", "budget_cycles", "budget_macs")
EXCLUDED = ("bases", "penalty", "refine", "dense", "passes", "compile_to")
"""Options that say what a budget chooses."""


def budget_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that choose bases and sparsity layer by layer."""
    decorators = [
        click.option("--accuracy-budget", type=click.FloatRange(0.0), metavar="POINTS",
                     help="Find the smallest program that loses at most so many percentage points of "
                          "accuracy on held-out calibration images."),
        click.option("--calibration-labels", type=click.Path(), metavar="FILE",
                     help="Class numbers of the calibration images; without them agreement with the float "
                          "network counts."),
        click.option("--minimise", type=click.Choice(["bytes", "cycles", "macs"]),
                     help="What --accuracy-budget makes least; default: bytes."),
        click.option("--budget-bytes", type=click.FloatRange(1), metavar="N", help="Most bytes of weights."),
        click.option("--budget-cycles", type=click.FloatRange(1), metavar="N", help="Most cycles per image."),
        click.option("--budget-macs", type=click.FloatRange(1), metavar="N",
                     help="Most operations per image: multiply-accumulates and additions of convolutions."),
    ]  # fmt: skip
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def goal_of(options: dict[str, Any], calibration: str | None) -> Goal | None:
    """The goal the options describe; None without a budget.

    Raises:
        click.UsageError: options that contradict each other, or are missing.
    """
    given = [name for name in ("accuracy_budget", *LIMITS) if options[name] is not None]
    if not given:
        for name in ("calibration_labels", "minimise"):
            if options[name] is not None:
                raise click.UsageError(f"{_flag(name)} belongs to --accuracy-budget")
        return None
    if len(given) > 1:
        raise click.UsageError(f"one budget at a time: {' or '.join(map(_flag, given))}")
    if calibration is None:
        raise click.UsageError(f"{_flag(given[0])} needs --calibration images")
    context = click.get_current_context()
    for name in EXCLUDED:
        if context.get_parameter_source(name) not in (ParameterSource.DEFAULT, None):
            raise click.UsageError(f"{_flag(given[0])} chooses what {_flag(name)} sets: leave one out")
    from escc.budget.search import Goal

    if given[0] == "accuracy_budget":
        return Goal(options["minimise"] or "bytes", accuracy=options["accuracy_budget"])
    for name in ("calibration_labels", "minimise"):
        if options[name] is not None:
            raise click.UsageError(f"{_flag(name)} belongs to --accuracy-budget")
    return Goal(given[0].removeprefix("budget_"), limit=options[given[0]])


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def choose_settings(
    module: Module,
    goal: Goal,
    source: str,
    labels: str | None,
    count: int,
    mean: Numbers | None,
    std: Numbers | None,
    options: CompileOptions,
    arch: Arch,
    progress: Progress,
) -> tuple[Outcome, NDArray[np.float32]]:
    """Choose, and give the calibration images the chosen pipeline is to be run with."""
    from escc.budget.search import choose

    progress("reading images", 0, 0)
    shape, hold_out = module.input_ports[0].torch_shape, goal.accuracy is not None
    images = split_images(shape, source, labels, count, hold_out, mean, std)
    return choose(module, images, goal, options=options, arch=arch, progress=progress), images.fit


def split_images(
    shape: tuple[int, ...],
    source: str,
    labels: str | None,
    count: int,
    hold_out: bool,
    mean: Numbers | None = None,
    std: Numbers | None = None,
) -> Images:
    """Calibration images, and as many again held out (half of all when there are fewer).

    The first part is what ``--calibration-images`` of that number loads, so that the chosen pipeline gives
    the same program again.
    """
    import numpy as np

    from escc.budget.search import Images
    from escc.frontend.data import load_images, load_labels

    if not hold_out:
        images = load_images(source, shape, limit=count, part="train", mean=mean, std=std)
        return Images(images, images[:0])
    every = load_images(source, shape, limit=2 * count, part="train", mean=mean, std=std)
    classes = None if labels is None else load_labels(labels, limit=2 * count, part="train")
    if classes is not None and len(classes) != len(every):
        raise EsccError(f"{len(classes)} labels for {len(every)} images", where="--calibration-labels")
    count = min(count, len(every) // 2)
    if count == 0:
        raise EsccError("an accuracy budget needs at least two calibration images", where=source)
    # some sources give their first images, others thin theirs out evenly
    fit = load_images(source, shape, limit=count, part="train", mean=mean, std=std)
    first = np.array_equal(every[:count], fit)
    rest = slice(count, None) if first else slice(1, None, 2)
    if not first and not np.array_equal(every[: 2 * count : 2], fit):
        fit, rest = every[:count], slice(count, None)
    return Images(fit, every[rest], None if classes is None else classes[rest])
