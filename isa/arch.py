"""The architecture parameters of one machine: read from TOML, checked, compared, written back."""

from __future__ import annotations

import dataclasses
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

from escc.errors import EsccError

ARCH_FOLDER = Path(__file__).resolve().parent / "arch_files"
POLICIES = ("window", "gather", "none")
Policy = Literal["window", "gather", "none"]


@dataclass(frozen=True)
class Parameter:
    """One row of the parameter table.

    ``geometry`` says that a compiled program depends on the value: a simulator refuses a program of another
    geometry, while the other values (clock, DRAM) may be overridden for a compiled program. A key with a
    ``default`` may be missing in a file.
    """

    section: str
    key: str
    kind: type[int] | type[float] | type[str]
    low: float
    high: float
    unit: str
    meaning: str
    attribute: str = ""
    geometry: bool = True
    default: int | None = None

    @property
    def name(self) -> str:
        """The attribute of `Arch` that holds the value."""
        return self.attribute or self.key

    @property
    def allowed(self) -> str:
        """The allowed values as a reader writes them."""
        if self.kind is str:
            return "one of " + ", ".join(POLICIES)
        number = "an integer" if self.kind is int else "a number"
        power = ", a power of two" if self.key == "chunk" else ""
        return f"{number} from {self.low:g} to {self.high:.10g}{power}"


PARAMETERS: tuple[Parameter, ...] = (
    Parameter("array", "blocks", int, 1, 1024, "", "blocks, each with its own ring buffer"),
    Parameter(
        "array", "rows", int, 1, 1024, "", "rows in a block; a row computes one output channel at a time"
    ),
    Parameter("array", "macs", int, 1, 1024, "", "multipliers in the MAC part of a row"),
    Parameter(
        "array",
        "units",
        int,
        1,
        256,
        "",
        "linear-combination units in a row; unit u serves bases m = u mod units",
    ),
    Parameter("array", "lanes", int, 1, 1024, "", "adders of a unit, filled by one dense vector"),
    Parameter("array", "chunk", int, 8, 1024, "channels", "channels in one SparseMap word"),
    Parameter("array", "ring_entries", int, 1, 65536, "entries", "depth of the ring buffer of a block"),
    Parameter(
        "array",
        "fifo_positions",
        int,
        1,
        65536,
        "positions",
        "depth of the FIFO between the LC and the MAC part",
    ),
    Parameter("array", "psum_entries", int, 1, 1 << 20, "sums", "partial sums a row can hold"),
    Parameter("array", "z_bits", int, 8, 32, "bits", "width of an intermediate sum Z, signed"),
    Parameter("array", "startup_cycles", int, 0, 65536, "cycles", "start of a convolution instruction"),
    Parameter("concentration", "policy", str, 0, 0, "", "how diluted vectors are made dense"),
    Parameter(
        "concentration", "look_ahead", int, 0, 64, "vectors", "diluted vectors behind the head in the window"
    ),
    Parameter("concentration", "look_aside", int, 0, 64, "lanes", "distance to either side a value may move"),
    Parameter(
        "vector", "lanes", int, 1, 65536, "", "channels the vector unit handles in a cycle", "vector_lanes"
    ),
    Parameter(
        "vector",
        "startup_cycles",
        int,
        0,
        65536,
        "cycles",
        "start of a vector instruction",
        "vector_startup_cycles",
    ),
    Parameter("sequencer", "queue_depth", int, 1, 65536, "", "dispatched instructions a queue holds"),
    Parameter("memory", "sram_kib", int, 1, 1 << 20, "KiB", "global SRAM"),
    Parameter("memory", "dram_gbps", float, 0.001, 1e6, "GB/s", "DRAM bandwidth", geometry=False),
    Parameter(
        "memory",
        "dram_latency_cycles",
        int,
        0,
        1_000_000,
        "cycles",
        "DRAM latency of a transfer",
        geometry=False,
    ),
    Parameter(
        "memory",
        "dram_request_bytes",
        int,
        1,
        65536,
        "bytes",
        "largest request to the DRAM",
        geometry=False,
        default=64,
    ),
    Parameter(
        "memory",
        "dram_requests",
        int,
        1,
        65536,
        "requests",
        "requests the DMA has in flight",
        geometry=False,
        default=32,
    ),
    Parameter(
        "memory",
        "dram_row_bytes",
        int,
        1,
        1 << 20,
        "bytes",
        "bytes that one activate makes accessible",
        geometry=False,
        default=2048,
    ),
    Parameter("memory", "dram_banks", int, 1, 65536, "banks", "DRAM banks", geometry=False, default=16),
    Parameter(
        "memory",
        "dram_row_cycles",
        int,
        0,
        1_000_000,
        "cycles",
        "between two activates of a bank",
        geometry=False,
        default=48,
    ),
    Parameter("clock", "mhz", float, 1, 1e6, "MHz", "clock frequency", geometry=False),
)


@dataclass(frozen=True)
class Arch:
    """The parameters of one machine; flat attributes, named in the table `PARAMETERS`.

    Raises:
        EsccError: on construction, when a value has the wrong type or lies outside its allowed range.
    """

    blocks: int
    rows: int
    macs: int
    units: int
    lanes: int
    chunk: int
    ring_entries: int
    fifo_positions: int
    psum_entries: int
    z_bits: int
    startup_cycles: int
    policy: Policy
    look_ahead: int
    look_aside: int
    vector_lanes: int
    vector_startup_cycles: int
    queue_depth: int
    sram_kib: int
    dram_gbps: float
    dram_latency_cycles: int
    mhz: float
    dram_request_bytes: int = 64
    dram_requests: int = 32
    dram_row_bytes: int = 2048
    dram_banks: int = 16
    dram_row_cycles: int = 48

    def __post_init__(self) -> None:
        for parameter in PARAMETERS:
            value = _checked(parameter, getattr(self, parameter.name), "architecture")
            object.__setattr__(self, parameter.name, value)

    @property
    def sram_bytes(self) -> int:
        """Size of the global SRAM in bytes."""
        return self.sram_kib * 1024

    @property
    def bytes_per_cycle(self) -> float:
        """DRAM bytes that move in one clock cycle."""
        return self.dram_gbps * 1e3 / self.mhz

    @property
    def multipliers(self) -> int:
        """Multipliers of the whole array: blocks x rows x MACs of a row."""
        return self.blocks * self.rows * self.macs

    @cached_property
    def geometry_hash(self) -> str:
        """16 hex digits over every parameter a compiled program depends on."""
        import hashlib  # it loads OpenSSL

        lines = [f"{p.section}.{p.key}={_text(getattr(self, p.name))}" for p in PARAMETERS if p.geometry]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def geometry_differences(self, other: Arch) -> list[str]:
        """The geometry parameters in which two machines differ, as ``section.key: this / other``."""
        return [
            f"{p.section}.{p.key}: {_text(getattr(self, p.name))} / {_text(getattr(other, p.name))}"
            for p in PARAMETERS
            if p.geometry and getattr(self, p.name) != getattr(other, p.name)
        ]

    def replace(self, **changes: Any) -> Arch:
        """A copy with some attributes changed, checked like a new one.

        Raises:
            EsccError: unknown attribute or a value out of range.
        """
        known = [parameter.name for parameter in PARAMETERS]
        for name in changes:
            if name not in known:
                raise EsccError(
                    f"unknown parameter {name!r}", where="architecture", hint=_suggest(name, known)
                )
        return dataclasses.replace(self, **changes)

    def to_toml(self) -> str:
        """The canonical text: equal machines give equal text, and `from_toml` gives the machine back."""
        lines: list[str] = []
        section = ""
        for parameter in PARAMETERS:
            if parameter.section != section:
                section = parameter.section
                lines += [""] * bool(lines) + [f"[{section}]"]
            lines.append(f"{parameter.key} = {_text(getattr(self, parameter.name))}")
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, text: str, where: str = "architecture") -> Arch:
        """Read the text of an architecture file; ``where`` names it in errors.

        Raises:
            EsccError: not TOML, or a section or key is missing, unknown, of the wrong type or out of range.
        """
        try:
            content = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise EsccError(f"not a valid TOML file: {error}", where=where) from None
        return cls(**_values(content, where))

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> Arch:
        """Read an architecture file; ``None`` gives the default machine, a bare name one that escc ships.

        Raises:
            EsccError: the file cannot be read, or see `from_toml`.
        """
        if path is None:
            return cls.default()
        source = Path(path)
        if not source.exists() and source.name == str(path) and not source.suffix:
            shipped = ARCH_FOLDER / f"{source.name}.toml"
            if not shipped.exists():
                names = shipped_names()
                hint = _suggest(source.name, names) or "shipped: " + ", ".join(names)
                raise EsccError("no such architecture", where=str(path), hint=hint)
            source = shipped
        try:
            text = source.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise EsccError("not a text file", where=str(source)) from None
        except OSError as error:
            raise EsccError(f"cannot read: {error.strerror}", where=str(source)) from None
        return cls.from_toml(text, str(source))

    @classmethod
    def default(cls) -> Arch:
        """The machine of ``arch_files/default.toml``."""
        return cls.load(ARCH_FOLDER / "default.toml")


def shipped_names() -> list[str]:
    """Names of the architecture files that come with escc, sorted."""
    return sorted(path.stem for path in ARCH_FOLDER.glob("*.toml"))


def _values(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    sections: dict[str, dict[str, Parameter]] = {}
    for parameter in PARAMETERS:
        sections.setdefault(parameter.section, {})[parameter.key] = parameter
    for name, body in content.items():
        if name not in sections:
            raise EsccError(f"unknown section [{name}]", where=where, hint=_suggest(name, list(sections)))
        if not isinstance(body, dict):
            raise EsccError(f"{name} must be a section [{name}]", where=where)
        for key in cast("dict[str, Any]", body):
            if key not in sections[name]:
                hint = _suggest(key, list(sections[name]))
                raise EsccError(f"unknown key {key!r} in section [{name}]", where=where, hint=hint)
    values: dict[str, Any] = {}
    for parameter in PARAMETERS:
        if parameter.section not in content:
            raise EsccError(f"section [{parameter.section}] is missing", where=where)
        body = content[parameter.section]
        if parameter.key not in body and parameter.default is not None:
            values[parameter.name] = parameter.default
            continue
        if parameter.key not in body:
            hint = f"{parameter.allowed}; {parameter.meaning}"
            raise EsccError(f"[{parameter.section}] {parameter.key} is missing", where=where, hint=hint)
        values[parameter.name] = _checked(parameter, body[parameter.key], where)
    return values


def _checked(parameter: Parameter, value: Any, where: str) -> int | float | str:
    """``value`` in its canonical type (a float where the parameter is one), or an error naming the range."""
    ok: bool
    if parameter.kind is str:
        ok = value in POLICIES
    elif isinstance(value, bool) or not isinstance(value, int if parameter.kind is int else (int, float)):
        ok = False
    else:
        ok = math.isfinite(value) and parameter.low <= value <= parameter.high
        if parameter.key == "chunk":
            ok = ok and int(value).bit_count() == 1
    if not ok:
        shown = repr(value) if len(repr(value)) <= 40 else repr(value)[:37] + "..."
        raise EsccError(
            f"[{parameter.section}] {parameter.key} = {shown} is not allowed",
            where=where,
            hint=f"allowed: {parameter.allowed}",
        )
    return float(value) if parameter.kind is float else value


def _text(value: float | int | str) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _suggest(name: str, known: list[str]) -> str | None:
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else None
