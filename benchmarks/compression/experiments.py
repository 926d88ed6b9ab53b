"""What to run: data sets, networks and rows, read from TOML.

A row is one way to make a small network: a model (the network's own, or one that training made) and options
of ``escc compile``. ``[[method]]`` entries become a row of every network, ``[[network.row]]`` entries of one.
In models and commands ``{work}`` is the work folder, ``{demo}`` the folder of the demo's network, ``{data}``
the data set, ``{model}`` the network's model file, ``{seed}`` the seed of a row averaged over several.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, cast

from escc.errors import EsccError

DEMO = "demo"
DENSE = "fp32"
Made = TypeVar("Made")


@dataclass(frozen=True)
class DataSource:
    """Where images come from.

    Attributes:
        source: folder or file of a data set, or ``demo`` for what ``escc demo`` ships.
        shape: (C, H, W).
        mean, std: per channel, for images in 0..1; empty takes those of the training images.
        calibration: training images for the compiler.
        test: test images at most; 0 takes all.
        timed: of these get simulated cycles and energy.
    """

    source: str
    shape: tuple[int, int, int]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    calibration: int = 512
    test: int = 0
    timed: int = 4


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: short, for file names and the command line.
        title: for readers; empty takes the name.
        compile: options of ``escc compile``; a program runs in integers.
        evaluate: ``integer`` for programs, ``float`` for the model as it is, in 32-bit floats.
        family: rows of a family are joined in the plots; empty: the row stands alone.
        model: file or ``zoo:`` name; empty takes the network's.
        options: how the model is opened (options of ``escc compile``); for a model of its own.
        seeds: the model is one of several, the row their mean.
        obtain: ``escc`` command that makes the model where it is missing.
    """

    name: str
    title: str = ""
    compile: str = ""
    evaluate: str = "integer"
    family: str = ""
    model: str = ""
    options: str = ""
    seeds: tuple[int, ...] = ()
    obtain: str = ""

    @property
    def label(self) -> str:
        """What readers see."""
        return self.title or self.name


@dataclass(frozen=True)
class Network:
    """A dense network, and everything that is made of it.

    Attributes:
        name, title: as for a row.
        data: name of the data source.
        model: its file.
        options: how that is opened.
        obtain: ``escc`` command that makes it.
        notes: a paragraph for the page.
    """

    name: str
    title: str
    data: str
    model: str
    options: str = ""
    obtain: str = ""
    notes: str = ""
    rows: tuple[Row, ...] = ()

    @property
    def dense(self) -> Row:
        """The dense network as a row of its own: what the others are compared with."""
        return Row(DENSE, "dense, 32-bit floats", evaluate="float", obtain=self.obtain)


@dataclass(frozen=True)
class Experiments:
    """Everything in a file; ``text`` is the page's introduction."""

    data: Mapping[str, DataSource]
    networks: tuple[Network, ...]
    text: str = ""
    path: Path = field(default_factory=Path)


def load_experiments(path: Path) -> Experiments:
    """Read and check a file.

    Raises:
        EsccError: unreadable, an unknown or missing entry, two rows of one name.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EsccError(f"cannot read: {error.strerror}", where=str(path)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise EsccError(f"not TOML: {error}", where=str(path)) from None
    unknown = set(content) - {"data", "method", "network", "text"}
    if unknown:
        raise EsccError(f"unknown entry '{min(unknown)}'", where=str(path))
    data = {
        name: _make(DataSource, values, f"{path}: data.{name}") for name, values in content["data"].items()
    }
    shared = [(_networks_of(item), _row(item, path)) for item in content.get("method", [])]
    networks: list[Network] = []
    for item in content.get("network", []):
        values = dict(item)
        own = [_row(row, path) for row in values.pop("row", [])]
        rows = [row for only, row in shared if not only or values.get("name") in only] + own
        network = _make(Network, {**values, "rows": rows}, f"{path}: network {values.get('name', '')}")
        names = [DENSE, *(row.name for row in rows)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise EsccError(f"network {network.name} has two rows '{twice[0]}'", where=str(path))
        if network.data not in data:
            raise EsccError(f"network {network.name}: no data.{network.data}", where=str(path))
        networks.append(network)
    return Experiments(data, tuple(networks), str(content.get("text", "")), path)


def fill(text: str, **values: object) -> str:
    """``{name}`` replaced in a model or command; other braces (of a pipeline) stay."""
    known = {"demo": files("escc.demo"), **values}
    for name, value in known.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text


def _networks_of(item: dict[str, Any]) -> tuple[str, ...]:
    return tuple(cast("list[str]", item.get("networks", [])))


def _row(item: dict[str, Any], path: Path) -> Row:
    values = {key: value for key, value in item.items() if key != "networks"}
    row = _make(Row, values, f"{path}: row {item.get('name', '')}")
    if row.evaluate not in ("integer", "float"):
        raise EsccError(f"row {row.name}: evaluate is 'integer' or 'float'", where=str(path))
    if row.seeds and "{seed}" not in row.model:
        raise EsccError(f"row {row.name} has seeds but no {{seed}} in its model", where=str(path))
    if row.evaluate == "float" and row.compile:
        raise EsccError(f"row {row.name}: a float row is not compiled", where=str(path))
    return row


def _make(kind: type[Made], values: dict[str, Any], where: str) -> Made:
    """A dataclass from a table, lists as tuples."""
    fields = {item.name: item for item in dataclasses.fields(cast("Any", kind))}
    unknown = set(values) - set(fields)
    if unknown:
        raise EsccError(f"unknown entry '{min(unknown)}'", where=where, hint=f"known: {', '.join(fields)}")
    given = {
        name: tuple(cast("list[Any]", value)) if isinstance(value, list) else value
        for name, value in values.items()
    }
    try:
        return kind(**given)
    except TypeError as error:
        raise EsccError(f"{str(error).partition('() ')[2] or error}", where=where) from None
