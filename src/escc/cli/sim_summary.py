"""What ``escc sim`` prints for people; the same figures are in its JSON and CSV."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from escc.backend_sim.simulator import SimResult
    from escc.backend_sim.simulator.result import Row, TimedResult

ENERGY_SHOWN = 0.005
"""Components below this share of the energy are left out of the line."""


def print_summary(path: str, result: SimResult, note: str, accuracy: float | None) -> None:
    """Print a summary of a run to stdout."""
    images = "1 image" if result.images == 1 else f"{result.images} images"
    speed = result.images / result.seconds if result.seconds else 0.0
    click.echo(f"{path}: {images} ({note}), {result.seconds:.2f} s ({speed:.0f} images/s)")
    if accuracy is not None:
        click.echo(f"accuracy {accuracy:.2%}")
    if result.timed is not None:
        _print_timed(result, result.timed)


def _print_timed(result: SimResult, timed: TimedResult) -> None:
    cycles, arch = timed.timeline.total, timed.arch
    mean = float(cycles.mean())
    count = "1 image" if len(cycles) == 1 else f"mean of {len(cycles)} images"
    microseconds = mean / arch.mhz
    click.echo(
        f"{mean:,.0f} cycles ({count}) = {microseconds:,.1f} us at {arch.mhz:g} MHz "
        f"= {1e6 / microseconds:,.0f} images/s"
    )
    click.echo(
        f"{arch.multipliers} multipliers, SRAM {arch.sram_kib} KiB, DRAM {arch.dram_gbps:g} GB/s; "
        f"engine {result.engine}"
    )
    click.echo(_layer_table(timed))
    click.echo(_queue_table(result))
    _print_energy(result, timed)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side, the first to the left, the others to the right, behind an empty line.

    By hand: a library for tables takes longer than many a simulation.
    """
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [
        "   ".join(
            (cell.ljust if not place else cell.rjust)(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (heads, *rows)
    ]
    return "\n".join(["", lines[0], "-" * len(lines[0]), *lines[1:]])


def _layer_table(timed: TimedResult) -> str:
    unit = timed.table.unit
    total = float(timed.timeline.total.mean())
    heads = ("layer", "cycles", "share", "LC busy", "MAC busy", "DRAM KB", "act.", "coef.")
    rows: list[tuple[str, ...]] = []
    for layer in timed.layers:
        row = layer.row("energy")
        densities = [layer.density(what) for what in ("activations", "coefficients")]
        moved = float(row["dram_read_bytes"]) + float(row["dram_write_bytes"])
        rows.append(
            (
                layer.name,
                f"{float(row['elapsed_cycles']):,.0f}",
                f"{float(row['elapsed_cycles']) / total:.1%}" if total else "",
                *(_busy(row, part) for part in ("lc", "mac")),
                f"{moved / 1e3:,.1f}",
                *("" if density is None else f"{density:.0%}" for density in densities),
                f"{float(row['total_energy_energy']) / 1e6:,.3f}",
            )
        )
    return _table((*heads, f"energy {_big(unit)}"), rows)


def _busy(row: Row, part: str) -> str:
    """The share of a part's row cycles in which it works."""
    cycles = [float(v) for k, v in row.items() if k.startswith(f"{part}_") and k.endswith("_row_cycles")]
    return f"{float(row[f'{part}_busy_row_cycles']) / sum(cycles):.0%}" if sum(cycles) else ""


def _queue_table(result: SimResult) -> str:
    causes = list(next(iter(result.queues.values())))
    rows = [
        (name, *(f"{float(values[cause].mean()):,.0f}" for cause in causes))
        for name, values in result.queues.items()
    ]
    return _table(("queue, cycles", *(cause.replace("_", " ") for cause in causes)), rows)


def _print_energy(result: SimResult, timed: TimedResult) -> None:
    unit = timed.table.unit
    energy = {component: float(values.mean()) for component, values in result.energy.items()}
    total = sum(energy.values())
    shares = [
        f"{component.replace('_', ' ')} {value / total:.0%}"
        for component, value in sorted(energy.items(), key=lambda item: -item[1])
        if total and value / total >= ENERGY_SHOWN
    ]
    click.echo(
        f"\nenergy {total / 1e6:,.3f} {_big(unit)} per image ({timed.table.name}: {timed.table.about}): "
        + ", ".join(shares)
    )


def _big(unit: str) -> str:
    """The unit of a million of it."""
    return "uJ" if unit == "pJ" else f"M{unit}"
