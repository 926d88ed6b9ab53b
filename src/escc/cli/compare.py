"""``escc compare``: networks on escc's machine and on others."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from escc.cli.images import Numbers, normalisation_options
from escc.cli.progress import progress_bars
from escc.errors import EsccError
from escc.files import atomic_write

if TYPE_CHECKING:
    from escc.compare.comparison import Comparison
    from escc.compare.workload import Workload
    from escc.driver import CompileOptions
    from escc.isa.arch import Arch
    from escc.progress import Progress

DEMO = "demo"
"""The shipped ResNet-20, trained."""
PRUNED = 0.3
DEMO_IMAGES = 64


def parse_names(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> list[str] | None:
    """``eyeriss,scnn`` as a list."""
    return None if value is None else [part.strip() for part in value.split(",") if part.strip()]


def parse_shape(
    _ctx: click.Context, _parameter: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    """``3,224,224`` as three numbers."""
    if value is None:
        return None
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"'{value}' is not three numbers such as 3,224,224") from None


@dataclass(frozen=True)
class Given:
    """What the command line says about trained networks."""

    calibration: str | None
    mean: Numbers | None
    std: Numbers | None
    input_shape: tuple[int, ...] | None
    factory: str | None
    bases: int
    penalty: float
    refine: bool
    weight_density: float

    @property
    def options(self) -> CompileOptions:
        """How escc compiles them."""
        from escc.driver import CompileOptions

        return CompileOptions(bases=self.bases, penalty=self.penalty, refine=self.refine)


@click.command("compare")
@click.argument("networks", nargs=-1)
@click.option(
    "--model", "models", multiple=True, help="A trained network of your own, any file escc compile reads."
)
@click.option(
    "--calibration",
    type=click.Path(),
    help="Images for it (.npy, .npz, data set): the first is run, all set the scales; default: drawn.",
)
@normalisation_options
@click.option("--input-shape", callback=parse_shape, metavar="C,H,W", help="Where it does not tell.")
@click.option("--factory", metavar="PKG.MOD:FUNCTION", help="Builds the network of a state_dict file.")
@click.option("--bases", type=click.IntRange(1), default=6, show_default=True, help="Of its k x k layers.")
@click.option(
    "--penalty",
    type=click.FloatRange(0),
    default=0.01,
    show_default=True,
    help="Price of one of its coefficients.",
)
@click.option(
    "--refine/--no-refine", default=True, show_default=True, help="Recode it for the inputs its layers see."
)
@click.option(
    "--weight-density",
    type=click.FloatRange(0, 1, min_open=True),
    default=PRUNED,
    show_default=True,
    help="Share of its weights that pruning keeps for the sparse machines.",
)
@click.option(
    "--machines", callback=parse_names, metavar="A,B", help="Other machines; default: all that there are."
)
@click.option("--arch", "arch_file", type=click.Path(), help="Architecture file of escc's machine.")
@click.option("--energy-table", metavar="NAME|FILE", help="Energy per event; default horowitz45.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of synthetic networks.")
@click.option("--sensitivity", "sensitive", is_flag=True, help="Change one assumption after the other, too.")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False),
    help="Folder for comparison.html, .json, .csv and plots.",
)
@click.option("--json", "json_file", type=click.Path(), help="Write the figures as JSON; '-' is stdout.")
@click.option("--csv", "csv_file", type=click.Path(), help="A line for every network and machine.")
@click.option(
    "--page",
    type=click.Path(dir_okay=False),
    help="Put tables into a Markdown page, between its marks, with plots beside it.",
)
@click.option(
    "--engine",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "native", "numpy"]),
    help="What times escc's convolutions.",
)
@click.pass_context
def compare_command(
    ctx: click.Context,
    networks: tuple[str, ...],
    models: tuple[str, ...],
    machines: list[str] | None,
    arch_file: str | None,
    energy_table: str | None,
    seed: int,
    sensitive: bool,
    output: str | None,
    json_file: str | None,
    csv_file: str | None,
    page: str | None,
    engine: str,
    **given: Any,
) -> None:
    """Run NETWORKS on escc's machine and on others: time, energy, traffic, and how many times better.

    NETWORKS are synthetic ones with stated statistics (vgg16-cifar, resnet18-cifar, mobilenetv2-cifar,
    resnet18, resnet50, mobilenetv2; all of them by default), or demo: the trained ResNet-20 that ships with
    escc.
    """
    if "numpy" not in sys.modules:
        # the matrices are small: more threads cost more than they gain
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for path in (json_file, csv_file, page):
        _check_folder(path)
    from escc.backend_sim.simulator import EnergyTable
    from escc.compare.comparison import compare
    from escc.compare.machines import find_rivals
    from escc.compare.statistics import find_network, network_names
    from escc.isa.arch import Arch

    arch, table, rivals = Arch.load(arch_file), EnergyTable.load(energy_table), find_rivals(machines)
    names = list(networks) or ([] if models else network_names())
    drawn = [find_network(name) for name in names if name != DEMO]
    if sensitive and not drawn:
        raise click.UsageError("--sensitivity changes what synthetic networks are drawn with: name some")
    with progress_bars() as progress:
        makers: list[Callable[[], Workload]] = []
        settings = Given(**given)
        for name in names:
            makers.append(_maker(name, settings, arch, seed, progress))
        for path in models:
            makers.append(partial(_model, path, settings, arch, seed, progress))
        found = compare(makers, rivals, arch=arch, table=table, seed=seed, engine=engine, progress=progress)
        if sensitive:
            from escc.compare.sensitivity import sensitivity

            rows = sensitivity(drawn, arch=arch, table=table, seed=seed, engine=engine, progress=progress)
            found = replace(found, sensitivity=tuple(rows))
    _write(found, output, json_file, csv_file)
    if page is not None:
        from escc.compare.page import write_page

        write_page(Path(page), found, ["escc", *_words(ctx, networks, machines, seed, sensitive)])
    if json_file != "-":
        _print(found)


def _check_folder(path: str | None) -> None:
    if path is not None and path != "-" and not Path(path).absolute().parent.is_dir():
        raise EsccError("the folder does not exist", where=str(Path(path).absolute().parent))


def _maker(name: str, given: Given, arch: Arch, seed: int, progress: Progress) -> Callable[[], Workload]:
    from escc.compare.statistics import find_network
    from escc.compare.workload import synthetic_workload

    if name == DEMO:
        return partial(_demo, given, arch, progress)
    return partial(synthetic_workload, find_network(name), arch=arch, seed=seed, progress=progress)


def _demo(given: Given, arch: Arch, progress: Progress) -> Workload:
    from escc.compare.workload import trained_workload
    from escc.demo.assets import INPUT_SHAPE, load_data, load_network
    from escc.driver import import_model

    module = import_model(load_network(), input_shape=INPUT_SHAPE)
    return trained_workload(
        module,
        "ResNet-20, 28 x 28",
        load_data().calibration[:DEMO_IMAGES],
        weight_density=given.weight_density,
        arch=arch,
        options=given.options,
        origin=f"the shipped network, trained on Fashion-MNIST, its first calibration image; {_forms(given)}",
        progress=progress,
    )


def _forms(given: Given) -> str:
    return (
        f"{given.bases} bases fitted without retraining for escc, the largest {given.weight_density:.0%} of "
        "the weights for the sparse machines"
    )


def _model(path: str, given: Given, arch: Arch, seed: int, progress: Progress) -> Workload:
    from escc.cli.images import calibration_images
    from escc.compare.synthesis import natural_images
    from escc.compare.workload import trained_workload
    from escc.driver import import_model

    module = import_model(path, input_shape=given.input_shape, factory=given.factory)
    if len(module.input_ports) != 1:
        raise EsccError("has several inputs, the comparison takes networks of one", where=path)
    shape = tuple(module.input_ports[0].torch_shape)
    images = calibration_images(shape, given.calibration, 512, given.mean, given.std)
    source = f"images of {given.calibration}"
    if images is None:
        images, source = natural_images(shape, 4, seed), f"drawn images, seed {seed}: not real ones"
    return trained_workload(
        module,
        Path(path).name,
        images,
        weight_density=given.weight_density,
        arch=arch,
        options=given.options,
        origin=f"{source}; {_forms(given)}",
        progress=progress,
    )


def _words(
    ctx: click.Context, networks: tuple[str, ...], machines: list[str] | None, seed: int, sensitive: bool
) -> list[str]:
    """The command line that gives these figures again."""
    words = ["compare", *networks]
    for name in ("models", "arch_file", "energy_table", "calibration"):
        value = ctx.params.get(name)
        option = f"--{name.removesuffix('s').removesuffix('_file').replace('_', '-')}"
        for item in (value,) if isinstance(value, str) else value or ():
            words += [option, str(item)]
    words += ["--machines", ",".join(machines)] if machines else []
    words += ["--seed", str(seed)] if seed else []
    return [*words, "--sensitivity"] if sensitive else words


def _write(found: Comparison, output: str | None, json_file: str | None, csv_file: str | None) -> None:
    from escc.compare.comparison import to_csv, to_json

    if output is not None:
        from escc.compare.page import html_page, plots

        folder = Path(output)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EsccError(f"cannot create the folder: {error.strerror}", where=output) from None
        files = {
            "comparison.html": html_page(found),
            "comparison.json": to_json(found),
            "comparison.csv": to_csv(found),
            **plots(found, "comparison"),
        }
        for name, content in files.items():
            atomic_write(folder / name, content.encode())
    if csv_file is not None:
        atomic_write(csv_file, to_csv(found).encode())
    if json_file == "-":
        click.echo(to_json(found), nl=False)
    elif json_file is not None:
        atomic_write(json_file, to_json(found).encode())


def _print(found: Comparison) -> None:
    from escc.compare import text
    from escc.compare.comparison import MEASURES
    from escc.compare.page import SYNTHETIC, conditions, has_synthetic

    click.echo(conditions(found))
    if has_synthetic(found):
        click.echo(SYNTHETIC)
    for basis in ("multipliers", "area"):
        click.echo(f"\nAt {text.basis_title(basis)}:\n\n{text.results_table(found, basis).plain()}")
        for measure in MEASURES:
            shown = "faster" if measure == "latency" else "less energy"
            click.echo(f"\nTimes {shown}:\n\n{text.ratio_table(found, measure, basis).plain()}")
    click.echo(f"\n{text.network_table(found).plain()}")
    if found.sensitivity:
        click.echo(f"\n{text.sensitivity_table(found).plain()}")
