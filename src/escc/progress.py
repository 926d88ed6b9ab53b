"""Progress display for anything that takes over a second; silent unless the command line turns it on."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``; ``total`` is 0 when unknown."""


def silent(stage: str, done: int, total: int) -> None:
    """The default: show nothing."""
