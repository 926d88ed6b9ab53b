"""``escc sim``: run a program on the simulated machine."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from escc.cli.images import Numbers, normalisation_options
from escc.cli.progress import progress_bars
from escc.errors import EsccError
from escc.files import atomic_write

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from escc.backend_sim.simulator import SimResult
    from escc.isa.arch import Arch
    from escc.isa.program import Program


@click.command("sim")
@click.argument("program", type=click.Path())
@click.option(
    "--input",
    "source",
    type=click.Path(),
    help="Images: .npy, .npz by input name, or a data set (its test images); default: random ones.",
)
@normalisation_options
@click.option(
    "--labels", type=click.Path(), help="Class numbers (.npy, or the data set): prints the accuracy."
)
@click.option(
    "--expected", type=click.Path(), help="Outputs to compare with (.npy, .npz); exit code 1 if one differs."
)
@click.option("--output", type=click.Path(dir_okay=False), help="Write the integer outputs (.npy, .npz).")
@click.option(
    "--images",
    type=click.IntRange(1),
    help="How many images to run; default: all of the input, 1 random one.",
)
@click.option(
    "--timing-images",
    default=1,
    show_default=True,
    type=click.IntRange(0),
    help="How many of them get cycles and energy.",
)
@click.option("--functional", is_flag=True, help="Outputs only, no cycles.")
@click.option("--energy-table", metavar="NAME|FILE", help="Energy per event; default horowitz45.")
@click.option("--clock-mhz", type=float, help="Another clock than the program was compiled for.")
@click.option("--dram-gbps", type=float, help="Another DRAM bandwidth.")
@click.option("--dram-latency", type=int, metavar="CYCLES", help="Another DRAM latency.")
@click.option(
    "--report",
    type=click.Path(file_okay=False),
    help="Folder for report.html (figures to look at), simulation.json and layers.csv.",
)
@click.option("--json", "json_file", type=click.Path(), help="Write the figures as JSON; '-' is stdout.")
@click.option(
    "--trace",
    type=click.Path(dir_okay=False),
    help="Write a timeline for ui.perfetto.dev or chrome://tracing.",
)
@click.option("--seed", default=0, show_default=True, type=int, help="Seed of the random images.")
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Threads for images that are not timed; more than one pays for large maps.",
)
@click.option(
    "--engine",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "native", "numpy"]),
    help="What times the convolutions; auto: native where it was built.",
)
@click.pass_context
def sim_command(
    ctx: click.Context,
    program: str,
    source: str | None,
    mean: Numbers | None,
    std: Numbers | None,
    labels: str | None,
    expected: str | None,
    output: str | None,
    images: int | None,
    timing_images: int,
    functional: bool,
    energy_table: str | None,
    clock_mhz: float | None,
    dram_gbps: float | None,
    dram_latency: int | None,
    report: str | None,
    json_file: str | None,
    trace: str | None,
    seed: int,
    workers: int,
    engine: str,
) -> None:
    """Run PROGRAM: its outputs for every image, cycles and energy for the first few."""
    if functional and (energy_table or trace or clock_mhz or dram_gbps or dram_latency is not None):
        raise click.UsageError("--functional gives no cycles: leave out the options about time and energy")
    if "numpy" not in sys.modules:
        # The matrices are small: one BLAS thread is as fast, and leaves the other core to the workers.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from escc.backend_sim.simulator import EnergyTable, simulate
    from escc.isa.program import Program

    # What is loaded by now stays to the end, and a run makes few cycles: look for them seldom.
    gc.freeze()
    gc.set_threshold(50_000)
    for folder in (output, trace, None if json_file == "-" else json_file):
        _check_folder(folder)
    loaded = Program.load(program)
    machine = _machine(loaded, clock_mhz, dram_gbps, dram_latency)
    table = None if functional else EnergyTable.load(energy_table)
    inputs, note = _inputs(loaded, source, images, seed, mean, std)
    wanted = None if expected is None else _arrays(expected)
    classes = None if labels is None else _labels(labels, images)
    with progress_bars() as progress:
        result = simulate(
            loaded,
            inputs,
            timing_images=None if functional else timing_images,
            energy_table=table,
            arch=machine,
            workers=workers,
            engine=engine,
            progress=progress,
        )
    accuracy = None if classes is None else _accuracy(result, classes)
    _write(result, output, json_file, trace)
    if report is not None:
        _write_report(result, report, Path(program).name, note)
    if json_file != "-":
        from escc.cli.sim_summary import print_summary

        print_summary(program, result, note, accuracy)
    if wanted is not None:
        _compare(result, wanted, str(expected))
    ctx.exit(0)


def _check_folder(path: str | None) -> None:
    if path is not None and not Path(path).absolute().parent.is_dir():
        raise EsccError("the folder does not exist", where=str(Path(path).absolute().parent))


def _machine(program: Program, mhz: float | None, gbps: float | None, latency: int | None) -> Arch:
    changes: dict[str, Any] = {"mhz": mhz, "dram_gbps": gbps, "dram_latency_cycles": latency}
    return program.arch.replace(**{name: value for name, value in changes.items() if value is not None})


def _inputs(
    program: Program,
    source: str | None,
    images: int | None,
    seed: int,
    mean: Numbers | None,
    std: Numbers | None,
) -> tuple[dict[str, NDArray[Any]], str]:
    """Arrays by input name, and where they come from in words."""
    from escc.backend_sim.simulator import random_images

    if source is None:
        count = images or 1
        arrays = {item.name: random_images(item, count, seed) for item in program.inputs}
        return arrays, f"random input, seed {seed}: not real images"
    names = [item.name for item in program.inputs]
    if len(names) == 1 and (mean is not None or std is not None or not _is_numpy(source)):
        from escc.frontend.data import load_images

        shape = program.inputs[0].torch_shape
        pictures = load_images(source, shape, limit=images, mean=mean, std=std)
        return {names[0]: pictures}, f"input {source}"
    arrays = _arrays(source)
    if len(arrays) == 1 and len(names) == 1:
        arrays = dict(zip(names, arrays.values(), strict=True))
    missing = [name for name in names if name not in arrays]
    if missing:
        raise EsccError(
            f"holds {', '.join(arrays)}, the program takes {', '.join(names)}",
            where=source,
            hint=f"no array is named {missing[0]!r}",
        )
    for item in program.inputs:
        if arrays[item.name].shape == item.torch_shape:
            arrays[item.name] = arrays[item.name][None]
    return {name: arrays[name][:images] for name in names}, f"input {source}"


def _is_numpy(path: str) -> bool:
    """Whether a file is numpy's, or nothing that can be looked into (so that reading it says why)."""
    if Path(path).is_dir():
        return False
    try:
        with Path(path).open("rb") as stream:
            return stream.read(4) in (b"\x93NUM", b"PK\x03\x04", b"")
    except OSError:
        return True


def _arrays(path: str) -> dict[str, NDArray[Any]]:
    """The arrays of a .npy or .npz file by name; the one of a .npy is named after the file."""
    import numpy as np

    try:
        content = np.load(path, allow_pickle=False, mmap_mode="r")
        if isinstance(content, np.ndarray):
            return {Path(path).stem: content}
        with content:
            arrays = {name: content[name] for name in content.files}
    except OSError as error:
        raise EsccError(f"cannot read: {error.strerror or error}", where=path) from None
    except Exception as error:  # numpy and zipfile raise whatever a damaged file makes them trip over
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise EsccError(f"not a .npy or .npz file of plain numbers: {reason}", where=path) from None
    if not arrays:
        raise EsccError("holds no arrays", where=path)
    return arrays


def _labels(path: str, images: int | None) -> NDArray[Any]:
    if not _is_numpy(path):
        from escc.frontend.data import load_labels

        return load_labels(path, limit=images)
    arrays = _arrays(path)
    if len(arrays) != 1:
        raise EsccError(f"holds {len(arrays)} arrays, one was expected", where=path)
    values = next(iter(arrays.values()))
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise EsccError(
            f"labels must be a list of integers, not {values.dtype} of shape {values.shape}", where=path
        )
    return values[:images]


def _accuracy(result: SimResult, labels: NDArray[Any]) -> float:
    import numpy as np

    scores = result.outputs[0].reshape(result.images, -1)
    if len(labels) != result.images:
        raise EsccError(f"{len(labels)} labels for {result.images} images", where="--labels")
    return float(np.mean(scores.argmax(axis=1) == labels))


def _write(result: SimResult, output: str | None, json_file: str | None, trace: str | None) -> None:
    if output is not None:
        atomic_write(output, _output_bytes(result, output))
    if trace is not None:
        from escc.backend_sim.report import chrome_trace

        atomic_write(trace, chrome_trace(result).encode())
    if json_file == "-":
        click.echo(result.to_json(), nl=False)
    elif json_file is not None:
        atomic_write(json_file, result.to_json().encode())


def _write_report(result: SimResult, report: str, title: str, note: str) -> None:
    """The files of ``--report``; a run without timing has only its JSON."""
    folder = Path(report)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EsccError(f"cannot create the folder: {error.strerror}", where=report) from None
    atomic_write(folder / "simulation.json", result.to_json().encode())
    if result.timed is not None:
        from escc.backend_sim.report import html_report

        atomic_write(folder / "layers.csv", result.to_csv().encode())
        atomic_write(folder / "report.html", html_report(result, title, note).encode())


def _output_bytes(result: SimResult, path: str) -> bytes:
    import io

    import numpy as np

    stream = io.BytesIO()
    if path.endswith(".npz"):
        names = [item.name for item in result.maps]
        np.savez(stream, **dict(zip(names, result.outputs, strict=True)))  # type: ignore[arg-type]
    elif len(result.outputs) == 1:
        np.save(stream, result.outputs[0])
    else:
        raise EsccError(f"the program has {len(result.outputs)} outputs: name a .npz file", where=path)
    return stream.getvalue()


def _compare(result: SimResult, wanted: dict[str, NDArray[Any]], path: str) -> None:
    """Raise EsccError naming the first output value that differs."""
    import numpy as np

    names = [item.name for item in result.maps]
    if len(wanted) == 1 and len(names) == 1:
        wanted = dict(zip(names, wanted.values(), strict=True))
    if set(wanted) != set(names):
        raise EsccError(f"holds {', '.join(wanted)}, the outputs are {', '.join(names)}", where=path)
    for index, name in enumerate(names):
        right = wanted[name]
        got = result.outputs_float[index] if right.dtype.kind == "f" else result.outputs[index]
        if right.shape != got.shape:
            raise EsccError(f"{name} has shape {right.shape}, the output {got.shape}", where=path)
        different = np.argwhere(got != right)
        if len(different):
            place = tuple(different[0].tolist())
            raise EsccError(
                f"output {name} differs from {path} in {len(different)} of {got.size} values, first at "
                f"{list(place)}: {got[place]}, expected {right[place]}"
            )
    click.echo(f"outputs equal {path}", err=True)
