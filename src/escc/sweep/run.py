"""Carrying a sweep out: what is asked for and not in the journal is measured, by whoever there is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from escc.errors import EsccError
from escc.files import atomic_write
from escc.progress import Progress, silent
from escc.sweep.journal import Entry, Journal, point_key
from escc.sweep.measure import Fidelity, Figures, combined, family_key, order_key, static_figures
from escc.sweep.pareto import front
from escc.sweep.pools import Pool
from escc.sweep.search import search
from escc.sweep.space import OBJECTIVES, Point, Space
from escc.sweep.tasks import Task, frozen
from escc.sweep.workloads import prepared_accuracy, prepared_path

BATCH = 16
"""Points of a task at most: what is lost when a worker dies, and how often progress shows."""
MAXIMISED = ("accuracy",)


@dataclass(frozen=True)
class Outcome:
    """What a sweep has found: every entry it asked for, and the front of each fidelity, best latency first.

    ``confirmed``: for each point of ``front`` the same point compiled and simulated in full, None where that
    was not asked for.
    """

    space: Space
    entries: tuple[Entry, ...]
    front: tuple[Entry, ...]
    confirmed: tuple[Entry | None, ...]
    new: int

    @property
    def refused(self) -> int:
        """Points that could not be measured or miss a constraint on what was measured."""
        return sum(not meets(self.space, entry) for entry in self.entries)


def meets(space: Space, entry: Entry) -> bool:
    """Whether an entry was measured and meets every constraint."""
    if entry.refused:
        return False
    figures = {name: entry.figures[column] for name, column in OBJECTIVES.items() if column in entry.figures}
    return all(c.holds(figures[c.name]) for c in space.constraints if c.name in figures)


def objectives(space: Space, entry: Entry) -> tuple[float, ...] | None:
    """The objectives of an entry, all to be minimised; None when it does not count."""
    if not meets(space, entry):
        return None
    signs = [-1.0 if name in MAXIMISED else 1.0 for name in space.objectives]
    columns = [OBJECTIVES[name] for name in space.objectives]
    return tuple(sign * entry.figures[column] for sign, column in zip(signs, columns, strict=True))


def sweep(
    space: Space, work: Path, pool: Pool, *, restart: bool = False, progress: Progress = silent
) -> Outcome:
    """Carry a sweep out in the folder ``work``; what its journal holds is not measured again.

    Args:
        restart: forget what the folder holds.

    Raises:
        EsccError: the folder holds a sweep of something else; a network does not compile; a worker keeps
            dying; no point can be measured.
    """
    if restart:
        _forget(work)
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EsccError(f"cannot make the folder: {error.strerror}", where=str(work)) from None
    with Journal(work / "journal.jsonl", space.identity) as journal:
        atomic_write(work / "space.toml", space.text.encode())
        run = _Run(space, work, pool, journal, progress)
        search(space, run.judge)
        entries = tuple(run.asked.values())
        chosen = _front(space, entries)
        if not chosen:
            reasons = [entry.refused for entry in entries if entry.refused]
            hint = reasons[0] if reasons else "the constraints leave none"
            raise EsccError(f"none of {len(entries)} points can be measured", hint=hint)
        confirmed: list[Entry | None] = [None] * len(chosen)
        if space.search.confirm:
            confirmed = list(run.entries([entry.point for entry in chosen], "full"))
        return Outcome(space, entries, tuple(chosen), tuple(confirmed), run.new)


def _forget(work: Path) -> None:
    (work / "journal.jsonl").unlink(missing_ok=True)
    if (work / "networks").is_dir():
        shutil.rmtree(work / "networks")


def _front(space: Space, entries: Sequence[Entry]) -> list[Entry]:
    pairs = [(entry, values) for entry in entries if (values := objectives(space, entry)) is not None]
    rows = np.array([values for _, values in pairs], np.float64).reshape(len(pairs), len(space.objectives))
    return [pairs[index][0] for index in front(rows)]


class _Run:
    def __init__(self, space: Space, work: Path, pool: Pool, journal: Journal, progress: Progress) -> None:
        self.space, self.work, self.pool, self.journal = space, work, pool, journal
        self.progress = progress
        self.asked: dict[str, Entry] = {}
        self.new = 0

    def judge(self, points: Sequence[Point]) -> list[tuple[float, ...] | None]:
        """Objectives of points, measured where they are not known."""
        entries = self.entries(points, "fast")
        self.asked |= {point_key(entry.point): entry for entry in entries}
        return [objectives(self.space, entry) for entry in entries]

    def entries(self, points: Sequence[Point], fidelity: Fidelity) -> list[Entry]:
        """Entries of points, measured where they are not known."""
        known = self.journal.entries
        missing = [point for point in points if (point_key(point), fidelity) not in known]
        self._prepare(missing)
        total = len(self.asked) + len(points)
        done = total - len(missing)
        stage = "points" if fidelity == "fast" else "front, in full"
        self.progress(stage, done, self._total(total))
        for task, measured in self.pool.run(list(self._tasks(missing, fidelity))):
            for point, result in zip(task.points, measured, strict=True):
                self.journal.add(self._entry(dict(point), fidelity, result))
                self.new += 1
                done += 1
            self.progress(stage, done, self._total(total))
        return [known[point_key(point), fidelity] for point in points]

    def _total(self, so_far: int) -> int:
        return max(so_far, 0 if self.space.search.strategy == "grid" else self.space.search.points)

    def _prepare(self, points: Sequence[Point]) -> None:
        options = {tuple(sorted(self.space.compile_options(point).items())) for point in points}
        tasks = [
            Task(self.space.text, str(self.space.folder), str(self.work), workload=number, options=chosen)
            for chosen in sorted(options)
            for number, spec in enumerate(self.space.workloads)
            if not prepared_path(self.work, spec, dict(chosen)).with_suffix(".json").exists()
        ]
        for done, (_, problems) in enumerate(self.pool.run(tasks)):
            self.progress("networks", done + 1, len(tasks))
            for problem in problems:
                raise EsccError(str(problem))

    def _tasks(self, points: Sequence[Point], fidelity: Fidelity) -> Iterator[Task]:
        """Points that share a recording together, in small numbers."""
        batch: list[Point] = []
        last: object = None
        most = BATCH if fidelity == "fast" else 1
        for point in sorted(points, key=lambda point: order_key(self.space, point)):
            family = family_key(self.space, point)
            if batch and (family != last or len(batch) == most):
                yield self._task(batch, fidelity)
                batch = []
            last = family
            batch.append(point)
        if batch:
            yield self._task(batch, fidelity)

    def _task(self, batch: Sequence[Point], fidelity: Fidelity) -> Task:
        return Task(self.space.text, str(self.space.folder), str(self.work), frozen(batch), fidelity)

    def _entry(self, point: Point, fidelity: Fidelity, result: dict[str, Figures] | str) -> Entry:
        static = static_figures(self.space, point)
        if isinstance(result, str):
            return Entry(point, fidelity, static, {}, result)
        options = self.space.compile_options(point)
        for spec in self.space.workloads:
            if spec.labels:
                accuracy = prepared_accuracy(spec, options, self.work)
                assert accuracy is not None
                result[spec.name]["accuracy"] = accuracy
        return Entry(point, fidelity, static | combined(result), result)
