"""One training phase: batches, loss, optimizer and schedule, from any step on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from escc.training.batches import ImageSet, order, seed_of
from escc.training.checkpoint import Position
from escc.training.freezing import Alternation, Half, decomposed_layers, train_half
from escc.training.penni import coefficient_l1
from escc.training.processes import Processes
from escc.training.recipe import DataOptions, TrainOptions

LEADS_TO_NOTHING = "the loss is not finite"


def learning_rate(options: TrainOptions, step: int, steps: int) -> float:
    """The schedule's rate at a step, 0 <= step < steps; a function of the step alone, so that runs resume."""
    peak, share = options.learning_rate, (step + 0.5) / max(steps, 1)
    if options.schedule == "constant":
        return peak
    if options.schedule == "steps":
        return peak * (1.0 if share < 0.5 else 0.1 if share < 0.75 else 0.01)
    rising = options.warm_up if options.schedule == "one-cycle" else 0.0
    if share < rising:
        return peak * share / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (share - rising) / (1 - rising)))


def make_optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """The phase's optimizer over all parameters; those without gradient are never touched by it."""
    # a dictionary keeps their order, which decides the order of sums in an optimizer
    coefficients = dict.fromkeys(layer.coefficients for layer in decomposed_layers(model).values())
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter not in coefficients:
            (decayed if options.decay_all or parameter.dim() > 1 else plain).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": options.weight_decay, "factor": 1.0},
        {"params": plain, "weight_decay": 0.0, "factor": 1.0},
        {
            "params": list(coefficients),
            "weight_decay": options.weight_decay,
            "factor": options.coefficient_rate,
        },
    ]
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.learning_rate, betas=(options.momentum, 0.999))
    return torch.optim.SGD(
        groups,
        lr=options.learning_rate,
        momentum=options.momentum,
        nesterov=options.nesterov and options.momentum > 0,
    )


@dataclass
class PhaseRun:
    """Everything one training phase needs.

    Attributes:
        model, teacher: the network that learns, and the one whose soft labels it may learn from.
        images: training images.
        options, data: of the phase and of the recipe.
        seed: of the phase.
        amp: bf16 autocast.
    """

    model: nn.Module
    teacher: nn.Module | None
    images: ImageSet
    options: TrainOptions
    data: DataOptions
    seed: int
    amp: bool
    processes: Processes

    @property
    def steps(self) -> int:
        """Steps of one epoch; the last images that fill no batch wait for another epoch's order."""
        return max(1, len(self.images) // self.options.batch)

    def _autocast(self) -> AbstractContextManager[Any]:
        kind = self.images.images.device.type
        return torch.autocast(kind, torch.bfloat16) if self.amp else nullcontext()

    def loss(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a batch and the scores."""
        options = self.options
        with self._autocast():
            scores = self.forward_model(inputs)
            taught = None
            if options.distill and self.teacher is not None:
                with torch.no_grad():
                    taught = self.teacher(inputs)
        scores = scores.float()
        loss = functional.cross_entropy(scores, labels, label_smoothing=options.label_smoothing)
        if taught is not None:
            heat = options.temperature
            soft = functional.kl_div(
                functional.log_softmax(scores / heat, 1),
                functional.log_softmax(taught.float() / heat, 1),
                reduction="batchmean",
                log_target=True,
            )
            loss = (1 - options.distill) * loss + options.distill * heat**2 * soft
        if options.l1:
            loss = loss + options.l1 * coefficient_l1(self.model)
        return loss, scores

    def run_epoch(
        self,
        optimizer: torch.optim.Optimizer,
        position: Position,
        after_step: Callable[[], None],
    ) -> None:
        """The rest of the epoch ``position`` is in; ``after_step`` is called after each step.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        options, steps = self.options, self.steps
        turns = Alternation(options.swap_every, cast("Half", options.train), options.penni_turns)
        train_half(self.model, turns.half(position.epoch))
        self.forward_model = self.processes.wrap(self.model)
        self.model.train()
        if options.norm == "frozen":
            for module in self.model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        if self.teacher is not None:
            self.teacher.eval()
        permutation = order(len(self.images), seed_of(self.seed, "order", position.epoch))
        total = steps * options.epochs
        while position.step < steps:
            start = time.perf_counter()
            first = position.step * options.batch
            chosen = permutation[first : first + options.batch]
            seed = seed_of(self.seed, "step", position.epoch, position.step)
            if options.augment:
                inputs, labels = self.images.augmented(chosen, self.data, seed)
            else:
                inputs, labels = self.images.batch(chosen)
            # every process draws for the whole batch and takes its share: how many there are changes nothing
            inputs, labels = self.processes.share(inputs), self.processes.share(labels)
            rate = learning_rate(options, position.epoch * steps + position.step, total)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            optimizer.zero_grad(set_to_none=True)
            loss, scores = self.loss(inputs, labels)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise FloatingPointError(LEADS_TO_NOTHING)
            loss.backward()
            if options.clip:
                nn.utils.clip_grad_norm_(self.model.parameters(), options.clip)
            optimizer.step()
            position.loss += value
            position.hits += int((scores.argmax(1) == labels).sum())
            position.seen += len(labels)
            position.step += 1
            position.seconds += time.perf_counter() - start
            after_step()
