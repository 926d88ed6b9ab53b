"""The front as an SVG: two objectives on logarithmic axes, a third as colour; no library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

WIDTH, HEIGHT = 640, 420
LEFT, RIGHT, TOP, BOTTOM = 66, 120, 34, 48
FONT = "font-family='sans-serif' font-size='11'"
SHADES = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Viridis: even steps of lightness, for every eye."""


@dataclass(frozen=True)
class Mark:
    """A measured point; ``shade`` is the third objective, ``best`` whether it is on the front. ``name``: of a
    machine to point out."""

    x: float
    y: float
    shade: float | None
    best: bool
    hint: str
    name: str = ""


def plot(marks: Sequence[Mark], *, title: str, x_label: str, y_label: str, shade_label: str) -> str:
    """The plot as SVG text; x and y are positive."""
    across, xs = _axis([mark.x for mark in marks], LEFT, WIDTH - RIGHT)
    down, ys = _axis([mark.y for mark in marks], HEIGHT - BOTTOM, TOP)
    body = [
        f"<rect width='{WIDTH}' height='{HEIGHT}' fill='white'/>",
        f"<text x='{LEFT}' y='18' {FONT} font-weight='bold'>{escape(title)}</text>",
    ]
    for x in xs:
        body.append(_line(across(x), TOP, across(x), HEIGHT - BOTTOM, "#dddddd"))
        body.append(_text(across(x), HEIGHT - BOTTOM + 15, f"{x:g}", "middle"))
    for y in ys:
        body.append(_line(LEFT, down(y), WIDTH - RIGHT, down(y), "#dddddd"))
        body.append(_text(LEFT - 6, down(y) + 4, f"{y:g}", "end"))
    body.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x_label, "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    body.append(
        f"<text transform='translate(14 {middle}) rotate(-90)' text-anchor='middle' {FONT}>"
        f"{escape(y_label)}</text>"
    )
    shades = [mark.shade for mark in marks if mark.shade is not None]
    low, high = (min(shades), max(shades)) if shades else (0.0, 0.0)
    for mark in sorted(marks, key=lambda mark: (bool(mark.name), mark.best)):
        share = 0.0 if mark.shade is None or high == low else (mark.shade - low) / (high - low)
        body.append(_circle(mark, across(mark.x), down(mark.y), _colour(share)))
    for mark in marks:
        if mark.name:
            x = across(mark.x)
            late = x > (LEFT + WIDTH - RIGHT) / 2
            side, anchor = (-9, "end") if late else (9, "start")
            body.append(_text(x + side, down(mark.y) - 7, mark.name, anchor))
    if shades and high > low:
        body += _scale(shade_label, low, high)
    inside = "\n".join(body)
    return f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}'>\n{inside}\n</svg>\n"


def _circle(mark: Mark, x: float, y: float, colour: str) -> str:
    edge = " stroke='black' stroke-width='1.5'" if mark.best or mark.name else ""
    size = 6 if mark.name else 4.5 if mark.best else 2.5
    opacity = 1 if mark.best or mark.name else 0.45
    return (
        f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{size}' fill='{colour}' fill-opacity='{opacity}'{edge}>"
        f"<title>{escape(mark.hint)}</title></circle>"
    )


def _scale(label: str, low: float, high: float) -> list[str]:
    left, steps = WIDTH - RIGHT + 24, 40
    height = (HEIGHT - TOP - BOTTOM) / steps
    bars = [
        f"<rect x='{left}' y='{HEIGHT - BOTTOM - (step + 1) * height:.1f}' width='14' "
        f"height='{height + 0.5:.1f}' fill='{_colour((step + 0.5) / steps)}'/>"
        for step in range(steps)
    ]
    ends = [(HEIGHT - BOTTOM, low), (TOP + 8, high)]
    return [
        *bars,
        *(_text(left + 18, y, f"{value:.3g}", "start") for y, value in ends),
        _text(left - 10, TOP - 8, label, "start"),
    ]


def _colour(share: float) -> str:
    place = min(max(share, 0.0), 1.0) * (len(SHADES) - 1)
    index = min(int(place), len(SHADES) - 2)
    mixed = [a + (b - a) * (place - index) for a, b in zip(SHADES[index], SHADES[index + 1], strict=True)]
    return "#" + "".join(f"{round(value):02x}" for value in mixed)


def _axis(values: Sequence[float], first: float, last: float) -> tuple[Callable[[float], float], list[float]]:
    """Where a value lies between the pixels ``first`` and ``last``, logarithmically, and the ticks."""
    ticks = _ticks(min(values), max(values))
    low, high = log10(min(ticks[0], min(values))), log10(max(ticks[-1], max(values)))
    span = high - low or 1.0

    def place(value: float) -> float:
        return first + (last - first) * (log10(value) - low) / span

    return place, ticks


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers that hold both ends: 1, 2, 5 of a decade, finer where that would be two."""
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 5, 7), tuple(n / 10 for n in range(10, 100))):
        decades = range(floor(log10(low)) - 1, ceil(log10(high)) + 2)
        every = sorted({float(f"{step * 10.0**decade:.6g}") for decade in decades for step in steps})
        first = max(index for index, value in enumerate(every) if value <= low * (1 + 1e-12))
        last = min(index for index, value in enumerate(every) if value >= high * (1 - 1e-12))
        if last - first >= 3:
            break
    return every[first : last + 1][:: max(1, (last - first) // 8)]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='{colour}'/>"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' {FONT}>{escape(text)}</text>"
