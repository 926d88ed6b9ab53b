"""What a worker does: plain functions of plain values, so that any process can be asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from escc.errors import EsccError
from escc.sweep.measure import Fidelity, Figures, Measurer
from escc.sweep.space import Point, parse_space
from escc.sweep.workloads import prepare


@dataclass(frozen=True)
class Task:
    """A piece of work on the space of ``text``, whose relative paths begin at ``folder``; results are kept in
    ``work``. Either ``points`` are measured, or the ``workload`` is prepared for the compile ``options``.
    """

    text: str
    folder: str
    work: str
    points: tuple[tuple[tuple[str, Any], ...], ...] = ()
    fidelity: Fidelity = "fast"
    workload: int = -1
    options: tuple[tuple[str, Any], ...] = ()


Measured = list[dict[str, Figures] | str]
"""For each point its figures by workload, or why it cannot be measured."""


def frozen(points: Sequence[Point]) -> tuple[tuple[tuple[str, Any], ...], ...]:
    """Points as a task holds them."""
    return tuple(tuple(point.items()) for point in points)


def carry_out(task: Task) -> Measured:
    """Do a task.

    What a user can act on comes back as a text: exceptions of escc do not cross processes well.
    """
    if task.workload >= 0:
        space = parse_space(task.text, Path(task.folder))
        spec = space.workloads[task.workload]
        try:
            prepare(spec, dict(task.options), Path(task.folder), Path(task.work))
        except EsccError as error:
            return [f"{spec.name}: {error}"]
        return []
    return _measurer(task.text, task.folder, task.work).measure([dict(p) for p in task.points], task.fidelity)


@lru_cache(maxsize=1)
def _measurer(text: str, folder: str, work: str) -> Measurer:
    """The measurer of this process: its networks and recordings stay for the next task."""
    return Measurer(parse_space(text, Path(folder)), Path(work))
