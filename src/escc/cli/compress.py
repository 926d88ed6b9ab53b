"""``escc compress``: retrain a network in its decomposed form."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from escc.cli.compile import model_options
from escc.cli.progress import progress_bars
from escc.errors import EsccError


@click.command("compress")
@click.argument("model", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), help="Archive to write.")
@click.option(
    "--data", required=True, type=click.Path(), help="Data set: idx, CIFAR or picture folder, or .npz."
)
@click.option("--recipe", required=True, metavar="FILE|NAME", help="TOML recipe, or a shipped one.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="PHASE.OPTION=VALUE",
    help="Change an option of the recipe; repeat.",
)
@model_options
@click.option(
    "--work",
    type=click.Path(file_okay=False),
    help="Folder of the run (checkpoint, log.jsonl); default: OUTPUT.run. A run there goes on.",
)
@click.option("--restart", is_flag=True, help="Begin anew.")
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]),
              help="auto: a GPU when there is one.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of torch; default: all cores.")
@click.option(
    "--checkpoint-seconds",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0.0),
    help="Most seconds between two checkpoints.",
)
def compress_command(
    model: str,
    output: str,
    data: str,
    recipe: str,
    settings: tuple[str, ...],
    work: str | None,
    restart: bool,
    device: str,
    threads: int | None,
    checkpoint_seconds: float,
    **opening: Any,
) -> None:
    """Carry a recipe out on MODEL: decompose, retrain, prune, shrink, quantise, fine-tune.

    Killed at any moment, the same command goes on where it was. Several processes: torchrun -m escc compress.
    """
    folder = Path(output).resolve().parent
    if not folder.is_dir():
        raise EsccError("no such folder", where=str(folder))
    import torch

    from escc.training.compress import compress

    # the command line keeps BLAS at one thread for short commands; training wants them all, and the processes
    # that torchrun starts on one machine share them
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // beside))
    with progress_bars() as progress:
        done = compress(
            model,
            data,
            recipe,
            work=work or f"{output}.run",
            settings=settings,
            restart=restart,
            device=device,
            checkpoint_seconds=checkpoint_seconds,
            progress=progress,
            say=lambda line: click.echo(line, err=True),
            **opening,
        )
    if not done.leads:
        return
    done.save(output)
    click.echo(f"{'phase':<24}{'accuracy':>10}{'seconds':>10}")
    for row in done.history:
        click.echo(f"{row['phase']:<24}{row['accuracy']:>10.2%}{row['seconds']:>10.0f}")
    click.echo(f"wrote {output}")
