"""A thread beside the running one, for work that runs outside the interpreter."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from types import TracebackType
from typing import Any, Generic, TypeVar

T = TypeVar("T")

MOST_WAITING = 32
"""Pieces of work that may wait; each holds what it needs."""


class Background:
    """Runs pieces of work one after the other, while its block lasts."""

    def __init__(self) -> None:
        self._work: SimpleQueue[_Task[Any] | None] = SimpleQueue()
        self._room = Semaphore(MOST_WAITING)
        self._thread = Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Background:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._work.put(None)
        self._thread.join()

    def run(self, function: Callable[[], T]) -> Callable[[], T]:
        """Have ``function`` called; what is returned gives its result, or raises what it raised."""
        self._room.acquire()
        task = _Task(function)
        self._work.put(task)
        return task.result

    def _serve(self) -> None:
        while (task := self._work.get()) is not None:
            task.run()
            self._room.release()


class _Task(Generic[T]):
    def __init__(self, function: Callable[[], T]) -> None:
        self._function: Callable[[], T] | None = function
        self._done = Event()
        self._results: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        """Call the function, and let go of what it holds."""
        function, self._function = self._function, None
        assert function is not None
        try:
            self._results.append(function())
        except BaseException as error:
            self._error = error
        self._done.set()

    def result(self) -> T:
        """Wait for the result."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._results[0]
