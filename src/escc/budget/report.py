"""A choice of settings as JSON and as a table."""

from __future__ import annotations

import sys
from dataclasses import asdict
from math import sqrt
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from escc.budget.search import Outcome

PIPE_WIDTH = 120

UNITS = {
    "bytes": "bytes of weights",
    "cycles": "cycles per image",
    "macs": "operations per image (multiply-accumulates and additions)",
}


def to_json(outcome: Outcome) -> dict[str, Any]:
    """Everything about a choice, units in the names; None stands for what was not measured."""
    judged = outcome.trial.loss is not None
    return {
        "objective": outcome.goal.objective,
        "unit": UNITS[outcome.goal.objective],
        "limit": outcome.goal.limit,
        "accuracy_budget_points": outcome.goal.accuracy,
        "judged_by": outcome.judged_by if judged else None,
        "calibration_images": outcome.fit_images,
        "held_out_images": outcome.held_out_images,
        "float_accuracy_percent": outcome.float_accuracy,
        "loss_points": outcome.trial.loss,
        "loss_standard_error_points": standard_error(outcome) if judged else None,
        "divergence_nats": outcome.trial.divergence,
        "predicted": outcome.predicted,
        "not_chosen": outcome.fixed,
        "pipeline": outcome.pipeline,
        "trials": [asdict(trial) for trial in outcome.trials],
        "layers": [
            {
                "name": layer.path,
                "bases": item.setting.bases,
                "penalty": item.setting.penalty if item.setting.bases else None,
                "density": item.density,
                "bytes": item.bytes,
                "operations": item.operations,
                "cycles": item.cycles if outcome.goal.objective == "cycles" else None,
                "relative_error": item.error,
                "sensitivity_nats": layer.sensitivity,
                "predicted_divergence_nats": layer.sensitivity * item.error,
            }
            for layer, item in zip(outcome.layers, outcome.chosen, strict=True)
        ],
    }


def standard_error(outcome: Outcome) -> float:
    """Of the measured loss, in percentage points, from the share of images whose verdict changed."""
    return 100 * sqrt(max(outcome.trial.changed, 0.0) / max(outcome.held_out_images, 1))


def print_outcome(outcome: Outcome) -> None:
    """Print a choice to stdout."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    console.print(_headline(outcome), soft_wrap=True, markup=False)
    console.print(_table(outcome))


def _headline(outcome: Outcome) -> str:
    goal, trial = outcome.goal, outcome.trial
    unit = UNITS[goal.objective]
    if trial.loss is None:
        return (
            f"budget of {goal.limit:,.0f} {unit}: {trial.actual:,.0f} measured, "
            f"{len(outcome.trials)} choices compiled"
        )
    return (
        f"budget of {goal.accuracy:g} points of accuracy, least {unit}: {trial.loss:+.2f} points lost "
        f"(standard error {standard_error(outcome):.2f}) on {outcome.held_out_images} held-out images, "
        f"{outcome.judged_by}; {len(outcome.trials)} choices tried"
    )


def _table(outcome: Outcome) -> Table:
    cycles = outcome.goal.objective == "cycles"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", no_wrap=True, min_width=16)
    heads = [
        "bases",
        "penalty",
        "coef.",
        "bytes",
        "k ops",
        *(["cycles"] if cycles else []),
        "error",
        "KL nats",
    ]
    for name in heads:
        table.add_column(name, justify="right", no_wrap=True)
    for layer, item in zip(outcome.layers, outcome.chosen, strict=True):
        ternary = item.setting.bases > 0
        table.add_row(
            escape(layer.path),
            str(item.setting.bases) if ternary else "dense",
            f"{item.setting.penalty:g}" if ternary else "",
            f"{item.density:.0%}" if ternary else "",
            f"{item.bytes:,.0f}",
            f"{item.operations / 1e3:,.0f}",
            *([f"{item.cycles:,.0f}"] if cycles else []),
            f"{item.error:.2%}",
            f"{layer.sensitivity * item.error:.5f}",
        )
    return table
