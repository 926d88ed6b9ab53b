"""Options of a pass that hold for some layers only: ``pattern:option=value[:option=value]``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from escc.errors import EsccError

T = TypeVar("T")

Kinds = Mapping[str, Callable[[str], Any]]
"""How the text of each option is read."""


def items(text: str) -> list[str]:
    """The entries of a list separated by ';' or ','."""
    return [item for item in re.split(r"[;,]", text) if item]


def layer_options(text: str, kinds: Kinds, where: str) -> list[tuple[str, dict[str, Any]]]:
    """Pattern of module paths and option values of each entry, in the order given.

    Raises:
        EsccError: an option that is not one of ``kinds``, or a value that cannot be read.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    for entry in items(text):
        pattern, *settings = entry.split(":")
        values: dict[str, Any] = {}
        for setting in settings:
            key, _, value = setting.partition("=")
            try:
                values[key] = kinds[key](value)
            except (KeyError, ValueError):
                raise EsccError(
                    f"cannot read '{setting}' of '{entry}'",
                    where=f"{where}{{layers}}",
                    hint=f"pattern:option=value with options {', '.join(kinds)}",
                ) from None
        found.append((pattern, values))
    return found


def last_match(path: str, choices: list[tuple[str, T]]) -> T | None:
    """What the last pattern that matches the module path stands for."""
    matching = [choice for pattern, choice in choices if fnmatchcase(path, pattern)]
    return matching[-1] if matching else None
