"""When everything happens: the sequencer, three in-order queues with limited depth, counting tokens.

The sequencer executes one word a cycle; it stops while the queue of an instruction holds ``queue_depth``
dispatched instructions that have not started. A dispatched instruction can start in the cycle after its
dispatch, when its predecessor in the queue has ended. A wait starts when its token is there, a signal when
its predecessor has ended; both take no time, but a place in the queue. The i-th wait on a token takes the
i-th signal of it, in program order; each is preceded by its signal there, so one pass in program order gives
all times. Every time is an array over images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from escc.errors import EsccError
from escc.isa.instructions import Queue
from escc.isa.sequence import Dispatch

Cycles = npt.NDArray[np.int64]
Key = TypeVar("Key")

CAUSES = ("busy", "wait_dma", "wait_blk", "wait_vec", "wait_dispatch", "idle_end")
_WAIT = {Queue.DMA: "wait_dma", Queue.BLK: "wait_blk", Queue.VEC: "wait_vec"}


@dataclass(frozen=True)
class Timeline:
    """Times of a program, in cycles.

    ``total`` (N,): until everything has ended, halt included. ``start``, ``end`` (steps, N). ``queues``: per
    queue and cause (`CAUSES`) the cycles (N,), which sum to ``total``. ``layer_cycles``: for each layer the
    cycles by which its instructions move the end of everything so far, in program order; they sum to
    ``total`` with what the sequencer does after the last instruction under -1. ``layer_queues``: the causes
    of each layer's instructions, without idle_end.
    """

    total: Cycles
    start: Cycles
    end: Cycles
    queues: dict[Queue, dict[str, Cycles]]
    layer_cycles: dict[int, Cycles]
    layer_queues: dict[int, dict[Queue, dict[str, Cycles]]]


def check_tokens(steps: Sequence[Dispatch], place: Callable[[Dispatch], str]) -> None:
    """Raise EsccError for a wait that no earlier signal is left for: the program would stand still."""
    counts: dict[int, int] = {}
    for step in steps:
        if step.registers is None:
            change = 1 if step.instruction.mnemonic == "signal" else -1
            counts[step.token] = counts.get(step.token, 0) + change
            if counts[step.token] < 0:
                raise EsccError(
                    f"deadlock: waits for token {step.token}, but no signal before it is left",
                    where=place(step),
                )


def run_timeline(steps: Sequence[Dispatch], words: int, durations: Cycles, depth: int) -> Timeline:
    """Times of ``steps``, the dispatches of a program that executes ``words`` words.

    ``durations`` (steps, N): cycles of each queue instruction; not looked at for waits and signals.
    """
    return _Run(steps, words, durations, depth).timeline()


class _Run:
    def __init__(self, steps: Sequence[Dispatch], words: int, durations: Cycles, depth: int) -> None:
        self.steps, self.words, self.durations, self.depth = steps, words, durations, depth
        images = durations.shape[1]
        self.zero = np.zeros(images, np.int64)
        self.start = np.zeros((len(steps), images), np.int64)
        self.end = np.zeros((len(steps), images), np.int64)
        self.queues = {queue: {cause: self.zero.copy() for cause in CAUSES} for queue in Queue}
        self.layer_cycles: dict[int, Cycles] = {}
        self.layer_queues: dict[int, dict[Queue, dict[str, Cycles]]] = {}

    def timeline(self) -> Timeline:
        stall = self.zero.copy()
        free = {queue: self.zero for queue in Queue}
        started: dict[Queue, list[Cycles]] = {queue: [] for queue in Queue}
        signals: dict[int, list[tuple[Queue, Cycles]]] = {}
        waited: dict[int, int] = {}
        reached = self.zero.copy()
        for index, step in enumerate(self.steps):
            queue = step.queue
            issue = step.executed + stall
            if len(started[queue]) >= self.depth:
                issue = np.maximum(issue, started[queue][-self.depth])
                stall = issue - step.executed
            ready = np.maximum(issue + 1, free[queue])
            self._count(step, "wait_dispatch", ready - free[queue])
            begin = finish = ready
            if step.registers is not None:
                finish = begin + self.durations[index]
                self._count(step, "busy", self.durations[index])
            elif step.instruction.mnemonic == "signal":
                signals.setdefault(step.token, []).append((queue, begin))
            else:
                number = waited.get(step.token, 0)
                waited[step.token] = number + 1
                sender, sent = signals[step.token][number]
                begin = finish = np.maximum(ready, sent)
                self._count(step, _WAIT[sender], begin - ready)
            self.start[index], self.end[index] = begin, finish
            started[queue].append(begin)
            free[queue] = finish
            ahead = np.maximum(finish - reached, 0)
            self._add(self.layer_cycles, step.layer, ahead)
            reached += ahead
        total = np.maximum(reached, self.words + stall)
        self._add(self.layer_cycles, -1, total - reached)
        for queue, causes in self.queues.items():
            causes["idle_end"] = total - free[queue]
        return self._checked(total)

    def _count(self, step: Dispatch, cause: str, cycles: Cycles) -> None:
        self.queues[step.queue][cause] += cycles
        layer = self.layer_queues.setdefault(step.layer, {})
        self._add(layer.setdefault(step.queue, {}), cause, cycles)

    @staticmethod
    def _add(sums: dict[Key, Cycles], key: Key, cycles: Cycles) -> None:
        sums[key] = sums[key] + cycles if key in sums else cycles.copy()

    def _checked(self, total: Cycles) -> Timeline:
        """Every cycle of every queue has exactly one cause, and every cycle belongs to one layer."""
        for queue, causes in self.queues.items():
            if any((cycles < 0).any() for cycles in causes.values()):
                raise AssertionError(f"queue {queue.text}: negative cycles")
            if (sum(causes.values(), self.zero) != total).any():
                raise AssertionError(f"queue {queue.text}: causes do not sum to the total")
        if (sum(self.layer_cycles.values(), self.zero) != total).any():
            raise AssertionError("layer cycles do not sum to the total")
        return Timeline(total, self.start, self.end, self.queues, self.layer_cycles, self.layer_queues)
