"""Races between the queues: vector clocks over tokens, and boxes of bytes compared exactly.

Instructions of one queue run one after the other. The i-th wait for a token runs after everything before the
i-th signal of that token. Two instructions of different queues that touch the same byte, one of them writing,
must be ordered by such a chain.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from escc.isa.access import DRAM, Access
from escc.isa.instructions import Queue
from escc.isa.sequence import Dispatch

_DRAM_OFFSET = 1 << 48


class Race(NamedTuple):
    """Two unordered instructions and the accesses that meet."""

    first: Dispatch
    first_access: Access
    second: Dispatch
    second_access: Access


class _Log:
    """The accesses of one queue: columns (base, end, writes), and how many lie before each instruction."""

    def __init__(self) -> None:
        self.base = np.zeros(1024, np.int64)
        self.end = np.zeros(1024, np.int64)
        self.write = np.zeros(1024, np.bool_)
        self.entries: list[tuple[Dispatch, Access]] = []
        self.before = [0]

    def add(
        self,
        dispatch: Dispatch,
        found: tuple[Access, ...],
        columns: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]],
    ) -> None:
        """Append the accesses of the queue's next instruction."""
        start = len(self.entries)
        self.entries += [(dispatch, access) for access in found]
        stop = len(self.entries)
        if stop > self.base.size:
            self.base, self.end = np.resize(self.base, 2 * stop), np.resize(self.end, 2 * stop)
            self.write = np.resize(self.write, 2 * stop)
        self.base[start:stop], self.end[start:stop], self.write[start:stop] = columns
        self.before.append(stop)


class RaceCheck:
    """Fed with the dispatched instructions in program order, finds the first race."""

    def __init__(self) -> None:
        queues = len(Queue)
        self._clocks = [[0] * queues for _ in range(queues)]
        self._signals: dict[int, deque[list[int]]] = {}
        self._logs = [_Log() for _ in range(queues)]

    def signal(self, queue: int, token: int) -> None:
        """The queue signals the token."""
        self._signals.setdefault(token, deque()).append(list(self._clocks[queue]))

    def wait(self, queue: int, token: int) -> bool:
        """The queue waits for the token; False if no signal in program order is left for it."""
        pending = self._signals.get(token)
        if not pending:
            return False
        clock = self._clocks[queue]
        for index, value in enumerate(pending.popleft()):
            clock[index] = max(clock[index], value)
        return True

    def access(self, dispatch: Dispatch, found: tuple[Access, ...]) -> Race | None:
        """The next instruction of its queue touches ``found``; the race this makes, if any."""
        own = int(dispatch.queue)
        clock = self._clocks[own]
        offsets = [_DRAM_OFFSET if access.memory == DRAM else 0 for access in found]
        bases = [access.base + offset for access, offset in zip(found, offsets, strict=True)]
        ends = [access.end + offset for access, offset in zip(found, offsets, strict=True)]
        columns = np.array(bases), np.array(ends), np.array([access.write for access in found])
        for queue, log in enumerate(self._logs):
            start, stop = log.before[clock[queue]], len(log.entries)
            if queue == own or start == stop:
                continue
            base, end, write = (column[:, None] for column in columns)
            meet = (log.base[start:stop] < end) & (base < log.end[start:stop])
            meet &= log.write[start:stop] | write
            if meet.any():
                for mine, other in np.argwhere(meet).tolist():
                    earlier, access = log.entries[start + other]
                    if overlap(access, found[mine]):
                        return Race(earlier, access, dispatch, found[mine])
        clock[own] += 1
        self._logs[own].add(dispatch, found, columns)
        return None


def overlap(first: Access, second: Access) -> bool:
    """Whether two boxes share a byte, exactly."""
    low, high = max(first.base, second.base), min(first.end, second.end)
    if first.memory != second.memory or low >= high:
        return False
    pitch = first.pos_pitch
    same_grid = (
        pitch == second.pos_pitch and first.row_pitch % max(pitch, 1) == second.row_pitch % max(pitch, 1) == 0
    )
    if same_grid and pitch:
        # Channel groups of one map interleave: compare the places inside a position.
        gap = (second.base - first.base) % pitch
        if gap >= first.chans and gap + second.chans <= pitch:
            return False
    return bool((_bytes_between(first, low, high) & _bytes_between(second, low, high)).any())


def _bytes_between(access: Access, low: int, high: int) -> npt.NDArray[np.bool_]:
    """Which of the bytes ``low..high-1`` the box covers."""
    covered = np.zeros(access.end - access.base, np.bool_)
    box_view(covered, access)[...] = True
    return covered[low - access.base : high - access.base]


def box_view(memory: npt.NDArray[np.bool_], access: Access) -> npt.NDArray[np.bool_]:
    """The box (rows, cols, chans) as a view of ``memory``, whose first byte is the box's first byte."""
    shape = (access.rows, access.cols, access.chans)
    strides = (access.row_pitch, access.pos_pitch, 1)
    return np.lib.stride_tricks.as_strided(memory, shape, strides)
