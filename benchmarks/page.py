"""The figures of `benchmarks.table` as Markdown, in between two marks of a page that people write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from escc.errors import EsccError
from escc.files import atomic_write

BEGIN = "<!-- written by python -m benchmarks.table: begin -->"
END = "<!-- written by python -m benchmarks.table: end -->"
SHOWN = 12
"""Areas of a profile that are printed."""

COLUMNS = (
    "network", "input", "compile s (CPU)", "MiB", "native s (CPU)", "MiB", "numpy s (CPU)", "MiB",
    "simulated cycles", "predicted",
)  # fmt: skip


def render(result: Mapping[str, Any]) -> str:
    """Everything measured: machine, command, cold start, networks, profiles."""
    machine = result["machine"]
    rows: Sequence[Mapping[str, Any]] = result["networks"]
    load = [usage["load"] for row in rows for usage in _usages(row)]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, "
        f"Python {machine['python']}, threads {result['threads']}; load of the machine while measuring "
        f"{min(load):.1f} to {max(load):.1f}.",
        "",
        f"`{result['command']}`",
        "",
        f"Whole processes, the least of {result['repeat']} runs each: wall-clock seconds, CPU seconds in "
        "brackets, peak memory. One image, random weights. Predicted: the compiler's cost model against the "
        "simulated cycles.",
        "",
        _row(COLUMNS),
        "|---" * 2 + "|---:" * (len(COLUMNS) - 2) + "|",
        *(_row(_cells(row)) for row in rows),
        "",
        "| start | s (CPU) | MiB |",
        "|---|---:|---:|",
    ]
    for name, usage in result["cold_start"].items():
        lines.append(_row((f"`{name}`", _seconds(usage), f"{usage['mib']:.0f}")))
    for row in rows:
        lines += _passes(row) if "profile" in row else []
        lines += _profile(row) if "profile" in row else []
    return "\n".join(lines)


def replace_section(path: Path, text: str, marks: tuple[str, str] = (BEGIN, END)) -> None:
    """Write ``text`` between the marks of a page.

    Raises:
        EsccError: the page is not there or does not have the marks, once each and in order.
    """
    try:
        page = path.read_text(encoding="utf-8")
    except OSError as error:
        raise EsccError(f"cannot read: {error.strerror}", where=str(path)) from None
    first, last = marks
    before, begin, rest = page.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end or first in after or last in before + after:
        raise EsccError("has no place for the figures", where=str(path), hint=f"mark it: {first} ... {last}")
    atomic_write(path, f"{before}{first}\n\n{text}\n\n{last}{after}".encode())


def _usages(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row[name] for name in ("compile", "native", "numpy") if name in row]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _seconds(usage: Mapping[str, Any]) -> str:
    return f"{usage['wall']:.2f} ({usage['cpu']:.2f})"


def _cells(row: Mapping[str, Any]) -> list[str]:
    cells = [row["network"], "x".join(str(size) for size in row["input"])]
    for name in ("compile", "native", "numpy"):
        usage = row.get(name)
        cells += ["", ""] if usage is None else [_seconds(usage), f"{usage['mib']:.0f}"]
    return [*cells, f"{row['cycles']:,}", f"{row['predicted_cycles'] / row['cycles'] - 1:+.1%}"]


def _passes(row: Mapping[str, Any]) -> list[str]:
    passes: Mapping[str, float] = row["passes"]
    rest = row["compile"]["wall"] - sum(passes.values())
    parts = [f"{name} {seconds:.1f}" for name, seconds in sorted(passes.items(), key=lambda item: -item[1])]
    return [
        "",
        f"Compiling {row['network']}, wall-clock seconds: {', '.join(parts)}; start, imports, capture, "
        f"lowering and writing {rest:.1f}.",
    ]


def _profile(row: Mapping[str, Any]) -> list[str]:
    seconds: Mapping[str, float] = row["profile"]["seconds"]
    total = sum(seconds.values())
    ranked = sorted(seconds.items(), key=lambda item: -item[1])
    lines = [
        "",
        f"Simulating {row['network']} ({row['profile']['engine']}), {total:.2f} CPU seconds by module, with "
        "what it calls in numpy and C:",
        "",
        "| module | s | share |",
        "|---|---:|---:|",
    ]
    lines += [_row((name, f"{value:.3f}", f"{value / total:.0%}")) for name, value in ranked[:SHOWN]]
    rest = sum(value for _, value in ranked[SHOWN:])
    return [*lines, _row(("everything else", f"{rest:.3f}", f"{rest / total:.0%}"))]
