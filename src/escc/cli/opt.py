"""``escc opt``: passes on a module in text form."""

from __future__ import annotations

import sys

import click

from escc.cli.images import Numbers, calibration_images, calibration_options
from escc.cli.progress import progress_bars


@click.command("opt")
@click.argument("source", type=click.Path(), default="-")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False),
    help="File to write (and its .safetensors); default: stdout.",
)
@click.option("-p", "--passes", default="", metavar="PIPELINE", help="Passes to run: 'a,b{k=1},c'.")
@click.option("--arch", "arch_file", type=click.Path(), help="Architecture file (TOML).")
@calibration_options
@click.option("--locations/--no-locations", default=False, help="Print locations.")
@click.option("--generic", is_flag=True, help="Print the generic form.")
@click.option("--list-passes", is_flag=True, help="List the installed passes and their options.")
def opt_command(
    source: str,
    output: str | None,
    passes: str,
    arch_file: str | None,
    calibration: str | None,
    calibration_count: int,
    mean: Numbers | None,
    std: Numbers | None,
    locations: bool,
    generic: bool,
    list_passes: bool,
) -> None:
    """Read a module (SOURCE, or - for stdin), verify it, run passes, print it."""
    from escc.ir.module import Module
    from escc.ir.passes import PassContext, parse_pipeline, run_pipeline

    if list_passes:
        _list_passes()
        return
    module = Module.from_text(sys.stdin.read(), name="<stdin>") if source == "-" else Module.load(source)
    pipeline = parse_pipeline(passes)
    shape = module.input_ports[0].torch_shape
    images = calibration_images(shape, calibration, calibration_count, mean, std)
    from escc.isa.arch import Arch

    with progress_bars() as progress:
        context = PassContext(arch=Arch.load(arch_file), calibration=images, progress=progress)
        run_pipeline(module, pipeline, context)
    if output is not None:
        module.save(output, locations=locations)
    else:
        click.echo(module.to_text(locations=locations, generic=generic), nl=False)


def _list_passes() -> None:
    import dataclasses

    from escc.ir.passes import pass_class, pass_names

    for name in pass_names():
        kind = pass_class(name)
        summary = (kind.__doc__ or "").strip().splitlines()[0]
        click.echo(f"{name}: {summary}")
        for item in dataclasses.fields(kind):
            click.echo(f"    {item.name}: {item.type} = {item.default}")
