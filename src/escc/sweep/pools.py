"""Who does the work: this process, local processes, or a Dask cluster. A worker that dies loses nothing."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

from escc.errors import EsccError
from escc.sweep.tasks import Measured, Task, carry_out

TRIES = 3
"""How often a task may take its worker with it."""
CONNECT_SECONDS = 10


class Pool(Protocol):
    """Carries tasks out."""

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Measured]]:
        """The results, as they come.

        Raises:
            EsccError: a task took its worker with it three times.
        """
        ...

    def close(self) -> None:
        """Let go of the workers."""
        ...


class InProcess:
    """One task after the other, here."""

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Measured]]:
        """See `Pool`."""
        for task in tasks:
            yield task, carry_out(task)

    def close(self) -> None:
        """Nothing to let go of."""


class LocalProcesses:
    """``workers`` processes of this computer, started when first needed, and anew when one dies."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._executor: ProcessPoolExecutor | None = None

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Measured]]:
        """See `Pool`."""
        tries = dict.fromkeys(range(len(tasks)), 0)
        waiting = list(tries)
        running: dict[Future[Measured], int] = {}
        while waiting or running:
            while waiting and len(running) < self.workers:
                number = waiting.pop(0)
                try:
                    running[self._pool().submit(carry_out, tasks[number])] = number
                except BrokenProcessPool:
                    waiting.insert(0, number)
                    break
            done = wait(running, return_when=FIRST_COMPLETED).done if running else set()
            broken = not running
            for future in done:
                number = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    running[future] = number
                    broken = True
                    continue
                yield tasks[number], result
            if broken:
                # nobody can say which of them it was: each has had a try
                lost = sorted(running.values())
                running.clear()
                self.close()
                for number in lost:
                    tries[number] += 1
                    if tries[number] >= TRIES:
                        raise EsccError(f"a worker died {TRIES} times", hint="is there enough memory?")
                waiting = lost + waiting

    def processes(self) -> list[int]:
        """The ids of the processes there are."""
        executor: Any = self._executor
        return [] if executor is None else list(executor._processes or ())

    def _pool(self) -> ProcessPoolExecutor:
        if self._executor is None:
            # a fork would inherit the threads' locks; what a worker imports it imports once
            context = multiprocessing.get_context("spawn")
            for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
                os.environ.setdefault(name, "1")
            self._executor = ProcessPoolExecutor(self.workers, mp_context=context)
        return self._executor

    def close(self) -> None:
        """Stop the processes; what they were at is dropped."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None


class DaskCluster:
    """A Dask cluster whose scheduler is at ``address``; its workers see the files of the sweep.

    Raises:
        EsccError: Dask is not installed, or nobody answers.
    """

    def __init__(self, address: str) -> None:
        try:
            from distributed import Client
        except ImportError:
            raise EsccError("Dask is not installed", hint="pip install 'escc[dask]'") from None
        try:
            self._client: Any = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise EsccError(f"no Dask scheduler answers: {reason}", where=address) from None

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Measured]]:
        """See `Pool`."""
        from distributed import KilledWorker, as_completed

        tries = dict.fromkeys(range(len(tasks)), 0)
        numbers: dict[str, int] = {}

        def submit(number: int) -> Any:
            future = self._client.submit(carry_out, tasks[number], pure=False)
            numbers[future.key] = number
            return future

        pending: Any = as_completed([submit(number) for number in tries], loop=self._client.loop)
        for future in pending:
            number = numbers.pop(future.key)
            try:
                result: Measured = future.result()
            except KilledWorker:
                tries[number] += 1
                if tries[number] >= TRIES:
                    raise EsccError(
                        f"a worker died {TRIES} times over", hint="is there enough memory?"
                    ) from None
                pending.add(submit(number))
                continue
            yield tasks[number], result

    def close(self) -> None:
        """Leave the cluster; it goes on without us."""
        self._client.close()


def make_pool(workers: int, dask: str | None) -> Pool:
    """The pool for a number of local processes or the address of a Dask scheduler.

    Raises:
        EsccError: see `DaskCluster`.
    """
    if dask is not None:
        return DaskCluster(dask)
    return LocalProcesses(workers) if workers > 1 else InProcess()
