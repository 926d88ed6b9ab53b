"""``escc demo``: the whole story on real images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from escc.cli.progress import progress_bars
from escc.errors import EsccError
from escc.files import atomic_write

if TYPE_CHECKING:
    from escc.demo.story import Story


@click.command("demo")
@click.option(
    "--images", default=2000, show_default=True, type=click.IntRange(1, 2000), help="Test images to run."
)
@click.option(
    "--timing-images",
    default=8,
    show_default=True,
    type=click.IntRange(1, 2000),
    help="Images whose cycles and energy are simulated; the table shows their mean.",
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write the figures here too.")
@click.option("--keep", type=click.Path(file_okay=False), help="Folder to keep the compiled programs in.")
def demo_command(images: int, timing_images: int, json_file: str | None, keep: str | None) -> None:
    """Compile a trained ResNet-20 without retraining, run it on the simulated machine on real images.

    The network was trained on Fashion-MNIST; everything needed is inside the package.
    """
    from escc.demo.story import tell

    if json_file is not None and not Path(json_file).absolute().parent.is_dir():
        raise EsccError("the folder does not exist", where=str(Path(json_file).absolute().parent))
    with progress_bars() as progress:
        story = tell(images=images, timed_images=timing_images, progress=progress)
    if keep is not None:
        folder = Path(keep)
        folder.mkdir(parents=True, exist_ok=True)
        for name, program in story.programs.items():
            program.save(folder / (name.replace(" ", "-").replace(",", "") + ".bin"))
    if json_file is not None:
        atomic_write(json_file, json.dumps(story.to_json(), indent=1).encode())
    _show(story)


def _show(story: Story) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"ResNet-20 on Fashion-MNIST, {story.images:,} test images, compiled without retraining"
    )
    table.add_column("setting")
    for heading in (
        "integer reference %", "program on machine %", "vs fp32", "weight bytes", "decomposed layers",
        "density", "cycles", "energy nJ", "speed-up",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    dense = story.rows[0]
    for row in story.rows:
        table.add_row(
            row.setting,
            f"{100 * row.reference_accuracy:.2f}",
            f"{100 * row.program_accuracy:.2f}",
            f"{100 * (row.program_accuracy - story.float_accuracy):+.2f}",
            f"{row.weight_bytes:,}",
            f"{row.ratio:.2f}x smaller" if row.decomposed_bytes else "-",
            f"{100 * row.density:.1f} %" if row.decomposed_bytes else "-",
            f"{row.cycles:,.0f}",
            f"{row.energy_pj / 1e3:,.1f}",
            f"{dense.cycles / row.cycles:.2f}x",
        )
    console = Console(width=None if Console().is_terminal else 150)
    console.print(table)
    equal = all(row.predictions_equal for row in story.rows)
    verdict = "equal" if equal else "DIFFER FROM"
    console.print(
        f"fp32 network: {100 * story.float_accuracy:.2f} %. Simulated outputs {verdict} the integer "
        f"reference on all {story.images:,} images, bit for bit."
    )
    console.print(
        "Weight bytes as stored in the program; 'decomposed layers': against dense 8-bit; "
        f"cycles and energy per image, mean of {story.timed_images}; speed-up: over dense, same machine."
    )
    console.print(f"took {story.seconds:.1f} s")
