"""``escc count``: operations and sizes of a network, without compiling it."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

import click

from escc.cli.compile import model_options

if TYPE_CHECKING:
    from escc.passes.costs import LayerCost, NetworkCost

WIDE = 400


@click.command("count")
@click.argument("model", type=click.Path())
@model_options
@click.option(
    "--bases",
    type=click.IntRange(1),
    help="Count dense k x k layers as if decomposed into so many bases (PENNI: 5).",
)
@click.option(
    "--density",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.0, 1.0),
    help="Share of their coefficients (and of 1x1 weights) that is not zero.",
)
@click.option("--layers", "every", is_flag=True, help="A row per layer too.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON, every layer included.")
def count_command(
    model: str,
    factory: str | None,
    allow_classes: tuple[str, ...],
    unsafe_load: bool,
    input_shape: tuple[int, ...] | None,
    bases: int | None,
    density: float,
    every: bool,
    as_json: bool,
) -> None:
    """Count weights, operations in both orders and stored bytes of MODEL, for one image.

    A multiplication with its addition is one MAC; batch norm and biases are left out. Linear layers are
    counted, and the sum without them is given too. Dense layers are sized as int8.
    """
    from escc.driver import import_model
    from escc.passes.costs import if_decomposed, layer_costs, network_cost

    if bases is None and density != 1.0:
        raise click.UsageError("--density needs --bases")
    module = import_model(
        model, input_shape=input_shape, factory=factory, allow_classes=allow_classes, unsafe_load=unsafe_load
    )
    costs = layer_costs(module)
    if bases is not None:
        costs = [if_decomposed(cost, bases, density) for cost in costs]
    sums = {
        "convolutions": network_cost(costs, classifier=False),
        "with linear layers": network_cost(costs),
    }
    if as_json:
        content: dict[str, Any] = {"layers": [dataclasses.asdict(cost) for cost in costs]}
        content |= {name.replace(" ", "_"): dataclasses.asdict(total) for name, total in sums.items()}
        click.echo(json.dumps(content, indent=1))
        return
    _print_table(costs if every else [], sums)


def _print_table(costs: list[LayerCost], sums: dict[str, NetworkCost]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    table.add_column("layer")
    for heading in (
        "kernel", "bases", "weights", "dense MAC", "convolve-first MAC", "+ adds", "of dense", "used MAC",
        "combine-first MAC", "+ adds", "of dense", "bytes", "entropy bound",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for cost in costs:
        rows, columns = cost.shape.kernel
        table.add_row(
            cost.name,
            f"{rows}x{columns}",
            str(cost.bases or "-"),
            *_figures(cost, cost.shape.parameters, cost.shape.dense_macs),
        )
    for name, total in sums.items():
        table.add_row(
            f"{name} ({total.layers})", "", "", *_figures(total, total.parameters, total.dense_macs)
        )
    # a table that goes to a file or a program is as wide as its content
    Console(width=None if sys.stdout.isatty() else WIDE, highlight=False, markup=False).print(table)


def _figures(cost: LayerCost | NetworkCost, parameters: int, dense: int) -> list[str]:
    first, second = cost.convolve_first, cost.combine_first
    return [
        f"{parameters:,}",
        f"{dense:,}",
        f"{first.macs:,}",
        f"{first.adds:,}",
        f"{first.total / dense:.3f}",
        f"{cost.convolve_first_used.macs:,}",
        f"{second.macs:,}",
        f"{second.adds:,}",
        f"{second.total / dense:.3f}",
        f"{cost.bits / 8:,.0f}",
        f"{cost.entropy_bits / 8:,.0f}",
    ]
