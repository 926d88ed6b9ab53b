"""Choosing a setting for every layer under a budget, checked on the quantised network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from escc.backend_sim.lowering import lower
from escc.backend_sim.simulator import simulate
from escc.budget.machine import TIMED, measure_cycles
from escc.budget.sensitivity import divergence, float_maps, measure_sensitivity
from escc.budget.settings import CachedDecompose, Layer, Measured, find_layers, measure_all
from escc.driver import CompileOptions, default_pipeline
from escc.errors import EsccError
from escc.ir.module import Module
from escc.ir.passes import Pass, PassContext, run_pipeline
from escc.isa.arch import Arch
from escc.passes.costs import layer_costs
from escc.passes.decompose_kernels import DecomposeKernels
from escc.passes.math.selection import Choice, Frontier
from escc.passes.reference.float_graph import evaluate
from escc.passes.reference.integer_graph import evaluate_integer
from escc.passes.refine_coefficients import RefineCoefficients
from escc.progress import Progress, silent

OBJECTIVES = ("bytes", "cycles", "macs")

CLOSE = 0.02
"""The search stops when two neighbouring choices differ by less than this share of their cost."""

TRIES = 5
"""Most choices that are compiled for a budget of bytes, cycles or operations."""

FLOAT_BATCH = 64


@dataclass(frozen=True)
class Goal:
    """What to minimise, and what bounds it.

    Attributes:
        objective: "bytes" (weights as stored, all layers), "cycles" (of one image) or "macs"
            (multiply-accumulates and additions of the combine-first order, each counted as one).
        limit: most of the objective; None takes ``accuracy`` instead.
        accuracy: most percentage points that the accuracy on held-out images may fall below the float
            network's (without labels: of images whose class may differ from the float network's).
    """

    objective: str = "bytes"
    limit: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Images:
    """Images as the network takes them, (N, C, H, W), in two parts: what the compiler may use, and what the
    choice is judged on (with class numbers, or None)."""

    fit: NDArray[np.float32]
    held_out: NDArray[np.float32]
    labels: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Trial:
    """A choice that was compiled. ``predicted`` and ``actual`` are in units of the objective (``actual`` only
    where it was needed); ``loss`` in percentage points, ``divergence`` in nats from the float network;
    ``changed`` is the share of images that are right before and wrong after, or the other way round."""

    predicted: float
    actual: float | None
    loss: float | None
    divergence: float | None
    passed: bool
    changed: float = 0.0


@dataclass
class Outcome:
    """What was found.

    Attributes:
        passes: the pipeline, to be run with the images of ``Images.fit`` as calibration.
        chosen: setting of every layer that could be chosen.
        fixed: cost of everything else, in units of the objective.
    """

    goal: Goal
    passes: list[Pass]
    layers: list[Layer]
    chosen: list[Measured]
    fixed: float
    predicted: float
    trial: Trial
    trials: list[Trial]
    float_accuracy: float | None
    fit_images: int
    held_out_images: int

    @property
    def judged_by(self) -> str:
        """What the loss is a loss of."""
        if self.float_accuracy is None:
            return "agreement with the float network's classes (no labels were given)"
        return f"accuracy by labels (float network: {self.float_accuracy:.2f} %)"

    @property
    def pipeline(self) -> str:
        """The passes as text for ``-p``."""
        return ",".join(item.spec() for item in self.passes)


def choose(
    module: Module,
    images: Images,
    goal: Goal,
    *,
    options: CompileOptions | None = None,
    arch: Arch | None = None,
    progress: Progress = silent,
) -> Outcome:
    """Choose bases and penalty for every layer the default rule decomposes.

    Args:
        module: as imported; not changed.
        options: ``keep_dense``, ``shrink`` and ``planes`` = 0 are kept to, the rest is chosen.

    Raises:
        EsccError: nothing can be chosen, or the budget cannot be kept.
    """
    return Search(module, images, goal.objective, options=options, arch=arch, progress=progress).solve(goal)


@dataclass
class _Judged:
    """As in :class:`Trial`."""

    loss: float
    divergence: float
    changed: float


class Search:
    """The measured settings of one network, and choices from them."""

    def __init__(
        self,
        module: Module,
        images: Images,
        objective: str = "bytes",
        *,
        options: CompileOptions | None = None,
        arch: Arch | None = None,
        progress: Progress = silent,
    ) -> None:
        if objective not in OBJECTIVES:
            raise EsccError(f"unknown objective '{objective}'", hint=f"known: {', '.join(OBJECTIVES)}")
        if len(module.outputs) != 1:
            raise EsccError(f"a budget needs a network with one output, this one has {len(module.outputs)}")
        self.images, self.objective, self.progress = images, objective, progress
        self.options = options or CompileOptions()
        self.arch = arch or Arch.default()
        pipeline = default_pipeline(self.options)
        first = next((i for i, item in enumerate(pipeline) if isinstance(item, DecomposeKernels)), None)
        if first is None:
            raise EsccError("a budget has nothing to choose from when every layer stays dense")
        self.head, self.tail = pipeline[:first], pipeline[first:]
        self.plain = self.tail[0]
        assert isinstance(self.plain, DecomposeKernels)
        self.decompose = CachedDecompose(**{f.name: getattr(self.plain, f.name) for f in fields(self.plain)})
        self.base = module.clone()
        run_pipeline(self.base, self.head, PassContext(self.arch))
        self.layers = find_layers(self.base, self.decompose)
        maps = float_maps(self.base, images.fit)
        measure_all(self.base, self.layers, maps, self.decompose, progress)
        measure_sensitivity(self.base, self.layers, maps, self.decompose, progress)
        self.fixed = self._fixed()
        self.frontier = Frontier(
            [np.array([self._cost(item) for item in layer.measured]) for layer in self.layers],
            [layer.sensitivity * np.array([m.error for m in layer.measured]) for layer in self.layers],
        )
        self._reference: NDArray[np.float32] | None = None

    # -- costs ----------------------------------------------------------------------------------------------
    def _cost(self, item: Measured) -> float:
        if self.objective == "bytes":
            return item.bytes
        return item.cycles if self.objective == "cycles" else item.operations

    def _fixed(self) -> float:
        """Cost of what is not chosen, in units of the objective."""
        if self.objective == "cycles":
            return measure_cycles(
                self.base, self.layers, self._uniform, self.images.fit, self.arch, self.progress
            )
        ours = {layer.path for layer in self.layers}
        if self.objective == "macs":
            others = [cost.combine_first for cost in layer_costs(self.base) if cost.name not in ours]
            return float(sum(work.macs + work.adds for work in others))
        rows = self._compiled(self._uniform(0, 0), self.images.fit[:TIMED])[1]
        return float(sum(size for name, size in rows if name not in ours))

    def _uniform(self, bases: int, planes: int) -> list[Pass]:
        """The tail of the pipeline with the same bases everywhere (0: dense), without refinement."""
        if bases == 0:
            return default_pipeline(replace(self.options, dense=True))[len(self.head) :]
        first = replace(self.decompose, bases=bases, planes=planes)
        return [first, *(item for item in self.tail[1:] if not isinstance(item, RefineCoefficients))]

    def _compiled(
        self, passes: Sequence[Pass], calibration: NDArray[np.float32]
    ) -> tuple[Any, list[tuple[str, int]]]:
        """A program and the stored bytes of its layers by module path."""
        trial = self.base.clone()
        run_pipeline(trial, passes, PassContext(self.arch, calibration))
        program = lower(trial, self.arch)
        rows = (program.debug or {})["layers"]
        return program, [(str(row["name"]), int(row["weight_bytes"])) for row in rows]

    # -- choices --------------------------------------------------------------------------------------------
    def measured(self, choice: Choice) -> list[Measured]:
        """The settings of a choice."""
        return [layer.measured[i] for layer, i in zip(self.layers, choice.settings, strict=True)]

    def passes(self, choice: Choice, *, cached: bool = False) -> list[Pass]:
        """The whole pipeline of a choice; ``cached`` keeps the fits of decompose-kernels for the next one."""
        dense: list[str] = []
        decompose: list[str] = []
        refine: list[str] = []
        for layer, item in zip(self.layers, self.measured(choice), strict=True):
            bases, penalty = item.setting.bases, item.setting.penalty
            name = "planes" if layer.shape.kernel == (1, 1) else "bases"
            if bases == 0:
                dense.append(layer.path)
            elif layer.refined:
                decompose.append(f"{layer.path}:{name}={bases}")
                refine.append(f"{layer.path}:penalty={penalty!r}")
            else:
                decompose.append(f"{layer.path}:{name}={bases}:penalty={penalty!r}")
        kept = [*self.options.keep_dense, *dense]
        first = self.decompose if cached else self.plain
        assert isinstance(first, DecomposeKernels)
        found: list[Pass] = [replace(first, keep_dense=";".join(kept), layers=";".join(decompose))]
        for item in self.tail[1:]:
            # a pipeline says what is special about it: the general penalty would serve no layer
            found.append(
                RefineCoefficients(layers=";".join(refine)) if isinstance(item, RefineCoefficients) else item
            )
        return [*self.head, *found]

    # -- checks ---------------------------------------------------------------------------------------------
    @property
    def reference(self) -> NDArray[np.float32]:
        """Scores of the float network for the held-out images, (N, classes)."""
        if self._reference is None:
            held = self.images.held_out
            parts = [
                evaluate(self.base, held[at : at + FLOAT_BATCH])[0] for at in range(0, len(held), FLOAT_BATCH)
            ]
            self._reference = np.concatenate(parts).reshape(len(held), -1)
        return self._reference

    @property
    def classes(self) -> NDArray[np.int64]:
        """What the held-out images should be recognised as: labels, or the float network's answers."""
        return self.reference.argmax(1) if self.images.labels is None else self.images.labels

    def float_accuracy(self) -> float | None:
        """Per cent; None without labels."""
        if self.images.labels is None:
            return None
        return 100 * float((self.reference.argmax(1) == self.images.labels).mean())

    def judge(self, choice: Choice) -> _Judged:
        """The quantised network on the held-out images: bit for bit what the program computes."""
        passes = self.passes(choice, cached=True)[len(self.head) :]
        end = next(i for i, item in enumerate(passes) if item.name == "quantize-hybrid")
        trial = self.base.clone()
        run_pipeline(trial, passes[: end + 1], PassContext(self.arch, self.images.fit))
        scores = evaluate_integer(trial, self.images.held_out, literal=False)[0]
        scores = scores.reshape(len(scores), -1).astype(np.float32) * _output_scale(trial)
        before = self.reference.argmax(1) == self.classes
        after = scores.argmax(1) == self.classes
        return _Judged(
            100 * float(before.mean() - after.mean()),
            divergence([torch.from_numpy(self.reference)], [torch.from_numpy(scores)]),
            float((before != after).mean()),
        )

    def actual(self, choice: Choice) -> float:
        """The objective of the compiled choice, measured."""
        passes = self.passes(choice, cached=True)[len(self.head) :]
        if self.objective == "macs":
            trial = self.base.clone()
            end = next(i for i, item in enumerate(passes) if item.name == "calibrate")
            run_pipeline(trial, passes[:end], PassContext(self.arch, self.images.fit))
            return float(sum(c.combine_first.macs + c.combine_first.adds for c in layer_costs(trial)))
        program, rows = self._compiled(passes, self.images.fit)
        if self.objective == "bytes":
            return float(sum(size for _, size in rows))
        images = self.images.fit[:TIMED]
        return float(np.mean(simulate(program, images, timing_images=len(images)).cycles))

    # -- search ---------------------------------------------------------------------------------------------
    def solve(self, goal: Goal) -> Outcome:
        """The best choice for a goal of this search's objective.

        Raises:
            EsccError: the budget cannot be kept.
        """
        if goal.objective != self.objective or (goal.limit is None) == (goal.accuracy is None):
            raise EsccError("a goal has the objective of its search, and a limit or an accuracy")
        trials: list[Trial] = []
        if goal.accuracy is not None:
            choice, best = self._least(goal.accuracy, trials)
        else:
            assert goal.limit is not None
            choice, best = self._within(goal.limit, trials)
        return Outcome(
            goal=goal,
            passes=self.passes(choice),
            layers=self.layers,
            chosen=self.measured(choice),
            fixed=self.fixed,
            predicted=choice.cost + self.fixed,
            trial=best,
            trials=trials,
            float_accuracy=self.float_accuracy() if len(self.images.held_out) else None,
            fit_images=len(self.images.fit),
            held_out_images=len(self.images.held_out),
        )

    def _least(self, accuracy: float, trials: list[Trial]) -> tuple[Choice, Trial]:
        """The cheapest choice of the frontier that keeps the accuracy, by bisection."""
        costs = self.frontier.costs + self.fixed
        low, high = -1, len(costs) - 1
        best: Trial | None = None

        def keeps(step: int) -> bool:
            self.progress(f"trying {costs[step]:,.0f} {self.objective}", 0, 0)
            found = self.judge(self.frontier.at(step))
            passed = found.loss <= accuracy + 1e-9
            trials.append(
                Trial(float(costs[step]), None, found.loss, found.divergence, passed, found.changed)
            )
            return passed

        while high - low > 1 and (low < 0 or costs[high] > costs[low] * (1 + CLOSE)):
            middle = (low + high) // 2
            if keeps(middle):
                high, best = middle, trials[-1]
            else:
                low = middle
        if best is None and keeps(high):
            best = trials[-1]
        if best is None:
            raise EsccError(
                f"even the most accurate choice loses {trials[-1].loss:.2f} points, more than {accuracy:g}",
                hint="allow a larger --accuracy-budget, or give more images",
            )
        return self.frontier.at(high), best

    def _within(self, limit: float, trials: list[Trial]) -> tuple[Choice, Trial]:
        """The best choice whose compiled program keeps the limit: prediction, put right by measurement."""
        aim = limit
        found: list[tuple[Choice, Trial]] = []
        for attempt in range(TRIES):
            fits = aim - self.fixed >= self.frontier.costs[0]
            choice = self.frontier.within(aim - self.fixed) if fits else self.frontier.at(0)
            predicted = choice.cost + self.fixed
            if any(trial.predicted == predicted for trial in trials):
                break
            self.progress(f"trying {predicted:,.0f} {self.objective}", attempt, TRIES)
            actual = self.actual(choice)
            trials.append(Trial(predicted, actual, None, None, actual <= limit))
            if actual <= limit:
                found.append((choice, trials[-1]))
                if actual >= limit * (1 - CLOSE):
                    break
            aim *= limit / actual
            if actual > limit:
                # at least one choice down, however little was missing
                aim = min(aim, math.nextafter(predicted, 0.0))
        if not found:
            least = min(trial.actual or 0.0 for trial in trials)
            raise EsccError(
                f"a budget of {limit:,.0f} {self.objective} cannot be kept: the least found is {least:,.0f}"
            )
        return min(found, key=lambda pair: pair[0].error)


def _output_scale(module: Module) -> float:
    """Real value of one step of the (only) output."""
    kind: Any = module.outputs[0].type
    return float(kind.scale_value)
