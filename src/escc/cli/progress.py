"""Progress on stderr for whatever takes its time: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, TextIO

from escc.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

APPEARS_AFTER = 1.0
"""Seconds of work before a terminal shows a bar: what is done sooner needs none."""

LOGGED_EVERY = 10.0
"""Seconds between two lines where stderr is a file or a pipe."""


@contextmanager
def progress_bars(stream: TextIO | None = None) -> Generator[Progress]:
    """Yield a ``progress(stage, done, total)`` that shows how far the work is; ``total`` 0 means unknown.

    On a terminal: one bar per stage, from the first second on, gone when the block ends. Elsewhere: one
    line of the current stage every ten seconds, so that short runs leave logs clean and long ones are
    seen to live. ``stream`` is stderr unless given.
    """
    target: TextIO = sys.stderr if stream is None else stream
    display = _Terminal(target) if target.isatty() else _Log(target)
    try:
        yield display.show
    finally:
        display.close()


class _Log:
    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.last = monotonic()

    def show(self, stage: str, done: int, total: int) -> None:
        now = monotonic()
        if now - self.last >= LOGGED_EVERY:
            self.last = now
            count = f" {done}/{total}" if total else f" {done}" if done else ""
            print(f"{stage}{count}", file=self.stream, flush=True)

    def close(self) -> None:
        pass


class _Terminal:
    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.started = monotonic()
        self.bars: Bars | None = None
        self.tasks: dict[str, TaskID] = {}

    def show(self, stage: str, done: int, total: int) -> None:
        if self.bars is None:
            if monotonic() - self.started < APPEARS_AFTER:
                return
            self.bars = _make_bars(self.stream)
            self.bars.start()
        if stage not in self.tasks:
            self.tasks[stage] = self.bars.add_task(stage, total=total or None)
        self.bars.update(self.tasks[stage], completed=done, total=total or None)

    def close(self) -> None:
        if self.bars is not None:
            self.bars.stop()


def _make_bars(stream: TextIO) -> Bars:
    # rich takes a while to import; short runs and --help never get here
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Bars(*columns, console=Console(file=stream), transient=True)
