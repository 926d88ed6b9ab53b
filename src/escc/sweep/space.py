"""The space file (TOML): what varies, what is wanted, what is not allowed, on which networks."""

from __future__ import annotations

import difflib
import hashlib
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, cast

from escc.backend_sim.area import area
from escc.errors import EsccError
from escc.isa.arch import PARAMETERS, Arch
from escc.sweep.constraints import Constraint, parse_constraint
from escc.sweep.workloads import WorkloadSpec, parse_workload

Value = int | float | str | bool
Point = dict[str, Value]
"""A value for each varied parameter, by name: ``array.rows``, ``compile.bases``."""

OBJECTIVES = {"latency": "latency_us", "energy": "energy_uj", "area": "area_mm2", "accuracy": "accuracy"}
"""What can be asked for, and the figure of a measured point that holds it."""
STRATEGIES = ("grid", "random", "evolution")
COMPILE: dict[str, tuple[type, float, float]] = {
    "bases": (int, 1, 64),
    "penalty": (float, 0.0, 100.0),
    "planes": (int, 0, 16),
}
"""Compile options that may vary, with their ranges (`escc.driver.CompileOptions`)."""
FILL = "fill"
"""As the value of array.blocks: as many blocks as ``multipliers <= N`` allows."""
LARGEST_GRID = 1_000_000

_TOP = ("base", "objectives", "constraints", "search", "arch", "compile", "workload")
_SEARCH = ("strategy", "points", "population", "seed", "confirm")


@dataclass(frozen=True)
class Axis:
    """One parameter and the values it may take, in their order."""

    name: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Search:
    """How the space is searched.

    ``points`` at most (grid: all of them). ``confirm``: compile and simulate the points of the front in full.
    """

    strategy: str = "evolution"
    points: int = 200
    population: int = 32
    seed: int = 0
    confirm: bool = True


@dataclass(frozen=True)
class Space:
    """A checked space file; ``text`` is all of it, ``folder`` where relative paths begin.

    ``most_multipliers``: what blocks are filled up to, where they are.
    """

    base: Arch
    objectives: tuple[str, ...]
    constraints: tuple[Constraint, ...]
    search: Search
    axes: tuple[Axis, ...]
    fixed: Mapping[str, Value]
    workloads: tuple[WorkloadSpec, ...]
    text: str
    folder: Path
    most_multipliers: float | None = None

    @property
    def size(self) -> int:
        """Points of the whole grid."""
        return math.prod(len(axis.values) for axis in self.axes)

    @property
    def identity(self) -> str:
        """16 hex digits over everything that decides what a point measures, the workloads' files included."""
        parts = [self.base.to_toml(), repr(sorted(self.fixed.items()))]
        if self.fills:
            parts.append(f"multipliers {self.most_multipliers}")
        parts += [workload.identity(self.folder) for workload in self.workloads]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    @property
    def fills(self) -> bool:
        """Whether some point has as many blocks as fit."""
        values = [axis.values for axis in self.axes if axis.name == "array.blocks"]
        return any(FILL in given for given in [*values, (self.fixed.get("array.blocks"),)])

    def grid(self) -> list[Point]:
        """Every point, the last axis fastest."""
        names = [axis.name for axis in self.axes]
        return [dict(zip(names, values, strict=True)) for values in product(*(a.values for a in self.axes))]

    def arch(self, point: Mapping[str, Value]) -> Arch:
        """The machine of a point.

        Raises:
            EsccError: the values do not make a machine.
        """
        chosen = {**self.fixed, **point}
        changes = {_ATTRIBUTE[name]: value for name, value in chosen.items() if name in _ATTRIBUTE}
        fill = changes.get("blocks") == FILL
        if fill:
            changes["blocks"] = 1
        arch = self.base.replace(**changes)
        if fill:
            assert self.most_multipliers is not None
            arch = arch.replace(blocks=max(1, int(self.most_multipliers // (arch.rows * arch.macs))))
        return arch

    def compile_options(self, point: Mapping[str, Value]) -> dict[str, Value]:
        """The compile options of a point that are not the default ones."""
        chosen = {**self.fixed, **point}
        return {name: chosen[f"compile.{name}"] for name in COMPILE if f"compile.{name}" in chosen}

    def refusal(self, point: Mapping[str, Value]) -> str | None:
        """Why a point need not be measured: a constraint on its parameters or area does not hold."""
        try:
            arch = self.arch(point)
        except EsccError as error:
            return error.message
        figures = known_figures(arch)
        for constraint in self.constraints:
            if constraint.name in figures and not constraint.holds(figures[constraint.name]):
                return f"{constraint.text}: {constraint.name} is {figures[constraint.name]:g}"
        return None


def known_figures(arch: Arch) -> dict[str, float]:
    """What can be said of a machine without measuring anything: numbers a constraint may name."""
    figures: dict[str, float] = {
        p.name: float(getattr(arch, p.name)) for p in PARAMETERS if p.kind is not str
    }
    adders = arch.blocks * arch.rows * arch.units * arch.lanes
    return figures | {
        "multipliers": float(arch.multipliers),
        "adders": float(adders),
        "area": area(arch).total_mm2,
    }


_ATTRIBUTE = {f"{p.section}.{p.key}": p.name for p in PARAMETERS}


def load_space(path: str | Path) -> Space:
    """Read a space file.

    Raises:
        EsccError: it cannot be read, is not TOML, or says something that makes no sense; in one line.
    """
    source = Path(path)
    try:
        text = source.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise EsccError("not a text file", where=str(source)) from None
    except OSError as error:
        raise EsccError(f"cannot read: {error.strerror}", where=str(source)) from None
    return parse_space(text, source.resolve().parent, str(source))


def parse_space(text: str, folder: Path, where: str = "space") -> Space:
    """The space of a text; ``where`` names it in errors.

    Raises:
        EsccError: see `load_space`.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise EsccError(f"not a valid TOML file: {error}", where=where) from None
    return _Reader(content, text, folder, where).space()


class _Reader:
    def __init__(self, content: dict[str, Any], text: str, folder: Path, where: str) -> None:
        self.content, self.text, self.folder, self.where = content, text, folder, where

    def space(self) -> Space:
        self._known("the space", self.content, _TOP)
        base = self.content.get("base", "default")
        if not isinstance(base, str):
            raise self._error("base must name an architecture file")
        path = self.folder / base
        try:
            arch = Arch.load(path if path.exists() else base)
        except EsccError as error:
            raise self._error(f"base: {error}") from None
        axes, fixed = self._axes()
        constraints = tuple(self._constraints())
        search = self._search()
        workloads = self._workloads()
        objectives = self._objectives(workloads)
        limit = min((c.limit for c in constraints if c.name == "multipliers" and c.upper), default=None)
        space = Space(
            arch, objectives, constraints, search, axes, fixed, workloads, self.text, self.folder, limit
        )
        if limit is None and space.fills:
            raise self._error('array.blocks = "fill" needs a constraint such as "multipliers <= 1024"')
        if search.strategy == "grid" and space.size > LARGEST_GRID:
            raise self._error(f"a grid of {space.size:,} points", "strategy random or evolution")
        return space

    def _axes(self) -> tuple[tuple[Axis, ...], dict[str, Value]]:
        axes: list[Axis] = []
        fixed: dict[str, Value] = {}
        for name, given in self._parameters():
            values = self._values(name, given)
            if isinstance(values, tuple):
                axes.append(Axis(name, values))
            else:
                fixed[name] = values
        if not axes:
            raise self._error("nothing varies", "give a parameter a list, as in [arch.array] rows = [4, 8]")
        return tuple(axes), fixed

    def _parameters(self) -> list[tuple[str, Any]]:
        found: list[tuple[str, Any]] = []
        sections = list(dict.fromkeys(p.section for p in PARAMETERS))
        arch = self._table("arch", self.content.get("arch", {}))
        self._known("[arch]", arch, sections)
        for section, body in arch.items():
            keys = [p.key for p in PARAMETERS if p.section == section]
            values = self._table(f"arch.{section}", body)
            self._known(f"[arch.{section}]", values, keys)
            found += [(f"{section}.{key}", value) for key, value in values.items()]
        options = self._table("compile", self.content.get("compile", {}))
        self._known("[compile]", options, list(COMPILE))
        return found + [(f"compile.{key}", value) for key, value in options.items()]

    def _values(self, name: str, given: Any) -> tuple[Value, ...] | Value:
        if isinstance(given, dict):
            return self._range(name, cast("dict[str, Any]", given))
        if not isinstance(given, list):
            return self._value(name, given)
        values = tuple(self._value(name, item) for item in cast("list[Any]", given))
        if not values or len(set(values)) != len(values):
            raise self._error(f"{name} needs values, each once")
        return values

    def _range(self, name: str, given: dict[str, Any]) -> tuple[Value, ...]:
        self._known(name, given, ("from", "to", "step", "factor"))
        low, high = given.get("from"), given.get("to")
        step, factor = given.get("step"), given.get("factor")
        numbers = [item for item in (low, high, step, factor) if item is not None]
        if (
            low is None
            or high is None
            or not all(isinstance(item, int | float) and not isinstance(item, bool) for item in numbers)
        ):
            raise self._error(f"{name}: a range is {{ from = 1, to = 9, step = 2 }} or factor = 2 for step")
        wrong = (step is None) == (factor is None) or (step is not None and step <= 0)
        if wrong or (factor is not None and factor <= 1) or low > high:
            raise self._error(f"{name}: a range needs either step above 0 or factor above 1, and from <= to")
        values: list[Value] = []
        value = low
        while value <= high * (1 + 1e-12):
            values.append(self._value(name, value))
            value = value + step if step is not None else type(low)(value * factor)
            if len(values) > 10_000:
                raise self._error(f"{name}: more than 10,000 values")
        return tuple(values)

    def _value(self, name: str, value: Any) -> Value:
        if name == "array.blocks" and value == FILL:
            return FILL
        if name.startswith("compile."):
            kind, low, high = COMPILE[name.removeprefix("compile.")]
            right = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
            if not right or not low <= value <= high:
                raise self._error(f"{name} = {value!r} is not allowed", f"from {low:g} to {high:g}")
            return kind(value)
        try:
            return getattr(Arch.default().replace(**{_ATTRIBUTE[name]: value}), _ATTRIBUTE[name])
        except EsccError as error:
            raise self._error(error.message, error.hint) from None

    def _search(self) -> Search:
        body = self._table("search", self.content.get("search", {}))
        self._known("[search]", body, _SEARCH)
        strategy = body.get("strategy", Search.strategy)
        if strategy not in STRATEGIES:
            raise self._error(f"strategy {strategy!r} is unknown", f"one of {', '.join(STRATEGIES)}")
        numbers: dict[str, int] = {}
        for key, least in (("points", 1), ("population", 4), ("seed", 0)):
            value = body.get(key, getattr(Search, key))
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise self._error(f"{key} in [search] must be an integer of at least {least}")
            numbers[key] = value
        confirm = body.get("confirm", True)
        if not isinstance(confirm, bool):
            raise self._error("confirm in [search] must be true or false")
        return Search(strategy, numbers["points"], numbers["population"], numbers["seed"], confirm)

    def _objectives(self, workloads: Sequence[WorkloadSpec]) -> tuple[str, ...]:
        given = self.content.get("objectives", ["latency", "energy", "area"])
        names = cast("list[Any]", given) if isinstance(given, list) else [given]
        for name in names:
            if name not in OBJECTIVES:
                close = difflib.get_close_matches(str(name), OBJECTIVES, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(OBJECTIVES)}"
                raise self._error(f"unknown objective {name!r}", hint)
        if not names or len(set(names)) != len(names):
            raise self._error("objectives needs names, each once")
        if "accuracy" in names and not any(workload.labels for workload in workloads):
            raise self._error("the objective accuracy needs a workload with labels")
        return tuple(names)

    def _constraints(self) -> list[Constraint]:
        given = self.content.get("constraints", [])
        if not isinstance(given, list):
            raise self._error('constraints must be a list such as ["multipliers <= 1024"]')
        known = [*known_figures(Arch.default()), *OBJECTIVES]
        found: list[Constraint] = []
        for text in cast("list[Any]", given):
            try:
                found.append(parse_constraint(text, known, _ATTRIBUTE))
            except EsccError as error:
                raise self._error(error.message, error.hint) from None
        return found

    def _workloads(self) -> tuple[WorkloadSpec, ...]:
        given = self.content.get("workload", [])
        if not isinstance(given, list) or not given:
            raise self._error("no network to measure on", "add a [[workload]] with a model")
        found: list[WorkloadSpec] = []
        for number, body in enumerate(cast("list[Any]", given), start=1):
            try:
                found.append(parse_workload(self._table("workload", body), self.folder))
            except EsccError as error:
                raise self._error(f"workload {number}: {error.message}", error.hint) from None
        names = [workload.name for workload in found]
        if len(set(names)) != len(names):
            raise self._error("two workloads have the same name")
        return tuple(found)

    def _table(self, name: str, body: Any) -> dict[str, Any]:
        if not isinstance(body, dict):
            raise self._error(f"{name} must be a section [{name}]")
        return cast("dict[str, Any]", body)

    def _known(self, place: str, body: Mapping[str, Any], known: Sequence[str]) -> None:
        for key in body:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
                raise self._error(f"unknown key {key!r} in {place}", hint)

    def _error(self, message: str, hint: str | None = None) -> EsccError:
        return EsccError(message, where=self.where, hint=hint)
