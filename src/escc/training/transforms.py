"""The kinds of phases that change a network at once, by the name recipes use."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from escc.training.context import Transform

_HOMES = {
    "decompose": "escc.training.steps:decompose",
    "refine": "escc.training.refinement:refine",
    "slim": "escc.training.slimming:slim",
    "prune": "escc.training.penni:prune",
    "shrink": "escc.training.shrinking:shrink",
    "ternarize": "escc.training.steps:ternarize",
    "quantize": "escc.training.steps:quantize",
}


@dataclass(frozen=True)
class TransformEntry:
    """A transform and the names of the options a recipe may give it."""

    function: Transform
    options: tuple[str, ...]
    summary: str


def transforms() -> dict[str, TransformEntry]:
    """All transforms by kind."""
    found: dict[str, TransformEntry] = {}
    for kind, home in _HOMES.items():
        module, _, name = home.partition(":")
        function: Any = getattr(import_module(module), name)
        options = tuple(
            parameter.name
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind is parameter.KEYWORD_ONLY
        )
        summary = (inspect.getdoc(function) or "").splitlines()[0]
        found[kind] = TransformEntry(function, options, summary)
    return found
