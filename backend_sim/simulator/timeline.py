"""When everything happens: the sequencer, three in-order queues with limited depth, counting tokens.

The sequencer executes one word a cycle; it stops while the queue of an instruction holds ``queue_depth``
dispatched instructions that have not started. A dispatched instruction can start in the cycle after its
dispatch, when its predecessor in the queue has ended. A wait starts when its token is there, a signal when
its predecessor has ended; both take no time, but a place in the queue. The i-th wait on a token takes the
i-th signal of it, in program order; each is preceded by its signal there, so one pass in program order gives
all times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from escc.errors import EsccError
from escc.isa.instructions import Queue
from escc.isa.sequence import Dispatch

Cycles = npt.NDArray[np.int64]

CAUSES: tuple[str, ...] = ("busy", "wait_dma", "wait_blk", "wait_vec", "wait_dispatch", "idle_end")
_WAITS = {Queue.DMA: "wait_dma", Queue.BLK: "wait_blk", Queue.VEC: "wait_vec"}


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
    senders = _senders(steps)
    runs = [_run(steps, senders, words, column.tolist(), depth) for column in durations.T]
    return _checked(runs, [step.layer for step in steps])


@dataclass
class _Run:
    """The times of one image; ``queues``, ``layers``: cycles by (queue, cause) and layer."""

    total: int
    start: list[int]
    end: list[int]
    queues: list[dict[str, int]]
    layers: dict[int, int]
    layer_queues: dict[tuple[int, int], dict[str, int]]


def _senders(steps: Sequence[Dispatch]) -> list[int]:
    """For a wait the step that signals it, -1 for a signal, -2 for an instruction."""
    signals: dict[int, list[int]] = {}
    waited: dict[int, int] = {}
    found: list[int] = []
    for index, step in enumerate(steps):
        if step.registers is not None:
            found.append(-2)
        elif step.instruction.mnemonic == "signal":
            signals.setdefault(step.token, []).append(index)
            found.append(-1)
        else:
            number = waited.get(step.token, 0)
            waited[step.token] = number + 1
            found.append(signals[step.token][number])
    return found


def _run(steps: Sequence[Dispatch], senders: list[int], words: int, durations: list[int], depth: int) -> _Run:
    """One image, in Python's integers: many times faster than arrays of a few images."""
    start, end = [0] * len(steps), [0] * len(steps)
    queues = [dict.fromkeys(CAUSES, 0) for _ in Queue]
    layers: dict[int, int] = {}
    layer_queues: dict[tuple[int, int], dict[str, int]] = {}
    free = [0] * len(Queue)
    started: list[list[int]] = [[] for _ in Queue]
    stall = reached = 0
    for index, (step, sender) in enumerate(zip(steps, senders, strict=True)):
        queue = step.queue
        before = started[queue]
        issue = step.executed + stall
        if len(before) >= depth and before[-depth] > issue:
            issue = before[-depth]
            stall = issue - step.executed
        began = free[queue]
        ready = max(issue + 1, began)
        begin = finish = ready
        cause, cycles = "busy", 0
        if sender == -2:
            cycles = durations[index]
            finish = begin + cycles
        elif sender >= 0:
            begin = finish = max(ready, start[sender])
            cause, cycles = _WAITS[steps[sender].queue], begin - ready
        sums = layer_queues.get((step.layer, queue))
        if sums is None:
            sums = layer_queues[step.layer, queue] = dict.fromkeys(CAUSES, 0)
        for target in (queues[queue], sums):
            target["wait_dispatch"] += ready - began
            target[cause] += cycles
        start[index], end[index] = begin, finish
        before.append(begin)
        free[queue] = finish
        if finish > reached:
            layers[step.layer] = layers.get(step.layer, 0) + finish - reached
            reached = finish
    total = max(reached, words + stall)
    layers[-1] = layers.get(-1, 0) + total - reached
    for causes, last in zip(queues, free, strict=True):
        causes["idle_end"] = total - last
    return _Run(total, start, end, queues, layers, layer_queues)


def _checked(runs: Sequence[_Run], layers: Sequence[int]) -> Timeline:
    """The images together. Every cycle of every queue has one cause, and every cycle belongs to one layer."""
    for run in runs:
        for queue, causes in zip(Queue, run.queues, strict=True):
            if min(causes.values()) < 0:
                raise AssertionError(f"queue {queue.text}: negative cycles")
            if sum(causes.values()) != run.total:
                raise AssertionError(f"queue {queue.text}: causes do not sum to the total")
        if sum(run.layers.values()) != run.total:
            raise AssertionError("layer cycles do not sum to the total")

    def joined(value: Callable[[_Run], Any]) -> Cycles:
        return np.array([value(run) for run in runs], np.int64)

    layer_queues: dict[int, dict[Queue, dict[str, Cycles]]] = {}
    for layer, queue in runs[0].layer_queues:
        key = layer, queue
        layer_queues.setdefault(layer, {})[Queue(queue)] = {
            cause: joined(lambda run, key=key, cause=cause: run.layer_queues[key][cause])
            for cause in CAUSES[:-1]
        }
    return Timeline(
        total=joined(lambda run: run.total),
        start=joined(lambda run: run.start).T,
        end=joined(lambda run: run.end).T,
        queues={
            queue: {cause: joined(lambda run, q=queue, c=cause: run.queues[q][c]) for cause in CAUSES}
            for queue in Queue
        },
        layer_cycles={
            layer: joined(lambda run, layer=layer: run.layers.get(layer, 0))
            for layer in dict.fromkeys([*layers, -1])
        },
        layer_queues=layer_queues,
    )
