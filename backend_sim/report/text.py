"""Numbers and names as the page writes them. Everything that comes from a file goes through `escape`."""

from __future__ import annotations

import html
import math

_PREFIXES = ("", "k", "M", "G", "T", "P")


def escape(text: str) -> str:
    """Text for HTML and SVG, in elements and in quoted attributes; half surrogates become question marks."""
    return html.escape(text.encode("utf-8", "replace").decode(), quote=True)


def count(value: float) -> str:
    """A number with thousands separators, decimals only below 100."""
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def percent(part: float, whole: float) -> str:
    """A share as a percentage; empty when there is no whole."""
    if not whole:
        return ""
    share = 100 * part / whole
    return f"{share:.1f} %" if 0 < share < 9.95 else f"{share:.0f} %"


def short(value: float) -> str:
    """Three digits and a prefix: 1.25k, 17.9M."""
    if not value:
        return "0"
    step = min(max(math.floor(math.log10(abs(value)) / 3 + 1e-9), 0), len(_PREFIXES) - 1)
    scaled = value / 1000**step
    digits = 0 if abs(scaled) >= 99.95 else 1 if abs(scaled) >= 9.995 else 2
    text = f"{scaled:.{digits}f}" if abs(scaled) >= 0.995 else f"{scaled:.2g}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) + _PREFIXES[step]


def size(value: float) -> str:
    """Bytes in decimal units: 17.9 kB."""
    text = short(value)
    return f"{text[:-1]} {text[-1]}B" if text[-1].isalpha() else f"{text} B"


def energy(value: float, unit: str) -> str:
    """An amount of energy in the unit of its table: pJ grow to nJ, uJ, mJ and J, others get prefixes."""
    if unit != "pJ":
        return f"{short(value)} {unit}"
    for larger in ("pJ", "nJ", "uJ", "mJ"):
        if abs(value) < 999.5:
            return f"{short(value)} {larger}"
        value /= 1000
    return f"{short(value)} J"


def duration(microseconds: float) -> str:
    """A time in us, ms or s."""
    for name in ("us", "ms"):
        if microseconds < 999.5:
            return f"{short(microseconds)} {name}"
        microseconds /= 1000
    return f"{short(microseconds)} s"


def number(value: float) -> str:
    """A coordinate: at most two decimals, no trailing zeros."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def fitted(text: str, length: int) -> str:
    """``text`` cut in front to ``length`` characters: the end of a module path tells most."""
    return text if len(text) <= length else "\N{HORIZONTAL ELLIPSIS}" + text[1 - length :]
