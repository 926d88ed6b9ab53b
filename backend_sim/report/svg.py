"""Inline SVG written by hand: bars in rows, one row a layer, panels side by side; and scales.

Bars of one series are one path element: a page of a large network stays small. Colours are classes of the
page's style sheet, so that they follow light and dark.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from escc.backend_sim.report.text import escape, fitted, number, short

WIDTH = 1000
LABEL_WIDTH = 214
LABEL_CHARACTERS = 28
ROW = 15
BAR = 11
HEAD = 34
GAP = 26


@dataclass(frozen=True)
class Series:
    """Values of one colour, a row each; ``colour`` is a class of the style sheet."""

    name: str
    colour: str
    values: list[float]


@dataclass(frozen=True)
class Panel:
    """Stacked bars with a scale of their own, from 0 to ``limit`` or the longest stack.

    ``hints``: for each row the text that shows when the pointer is on it. ``dots``: series are dots on one
    scale instead of stacked bars; a negative value has no dot.
    """

    title: str
    series: list[Series]
    hints: list[str]
    limit: float | None = None
    dots: bool = False


def row_chart(description: str, labels: list[str], panels: list[Panel]) -> str:
    """An SVG with a row for each label, numbered from 1, and ``panels`` side by side."""
    height = HEAD + ROW * len(labels) + 6
    parts = [svg_open(description, height)]
    for index, label in enumerate(labels):
        y = HEAD + index * ROW + BAR - 1
        name = escape(fitted(label, LABEL_CHARACTERS))
        parts.append(f'<text class="l" x="{LABEL_WIDTH - 30}" y="{y}">{name}</text>')
        parts.append(f'<text class="l n" x="{LABEL_WIDTH - 8}" y="{y}">{index + 1}</text>')
    each = (WIDTH - LABEL_WIDTH - 8 - GAP * (len(panels) - 1)) / len(panels)
    for place, panel in enumerate(panels):
        parts.append(_panel(panel, LABEL_WIDTH + place * (each + GAP), each, height))
    parts.append("</svg>")
    return "".join(parts)


def svg_open(description: str, height: float) -> str:
    """The opening tag of a figure of full width."""
    return f'<svg viewBox="0 0 {WIDTH} {number(height)}" role="img" aria-label="{escape(description)}">'


def _panel(panel: Panel, left: float, width: float, height: float) -> str:
    rows = len(panel.hints)
    longest = panel.limit or max(_lengths(panel, rows), default=0.0) or 1.0
    scale = width / longest
    parts = [f'<text class="t" x="{number(left)}" y="12">{escape(panel.title)}</text>']
    for tick in ticks(longest, 4):
        x = number(left + tick * scale)
        parts.append(f'<path class="g" d="M{x} {HEAD - 4}V{number(height - 4)}"/>')
        parts.append(f'<text class="k" x="{x}" y="{HEAD - 8}">{short(tick)}</text>')
    starts = [0.0] * rows
    for series in panel.series:
        path: list[str] = []
        for row, value in enumerate(series.values):
            y = HEAD + row * ROW
            if panel.dots and value >= 0:
                x = left + min(value, longest) * scale
                path.append(f"M{number(x - 4)} {y + 1}h8v9h-8z")
            elif not panel.dots and value > 0:
                x, length = left + starts[row] * scale, max(value * scale, 0.05)
                path.append(f"M{number(x)} {y}h{number(length)}v{BAR}h-{number(length)}z")
                starts[row] += value
        if path:
            parts.append(f'<path class="{series.colour}" d="{"".join(path)}"/>')
    for row, hint in enumerate(panel.hints):
        if hint:
            box = f'x="{number(left)}" y="{HEAD + row * ROW - 2}" width="{number(width)}" height="{ROW}"'
            parts.append(f'<rect class="h" {box}><title>{escape(hint)}</title></rect>')
    return "".join(parts)


def _lengths(panel: Panel, rows: int) -> list[float]:
    if panel.dots:
        return [value for series in panel.series for value in series.values]
    return [sum(max(series.values[row], 0.0) for series in panel.series) for row in range(rows)]


def ticks(longest: float, most: int) -> list[float]:
    """Round numbers from 0 to ``longest``: 1, 2 or 5 times a power of ten apart, at most ``most`` above 0."""
    step = 10.0 ** math.floor(math.log10(longest / most))
    step = next(step * factor for factor in (1, 2, 5, 10, 20) if longest / (step * factor) <= most + 1e-9)
    return [step * index for index in range(int(longest / step + 1e-9) + 1)]


def legend(series: list[tuple[str, str]]) -> str:
    """(name, colour) pairs as HTML with a swatch each."""
    items = "".join(f'<li><i class="{colour}"></i>{escape(name)}</li>' for name, colour in series)
    return f'<ul class="legend">{items}</ul>'
