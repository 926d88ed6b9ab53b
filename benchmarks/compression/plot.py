"""A scatter plot as SVG: points in families, a logarithmic x axis, no library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f", "#000000")
"""Okabe and Ito's palette, told apart by colour-blind readers too."""
SHAPES = ("circle", "square", "triangle", "diamond")
WIDTH, HEIGHT = 560, 360
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 34, 46
LINE = 15
FONT = "font-family='sans-serif' font-size='11'"


@dataclass(frozen=True)
class Point:
    """One mark; points of a family share its colour, those that say so are joined from left to right."""

    x: float
    y: float
    label: str
    family: str
    joined: bool = True


def scatter(points: Sequence[Point], *, title: str, x_label: str, y_label: str) -> str:
    """The plot as SVG text: y linear, x logarithmic (positive)."""
    families = list(dict.fromkeys(point.family for point in points))
    height = HEIGHT + LINE * ceil(len(families) / 2)
    xs = _log_ticks([point.x for point in points])
    ys = _ticks([point.y for point in points])
    low, high = log10(xs[0]), log10(xs[-1])

    def across(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (log10(x) - low) / (high - low)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - ys[0]) / (ys[-1] - ys[0])

    body = [
        f"<rect width='{WIDTH}' height='{height}' fill='white'/>",
        f"<text x='{WIDTH / 2}' y='18' text-anchor='middle' {FONT} font-weight='bold'>{escape(title)}</text>",
    ]
    for x in xs:
        body += [
            f"<line x1='{across(x):.1f}' x2='{across(x):.1f}' y1='{TOP}' y2='{HEIGHT - BOTTOM}' "
            "stroke='#dddddd'/>",
            f"<text x='{across(x):.1f}' y='{HEIGHT - BOTTOM + 15}' text-anchor='middle' {FONT}>"
            f"{_short(x)}</text>",
        ]
    for y in ys:
        body += [
            f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{down(y):.1f}' y2='{down(y):.1f}' "
            "stroke='#dddddd'/>",
            f"<text x='{LEFT - 6}' y='{down(y) + 4:.1f}' text-anchor='end' {FONT}>{y:g}</text>",
        ]
    body += [
        f"<text x='{(LEFT + WIDTH - RIGHT) / 2}' y='{HEIGHT - 10}' text-anchor='middle' {FONT}>"
        f"{escape(x_label)}</text>",
        f"<text transform='translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)' text-anchor='middle' "
        f"{FONT}>{escape(y_label)}</text>",
    ]
    taken: list[tuple[float, float, float]] = []
    labels: list[str] = []
    for index, family in enumerate(families):
        colour, shape = COLOURS[index % len(COLOURS)], SHAPES[index % len(SHAPES)]
        places = sorted((across(p.x), down(p.y), p.label) for p in points if p.family == family)
        ends = sorted((across(p.x), down(p.y)) for p in points if p.family == family and p.joined)
        if len(ends) > 1:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in ends)
            body.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-opacity='0.5'/>")
        for x, y, label in places:
            body.append(_mark(shape, x, y, colour, label))
            labels.append(_label(x, y, label, colour, taken))
        body += _legend(index, family, shape, colour)
    body += labels
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' width='{WIDTH}' "
        f"height='{height}' role='img' aria-label='{escape(title, quote=True)}'>\n"
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _legend(index: int, family: str, shape: str, colour: str) -> list[str]:
    x = LEFT + (index % 2) * (WIDTH - LEFT) / 2
    y = HEIGHT + LINE * (index // 2)
    return [
        _mark(shape, x, y, colour, family),
        f"<text x='{x + 10:.1f}' y='{y + 4}' {FONT}>{escape(family)}</text>",
    ]


def _mark(shape: str, x: float, y: float, colour: str, label: str) -> str:
    corners = {
        "square": "-4,-4 4,-4 4,4 -4,4",
        "triangle": "0,-5 5,4 -5,4",
        "diamond": "0,-5.5 5.5,0 0,5.5 -5.5,0",
    }
    name = f"<title>{escape(label)}</title>"
    if shape == "circle":
        return f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4.5' fill='{colour}'>{name}</circle>"
    place = f"translate({x:.1f} {y:.1f})"
    return f"<polygon points='{corners[shape]}' transform='{place}' fill='{colour}'>{name}</polygon>"


def _label(x: float, y: float, label: str, colour: str, taken: list[tuple[float, float, float]]) -> str:
    """The text beside a mark: right of it where there is room, else left; lower when something is there."""
    width = 5.4 * len(label)
    right = x + 8 + width <= WIDTH - RIGHT
    start = x + 8 if right else x - 8 - width
    for step in (0, 11, -11, 22, -22, 33, -33):
        place = y + 4 + step
        if TOP < place < HEIGHT - BOTTOM and not any(
            abs(place - other) < 10 and start < stop and first < start + width for first, stop, other in taken
        ):
            break
    else:
        place = y + 4
    taken.append((start, start + width, place))
    return (
        f"<text x='{start:.1f}' y='{place:.1f}' font-family='sans-serif' font-size='10' fill='{colour}' "
        f"textLength='{width:.1f}'>{escape(label)}</text>"
    )


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers from below the least to above the greatest value, about six of them."""
    low, high = min(values), max(values)
    spread = max(high - low, 0.01)
    step = 10.0 ** floor(log10(spread / 5))
    step *= next(factor for factor in (1, 2, 5, 10) if spread / (factor * step) <= 6)
    first, last = floor(low / step), ceil(high / step)
    last += first == last
    return [round(step * index, 10) for index in range(first, last + 1)]


def _log_ticks(values: Sequence[float]) -> list[float]:
    """1, 2, 5 times powers of ten around the values."""
    low, high = min(values), max(values)
    grid = [
        factor * 10.0**power
        for power in range(floor(log10(low)) - 1, ceil(log10(high)) + 2)
        for factor in (1, 2, 5)
    ]
    first = max(index for index, tick in enumerate(grid) if tick <= low * (1 + 1e-9))
    last = min(index for index, tick in enumerate(grid) if tick >= high * (1 - 1e-9))
    return grid[first : max(last, first + 1) + 1]


def _short(value: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g} {name}"
    return f"{value:g}"
