"""A recipe carried out: phases in order, resumable at any step."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import fx

from escc.errors import EsccError
from escc.files import atomic_write
from escc.progress import Progress, silent
from escc.training.batches import ImageSet, accuracy, seed_of
from escc.training.checkpoint import Checkpoint, Position, load_checkpoint, save_checkpoint
from escc.training.context import TransformContext
from escc.training.epochs import PhaseRun, make_optimizer
from escc.training.freezing import hold, train_half
from escc.training.graph import apply_structure, structure
from escc.training.processes import Processes
from escc.training.recipe import Phase, Recipe
from escc.training.transforms import transforms

CHECKPOINT, TEACHER, LOG = "checkpoint.safetensors", "teacher.safetensors", "log.jsonl"


@dataclass
class Run:
    """One network on its way through a recipe.

    Attributes:
        fresh: gives the network as it was opened, as a trainable graph, any number of times.
        train, test: images; ``test`` is what accuracies are of.
        input_shape: (C, H, W).
        folder: for checkpoint, teacher and log.
        identity: says which model and data this is, so that no other run is gone on with.
        amp: bf16 autocast.
        every: most seconds between two checkpoints.
    """

    fresh: Callable[[], fx.GraphModule]
    recipe: Recipe
    train: ImageSet
    test: ImageSet
    input_shape: tuple[int, int, int]
    folder: Path
    identity: dict[str, Any]
    processes: Processes
    amp: bool
    every: float = 60.0
    progress: Progress = silent
    say: Callable[[str], None] = lambda text: None
    position: Position = field(default_factory=Position)
    _saved: float = 0.0

    def execute(self, *, restart: bool = False) -> fx.GraphModule:
        """Run whatever is left to do.

        Args:
            restart: forget an earlier checkpoint.

        Returns:
            The network at the end of the recipe, in evaluation mode.

        Raises:
            EsccError: the folder holds another run, or the training fails.
        """
        self.identity = {**self.identity, "recipe": self.recipe.digest, "amp": self.amp}
        found = self._earlier(restart)
        self.model = self.fresh()
        if found is not None:
            self.position = found.position
            apply_structure(self.model, found.structure)
            self.model.load_state_dict(found.model)
            self.log("resume", phase=self.position.phase, epoch=self.position.epoch, step=self.position.step)
            self.say(f"going on with phase {self.position.phase + 1}, epoch {self.position.epoch + 1}")
        else:
            self.log("start", recipe=asdict(self.recipe), identity=self.identity)
        self.model.to(self.processes.device)
        self._saved = time.monotonic()
        phases = self.recipe.phases
        while self.position.phase < len(phases):
            phase = phases[self.position.phase]
            if phase.train is None:
                self._transform(phase)
            else:
                self._train(phase, found)
            found = None
            self.position.phase += 1
            self.position.epoch = self.position.step = 0
            self.save(None)
        return self.model.eval()

    # -- phases ---------------------------------------------------------------------------------------------
    def _transform(self, phase: Phase) -> None:
        if not self.position.teacher:
            self._keep_teacher()
        start = time.perf_counter()
        context = TransformContext(
            self.processes.device,
            self.input_shape,
            self.calibration,
            seed_of(self.recipe.seed, self.position.phase) % (1 << 31),
            lambda stage, done, total: self.progress(f"{phase.name}: {stage}", done, total),
        )
        self.model.eval()
        with torch.no_grad():
            figures = transforms()[phase.kind].function(self.model, context, **phase.options)
        self._finished(phase, time.perf_counter() - start, **(figures or {}))

    def _train(self, phase: Phase, found: Checkpoint | None) -> None:
        options = phase.train
        assert options is not None
        teacher = None
        if options.distill:
            teacher = self._teacher()
        run = PhaseRun(
            self.model,
            teacher,
            self.train,
            options,
            self.recipe.data,
            seed_of(self.recipe.seed, self.position.phase),
            self.amp,
            self.processes,
        )
        optimizer = make_optimizer(self.model, options)
        if found is not None:
            found.restore_optimizer(self.model, optimizer)
        hold(optimizer, self.model)
        total, seconds = run.steps * options.epochs, 0.0

        def after_step() -> None:
            done = self.position.epoch * run.steps + self.position.step
            self.progress(phase.name, done, total)
            if time.monotonic() - self._saved > self.every:
                self.save(optimizer)

        position = self.position
        while position.epoch < options.epochs:
            try:
                run.run_epoch(optimizer, position, after_step)
            except FloatingPointError as error:
                raise EsccError(
                    f"{error} in epoch {position.epoch + 1}",
                    where=phase.name,
                    hint="a smaller learning_rate, or clip",
                ) from None
            self.processes.same_buffers(self.model)
            hits, seen, loss = self.processes.total(position.hits, position.seen, position.loss)
            loss /= run.steps * self.processes.count
            seconds += position.seconds
            self.log(
                "epoch",
                phase=phase.name,
                epoch=position.epoch + 1,
                loss=loss,
                train_accuracy=hits / seen,
                seconds=position.seconds,
            )
            self.say(
                f"{phase.name} {position.epoch + 1}/{options.epochs}: loss {loss:.4f}, "
                f"training accuracy {hits / seen:.2%}, {position.seconds:.0f} s"
            )
            position.epoch += 1
            position.step = position.hits = position.seen = 0
            position.loss = position.seconds = 0.0
            if position.epoch < options.epochs:
                self.save(optimizer)
        train_half(self.model, "all")
        self._finished(phase, seconds)

    def _finished(self, phase: Phase, seconds: float, **figures: Any) -> None:
        value = accuracy(self.model, self.test) if self.processes.leads else 0.0
        self.processes.wait()
        row = {"phase": phase.name, "kind": phase.kind, "accuracy": value, "seconds": seconds, **figures}
        self.position.history.append(row)
        self.log("phase", **row)
        shown = ", ".join(
            f"{key} {number:.4g}" for key, number in figures.items() if isinstance(number, int | float)
        )
        self.say(f"{phase.name}: accuracy {value:.2%}" + (f" ({shown})" if shown else ""))

    # -- images and teacher ---------------------------------------------------------------------------------
    def calibration(self, count: int) -> NDArray[np.float32]:
        """Normalised training images, float32 (n, C, H, W), evenly spaced, always the same."""
        chosen = np.linspace(0, len(self.train) - 1, min(count, len(self.train))).round().astype(np.int64)
        return self.train.batch(torch.from_numpy(chosen))[0].contiguous().cpu().numpy()

    def _keep_teacher(self) -> None:
        if self.processes.leads:
            state = {name: value.cpu().contiguous() for name, value in self.model.state_dict().items()}
            atomic_write(self.folder / TEACHER, save(state))
        self.processes.wait()
        self.position.teacher = True

    def _teacher(self) -> fx.GraphModule:
        teacher = self.fresh()
        # without a transform so far, the network as it was opened teaches itself
        if self.position.teacher:
            teacher.load_state_dict(load_file(self.folder / TEACHER))
        for parameter in teacher.parameters():
            parameter.requires_grad_(False)
        return teacher.to(self.processes.device).eval()

    # -- files ----------------------------------------------------------------------------------------------
    def _earlier(self, restart: bool) -> Checkpoint | None:
        path = self.folder / CHECKPOINT
        if restart or not path.exists():
            if self.processes.leads:
                self.folder.mkdir(parents=True, exist_ok=True)
                for name in (CHECKPOINT, TEACHER, LOG):
                    (self.folder / name).unlink(missing_ok=True)
            self.processes.wait()
            return None
        found = load_checkpoint(path)
        if found.identity != self.identity:
            other = [key for key, value in self.identity.items() if found.identity.get(key) != value]
            raise EsccError(
                f"holds a run with another {', '.join(other)}",
                where=str(self.folder),
                hint="--restart to begin anew, or another --work folder",
            )
        return found

    def save(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Write a checkpoint."""
        # the first process alone decides when: nobody waits for it here
        if self.processes.leads:
            path = self.folder / CHECKPOINT
            save_checkpoint(path, self.model, optimizer, self.position, structure(self.model), self.identity)
        self._saved = time.monotonic()

    def log(self, event: str, **figures: Any) -> None:
        """Append a line to the log."""
        if self.processes.leads:
            line = json.dumps({"event": event, "time": round(time.time(), 3), **figures})
            with (self.folder / LOG).open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
