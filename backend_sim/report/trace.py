"""The first timed image in the trace-event format that Perfetto (ui.perfetto.dev) and chrome://tracing read.

Every row is tiled from 0 to the end of the run. Times are microseconds at the machine's clock, rounded to
nanoseconds, which is all that viewers keep; the arguments of an event tell the exact cycles.
"""

from __future__ import annotations

import json
from typing import Any

from escc.backend_sim.report.critical_path import critical_path, dependences
from escc.backend_sim.report.memory_plan import memory_plan, occupancy
from escc.backend_sim.simulator.meter import LC_CAUSES, MAC_CAUSES
from escc.backend_sim.simulator.result import SimResult, TimedResult, mean
from escc.errors import EsccError
from escc.isa.instructions import Queue

QUEUES, OVERVIEW, COUNTERS = 1, 2, 3
"""Process numbers: viewers group the rows by them."""

_PROCESSES = {QUEUES: "queues", OVERVIEW: "whole run", COUNTERS: "memories and array"}
_LAYERS, _PATH = 0, 1


def chrome_trace(result: SimResult) -> str:
    """JSON of the trace events, in order of time.

    Rows: the three queues, an instruction or a stall a bar; the layer that moves the end; the critical path.
    Counters: SRAM bytes in use, DRAM bytes a cycle, and the share of row cycles that LC and MAC parts are
    busy (of a convolution: the mean of its layer).

    Raises:
        EsccError: nothing was timed.
    """
    timed = result.timed
    if timed is None:
        raise EsccError("nothing was timed, so there is no timeline to write")
    trace = _Trace(timed)
    trace.queues()
    trace.layers()
    trace.path()
    trace.memories()
    trace.array()
    events = [*_names(), *sorted(trace.events, key=lambda event: event["ts"])]
    about = {
        "clock_mhz": timed.arch.mhz,
        "cycles": int(timed.timeline.total[0]),
        "image": "the first timed one",
    }
    content = {"traceEvents": events, "displayTimeUnit": "ns", "otherData": about}
    return json.dumps(content, separators=(",", ":")) + "\n"


def _names() -> list[dict[str, Any]]:
    """Metadata: what processes and threads are called, and in which order they stand."""
    threads = {(QUEUES, int(queue)): f"{queue.text} queue" for queue in Queue}
    threads |= {(OVERVIEW, _LAYERS): "layer", (OVERVIEW, _PATH): "critical path"}
    found: list[dict[str, Any]] = []
    for process, name in _PROCESSES.items():
        for kind, args in (("process_name", {"name": name}), ("process_sort_index", {"sort_index": process})):
            found.append({"ph": "M", "pid": process, "tid": 0, "ts": 0, "name": kind, "args": args})
    for (process, thread), name in threads.items():
        for kind, args in (("thread_name", {"name": name}), ("thread_sort_index", {"sort_index": thread})):
            found.append({"ph": "M", "pid": process, "tid": thread, "ts": 0, "name": kind, "args": args})
    return found


class _Trace:
    """Collects the events of the first timed image."""

    def __init__(self, timed: TimedResult) -> None:
        self.timed = timed
        self.total = int(timed.timeline.total[0])
        self.start: list[int] = timed.timeline.start[:, 0].tolist()
        self.end: list[int] = timed.timeline.end[:, 0].tolist()
        self.events: list[dict[str, Any]] = []

    def microseconds(self, cycle: int) -> float:
        """The time of a cycle, rounded to nanoseconds: bars that touch in cycles touch in the viewer."""
        return round(cycle * 1000 / self.timed.arch.mhz) / 1000

    def name(self, layer: int) -> str:
        return self.timed.layer_names.get(layer, "")

    def bar(self, row: tuple[int, int], name: str, kind: str, start: int, end: int, **args: Any) -> None:
        since = self.microseconds(start)
        self.events.append(
            {
                "ph": "X",
                "pid": row[0],
                "tid": row[1],
                "name": name,
                "cat": kind,
                "ts": since,
                "dur": round(self.microseconds(end) - since, 3),
                "args": {**args, "start_cycle": start, "cycles": end - start},
            }
        )

    def counter(self, name: str, cycle: int, **values: float) -> None:
        self.events.append(
            {
                "ph": "C",
                "pid": COUNTERS,
                "tid": 0,
                "name": name,
                "ts": self.microseconds(cycle),
                "args": values,
            }
        )

    def queues(self) -> None:
        """Instructions, and between them what the queue waits for."""
        free = dict.fromkeys(Queue, 0)
        before, _ = dependences(self.timed, self.start)
        for index, step in enumerate(self.timed.steps):
            row, layer = (QUEUES, int(step.queue)), self.name(step.layer)
            start, end = self.start[index], self.end[index]
            ready = max(before[index].issue + 1, free[step.queue])
            if ready > free[step.queue]:
                self.bar(row, "wait for dispatch", "stall", free[step.queue], ready, layer=layer)
            if start > ready:
                sender = self.timed.steps[before[index].sender].queue
                self.bar(row, f"wait for {sender.text}", "stall", ready, start, layer=layer)
            if step.registers is not None:
                name, kind = step.instruction.mnemonic, step.queue.text
                self.bar(row, name, kind, start, end, layer=layer, word=step.pc)
            free[step.queue] = end
        for queue, since in free.items():
            if since < self.total:
                self.bar((QUEUES, int(queue)), "idle to the end", "stall", since, self.total, layer="")

    def layers(self) -> None:
        """Whose instruction moved the end of everything so far: the elapsed cycles of the layers."""
        row = (OVERVIEW, _LAYERS)
        since = reached = 0
        current: int | None = None
        for index, step in enumerate(self.timed.steps):
            if self.end[index] > reached:
                if step.layer != current:
                    if current is not None:
                        self.bar(row, self.name(current), "layer", since, reached)
                    since, current = reached, step.layer
                reached = self.end[index]
        if current is not None:
            self.bar(row, self.name(current), "layer", since, reached)
        if reached < self.total:
            self.bar(row, self.name(-1), "layer", reached, self.total)

    def path(self) -> None:
        """The chain of instructions that decides the time."""
        for segment in critical_path(self.timed):
            name = f"{segment.kind}: {self.name(segment.layer)}"
            self.bar((OVERVIEW, _PATH), name, segment.kind, segment.start, segment.end)

    def memories(self) -> None:
        """SRAM bytes in use; DRAM bytes a cycle, 0 during the latency of a transfer."""
        self.counter("SRAM in use", 0, bytes=0)
        for cycle, used in occupancy(memory_plan(self.timed)):
            self.counter("SRAM in use", cycle, bytes=used)
        self.counter("SRAM in use", self.total, bytes=0)
        latency = self.timed.arch.dram_latency_cycles
        self.counter("DRAM bytes per cycle", 0, bytes=0)
        for index, step in enumerate(self.timed.steps):
            if step.queue is Queue.DMA and step.registers is not None:
                begin = min(self.start[index] + latency, self.end[index])
                rate = int(self.timed.moved[index, 0]) / max(self.end[index] - begin, 1)
                self.counter("DRAM bytes per cycle", begin, bytes=round(rate, 3))
                self.counter("DRAM bytes per cycle", self.end[index], bytes=0)

    def array(self) -> None:
        """How busy the parts of the rows are during each convolution: the mean of its layer."""
        busy = {
            number: {part: _busy(layer.counts.causes, part, causes) for part, causes in _PARTS.items()}
            for number, layer in zip(self.timed.layer_names, self.timed.layers, strict=True)
        }
        idle = dict.fromkeys(_PARTS, 0.0)
        self.counter("rows busy, %", 0, **idle)
        for index, step in enumerate(self.timed.steps):
            if step.queue is Queue.BLK and step.registers is not None:
                self.counter("rows busy, %", self.start[index], **busy[step.layer])
                self.counter("rows busy, %", self.end[index], **idle)


_PARTS = {"lc": LC_CAUSES, "mac": MAC_CAUSES}


def _busy(counts: dict[str, Any], part: str, causes: tuple[str, ...]) -> float:
    whole = sum(mean(counts.get(f"{part}_{cause}")) for cause in causes)
    return round(100 * mean(counts.get(f"{part}_busy")) / whole, 1) if whole else 0.0
