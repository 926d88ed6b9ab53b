"""Tokens: the waits and signals that make three concurrent queues give the result of the sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from escc.backend_sim.lowering.actions import Action, conflict
from escc.isa.access import SRAM, Access
from escc.isa.instructions import Queue

QUEUES = tuple(Queue)
_DRAM_OFFSET = 1 << 48


@dataclass(frozen=True)
class Token:
    """A wait or signal of a queue."""

    kind: Literal["wait", "signal"]
    queue: Queue
    token: int
    layer: int


Item = Action | Token


def token_of(producer: Queue, consumer: Queue) -> int:
    """The token that orders ``consumer`` behind ``producer``: one for each ordered pair of queues."""
    return int(producer) * len(QUEUES) + int(consumer)


def synchronise(actions: list[Action]) -> list[Item]:
    """Insert the tokens a sequence needs: every pair of conflicting actions of different queues is ordered.

    Tokens count, and every pair of queues has its own, so that the i-th wait meets the i-th signal: along
    each pair both come in increasing order. What is already ordered, directly or through the third queue,
    gets no token.
    """
    waits: dict[int, list[Token]] = {}
    signals: dict[int, list[Token]] = {}
    logs = [_Log([(i, action) for i, action in enumerate(actions) if action.queue == q]) for q in QUEUES]
    # known[q][p]: how many actions of queue p have finished before the next action of q starts
    known = [[0] * len(QUEUES) for _ in QUEUES]
    started = [0] * len(QUEUES)
    snapshots: list[list[list[int]]] = [[] for _ in QUEUES]
    for index, action in enumerate(actions):
        queue = action.queue
        needs = [
            (producer, needed)
            for producer in QUEUES
            if producer != queue
            and (needed := logs[producer].last_conflict(action, known[queue][producer], started[producer]))
        ]
        for producer, needed in _without_implied(needs, snapshots):
            token = token_of(producer, queue)
            source, earlier = logs[producer].actions[needed - 1]
            signals.setdefault(source, []).append(Token("signal", producer, token, earlier.layer))
            waits.setdefault(index, []).append(Token("wait", queue, token, action.layer))
            for other in QUEUES:
                known[queue][other] = max(known[queue][other], snapshots[producer][needed - 1][other])
        started[queue] += 1
        known[queue][queue] = started[queue]
        snapshots[queue].append(list(known[queue]))
    items: list[Item] = []
    for index, action in enumerate(actions):
        items += waits.get(index, [])
        items.append(action)
        items += sorted(signals.get(index, []), key=lambda token: token.token)
    return items


class _Log:
    """The actions of one queue and the spans of their accesses, as columns to search at once."""

    def __init__(self, actions: list[tuple[int, Action]]) -> None:
        self.actions = actions
        boxes = [(n, box) for n, (_, action) in enumerate(actions) for box in action.accesses]
        self.owner = np.array([n for n, _ in boxes], np.int64)
        self.base = np.array([_linear(box)[0] for _, box in boxes], np.int64)
        self.end = np.array([_linear(box)[1] for _, box in boxes], np.int64)
        self.write = np.array([box.write for _, box in boxes], np.bool_)
        self.before = [0, *np.cumsum([len(action.accesses) for _, action in actions]).tolist()]

    def last_conflict(self, action: Action, known: int, started: int) -> int:
        """How many of the first ``started`` actions must be finished before ``action``; 0 when the
        ``known`` ones are enough."""
        low, high = self.before[known], self.before[started]
        if low == high:
            return 0
        suspects: set[int] = set()
        for box in action.accesses:
            base, end = _linear(box)
            meet = (self.base[low:high] < end) & (self.end[low:high] > base)
            if not box.write:
                meet &= self.write[low:high]
            suspects.update(self.owner[low:high][meet].tolist())
        for candidate in sorted(suspects, reverse=True):
            if conflict(self.actions[candidate][1], action):
                return candidate + 1
        return 0


def _linear(box: Access) -> tuple[int, int]:
    """Base and end in one address space for both memories."""
    offset = 0 if box.memory == SRAM else _DRAM_OFFSET
    return box.base + offset, box.end + offset


def _without_implied(
    needs: list[tuple[Queue, int]], snapshots: list[list[list[int]]]
) -> list[tuple[Queue, int]]:
    """Leave out what the other need brings along."""
    return [
        (producer, needed)
        for producer, needed in needs
        if not any(
            other != producer and snapshots[other][count - 1][producer] >= needed for other, count in needs
        )
    ]
