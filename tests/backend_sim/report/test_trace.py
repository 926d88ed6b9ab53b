"""The trace: valid trace events, rows without gaps or overlaps, times that agree with the result."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
from tests.backend_sim.report.runs import SEEDS, random_result
from tests.backend_sim.simulator.networks import network

from escc.backend_sim.report import chrome_trace
from escc.backend_sim.simulator import SimResult, random_images, simulate
from escc.errors import EsccError

FIELDS = {
    "M": {"ph", "pid", "tid", "ts", "name", "args"},
    "X": {"ph", "pid", "tid", "name", "cat", "ts", "dur", "args"},
    "C": {"ph", "pid", "tid", "name", "ts", "args"},
}


def parsed(result: SimResult) -> dict[str, Any]:
    """The trace, checked against the format; numbers that are no JSON are refused."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    trace: dict[str, Any] = json.loads(chrome_trace(result), parse_constant=refuse)
    assert set(trace) == {"traceEvents", "displayTimeUnit", "otherData"}
    assert trace["displayTimeUnit"] in ("ms", "ns")
    last = 0.0
    for event in trace["traceEvents"]:
        assert set(event) == FIELDS[event["ph"]]
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert isinstance(event["name"], str)
        assert event["name"]
        assert event["ts"] >= last
        last = event["ts"]
        if event["ph"] == "X":
            assert event["dur"] >= 0
        if event["ph"] == "C":
            assert event["args"]
            assert all(isinstance(value, int | float) and value >= 0 for value in event["args"].values())
    return trace


def check_trace(result: SimResult) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Rows by (process, thread) name: each tiles the run, and bars touch in viewer time as in cycles."""
    timed = result.timed
    assert timed is not None
    total = int(timed.timeline.total[0])
    events = parsed(result)["traceEvents"]
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    rows: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            rows[processes[event["pid"]], threads[event["pid"], event["tid"]]].append(event)
    assert {name for _, name in rows} == {*("dma queue", "blk queue", "vec queue"), "layer", "critical path"}
    for bars in rows.values():
        assert bars[0]["ts"] == 0
        assert sum(bar["args"]["cycles"] for bar in bars) == total
        for one, other in itertools.pairwise(bars):
            assert one["args"]["start_cycle"] + one["args"]["cycles"] == other["args"]["start_cycle"]
            assert one["ts"] + one["dur"] == pytest.approx(other["ts"], abs=1e-9)
        end = bars[-1]["ts"] + bars[-1]["dur"]
        assert end == pytest.approx(result.latency_us[0], abs=1e-3)
    for queue, causes in result.queues.items():
        found: dict[str, int] = defaultdict(int)
        for bar in rows["queues", f"{queue} queue"]:
            kind = bar["name"] if bar["cat"] == "stall" else "busy"
            found[kind] += bar["args"]["cycles"]
        names = {"wait_dispatch": "wait for dispatch", "idle_end": "idle to the end", "busy": "busy"}
        names |= {f"wait_{name}": f"wait for {name}" for name in ("dma", "blk", "vec")}
        assert {name: found[text] for name, text in names.items()} == {
            name: int(causes[name][0]) for name in names
        }
    layers: dict[str, int] = defaultdict(int)
    for bar in rows["whole run", "layer"]:
        layers[bar["name"]] += bar["args"]["cycles"]
    for layer in timed.layers:
        assert layers[layer.name] == sum(int(x.cycles[0]) for x in timed.layers if x.name == layer.name)
    return rows


@pytest.mark.parametrize("seed", SEEDS)
def test_random_networks(seed: int) -> None:
    check_trace(random_result(seed))


@pytest.mark.parametrize("mhz", [800.0, 333.3, 2500.0])
def test_names_counters_and_other_clocks(mhz: float) -> None:
    program = network()
    result = simulate(program, random_images(program.inputs[0], 1, 0), arch=replace(program.arch, mhz=mhz))
    rows = check_trace(result)
    bars = [bar for bar in rows["queues", "blk queue"] if bar["cat"] == "blk"]
    names = [layer["name"] for layer in (program.debug or {})["layers"]]
    assert [(bar["name"], bar["args"]["layer"]) for bar in bars] == [
        ("conv_dense", names[0]),
        ("conv_combine", names[1]),
        ("conv_depthwise", names[2]),
    ]
    counters: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in parsed(result)["traceEvents"]:
        if event["ph"] == "C":
            counters[event["name"]].append(event)
    assert set(counters) == {"SRAM in use", "DRAM bytes per cycle", "rows busy, %"}
    assert counters["SRAM in use"][-1]["args"] == {"bytes": 0}
    assert 0 < max(e["args"]["bytes"] for e in counters["SRAM in use"]) <= program.arch.sram_bytes
    rates = {e["args"]["bytes"] for e in counters["DRAM bytes per cycle"]}
    assert min(rates) == 0
    assert 0 < max(rates) <= program.arch.dram_gbps * 1e3 / mhz
    assert all(0 <= e["args"][part] <= 100 for e in counters["rows busy, %"] for part in ("lc", "mac"))


def test_nothing_timed() -> None:
    program = network()
    with pytest.raises(EsccError, match="nothing was timed"):
        chrome_trace(simulate(program, random_images(program.inputs[0], 1, 0), timing_images=None))
