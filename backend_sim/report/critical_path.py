"""Which chain of instructions decides the time of a run: the timeline, followed backwards from its end.

An instruction begins when the last of three things has happened: its predecessor in the queue has ended, the
token it waits for was signalled, the sequencer has dispatched it (`escc.backend_sim.simulator.timeline`). The
walk goes to the one that happened last, so its segments tile the time from 0 to the end: every cycle of the
run is given to one layer and one kind of work, and shortening any other work would not shorten the run.
"""

from __future__ import annotations

from typing import NamedTuple

from escc.backend_sim.simulator.result import TimedResult
from escc.isa.instructions import Queue

KINDS = (*(queue.text for queue in Queue), "sequencer")
"""What a segment is: an instruction of a queue, or the sequencer on its way to dispatch one."""


class Segment(NamedTuple):
    """Cycles ``start`` to ``end`` of the path; ``step`` is the index of the instruction, -1 for the halt."""

    start: int
    end: int
    kind: str
    layer: int
    step: int


class Dependence(NamedTuple):
    """What an instruction may have waited for: step numbers, -1 for none.

    ``issue``: the cycle of its dispatch. ``blocker``: whose begin let the sequencer go on to it.
    """

    predecessor: int
    sender: int
    issue: int
    blocker: int


def critical_path(timed: TimedResult, image: int = 0) -> list[Segment]:
    """The segments of the critical path of a timed image, in order of time; they tile 0 to its cycles."""
    steps = timed.steps
    start: list[int] = timed.timeline.start[:, image].tolist()
    end: list[int] = timed.timeline.end[:, image].tolist()
    before, blocker = dependences(timed, start)
    total = int(timed.timeline.total[image])
    path: list[Segment] = []

    def sequencer(until: int, blocked_by: int, layer: int, step: int) -> tuple[int, int]:
        """The sequencer runs from the moment a full queue let it go on: that moment, and who it was."""
        since = start[blocked_by] if blocked_by >= 0 else 0
        path.append(Segment(since, until, "sequencer", layer, step))
        return since, blocked_by

    at = max(range(len(steps)), key=lambda index: end[index], default=-1)
    if at >= 0 and end[at] == total:
        now = _run(path, timed, at, start, end)
    else:
        now, at = sequencer(total, blocker, -1, -1)
    while now > 0:
        facts = before[at]
        predecessor = facts.predecessor
        if predecessor >= 0 and end[predecessor] == now:
            at = predecessor
            now = _run(path, timed, at, start, end)
        elif facts.sender >= 0 and start[facts.sender] == now:
            at = facts.sender
        else:
            now, at = sequencer(now, facts.blocker, steps[at].layer, at)
    return [segment for segment in reversed(path) if segment.end > segment.start]


def _run(path: list[Segment], timed: TimedResult, index: int, start: list[int], end: list[int]) -> int:
    """Go back over an instruction; waits and signals take no time of their own. Returns its begin."""
    step = timed.steps[index]
    if step.registers is not None:
        path.append(Segment(start[index], end[index], step.queue.text, step.layer, index))
    return start[index]


def dependences(timed: TimedResult, start: list[int]) -> tuple[list[Dependence], int]:
    """For every step what it may have waited for, and the step whose begin let the sequencer go on last."""
    depth = timed.arch.queue_depth
    queues: dict[Queue, list[int]] = {queue: [] for queue in Queue}
    signals: dict[int, list[int]] = {}
    waited: dict[int, int] = {}
    stall, blocker = 0, -1
    found: list[Dependence] = []
    for index, step in enumerate(timed.steps):
        queue = queues[step.queue]
        issue = step.executed + stall
        if len(queue) >= depth and start[queue[-depth]] > issue:
            blocker = queue[-depth]
            issue = start[blocker]
            stall = issue - step.executed
        sender = -1
        if step.registers is None:
            if step.instruction.mnemonic == "signal":
                signals.setdefault(step.token, []).append(index)
            else:
                number = waited.get(step.token, 0)
                waited[step.token] = number + 1
                sender = signals[step.token][number]
        found.append(Dependence(queue[-1] if queue else -1, sender, issue, blocker))
        queue.append(index)
    return found, blocker
