"""Constraints such as ``multipliers <= 1024``: a figure, a comparison, a number."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from escc.errors import EsccError

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "==": operator.eq,
}
_FORM = re.compile(r"\s*([\w.]+)\s*(<=|>=|==|<|>)\s*([-+.\deE]+)\s*")


@dataclass(frozen=True)
class Constraint:
    """``name`` is a parameter, ``multipliers``, ``adders``, ``area`` in mm2, or an objective."""

    name: str
    comparison: str
    limit: float

    @property
    def text(self) -> str:
        """As it is written."""
        return f"{self.name} {self.comparison} {self.limit:g}"

    @property
    def upper(self) -> bool:
        """Whether it bounds from above."""
        return self.comparison in ("<", "<=", "==")

    def holds(self, value: float) -> bool:
        """Whether a value meets it."""
        return COMPARISONS[self.comparison](value, self.limit)


def parse_constraint(text: Any, known: Sequence[str], aliases: Mapping[str, str]) -> Constraint:
    """The constraint of a text over the ``known`` names, or ``aliases`` of them.

    Raises:
        EsccError: another form, or an unknown name.
    """
    found = _FORM.fullmatch(text) if isinstance(text, str) else None
    try:
        limit = float(found[3]) if found else None
    except ValueError:
        limit = None
    if found is None or limit is None:
        raise EsccError(f"constraint {text!r} is not NAME <= NUMBER", hint='as in "multipliers <= 1024"')
    name = aliases.get(found[1], found[1])
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
        raise EsccError(f"constraint on {found[1]!r}, which is no figure", hint=hint)
    return Constraint(name, found[2], limit)
