"""Times of micro programs, worked out by hand: a row of the comments is a cycle or a sum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from escc.backend_sim.simulator.timeline import CAUSES, Timeline, check_tokens, run_timeline
from escc.errors import EsccError
from escc.isa.builder import CodeBuilder
from escc.isa.instructions import Queue
from escc.isa.sequence import Dispatch, expand

RUN = {Queue.DMA: "load_stream", Queue.BLK: "conv_dense", Queue.VEC: "vec_fill"}


class Script:
    """A program of bare queue instructions (one word each, no registers set) and their durations."""

    def __init__(self) -> None:
        self.build = CodeBuilder()
        self.durations: list[list[int]] = []

    def run(self, queue: Queue, *cycles: int) -> Script:
        self.build.emit(RUN[queue])
        self.durations.append(list(cycles))
        return self

    def wait(self, queue: Queue, token: int) -> Script:
        self.build.wait(queue, token)
        self.durations.append([0])
        return self

    def signal(self, queue: Queue, token: int) -> Script:
        self.build.signal(queue, token)
        self.durations.append([0])
        return self

    def steps(self) -> list[Dispatch]:
        self.build.emit("halt")
        return list(expand(self.build.array()))

    def times(self, depth: int = 16) -> Timeline:
        images = max(len(d) for d in self.durations)
        durations = np.array([d * images if len(d) == 1 else d for d in self.durations], np.int64)
        return run_timeline(self.steps(), len(self.build), durations, depth)


def causes(timeline: Timeline, queue: Queue, image: int = 0) -> dict[str, int]:
    return {name: int(cycles[image]) for name, cycles in timeline.queues[queue].items() if cycles[image]}


def test_one_instruction() -> None:
    # word 0: dispatched in cycle 0, runs 1..11; halt is word 1, done at 2
    times = Script().run(Queue.DMA, 10).times()
    assert times.total.tolist() == [11]
    assert causes(times, Queue.DMA) == {"wait_dispatch": 1, "busy": 10}
    assert causes(times, Queue.BLK) == {"idle_end": 11}


def test_registers_take_a_cycle_each() -> None:
    script = Script()
    script.build.set("dma.size", 5)  # word 0
    script.build.set("dma.sram", 7)  # word 1
    script.run(Queue.DMA, 10)  # word 2: dispatched in cycle 2, runs 3..13
    times = script.times()
    assert times.start.tolist() == [[3]]
    assert times.total.tolist() == [13]
    assert causes(times, Queue.DMA) == {"wait_dispatch": 3, "busy": 10}


def test_the_sequencer_may_end_last() -> None:
    script = Script().run(Queue.DMA, 1)  # word 0, runs 1..2
    for value in range(1, 6):
        script.build.set("r1", value)  # words 1..5
    times = script.times()  # halt is word 6, done at 7
    assert times.total.tolist() == [7]
    assert causes(times, Queue.DMA) == {"wait_dispatch": 1, "busy": 1, "idle_end": 5}
    assert {layer: c.tolist() for layer, c in times.layer_cycles.items()} == {-1: [7]}


def test_two_queues_meet_at_a_token() -> None:
    script = Script()
    script.run(Queue.DMA, 20)  # word 0: runs 1..21
    script.signal(Queue.DMA, 3)  # word 1: dispatched 1, done when the load is: 21
    script.wait(Queue.BLK, 3)  # word 2: in the queue at 3, has the token at 21
    script.run(Queue.BLK, 5)  # word 3: runs 21..26
    times = script.times()
    assert times.end[:, 0].tolist() == [21, 21, 21, 26]
    assert causes(times, Queue.BLK) == {"wait_dispatch": 3, "wait_dma": 18, "busy": 5}
    assert causes(times, Queue.DMA) == {"wait_dispatch": 1, "busy": 20, "idle_end": 5}


def test_tokens_count() -> None:
    script = Script()
    script.signal(Queue.DMA, 0)  # word 0: at 1
    script.run(Queue.DMA, 10)  # word 1: runs 2..12
    script.signal(Queue.DMA, 0)  # word 2: at 12
    script.wait(Queue.VEC, 0)  # word 3: takes the first signal, at 4
    script.run(Queue.VEC, 2)  # word 4: runs 5..7
    script.wait(Queue.VEC, 0)  # word 5: takes the second, at 12
    script.run(Queue.VEC, 2)  # word 6: runs 12..14
    times = script.times()
    assert times.end[:, 0].tolist() == [1, 12, 12, 4, 7, 12, 14]
    # vec: 4 + 1 cycles for dispatch, 2 + 2 busy, 7..12 waiting for dma
    assert causes(times, Queue.VEC) == {"wait_dispatch": 5, "busy": 4, "wait_dma": 5}


def test_who_is_waited_for() -> None:
    script = Script()
    script.run(Queue.BLK, 30).signal(Queue.BLK, 1)  # runs 1..31
    script.run(Queue.VEC, 9).signal(Queue.VEC, 2)  # word 2: runs 3..12
    script.wait(Queue.DMA, 2)  # word 4: in the queue at 5, until 12
    script.run(Queue.DMA, 1)  # word 5: 12..13
    script.wait(Queue.DMA, 1)  # word 6: 13..31
    script.run(Queue.DMA, 4)  # word 7: 31..35
    times = script.times()
    expected = {"wait_dispatch": 5, "wait_vec": 7, "busy": 5, "wait_blk": 18}
    assert causes(times, Queue.DMA) == expected


def test_a_full_queue_stops_the_sequencer() -> None:
    script = Script()
    script.run(Queue.DMA, 100)  # word 0: dispatched in 0, starts at 1, runs ..101
    script.run(Queue.DMA, 10)  # word 1: dispatched in 1 (the first has started), runs 101..111
    script.run(Queue.DMA, 10)  # word 2: one place, taken until 101: dispatched in 101, runs 111..121
    script.run(Queue.VEC, 1)  # word 3: dispatched in 102, runs 103..104
    times = script.times(depth=1)
    assert times.start[:, 0].tolist() == [1, 101, 111, 103]
    assert causes(times, Queue.VEC) == {"wait_dispatch": 103, "busy": 1, "idle_end": 17}
    # with two places word 2 is dispatched in 2 and word 3 in 3
    script = Script().run(Queue.DMA, 100).run(Queue.DMA, 10).run(Queue.DMA, 10).run(Queue.VEC, 1)
    assert script.times(depth=2).start[:, 0].tolist() == [1, 101, 111, 4]


def test_a_wait_takes_a_place_in_its_queue() -> None:
    script = Script()
    script.run(Queue.DMA, 50).signal(Queue.DMA, 0)  # dma runs 1..51
    script.wait(Queue.BLK, 0)  # word 2: holds the only place of its queue until 51
    script.run(Queue.BLK, 5)  # word 3: dispatched in 51, runs 52..57
    times = script.times(depth=1)
    # the signal (word 1) is in the dma queue at 2 and starts at 51
    assert times.end[:, 0].tolist() == [51, 51, 51, 57]
    assert causes(times, Queue.BLK) == {"wait_dispatch": 3 + 1, "wait_dma": 48, "busy": 5}


def test_images_have_their_own_times() -> None:
    script = Script()
    script.run(Queue.DMA, 10, 20).signal(Queue.DMA, 0)
    script.wait(Queue.BLK, 0).run(Queue.BLK, 7, 3)
    times = script.times()
    assert times.total.tolist() == [18, 24]
    assert causes(times, Queue.BLK, 1) == {"wait_dispatch": 3, "wait_dma": 18, "busy": 3}


def test_loops_repeat_their_words() -> None:
    script = Script()
    script.build.emit("loop", 3)  # word 0
    script.run(Queue.DMA, 1)  # executed as words 1, 3, 5; endloop as 2, 4, 6; halt as 7
    script.build.emit("endloop")
    script.durations = [[1], [1], [1]]
    times = run_timeline(script.steps(), 8, np.ones((3, 1), np.int64), 16)
    assert times.start[:, 0].tolist() == [2, 4, 6]
    assert times.total.tolist() == [8]


def test_layers_share_the_cycles() -> None:
    script = Script()
    script.build.emit("mark", 0)  # word 0
    script.run(Queue.DMA, 10).signal(Queue.DMA, 0)  # word 1: runs 2..12
    script.build.emit("mark", 1)
    script.wait(Queue.BLK, 0).run(Queue.BLK, 5)  # runs 12..17
    script.build.emit("mark", 0)
    script.run(Queue.DMA, 2)  # word 7: runs 12..14, inside layer 1's time
    times = script.times()
    assert {layer: int(c[0]) for layer, c in times.layer_cycles.items()} == {0: 12, 1: 5, -1: 0}
    assert int(times.layer_queues[0][Queue.DMA]["busy"][0]) == 12
    # in the queue at 5 (word 4 of the sequencer), the token comes at 12
    assert int(times.layer_queues[1][Queue.BLK]["wait_dma"][0]) == 7


def test_a_wait_without_a_signal_is_a_deadlock() -> None:
    script = Script().signal(Queue.DMA, 4).wait(Queue.BLK, 4).wait(Queue.VEC, 4)
    with pytest.raises(EsccError, match=r"^word 2: deadlock: waits for token 4, but no signal"):
        check_tokens(script.steps(), lambda step: f"word {step.pc}")


queues = st.sampled_from(list(Queue))
scripts = st.lists(
    st.one_of(
        st.tuples(st.just("run"), queues, st.integers(0, 40)),
        st.tuples(st.sampled_from(["signal", "wait"]), queues, st.integers(0, 2)),
        st.tuples(st.just("set"), queues, st.integers(1, 99)),
    ),
    max_size=40,
)


def simulated(steps: list[Dispatch], words: int, durations: list[int], depth: int) -> tuple[int, list[int]]:
    """The same machine cycle by cycle: total cycles and the end of every step."""
    waiting: dict[Queue, list[int]] = {queue: [] for queue in Queue}
    tokens: dict[int, int] = {}
    running: dict[Queue, int] = {queue: 0 for queue in Queue}
    ends = [-1] * len(steps)
    executed, now, next_step, halted = 0, 0, 0, 0
    while executed < words or any(waiting.values()) or any(end > now for end in running.values()):
        moved = True
        while moved:
            moved = False
            for queue in Queue:
                if not waiting[queue] or running[queue] > now:
                    continue
                step = steps[waiting[queue][0]]
                if step.registers is None and step.instruction.mnemonic == "wait":
                    if not tokens.get(step.token):
                        continue
                    tokens[step.token] -= 1
                elif step.registers is None:
                    tokens[step.token] = tokens.get(step.token, 0) + 1
                else:
                    running[queue] = now + durations[waiting[queue][0]]
                ends[waiting[queue].pop(0)] = max(now, running[queue])
                moved = True
        dispatched = None
        if executed < words:
            step = steps[next_step] if next_step < len(steps) else None
            if step is not None and step.executed == executed:
                if len(waiting[step.queue]) < depth:
                    dispatched = next_step
            else:
                executed += 1
        now += 1
        if dispatched is not None:
            waiting[steps[dispatched].queue].append(dispatched)
            next_step += 1
            executed += 1
        if executed == words and not halted:
            halted = now
    return max(halted, *ends, 0), ends


@settings(max_examples=150, deadline=None)
@given(scripts, st.integers(1, 4))
def test_equals_a_cycle_by_cycle_machine(actions: list[tuple[str, Queue, int]], depth: int) -> None:
    script = Script()
    # One sender and one receiver for each token: then the order of signals in time is program order.
    senders = {0: Queue.DMA, 1: Queue.BLK, 2: Queue.VEC}
    receivers = {0: Queue.BLK, 1: Queue.VEC, 2: Queue.DMA}
    left: dict[int, int] = {}
    for action, queue, value in actions:
        if action == "run":
            script.run(queue, value)
        elif action == "set":
            script.build.emit("set", "r1", value)
        elif action == "signal":
            script.signal(senders[value], value)
            left[value] = left.get(value, 0) + 1
        elif left.get(value):
            script.wait(receivers[value], value)
            left[value] -= 1
    steps = script.steps()
    durations = [d[0] for d in script.durations]
    timeline = run_timeline(steps, len(script.build), np.array(durations, np.int64).reshape(-1, 1), depth)
    total, ends = simulated(steps, len(script.build), durations, depth)
    assert timeline.end[:, 0].tolist() == ends
    assert timeline.total.tolist() == [total]
    for sums in timeline.queues.values():
        assert set(sums) == set(CAUSES)
        assert sum(int(cycles[0]) for cycles in sums.values()) == total
    # deeper queues and shorter instructions never cost cycles: times are maxima of sums of earlier ones
    shorter = np.maximum(np.array(durations, np.int64) - 1, 0).reshape(-1, 1)
    assert run_timeline(steps, len(script.build), shorter, depth).total[0] <= total
    same = np.array(durations, np.int64).reshape(-1, 1)
    assert run_timeline(steps, len(script.build), same, depth + 1).total[0] <= total
