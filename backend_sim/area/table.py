"""The table of cell areas: read from TOML, strictly checked."""

from __future__ import annotations

import math
import os
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

from escc.errors import EsccError

SHIPPED = Path(__file__).resolve().with_name("area45.toml")
CELLS = (
    "add_bit",
    "multiply8",
    "multiply32",
    "register_bit",
    "logic_bit",
    "crosspoint_bit",
    "compare_bit",
)


@dataclass(frozen=True)
class Cell:
    """Area of a cell in square micrometres, and where the figure comes from."""

    um2: float
    citation: str


@dataclass(frozen=True)
class AreaTable:
    """Cells by name, SRAM (KiB, mm2) by rising size, and sizes that an architecture file does not name.

    ``operand_kib``: store of a row for the coefficients and taps of its output channel. ``window_sums``:
    partial sums that it holds in registers. ``bases``: sums Z that it holds for a position.
    """

    name: str
    node_nm: float
    about: str
    cells: dict[str, Cell]
    sram: tuple[tuple[float, float], ...]
    sram_citation: str
    operand_kib: float
    operand_why: str
    window_sums: int
    window_why: str
    bases: int
    bases_why: str

    def um2(self, name: str) -> float:
        """Area of a cell in square micrometres."""
        return self.cells[name].um2

    def sram_mm2(self, kib: float) -> float:
        """Area of one array of ``kib`` KiB, between the rows of the table on logarithmic axes.

        Below the smallest array it is the smallest one: its decoder and sense amplifiers do not shrink.
        """
        sizes = [size for size, _ in self.sram]
        if kib <= sizes[0]:
            return self.sram[0][1]
        upper = min(sum(size < kib for size in sizes), len(sizes) - 1)
        (small, low), (large, high) = self.sram[upper - 1], self.sram[upper]
        return low * (kib / small) ** (math.log(high / low) / math.log(large / small))

    @classmethod
    def load(cls, source: str | os.PathLike[str] | None = None) -> AreaTable:
        """Read a table; None gives the one that escc ships.

        Raises:
            EsccError: the file cannot be read, is not TOML, or a row is missing, unknown or absurd.
        """
        return _shipped() if source is None else _read(Path(source))


@cache
def _shipped() -> AreaTable:
    return _read(SHIPPED)


def _read(path: Path) -> AreaTable:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EsccError(f"cannot read: {error.strerror}", where=str(path)) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise EsccError(f"not a valid TOML file: {error}", where=str(path)) from None
    body = _Body(content, "the table", str(path), ("name", "node_nm", "about", "cell", "sizes", "sram"))
    cells = body.section("cell", CELLS)
    sizes = body.section(
        "sizes", ("operand_kib", "operand_why", "window_sums", "window_why", "bases", "bases_why")
    )
    sram = body.section("sram", ("citation", "rows"))
    return AreaTable(
        name=body.text("name"),
        node_nm=body.number("node_nm", 1, 1000),
        about=body.text("about"),
        cells={name: _cell(cells.section(name, ("um2", "citation"))) for name in CELLS},
        sram=_sram(sram),
        sram_citation=sram.text("citation"),
        operand_kib=sizes.number("operand_kib", 0.01, 1e6),
        operand_why=sizes.text("operand_why"),
        window_sums=int(sizes.number("window_sums", 1, 65536)),
        window_why=sizes.text("window_why"),
        bases=int(sizes.number("bases", 1, 1024)),
        bases_why=sizes.text("bases_why"),
    )


def _cell(body: _Body) -> Cell:
    return Cell(body.number("um2", 0, 1e9), body.text("citation"))


def _sram(body: _Body) -> tuple[tuple[float, float], ...]:
    rows = body.values["rows"]
    found: list[tuple[float, float]] = []
    for row in cast("list[Any]", rows) if isinstance(rows, list) else []:
        pair = cast("list[Any]", row) if isinstance(row, list) else []
        positive = all(isinstance(item, int | float) and item > 0 for item in pair)
        if len(pair) != 2 or not positive or (found and pair[0] <= found[-1][0]):
            raise body.error(f"[sram] row {len(found) + 1} is not [KiB, mm2] of a larger array")
        found.append((float(pair[0]), float(pair[1])))
    if len(found) < 2:
        raise body.error("[sram] rows needs two rows or more, each [KiB, mm2]")
    return tuple(found)


@dataclass(frozen=True)
class _Body:
    """A section whose keys are exactly ``known``."""

    values: dict[str, Any]
    place: str
    where: str
    known: tuple[str, ...]

    def __post_init__(self) -> None:
        for key in (*self.values, *self.known):
            if key not in self.known:
                raise self.error(f"unknown key {key!r} in {self.place}")
            if key not in self.values:
                raise self.error(f"{key!r} is missing in {self.place}")

    def section(self, name: str, known: tuple[str, ...]) -> _Body:
        body = self.values[name]
        if not isinstance(body, dict):
            raise self.error(f"{name} must be a section [{name}]")
        return _Body(cast("dict[str, Any]", body), f"[{name}]", self.where, known)

    def text(self, name: str) -> str:
        value = self.values[name]
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise self.error(f"{name} in {self.place} must be a text of one line")
        return value

    def number(self, name: str, low: float, high: float) -> float:
        value = self.values[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.error(f"{name} in {self.place} must be a number from {low:g} to {high:g}")
        return float(value)

    def error(self, message: str) -> EsccError:
        return EsccError(message, where=self.where)
