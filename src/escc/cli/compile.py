"""``escc compile``: a torch model to a program."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from escc.cli.budget import budget_options, choose_settings, goal_of
from escc.cli.images import Numbers, calibration_images, calibration_options
from escc.cli.progress import progress_bars
from escc.errors import EsccError
from escc.files import atomic_write

if TYPE_CHECKING:

    from escc.budget.search import Outcome
    from escc.driver import Compilation
    from escc.ir.module import Module
    from escc.ir.passes import AfterPass, Pass
    from escc.passes.costs import LayerCost


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how a model file is opened, shared by every command that takes a model."""
    decorators = [
        click.option("--model", "factory", metavar="PKG.MOD:FUNCTION",
                     help="Builds the network of a state_dict or safetensors file (zoo:NAME for ours)."),
        click.option("--allow-class", "allow_classes", multiple=True, metavar="PKG.MOD:CLASS",
                     help="A class a pickled model may name; repeat."),
        click.option("--unsafe-load", is_flag=True, help="Load a pickle without checks. Runs its code."),
        click.option("--input-shape", metavar="C,H,W", callback=parse_shape,
                     help="Input shape when the file does not say."),
    ]  # fmt: skip
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def parse_shape(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    """``3,224,224`` or ``3x224x224`` as a tuple."""
    if value is None:
        return None
    try:
        shape = tuple(int(part) for part in value.replace("x", ",").split(","))
    except ValueError:
        raise click.BadParameter(f"'{value}' is not a shape such as 3,224,224") from None
    if len(shape) != 3 or min(shape) < 1:
        raise click.BadParameter(f"'{value}' must be three positive numbers C,H,W")
    return shape


@click.command("compile")
@click.argument("model", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), help="Program file to write.")
@click.option(
    "--arch", "arch_file", type=click.Path(), help="Architecture file (TOML); default: the shipped one."
)
@model_options
@calibration_options
@click.option(
    "--bases", default=6, show_default=True, type=click.IntRange(1, 9), help="Basis kernels per layer."
)
@click.option(
    "--penalty",
    default=0.01,
    show_default=True,
    type=click.FloatRange(0.0),
    help="Price of a non-zero coefficient (higher: sparser).",
)
@click.option(
    "--planes",
    default=4,
    show_default=True,
    type=click.IntRange(0, 6),
    help="Ternary planes of 1x1 layers; 0 keeps them dense.",
)
@click.option(
    "--keep-dense", multiple=True, metavar="PATTERN", help="Module paths to leave dense 8-bit; repeat."
)
@click.option(
    "--refine/--no-refine",
    default=True,
    show_default=True,
    help="Recode coefficients for the layers' real inputs (with --calibration).",
)
@click.option("--dense", is_flag=True, help="Leave every layer dense 8-bit.")
@budget_options
@click.option("-p", "--passes", metavar="PIPELINE", help="Passes to run instead: 'a,b{k=1},c'.")
@click.option(
    "--compile-to", metavar="PHASE", help="Stop after this pass ('imported': before any) and write IR text."
)
@click.option(
    "--print-ir-after-all", is_flag=True, help="Print the IR after every pass that changed it (stderr)."
)
@click.option(
    "--print-ir-after", multiple=True, metavar="PASS", help="Print the IR after this pass (stderr); repeat."
)
@click.option(
    "--print-ir-tree-dir", type=click.Path(file_okay=False), help="Write the IR after every pass here."
)
@click.option("--timing", is_flag=True, help="Print seconds per pass (stderr).")
@click.option(
    "--report",
    type=click.Path(file_okay=False),
    help="Folder for compile.json: layers, operations in both orders, sizes.",
)
@click.option(
    "--ir", "ir_file", type=click.Path(dir_okay=False), help="Write the program's IR too (and .safetensors)."
)
@click.option("--no-debug", is_flag=True, help="Leave the debug section out of the program.")
def compile_command(
    model: str,
    output: str,
    arch_file: str | None,
    factory: str | None,
    allow_classes: tuple[str, ...],
    unsafe_load: bool,
    input_shape: tuple[int, ...] | None,
    calibration: str | None,
    calibration_count: int,
    mean: Numbers | None,
    std: Numbers | None,
    bases: int,
    penalty: float,
    planes: int,
    keep_dense: tuple[str, ...],
    refine: bool,
    dense: bool,
    passes: str | None,
    compile_to: str | None,
    print_ir_after_all: bool,
    print_ir_after: tuple[str, ...],
    print_ir_tree_dir: str | None,
    timing: bool,
    report: str | None,
    ir_file: str | None,
    no_debug: bool,
    **budget: Any,
) -> None:
    """Compile MODEL (exported archive, torch.save file, state_dict, safetensors) to a program."""
    for path in (output, *([ir_file] if ir_file is not None else [])):
        _check_output(path)
    goal = goal_of(budget, calibration)
    from escc.driver import CompileOptions, compile_module, import_model
    from escc.isa.arch import Arch

    arch = Arch.load(arch_file)
    with progress_bars() as progress:
        progress("opening the model", 0, 0)
        module = import_model(
            model,
            input_shape=input_shape,
            factory=factory,
            allow_classes=allow_classes,
            unsafe_load=unsafe_load,
        )
        options = CompileOptions(
            dense=dense, bases=bases, penalty=penalty, planes=planes, keep_dense=keep_dense, refine=refine
        )
        outcome: Outcome | None = None
        if goal is not None and calibration is not None:
            outcome, images = choose_settings(
                module,
                goal,
                calibration,
                budget["calibration_labels"],
                calibration_count,
                mean,
                std,
                options,
                arch,
                progress,
            )
        else:
            shape = module.input_ports[0].torch_shape
            images = calibration_images(shape, calibration, calibration_count, mean, std)
        costs: list[LayerCost] = []
        compiled: list[Module] = []
        hooks = _hooks(print_ir_after_all, print_ir_after, print_ir_tree_dir)
        if report is not None:
            costs = _layer_costs(module)
            hooks.append(_keeper(compiled))
        _write_tree(print_ir_tree_dir, 0, "imported", module)
        done = compile_module(
            module,
            arch=arch,
            calibration=images,
            passes=passes if outcome is None else outcome.passes,
            options=options,
            stop_after=compile_to,
            after=hooks,
            progress=progress,
        )
    _warn_of_random_scales(done.module)
    if timing:
        for name, seconds in done.timing.rows:
            click.echo(f"{seconds:9.3f} s  {name}", err=True)
    if done.program is None:
        done.module.save(output)
        click.echo(f"wrote {output} and {output}.safetensors (IR after {compile_to})")
        return
    program = done.program.stripped() if no_debug else done.program
    program.save(output)
    if ir_file is not None:
        done.module.save(ir_file)
    if report is not None:
        _write_report(Path(report), done, costs, _layer_costs(compiled[0]) if compiled else costs, outcome)
    if outcome is not None:
        from escc.budget.report import print_outcome

        print_outcome(outcome)
    _summary(output, done)


def _check_output(output: str) -> None:
    folder = Path(output).absolute().parent
    if not folder.is_dir():
        raise EsccError("the folder does not exist", where=str(folder), hint="create it or choose another -o")
    if Path(output).is_dir():
        raise EsccError("is a folder, not a file", where=output)


def _warn_of_random_scales(module: Module) -> None:
    from escc.passes.calibrate import scales_from

    if scales_from(module) == "synthetic":
        click.echo(
            "warning: no --calibration images: scales come from random inputs, accuracy will suffer",
            err=True,
        )


def _hooks(print_all: bool, print_after: tuple[str, ...], tree: str | None) -> list[AfterPass]:
    hooks: list[AfterPass] = []
    if print_all or print_after:
        unknown = set(print_after) - set(_known_passes())
        if unknown:
            raise EsccError(f"--print-ir-after: unknown pass '{min(unknown)}'")

        def show(_index: int, item: Pass, module: Module, changed: bool) -> None:
            if item.name in print_after or (print_all and changed):
                click.echo(f"// IR after {item.spec()}\n{module.to_text(locations=False)}", err=True)
            elif print_all:
                click.echo(f"// {item.spec()}: no change", err=True)

        hooks.append(show)
    if tree is not None:
        hooks.append(lambda index, item, module, _changed: _write_tree(tree, index + 1, item.name, module))
    return hooks


def _known_passes() -> list[str]:
    from escc.ir.passes import pass_names

    return pass_names()


def _write_tree(folder: str | None, index: int, name: str, module: Module) -> None:
    if folder is None:
        return
    os.makedirs(folder, exist_ok=True)
    atomic_write(Path(folder) / f"{index:02d}-{name}.mlir", module.to_text().encode())


def _layer_rows(done: Compilation) -> list[dict[str, Any]]:
    debug = done.program.debug if done.program is not None else None
    return list(debug["layers"]) if debug else []


def _layer_costs(module: Module) -> list[LayerCost]:
    from escc.passes.costs import layer_costs

    return layer_costs(module)


def _keeper(kept: list[Module]) -> AfterPass:
    """A hook that keeps the module of the last float level, which shares its arrays with the others."""

    def keep(_index: int, _item: Pass, module: Module, changed: bool) -> None:
        if changed and "quantized" not in module.facts:
            kept[:] = [module.clone()]

    return keep


def _write_report(
    folder: Path,
    done: Compilation,
    original: list[LayerCost],
    compiled: list[LayerCost],
    outcome: Outcome | None,
) -> None:
    from escc.passes.costs import bits_per_weight, network_cost

    folder.mkdir(parents=True, exist_ok=True)
    assert done.program is not None
    content = {
        "passes": [{"name": name, "seconds": seconds} for name, seconds in done.timing.rows],
        "code_words": len(done.program.code),
        "data_bytes": len(done.program.data),
        "layers": _layer_rows(done),
        "convolutions": [dataclasses.asdict(cost) for cost in compiled],
        "totals": {
            name: {
                "original": dataclasses.asdict(network_cost(original, classifier=classifier)),
                "compiled": dataclasses.asdict(network_cost(compiled, classifier=classifier)),
            }
            for name, classifier in (("network", True), ("without_classifier", False))
        },
        "bits_per_weight": bits_per_weight(compiled, original),
    }
    if outcome is not None:
        from escc.budget.report import to_json

        content["budget"] = to_json(outcome)
    atomic_write(folder / "compile.json", json.dumps(content, indent=1).encode())


def _summary(output: str, done: Compilation) -> None:
    program = done.program
    assert program is not None
    rows = _layer_rows(done)
    weights = sum(int(row.get("weight_bytes", 0)) for row in rows)
    dense = sum(int(row.get("dense_bytes", 0)) for row in rows)
    ratio = f", {dense / weights:.2f}x less than dense 8-bit" if weights and dense else ""
    click.echo(
        f"wrote {output}: {Path(output).stat().st_size:,} bytes, {len(program.code):,} instruction words, "
        f"{len(rows)} layers, {weights:,} bytes of weights{ratio}"
    )
