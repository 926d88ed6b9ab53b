"""``escc verify``: every level of a compilation against torch."""

from __future__ import annotations

import click

from escc.cli.compile import model_options
from escc.cli.images import Numbers, normalisation_options
from escc.cli.progress import progress_bars


@click.command("verify")
@click.argument("model", type=click.Path())
@click.option("--arch", "arch_file", type=click.Path(), help="Architecture file (TOML).")
@model_options
@click.option(
    "--input",
    "source",
    type=click.Path(),
    help="Images to compare on (of a data set the test images); default: seeded random ones.",
)
@normalisation_options
@click.option("--images", default=4, show_default=True, type=click.IntRange(1), help="How many images.")
@click.option("--seed", default=0, show_default=True, type=int, help="Seed of the random images.")
@click.option(
    "--tolerance",
    default=1e-4,
    show_default=True,
    type=click.FloatRange(0),
    help="Allowed difference of exact float steps, relative to the largest output.",
)
@click.option("-p", "--passes", metavar="PIPELINE", help="Passes to run instead of the default ones.")
@click.option("--dense", is_flag=True, help="Leave every layer dense 8-bit.")
def verify_command(
    model: str,
    arch_file: str | None,
    factory: str | None,
    allow_classes: tuple[str, ...],
    unsafe_load: bool,
    input_shape: tuple[int, ...] | None,
    source: str | None,
    mean: Numbers | None,
    std: Numbers | None,
    images: int,
    seed: int,
    tolerance: float,
    passes: str | None,
    dense: bool,
) -> None:
    """Compile MODEL and compare every level: torch, float IR, integers, the program on the simulator.

    Exit code 1 when an exact step does not agree; the first diverging layer is named.
    """
    import numpy as np

    from escc.driver import CompileOptions, capture_model, default_pipeline
    from escc.frontend.importer import import_exported
    from escc.ir.passes import parse_pipeline
    from escc.isa.arch import Arch
    from escc.verification import verify_levels

    exported = capture_model(
        model, input_shape=input_shape, factory=factory, allow_classes=allow_classes, unsafe_load=unsafe_load
    )
    module = import_exported(exported)
    shape = module.input_ports[0].torch_shape
    if source is not None:
        from escc.frontend.data import load_images

        batch = load_images(source, shape, limit=images, mean=mean, std=std)
    else:
        batch = np.random.default_rng(seed).standard_normal((images, *shape)).astype(np.float32)
    pipeline = default_pipeline(CompileOptions(dense=dense)) if passes is None else parse_pipeline(passes)
    failed = False
    with progress_bars() as progress:
        for result in verify_levels(
            exported,
            module,
            pipeline,
            batch,
            arch=Arch.load(arch_file),
            tolerance=tolerance,
            progress=progress,
        ):
            mark = ("ok" if result.passed else "FAILED") if result.exact else "measured"
            where = f"  first diverging layer: {result.layer}" if result.layer else ""
            click.echo(
                f"{mark:8s} {result.level:28s} against {result.against:17s} "
                f"largest difference {result.difference:.3g}, SQNR {result.sqnr_db:.1f} dB{where}"
            )
            failed = failed or not result.passed
    if failed:
        raise click.exceptions.Exit(1)
