"""``escc ops``: which operators of a model compile, and why not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from escc.cli.compile import model_options

if TYPE_CHECKING:
    from escc.frontend.importer import OperatorUse

WIDE = 400


@click.command("ops")
@click.argument("model", type=click.Path())
@model_options
@click.option("--all", "every", is_flag=True, help="One row per call instead of one per operator.")
@click.pass_context
def ops_command(
    context: click.Context,
    model: str,
    factory: str | None,
    allow_classes: tuple[str, ...],
    unsafe_load: bool,
    input_shape: tuple[int, ...] | None,
    every: bool,
) -> None:
    """List the operators of MODEL: what each becomes, and why it cannot be compiled (then exit code 1)."""
    from escc.frontend.capture import capture
    from escc.frontend.importer import inspect_exported
    from escc.frontend.open_file import open_model

    loaded = open_model(model, factory=factory, allow_classes=allow_classes, unsafe_load=unsafe_load)
    exported = capture(loaded.model, input_shape=input_shape or loaded.input_shape)
    uses = inspect_exported(exported)
    _print_table(uses, every)
    refused = sum(not use.supported for use in uses)
    if refused:
        click.echo(f"{model}: {refused} of {len(uses)} operator calls cannot be compiled")
        context.exit(1)
    click.echo(f"{model}: all {len(uses)} operator calls can be compiled")


def _print_table(uses: Sequence[OperatorUse], every: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    groups: dict[tuple[object, ...], list[OperatorUse]] = {}
    for index, use in enumerate(uses):
        key = (index,) if every else (use.operator, use.supported, use.becomes, use.reason)
        groups.setdefault(key, []).append(use)
    table = Table("operator", "calls", "compiles", "becomes", "module", "source", "reason", box=None)
    # what stands in the way comes first
    for group in sorted(groups.values(), key=lambda group: group[0].supported):
        first = group[0]
        more = f" and {len(group) - 1} more" if len(group) > 1 else ""
        table.add_row(
            first.operator,
            str(len(group)),
            "yes" if first.supported else "no",
            first.becomes,
            (first.path or "(top)") + more,
            first.source,
            first.reason,
        )
    # a table that goes to a file or a program is as wide as its content
    width = None if sys.stdout.isatty() else WIDE
    Console(width=width, highlight=False, markup=False).print(table)
