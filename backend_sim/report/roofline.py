"""Rooflines: what the multipliers and the adders do in a cycle, against operations per byte of DRAM traffic.

The rate of a layer is its operations over the cycles in which any of its instructions runs. Its transfers and
convolutions run inside these cycles, so no point can lie above a roof: bytes move at the DRAM's bandwidth at
most, and a multiplier or adder does one operation a cycle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from escc.backend_sim.report.figures import LayerFigures, RunFigures
from escc.backend_sim.report.limits import Limit
from escc.backend_sim.report.svg import WIDTH, svg_open
from escc.backend_sim.report.text import escape, number, short

_Place = Callable[[float, float], tuple[float, float]]

HEIGHT = 300
TOP, BOTTOM, LEFT, SIDE = 30, 40, 52, 470

LIMIT_COLOURS = {
    "dma": "c4",
    "mac": "c3",
    "lc": "c1",
    "ring": "c5",
    "idle": "c7",
    "vec": "c8",
    "sequencer": "c6",
    "hidden": "c9",
}


@dataclass(frozen=True)
class Point:
    """A layer: operations per DRAM byte (infinite without traffic) and operations per active cycle."""

    layer: LayerFigures
    intensity: float
    rate: float


def points(run: RunFigures, key: str) -> list[Point]:
    """The layers that do operations of the JSON record's ``key``."""
    found: list[Point] = []
    for layer in run.layers:
        operations = layer.value(key)
        if operations and layer.active:
            moved = layer.dram_bytes
            found.append(Point(layer, operations / moved if moved else math.inf, operations / layer.active))
    return found


def roofline(run: RunFigures, limits: dict[int, Limit]) -> str:
    """Both rooflines side by side; ``limits`` by layer number colours the points."""
    parts = [svg_open("Rooflines of multipliers and adders", HEIGHT)]
    panels = (
        ("multiplications", "products_ops", run.arch.multipliers, 0.0),
        ("additions", "additions_ops", run.adders, WIDTH - SIDE),
    )
    for name, key, roof, left in panels:
        parts.append(_panel(run, name, points(run, key), roof, left, limits))
    return f"<figure>{''.join(parts)}</svg></figure>"


def _panel(
    run: RunFigures, name: str, found: list[Point], roof: int, left: float, limits: dict[int, Limit]
) -> str:
    bandwidth = run.arch.bytes_per_cycle
    ridge = roof / bandwidth
    finite = [point.intensity for point in found if math.isfinite(point.intensity)]
    low_x, high_x = _decades([*finite, ridge / 3, ridge * 3])
    low_y, high_y = _decades([*(point.rate for point in found), roof, roof / 30])
    x0, x1, y0, y1 = left + LEFT, left + SIDE - 8, HEIGHT - BOTTOM, TOP

    def at(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - low_x) / (high_x - low_x)
        up = (math.log10(y) - low_y) / (high_y - low_y)
        return x0 + min(max(across, 0), 1) * (x1 - x0), y0 - min(max(up, 0), 1) * (y0 - y1)

    parts = [f'<text class="t" x="{number(x0)}" y="12">{name} a cycle, against {name} per DRAM byte</text>']
    for power in range(low_x, high_x + 1):
        x = number(at(10.0**power, 1)[0])
        parts.append(
            f'<path class="g" d="M{x} {y1}V{y0}"/><text class="k" x="{x}" y="{y0 + 14}">{_ten(power)}</text>'
        )
    for power in range(low_y, high_y + 1):
        y = at(1, 10.0**power)[1]
        parts.append(f'<path class="g" d="M{number(x0)} {number(y)}H{number(x1)}"/>')
        parts.append(f'<text class="l" x="{number(x0 - 6)}" y="{number(y + 3)}">{_ten(power)}</text>')
    parts.append(f'<text class="k" x="{number((x0 + x1) / 2)}" y="{y0 + 30}">{name} per byte</text>')
    parts.append(_roofs(at, bandwidth, ridge, roof, name, 10.0**low_x, 10.0**low_y, 10.0**high_x))
    parts += _dots(found, at, limits, 10.0**high_x)
    return "".join(parts)


def _roofs(
    at: _Place, bandwidth: float, ridge: float, roof: int, name: str, x0: float, y0: float, x1: float
) -> str:
    begin = max(x0, y0 / bandwidth)
    bx, by = at(begin, begin * bandwidth)
    rx, ry = at(ridge, roof)
    ex, ey = at(x1, roof)
    what = "multipliers" if name == "multiplications" else "adders"
    path = f"M{number(bx)} {number(by)}L{number(rx)} {number(ry)}H{number(ex)}"
    slope = math.degrees(math.atan2(ry - by, rx - bx))
    mx, my = (bx + rx) / 2, (by + ry) / 2
    turn = f'transform="rotate({number(slope)} {number(mx)} {number(my)})"'
    return (
        f'<path class="roof" d="{path}"/>'
        f'<text class="e" x="{number(ex)}" y="{number(ey - 5)}">{roof:,} {what}</text>'
        f'<text class="m" x="{number(mx)}" y="{number(my - 9)}" {turn}>DRAM {bandwidth:g} B a cycle</text>'
    )


def _dots(found: list[Point], at: _Place, limits: dict[int, Limit], edge: float) -> list[str]:
    parts: list[str] = []
    places: list[tuple[float, float]] = []
    for point in found:
        x, y = at(point.intensity if math.isfinite(point.intensity) else edge, point.rate)
        places.append((x, y))
        kind = limits[point.layer.number].kind
        ratio = short(point.intensity) if math.isfinite(point.intensity) else "no DRAM traffic, unlimited"
        hint = f"{point.layer.position} {point.layer.name}: {short(point.rate)} a cycle, {ratio} per byte"
        parts.append(
            f'<circle class="{LIMIT_COLOURS[kind]} dot" cx="{number(x)}" cy="{number(y)}" r="4.5">'
            f"<title>{escape(hint)}</title></circle>"
        )
    return parts + _numbers(found, places)


def _numbers(found: list[Point], places: list[tuple[float, float]]) -> list[str]:
    """The number of a layer beside its dot, where there is room; layers that take longest choose first."""
    parts: list[str] = []
    taken = list(places)
    for index in sorted(range(len(found)), key=lambda item: (-found[item].layer.active, item)):
        x, y = places[index]
        others = taken[:index] + taken[index + 1 :]
        for centre in ((x + 12, y), (x - 12, y), (x, y - 11), (x, y + 11)):
            if all(abs(centre[0] - ox) > 13 or abs(centre[1] - oy) > 9 for ox, oy in others):
                taken.append(centre)
                label = f'x="{number(centre[0])}" y="{number(centre[1] + 3.5)}">{found[index].layer.position}'
                parts.append(f'<text class="m n" {label}</text>')
                break
    return parts


def _decades(values: list[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _ten(power: int) -> str:
    return short(10.0**power) if power >= 0 else f"{10.0**power:g}"
