"""What ``escc sim`` prints for people; the same figures are in its JSON and CSV."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from escc.backend_sim.simulator import SimResult
    from escc.backend_sim.simulator.result import Row, TimedResult

PIPE_WIDTH = 120
ENERGY_SHOWN = 0.005
"""Components below this share of the energy are left out of the line."""


def print_summary(path: str, result: SimResult, note: str, accuracy: float | None) -> None:
    """Print a summary of a run to stdout."""
    # A file or a pipe has no width: take one that keeps the tables whole.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    images = "1 image" if result.images == 1 else f"{result.images} images"
    speed = result.images / result.seconds if result.seconds else 0.0
    console.print(escape(f"{path}: {images} ({note}), {result.seconds:.2f} s ({speed:.0f} images/s)"))
    if accuracy is not None:
        console.print(f"accuracy {accuracy:.2%}")
    if result.timed is not None:
        _print_timed(console, result, result.timed)


def _print_timed(console: Console, result: SimResult, timed: TimedResult) -> None:
    cycles, arch = timed.timeline.total, timed.arch
    mean = float(cycles.mean())
    count = "1 image" if len(cycles) == 1 else f"mean of {len(cycles)} images"
    microseconds = mean / arch.mhz
    console.print(
        f"{mean:,.0f} cycles ({count}) = {microseconds:,.1f} us at {arch.mhz:g} MHz "
        f"= {1e6 / microseconds:,.0f} images/s; {arch.multipliers} multipliers, "
        f"SRAM {arch.sram_kib} KiB, DRAM {arch.dram_gbps:g} GB/s; engine {result.engine}"
    )
    console.print(_layer_table(timed))
    console.print(_queue_table(result))
    _print_energy(console, result, timed)


def _layer_table(timed: TimedResult) -> Table:
    unit = timed.table.unit
    total = float(timed.timeline.total.mean())
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", no_wrap=True, min_width=16)
    heads = ("cycles", "share", "LC busy", "MAC busy", "DRAM KB", "act.", "coef.", f"energy {_big(unit)}")
    for name in heads:
        table.add_column(name, justify="right", no_wrap=True)
    for layer in timed.layers:
        row = layer.row("energy")
        densities = [layer.density(what) for what in ("activations", "coefficients")]
        moved = float(row["dram_read_bytes"]) + float(row["dram_write_bytes"])
        table.add_row(
            escape(layer.name),
            f"{float(row['elapsed_cycles']):,.0f}",
            f"{float(row['elapsed_cycles']) / total:.1%}" if total else "",
            *(_busy(row, part) for part in ("lc", "mac")),
            f"{moved / 1e3:,.1f}",
            *("" if density is None else f"{density:.0%}" for density in densities),
            f"{float(row['total_energy_energy']) / 1e6:,.3f}",
        )
    return table


def _busy(row: Row, part: str) -> str:
    """The share of a part's row cycles in which it works."""
    cycles = [float(v) for k, v in row.items() if k.startswith(f"{part}_") and k.endswith("_row_cycles")]
    return f"{float(row[f'{part}_busy_row_cycles']) / sum(cycles):.0%}" if sum(cycles) else ""


def _queue_table(result: SimResult) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("queue, cycles", no_wrap=True)
    causes = list(next(iter(result.queues.values())))
    for cause in causes:
        table.add_column(cause.replace("_", " "), justify="right", no_wrap=True)
    for name, values in result.queues.items():
        table.add_row(name, *(f"{float(values[cause].mean()):,.0f}" for cause in causes))
    return table


def _print_energy(console: Console, result: SimResult, timed: TimedResult) -> None:
    unit = timed.table.unit
    energy = {component: float(values.mean()) for component, values in result.energy.items()}
    total = sum(energy.values())
    shares = [
        f"{component.replace('_', ' ')} {value / total:.0%}"
        for component, value in sorted(energy.items(), key=lambda item: -item[1])
        if total and value / total >= ENERGY_SHOWN
    ]
    console.print(
        f"energy {total / 1e6:,.3f} {_big(unit)} per image ({timed.table.name}: {timed.table.about}): "
        + ", ".join(shares)
    )


def _big(unit: str) -> str:
    """The unit of a million of it."""
    return "uJ" if unit == "pJ" else f"M{unit}"
