"""Passes: the base class, the registry (one entry-point group for ours and yours), pipelines and legality."""

from __future__ import annotations

import dataclasses
import difflib
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, ClassVar

from escc.errors import EsccError
from escc.ir.base import describe
from escc.ir.module import Module
from escc.progress import Progress, silent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from escc.isa.arch import Arch

ENTRY_POINT_GROUP = "escc.passes"

LEGAL_OPERATIONS: Mapping[str, tuple[str, ...]] = {
    # fact established -> patterns of operation names that may remain from then on
    "batch-norm-folded": ("!nn.batch_norm",),
    "quantized": ("escalate.*", "!escalate.decomposed_conv2d"),
    "reordered": ("escalate.*", "!escalate.decomposed_conv2d", "!escalate.quantized_conv2d"),
}
"""The legality table: which operations may remain once a fact holds ('!' forbids, '*' matches the rest)."""


@dataclass
class PassContext:
    """What a pass may use beside the module.

    Attributes:
        arch: the machine compiled for; None for passes that do not ask.
        calibration: float32 images (N, C, H, W) or None.
        progress: called as ``progress(stage, done, total)``.
    """

    arch: Arch | None = None
    calibration: NDArray[np.float32] | None = None
    progress: Progress = silent

    def need_arch(self, who: str) -> Arch:
        """The architecture, or one line that says who needs it."""
        if self.arch is None:
            raise EsccError("needs an architecture", where=who, hint="give --arch or PassContext(arch=...)")
        return self.arch


@dataclass
class Pass(ABC):
    """One rewrite of a module. Subclass as a dataclass: fields are the options of ``-p name{option=value}``.

    Class attributes:
        name: kebab-case, the file's name.
        requires: facts that must hold before; establishes / invalidates: what changes afterwards.
    """

    name: ClassVar[str]
    requires: ClassVar[frozenset[str]] = frozenset()
    establishes: ClassVar[frozenset[str]] = frozenset()
    invalidates: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def run(self, module: Module, context: PassContext) -> None:
        """Rewrite ``module`` in place (weights get new names in the store, arrays never change)."""

    def spec(self) -> str:
        """The pass as pipeline text, options that differ from their defaults included."""
        options: list[str] = []
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            if option.default is dataclasses.MISSING or value != option.default:
                options.append(f"{option.name}={value}")
        return f"{self.name}{{{' '.join(options)}}}" if options else self.name


@cache
def _entry_points() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        known = found.get(entry.name)
        if known is not None and known.value != entry.value:
            raise EsccError(
                f"two packages offer a pass named '{entry.name}': {known.value} and {entry.value}"
            )
        found[entry.name] = entry
    return found


def pass_names() -> list[str]:
    """Names of every installed pass, built-in and from other packages."""
    return sorted(_entry_points())


def pass_class(name: str) -> type[Pass]:
    """The class of the pass ``name``, imported on demand.

    Raises:
        EsccError: unknown name (with the nearest known one), or a broken plug-in.
    """
    entry = _entry_points().get(name)
    if entry is None:
        near = difflib.get_close_matches(name, pass_names(), n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(pass_names())}"
        raise EsccError(f"unknown pass '{name}'", hint=hint)
    try:
        loaded = entry.load()
    except (ImportError, AttributeError) as error:
        raise EsccError(f"pass '{name}' cannot be loaded from {entry.value}: {error}") from None
    if not (isinstance(loaded, type) and issubclass(loaded, Pass)):
        raise EsccError(f"pass '{name}': {entry.value} is not a subclass of escc.Pass")
    return loaded


def make_pass(name: str, options: Mapping[str, str] | None = None) -> Pass:
    """Build a pass from its name and textual options, converted by the types of the dataclass fields."""
    kind = pass_class(name)
    fields = {item.name: item for item in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for key, text in (options or {}).items():
        if key not in fields:
            near = difflib.get_close_matches(key, list(fields), n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"options: {', '.join(fields) or 'none'}"
            raise EsccError(f"pass '{name}' has no option '{key}'", hint=hint)
        values[key] = _convert(text, str(fields[key].type), f"{name}{{{key}}}")
    return kind(**values)


def _convert(text: str, kind: str, where: str) -> Any:
    plain = kind.replace(" ", "").removesuffix("|None")
    try:
        if plain == "bool":
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if plain == "int":
            return int(text)
        if plain == "float":
            return float(text)
    except (KeyError, ValueError):
        raise EsccError(f"'{text}' is not a {plain}", where=where) from None
    return text


_PASS = re.compile(r"\s*([A-Za-z0-9_-]+)\s*(?:\{([^{}]*)\})?\s*(,|$)")


def parse_pipeline(text: str) -> list[Pass]:
    """Passes from pipeline text: ``a,b{key=value flag},c``.

    Raises:
        EsccError: syntax error, unknown pass or option.
    """
    passes: list[Pass] = []
    position = 0
    while position < len(text):
        match = _PASS.match(text, position)
        if match is None:
            raise EsccError(f"cannot read the pass pipeline at '{text[position : position + 20]}'")
        options = dict(
            (part.partition("=")[0], part.partition("=")[2] or "true") for part in (match[2] or "").split()
        )
        passes.append(make_pass(match[1], options))
        position = match.end()
    return passes


@dataclass
class Timing:
    """Seconds each pass took, in order."""

    rows: list[tuple[str, float]] = field(default_factory=lambda: [])


AfterPass = Callable[[int, Pass, Module, bool], None]
"""Called after each pass as ``hook(index, pass, module, changed)``."""


def run_pipeline(
    module: Module,
    passes: Iterable[Pass],
    context: PassContext,
    *,
    after: Sequence[AfterPass] = (),
    timing: Timing | None = None,
) -> None:
    """Run passes in order; check required facts, verify the IR and the legality table after each.

    Raises:
        EsccError: an order that breaks a requirement, an invalid module, an operation that may not remain.
    """
    for index, item in enumerate(passes):
        missing = item.requires - module.facts
        if missing:
            raise EsccError(
                f"pass '{item.name}' needs {', '.join(sorted(missing))} first",
                hint=f"run {', '.join(_establishers(missing)) or 'a pass that establishes it'} before it",
            )
        before = module.snapshot() if after else None
        start = time.perf_counter()
        item.run(module, context)
        if timing is not None:
            timing.rows.append((item.name, time.perf_counter() - start))
        module.refresh_signature()
        changed = bool(after) and module.snapshot() != before
        module.set_facts((module.facts - item.invalidates) | item.establishes)
        module.verify()
        check_legality(module)
        for hook in after:
            hook(index, item, module, changed)


def _establishers(facts: frozenset[str]) -> list[str]:
    return [name for name in pass_names() if pass_class(name).establishes & facts]


def check_legality(module: Module) -> None:
    """Raise when an operation remains that the facts of the module forbid."""
    for fact in sorted(module.facts):
        for op in module.layers:
            if not _legal(op.name, LEGAL_OPERATIONS.get(fact, ("*",))):
                raise EsccError(f"may not remain once the module is '{fact}'", where=describe(op))


def _legal(name: str, patterns: tuple[str, ...]) -> bool:
    if f"!{name}" in patterns:
        return False
    allowed = [pattern for pattern in patterns if not pattern.startswith("!")]
    return not allowed or any(
        name == pattern or (pattern.endswith("*") and name.startswith(pattern[:-1])) for pattern in allowed
    )
