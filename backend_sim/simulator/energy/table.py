"""Energy tables: read from TOML, strictly checked."""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from escc.backend_sim.simulator.energy.events import COSTS
from escc.errors import EsccError

FOLDER = Path(__file__).resolve().parent
PER = ("operation", "bit")
_SRAM_ROW = "[KiB, port bits, read, write, leakage uW]"


@dataclass(frozen=True)
class Cost:
    """What one event costs, in the table's unit, and where the figure comes from."""

    value: float
    per: str
    citation: str


@dataclass(frozen=True)
class SramRow:
    """One size of SRAM: energy of a byte read and written, leakage in microwatts."""

    kib: float
    read: float
    write: float
    leakage_uw: float


@dataclass(frozen=True)
class EnergyTable:
    """Costs by name, SRAM rows by rising size; ``unit`` of every energy is "pJ" or a relative one ("MAC").

    An SRAM of more than ``bank_kib`` KiB is made of banks of that size. A byte then costs what it costs in
    a bank, and for each of its bits ``wire`` times the square root of the SRAM's KiB: the way to the bank,
    as long as the side of the array.
    """

    name: str
    unit: str
    node_nm: float
    about: str
    costs: dict[str, Cost]
    sram: tuple[SramRow, ...]
    sram_citation: str
    bank_kib: float
    wire: float
    wire_citation: str

    @property
    def suffix(self) -> str:
        """The unit as it ends a column name: ``pj``, ``mac``."""
        return self.unit.lower()

    def sram_read(self, kib: float) -> float:
        """Energy of a byte read from an SRAM of ``kib`` KiB."""
        return self._of_a_byte("read", kib)

    def sram_write(self, kib: float) -> float:
        """Energy of a byte written to an SRAM of ``kib`` KiB."""
        return self._of_a_byte("write", kib)

    def sram_leakage_uw(self, kib: float) -> float:
        """Leakage power of the SRAM in microwatts, of all of its banks."""
        bank = min(kib, self.bank_kib)
        return self._interpolated("leakage_uw", bank) * kib / bank

    def _of_a_byte(self, field: str, kib: float) -> float:
        if kib <= self.bank_kib:
            return self._interpolated(field, kib)
        return self._interpolated(field, self.bank_kib) + 8 * self.wire * math.sqrt(kib)

    def _interpolated(self, field: str, kib: float) -> float:
        """On logarithmic axes between the two nearest sizes; beyond the ends along the last segment."""
        sizes = [row.kib for row in self.sram]
        values: list[float] = [getattr(row, field) for row in self.sram]
        for size, value in zip(sizes, values, strict=True):
            if size == kib:
                return value
        upper = min(max(sum(size < kib for size in sizes), 1), len(sizes) - 1)
        low, high = values[upper - 1], values[upper]
        if low == 0 or high == 0:
            return max(low, high)
        slope = math.log(high / low) / math.log(sizes[upper] / sizes[upper - 1])
        return low * (kib / sizes[upper - 1]) ** slope

    @classmethod
    def load(cls, source: str | os.PathLike[str] | None = None) -> EnergyTable:
        """Read a table: None gives ``horowitz45``, a bare name a shipped one, else a file.

        Raises:
            EsccError: no such table, not TOML, or a row is missing, unknown or has an absurd value.
        """
        name = "horowitz45" if source is None else os.fspath(source)
        path = Path(name)
        if path.name == name and not path.suffix and not path.exists():
            path = FOLDER / f"{name}.toml"
            if not path.exists():
                close = _close(name, shipped_tables())
                hint = f"did you mean {close[0]!r}?" if close else f"shipped: {', '.join(shipped_tables())}"
                raise EsccError("no such energy table", where=name, hint=hint)
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise EsccError(f"cannot read: {error.strerror}", where=str(path)) from None
        except UnicodeDecodeError:
            raise EsccError("not a text file", where=str(path)) from None
        except tomllib.TOMLDecodeError as error:
            raise EsccError(f"not a valid TOML file: {error}", where=str(path)) from None
        return _Reader(str(path)).table(content)


def shipped_tables() -> list[str]:
    """Names of the tables that come with escc, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def _close(name: str, known: Sequence[str]) -> list[str]:
    import difflib  # for messages only

    return difflib.get_close_matches(name, known, n=1)


class _Reader:
    """Checks one file's content; ``where`` names the file in errors."""

    def __init__(self, where: str) -> None:
        self.where = where

    def table(self, content: dict[str, Any]) -> EnergyTable:
        self._keys("the table", content, ("name", "unit", "node_nm", "about", "cost", "sram"))
        costs = self._section("cost", content["cost"])
        self._keys("[cost]", costs, COSTS)
        sram = self._section("sram", content["sram"])
        self._keys("[sram]", sram, ("citation", "bank_kib", "wire", "wire_citation", "rows"))
        return EnergyTable(
            name=self._text("name", content["name"]),
            unit=self._text("unit", content["unit"]),
            node_nm=self._number("node_nm", content["node_nm"], 1, 1000),
            about=self._text("about", content["about"]),
            costs={name: self._cost(name, costs[name]) for name in COSTS},
            sram=self._sram_rows(sram["rows"]),
            sram_citation=self._text("[sram] citation", sram["citation"]),
            bank_kib=self._number("[sram] bank_kib", sram["bank_kib"], 1e-3, 1e9),
            wire=self._number("[sram] wire", sram["wire"], 0, 1e6),
            wire_citation=self._text("[sram] wire_citation", sram["wire_citation"]),
        )

    def _cost(self, name: str, body: Any) -> Cost:
        place = f"[cost.{name}]"
        fields = self._section(f"cost.{name}", body)
        self._keys(place, fields, ("value", "per", "citation"))
        per = self._text(f"{place} per", fields["per"])
        if per not in PER:
            raise self._error(f"{place} per is {per!r}", f"one of {', '.join(PER)}")
        value = self._number(f"{place} value", fields["value"], 0, 1e6)
        return Cost(value, per, self._text(f"{place} citation", fields["citation"]))

    def _sram_rows(self, rows: Any) -> tuple[SramRow, ...]:
        if not isinstance(rows, list) or len(cast("list[Any]", rows)) < 2:
            raise self._error("[sram] rows needs two rows or more", f"each {_SRAM_ROW}")
        found: list[SramRow] = []
        for index, row in enumerate(cast("list[Any]", rows)):
            place = f"[sram] rows[{index}]"
            if not isinstance(row, list) or len(cast("list[Any]", row)) != 5:
                raise self._error(f"{place} is not a row", _SRAM_ROW)
            kib, bits, read, write, leakage = cast("list[Any]", row)
            width = self._number(f"{place} port bits", bits, 8, 65536) / 8
            found.append(
                SramRow(
                    self._number(f"{place} KiB", kib, 1e-3, 1e9),
                    self._number(f"{place} read", read, 0, 1e6) / width,
                    self._number(f"{place} write", write, 0, 1e6) / width,
                    self._number(f"{place} leakage", leakage, 0, 1e9),
                )
            )
            if index and found[-1].kib <= found[-2].kib:
                raise self._error(f"{place} is not larger than the row before", None)
        return tuple(found)

    def _keys(self, place: str, body: dict[str, Any], known: tuple[str, ...]) -> None:
        for key in body:
            if key not in known:
                close = _close(key, known)
                hint = f"did you mean {close[0]!r}?" if close else None
                raise self._error(f"unknown key {key!r} in {place}", hint)
        for key in known:
            if key not in body:
                raise self._error(f"{key!r} is missing in {place}", None)

    def _section(self, name: str, body: Any) -> dict[str, Any]:
        if not isinstance(body, dict):
            raise self._error(f"{name} must be a section [{name}]", None)
        return cast("dict[str, Any]", body)

    def _text(self, name: str, value: Any) -> str:
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise self._error(f"{name} must be a text of one line", None)
        return value

    def _number(self, name: str, value: Any, low: float, high: float) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self._error(
                f"{name} = {str(value)[:40]} is not allowed", f"a number from {low:g} to {high:g}"
            )
        return float(value)

    def _error(self, message: str, hint: str | None) -> EsccError:
        return EsccError(message, where=self.where, hint=hint)
