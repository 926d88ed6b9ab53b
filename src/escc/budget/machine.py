"""Cycles of every setting, from the simulator: uniform networks measured, non-zeros interpolated.

For each number of bases the network is compiled with all layers at that number, once with the codes as they
are fitted and once with half of the non-zeros taken out at random, and a few images are simulated. A layer's
cycles are those of its busiest queue (its own compute, or the loading of its weights and maps): what it takes
however well it overlaps its neighbours. Between and beyond the two densities cycles are linear in non-zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from escc.backend_sim.lowering import lower
from escc.backend_sim.simulator import simulate
from escc.budget.settings import Layer
from escc.ir.base import module_path
from escc.ir.escalate import DecomposedConv2d
from escc.ir.module import Module
from escc.ir.passes import Pass, PassContext, run_pipeline
from escc.isa.arch import Arch
from escc.passes.convolutions import needed, set_array
from escc.progress import Progress

IMAGES = 16
"""Calibration images of the networks that are compiled to be timed."""

TIMED = 2

Uniform = Callable[[int, int], list[Pass]]
"""The passes for so many bases and planes in every layer (0: all dense 8-bit); see ``compiled``."""


@dataclass(frozen=True)
class _Run:
    """Cycles of one program: all, and by module path those of its convolutions; non-zeros by module path."""

    total: float
    layers: dict[str, float]
    nonzeros: dict[str, int]

    def rest(self, layers: Sequence[Layer]) -> float:
        """What the layers do not account for."""
        return self.total - sum(self.layers[layer.path] for layer in layers)


def measure_cycles(
    module: Module,
    layers: Sequence[Layer],
    uniform: Uniform,
    images: NDArray[np.float32],
    arch: Arch,
    progress: Progress,
) -> float:
    """Set the cycles of every setting.

    Args:
        module: float network ready for decompose-kernels.
        uniform: the rest of the pipeline, from decompose-kernels to schedule, without refine-coefficients.
        images: float32 (N, C, H, W).

    Returns:
        Cycles that do not depend on the settings: other layers, less what overlaps.
    """
    numbers = list(_numbers(layers))
    dense = _run(module, uniform(0, 0), images, arch, 1.0)
    found: dict[tuple[str, int], tuple[_Run, _Run]] = {}
    rests: list[float] = []
    for done, (bases, planes) in enumerate(numbers, start=1):
        runs = tuple(_run(module, uniform(bases, planes), images, arch, keep) for keep in (1.0, 0.5))
        for layer in layers:
            number = planes if layer.shape.kernel == (1, 1) else bases
            found[layer.path, number] = (runs[0], runs[1])
        rests += [run.rest(layers) for run in runs]
        progress("timing layers", done, len(numbers))
    for layer in layers:
        for index, item in enumerate(layer.measured):
            cycles = dense.layers[layer.path]
            if item.setting.bases:
                runs = found[layer.path, item.setting.bases]
                kernels = layer.shape.outputs * layer.shape.inputs * item.setting.bases
                cycles = _line(layer.path, runs, item.density * kernels)
            layer.measured[index] = replace(item, cycles=cycles)
    return float(np.mean(rests))


def _numbers(layers: Sequence[Layer]) -> Iterator[tuple[int, int]]:
    """Bases of spatial and planes of 1x1 layers to compile with, so that every number occurs."""
    found: dict[bool, set[int]] = {False: {0}, True: {0}}
    for layer in layers:
        found[layer.shape.kernel == (1, 1)] |= {item.setting.bases for item in layer.measured}
    spatial, pointwise = (sorted(found[kind])[1:] or [1] for kind in (False, True))
    for at in range(max(len(spatial), len(pointwise))):
        yield spatial[at % len(spatial)], pointwise[at % len(pointwise)]


def _line(path: str, runs: tuple[_Run, _Run], nonzeros: float) -> float:
    """Cycles at a number of non-zeros, on the line through two runs."""
    (x0, y0), (x1, y1) = ((run.nonzeros[path], run.layers[path]) for run in runs)
    slope = max((y0 - y1) / (x0 - x1), 0.0) if x0 != x1 else 0.0
    return max(y1 + slope * (nonzeros - x1), 0.5 * min(y0, y1))


def _run(module: Module, passes: list[Pass], images: NDArray[np.float32], arch: Arch, keep: float) -> _Run:
    """Compile and simulate with only a share ``keep`` of the non-zero coefficients."""
    trial = module.clone()
    context = PassContext(arch, images[:IMAGES])
    nonzeros: dict[str, int] = {}
    head = next((at + 1 for at, item in enumerate(passes) if item.name == "decompose-kernels"), 0)
    run_pipeline(trial, passes[:head], context)
    random = np.random.default_rng(0)
    for op in trial.layers:
        if isinstance(op, DecomposedConv2d):
            codes = needed(trial, op, "coefficients")
            if keep < 1:
                codes = codes * (random.random(codes.shape) < keep).astype(codes.dtype)
                set_array(trial, op, "coefficients", "coefficients", codes)
            nonzeros[module_path(op)] = int(np.count_nonzero(codes))
    run_pipeline(trial, passes[head:], context)
    result = simulate(lower(trial, arch), images[:TIMED], timing_images=TIMED)
    assert result.timed is not None
    cycles: dict[str, float] = {}
    for item in result.timed.layers:
        if item.operation.startswith("escalate.convolve"):
            busy = max(float(np.mean(causes.get("busy", 0))) for causes in item.queues.values())
            cycles[item.name] = cycles.get(item.name, 0.0) + busy
    return _Run(float(np.mean(result.cycles)), cycles, nonzeros)
