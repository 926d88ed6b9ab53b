"""Running a program on images: outputs of all of them, cycles and energy of the first few."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from escc.backend_sim.simulator.background import Background
from escc.backend_sim.simulator.energy import EnergyTable
from escc.backend_sim.simulator.execute import execute, place
from escc.backend_sim.simulator.host import quantize_input, read_output, write_input
from escc.backend_sim.simulator.memory import DivergentOperand, Memory
from escc.backend_sim.simulator.meter import LayerCounts, Meter
from escc.backend_sim.simulator.operands import OperandCache
from escc.backend_sim.simulator.result import LayerResult, SimResult, TimedResult, layer_energy
from escc.backend_sim.simulator.timeline import Cycles, check_tokens, run_timeline
from escc.backend_sim.simulator.timing import Engine, make_engine
from escc.backend_sim.simulator.workspace import Workspace
from escc.errors import EsccError
from escc.isa.arch import Arch
from escc.isa.program import Program
from escc.isa.sequence import Dispatch, expand
from escc.isa.verify import verify
from escc.progress import Progress, silent

Images = npt.NDArray[Any]

BATCH_IMAGES = 16
BATCH_BYTES = 256 << 20


def simulate(
    program: Program,
    images: Images | Sequence[Images] | Mapping[str, Images],
    *,
    timing_images: int | None = 1,
    energy_table: EnergyTable | str | os.PathLike[str] | None = None,
    arch: Arch | None = None,
    workers: int = 1,
    engine: str = "auto",
    check: bool = True,
    progress: Progress | None = None,
) -> SimResult:
    """Run ``program`` on ``images``.

    Args:
        images: (N, *torch_shape), floats (quantised as the input map says) or the map's own integer type. A
            program of several inputs takes a sequence, or a mapping from input names.
        timing_images: how many images, from the first on, get cycles and energy; None or 0: none.
        energy_table: a table, the name of a shipped one, or a file; ``horowitz45`` by default.
        arch: another clock or DRAM than the program was compiled for; the rest must be the same.
        workers: threads that run images which are not timed. More than one pays only for large maps (small
            ones spend their time handing Python's lock around), and with OPENBLAS_NUM_THREADS=1.
        engine: what times the convolutions: ``numpy``, ``native``, or ``auto`` for native where it is there;
            all give the same figures, and the result says which it was.
        check: verify the program first (bounds, races between the queues, ...).
        progress: told how far the work is.

    Raises:
        EsccError: the program is not valid or does something it must not on this data, naming the
            instruction and its layer; the images do not fit the program; ``arch`` is another machine;
            the native engine is asked for and is not there.
    """
    started = time.perf_counter()
    report = progress or silent
    machine = _machine(program, arch)
    timer = make_engine(engine)
    if check:
        verify(program, measure=timer.stream_bytes)
    run = _Runner(program, machine, _quantized(program, images), timer, report)
    timed_count = min(max(timing_images or 0, 0), run.count)
    timed = None
    if timed_count:
        table = energy_table if isinstance(energy_table, EnergyTable) else EnergyTable.load(energy_table)
        timed = run.timed(timed_count, table)
    run.functional(timed_count, workers)
    return SimResult(run.outputs, program.outputs, timed, time.perf_counter() - started, timer.name)


def _machine(program: Program, arch: Arch | None) -> Arch:
    if arch is None:
        return program.arch
    differences = program.arch.geometry_differences(arch)
    if differences:
        raise EsccError(
            f"the program was compiled for another machine: {differences[0]} (program / given)",
            hint="only the clock and the DRAM may differ",
        )
    return arch


def _quantized(program: Program, images: Images | Sequence[Images] | Mapping[str, Images]) -> list[Images]:
    names = [item.name for item in program.inputs]
    if isinstance(images, np.ndarray):
        given = [images]
    elif isinstance(images, Mapping):
        if set(images) != set(names):
            raise EsccError(f"inputs {', '.join(images)} were given, the program takes {', '.join(names)}")
        given = [images[name] for name in names]
    else:
        given = list(images)
    if len(given) != len(names):
        raise EsccError(f"{len(given)} inputs were given, the program takes {len(names)}: {', '.join(names)}")
    values = [quantize_input(item, batch) for item, batch in zip(program.inputs, given, strict=True)]
    counts = {len(batch) for batch in values}
    if len(counts) != 1 or 0 in counts:
        sizes = ", ".join(str(len(batch)) for batch in values)
        raise EsccError(f"every input needs the same number of images, at least 1 (given: {sizes})")
    return values


class _Runner:
    """Runs batches of images and collects their outputs."""

    def __init__(
        self, program: Program, machine: Arch, inputs: list[Images], engine: Engine, report: Progress
    ) -> None:
        self.program, self.machine, self.inputs, self.report = program, machine, inputs, report
        self.engine = engine
        self.count = len(inputs[0])
        self.steps, self.words = _expanded(program)
        check_tokens(self.steps, lambda step: place(program, step))
        self.cache = OperandCache(codec=engine)
        self.outputs = [np.zeros((self.count, *m.torch_shape), m.dtype) for m in program.outputs]
        own = program.arch.sram_bytes + max(program.dram_bytes - len(program.data_array), 0)
        self.batch = max(1, min(BATCH_IMAGES, BATCH_BYTES // own))

    def functional(self, first: int, workers: int) -> None:
        """Run the images from ``first`` on, without timing them."""
        done, lock = first, Lock()
        batches = [(a, min(a + self.batch, self.count)) for a in range(first, self.count, self.batch)]

        def work(batches: list[tuple[int, int]]) -> None:
            nonlocal done
            workspace = Workspace(self.engine.maps)
            for start, stop in batches:
                self._run(start, stop, workspace)
                with lock:
                    done += stop - start
                    self.report("images", done, self.count)

        threads = max(1, min(workers, len(batches)))
        if threads == 1:
            work(batches)
            return
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(threads) as pool:
            for future in [pool.submit(work, batches[thread::threads]) for thread in range(threads)]:
                future.result()

    def _run(self, start: int, stop: int, workspace: Workspace) -> None:
        try:
            self._batch(start, stop, workspace, None, None)
        except DivergentOperand:
            for image in range(start, stop):
                self._batch(image, image + 1, workspace, None, None)

    def _batch(
        self,
        start: int,
        stop: int,
        workspace: Workspace,
        meter: Meter | None,
        told: Callable[[int], None] | None,
    ) -> None:
        memory = Memory(self.program, stop - start)
        for item, values in zip(self.program.inputs, self.inputs, strict=True):
            write_input(memory, item, values[start:stop])
        execute(self.program, self.steps, memory, self.cache, workspace, meter, told)
        for item, target in zip(self.program.outputs, self.outputs, strict=True):
            target[start:stop] = read_output(memory, item)

    def timed(self, count: int, table: EnergyTable) -> TimedResult:
        """Run the first ``count`` images with timing."""
        workspace = Workspace(self.engine.maps)
        meters: list[Meter] = []
        spans = [(a, min(a + self.batch, count)) for a in range(0, count, self.batch)]
        while spans:
            start, stop = spans.pop(0)
            try:
                meters.append(self._metered(start, stop, workspace, count))
            except DivergentOperand:
                spans = [(image, image + 1) for image in range(start, stop)] + spans
        durations = np.concatenate([meter.durations for meter in meters], axis=1)
        moved = np.concatenate([meter.moved for meter in meters], axis=1)
        timeline = run_timeline(self.steps, self.words, durations, self.machine.queue_depth)
        zero = np.zeros(count, np.int64)
        layers: list[LayerResult] = []
        names: dict[int, str] = {}
        for number in _layer_order(self.steps):
            counts = _joined([meter.layers.get(number, LayerCounts()) for meter in meters], meters)
            cycles = timeline.layer_cycles.get(number, zero)
            name, operation, source = self._layer(number)
            names[number] = name
            energy = layer_energy(counts, cycles, self.machine, table)
            queues = timeline.layer_queues.get(number, {})
            layers.append(LayerResult(name, operation, source, cycles, queues, counts, energy))
        return TimedResult(self.machine, timeline, layers, table, self.steps, names, moved)

    def _metered(self, start: int, stop: int, workspace: Workspace, count: int) -> Meter:
        layers = [step.layer for step in self.steps]
        parts = -(-count // self.batch)
        part = start // self.batch

        def told(done: int) -> None:
            self.report("timing", part * len(self.steps) + done, parts * len(self.steps))

        def failed(index: int, error: EsccError) -> EsccError:
            return EsccError(error.message, where=place(self.program, self.steps[index]), hint=error.hint)

        # numpy needs the interpreter: a second thread would only get in the way
        with Background() if self.engine.name != "numpy" else nullcontext() as background:
            meter = Meter(self.machine, layers, stop - start, self.engine, background)
            self._batch(start, stop, workspace, meter, told)
            meter.finish(failed)
        return meter

    def _layer(self, number: int) -> tuple[str, str, str]:
        """Name, operation and source of a layer; the numbers alone when there is no debug section."""
        if number < 0:
            return "(program)", "", ""
        layers = (self.program.debug or {}).get("layers", [])
        entry: dict[str, Any] = layers[number] if number < len(layers) else {}
        name = entry.get("name", f"layer {number}")
        return str(name), str(entry.get("op", "")), str(entry.get("source", ""))


def _expanded(program: Program) -> tuple[list[Dispatch], int]:
    """The dispatches of a program and the words its sequencer executes."""
    steps: list[Dispatch] = []
    sequence = expand(program.code)
    while True:
        try:
            steps.append(next(sequence))
        except StopIteration as stop:
            return steps, int(stop.value)


def _layer_order(steps: list[Dispatch]) -> list[int]:
    """Layer numbers in order of appearance; -1, what belongs to no layer, last."""
    order = dict.fromkeys(step.layer for step in steps)
    order.pop(-1, None)
    return [*order, -1]


def _joined(parts: list[LayerCounts], meters: list[Meter]) -> LayerCounts:
    """The counts of consecutive batches as one."""
    joined = LayerCounts()
    for group in ("events", "causes", "figures"):
        target: dict[str, Cycles] = getattr(joined, group)
        for name in dict.fromkeys(name for part in parts for name in getattr(part, group)):
            pieces = [
                getattr(part, group).get(name, np.zeros(meter.images, np.int64))
                for part, meter in zip(parts, meters, strict=True)
            ]
            target[name] = np.concatenate(pieces)
    return joined
