"""The timeline of the first timed image in the trace-event format that chrome://tracing and Perfetto read."""

from __future__ import annotations

import json
from typing import Any

from escc.backend_sim.simulator.result import SimResult
from escc.errors import EsccError
from escc.isa.instructions import Queue


def chrome_trace(result: SimResult) -> str:
    """JSON of the trace events: one row a queue, an instruction a bar, times in microseconds.

    Raises:
        EsccError: nothing was timed.
    """
    timed = result.timed
    if timed is None:
        raise EsccError("nothing was timed, so there is no timeline to write")
    microseconds = 1 / timed.arch.mhz
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 0, "tid": int(queue), "name": "thread_name", "args": {"name": queue.text}}
        for queue in Queue
    ]
    for index, step in enumerate(timed.steps):
        if step.registers is None:
            continue
        start, end = int(timed.timeline.start[index, 0]), int(timed.timeline.end[index, 0])
        events.append(
            {
                "ph": "X",
                "pid": 0,
                "tid": int(step.queue),
                "name": step.instruction.mnemonic,
                "cat": step.queue.text,
                "ts": start * microseconds,
                "dur": (end - start) * microseconds,
                "args": {
                    "layer": timed.layer_names.get(step.layer, ""),
                    "word": step.pc,
                    "start_cycle": start,
                    "cycles": end - start,
                },
            }
        )
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ns"}, separators=(",", ":")) + "\n"
