"""``escc.compress``: open a network and a data set, carry a recipe out, leave a network that compiles."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from escc.driver import capture_model
from escc.errors import EsccError
from escc.files import atomic_write
from escc.frontend.datasets import Dataset, load_dataset
from escc.progress import Progress, silent
from escc.training.batches import ImageSet
from escc.training.graph import export, trainable
from escc.training.processes import Processes, join
from escc.training.recipe import Recipe, load_recipe
from escc.training.run import Run
from escc.training.transforms import transforms

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram


@dataclass
class Compressed:
    """What a recipe leaves.

    Attributes:
        model: the network, as a trainable graph in evaluation mode.
        history: a row of figures for each phase (name, accuracy on the test images, seconds, ...).
        leads: this process is the one that writes files.
    """

    model: fx.GraphModule
    input_shape: tuple[int, int, int]
    history: list[dict[str, Any]]
    leads: bool = True

    def exported(self) -> ExportedProgram:
        """The network as an exported program, which :func:`escc.compile` takes."""
        return export(self.model, torch.zeros(2, *self.input_shape))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the exported program."""
        import io
        import warnings

        from escc.frontend.exported_archive import quiet_torch

        buffer = io.BytesIO()
        with quiet_torch(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(self.exported(), buffer)
        atomic_write(Path(path), buffer.getbuffer())


def compress(
    model: nn.Module | ExportedProgram | str | os.PathLike[str],
    data: str | os.PathLike[str] | Dataset,
    recipe: str | Recipe,
    *,
    work: str | os.PathLike[str],
    settings: Sequence[str] = (),
    restart: bool = False,
    device: str = "auto",
    checkpoint_seconds: float = 60.0,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda text: None,
    **opening: Any,
) -> Compressed:
    """Carry a recipe out on a network.

    Args:
        model: as :func:`escc.compile` takes it, or a file of it, or ``zoo:NAME`` (random weights).
        data: a data set :func:`escc.frontend.datasets.load_dataset` reads, or one.
        recipe: a TOML file, the name of a shipped recipe, or one read already.
        work: folder of the run: checkpoint, log, teacher. A run that is there is gone on with.
        settings: changes to the recipe, ``phase.option=value``.
        restart: begin anew.
        device: "auto", "cpu" or "cuda"; several processes by torchrun.
        checkpoint_seconds: most seconds between two checkpoints.
        progress: called as ``progress(stage, done, total)``.
        say: told a line after every epoch and phase.
        **opening: how the model file is opened, as for :func:`escc.driver.capture_model`.

    Raises:
        EsccError: a bad recipe, model or data set, a run of something else in ``work``, a diverging loss.
    """
    script = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, transforms(), tuple(settings))
    exported = capture_model(model, **opening)
    shape = _image_shape(exported)
    images = (
        data
        if isinstance(data, Dataset)
        else load_dataset(data, shape, validation=script.data.validation, limit=script.data.limit or None)
    )
    processes = join(device)
    train, test = _image_sets(images, script, processes)
    run = Run(
        lambda: trainable(exported),
        script,
        train,
        test,
        shape,
        Path(work),
        {"model": _digest(exported), "data": _data_digest(train)},
        processes,
        _uses_bf16(script.precision, processes),
        checkpoint_seconds,
        progress,
        say if processes.leads else lambda text: None,
    )
    try:
        done = run.execute(restart=restart)
    finally:
        processes.close()
    return Compressed(done.cpu(), shape, run.position.history, processes.leads)


def _image_shape(exported: ExportedProgram) -> tuple[int, int, int]:
    inputs = set(exported.graph_signature.user_inputs)
    shapes = [
        tuple(node.meta["val"].shape)[1:]
        for node in exported.graph.find_nodes(op="placeholder")
        if node.name in inputs
    ]
    if len(shapes) != 1 or len(shapes[0]) != 3:
        raise EsccError("only networks of one image can be trained")
    channels, height, width = (int(size) for size in shapes[0])
    return channels, height, width


def _image_sets(images: Dataset, recipe: Recipe, processes: Processes) -> tuple[ImageSet, ImageSet]:
    mean = recipe.data.mean or images.mean
    std = recipe.data.std or images.std
    channels = images.train_images.shape[1]
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise EsccError(
            f"[data] mean and std take {channels} numbers, std above 0", where=recipe.source
        )
    held_out = images.validation_images if len(images.validation_labels) else images.test_images
    labels = images.validation_labels if len(images.validation_labels) else images.test_labels
    if len(labels) == 0:
        raise EsccError("no test images", hint="hold some out: [data] validation = 5000")
    return (
        ImageSet.of(images.train_images, images.train_labels, mean, std, processes.device),
        ImageSet.of(held_out, labels, mean, std, processes.device),
    )


def _digest(exported: ExportedProgram) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(exported.state_dict.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _data_digest(images: ImageSet) -> str:
    digest = hashlib.sha256(str(tuple(images.images.shape)).encode())
    digest.update(images.images[:: max(1, len(images) // 256)].cpu().numpy().tobytes())
    digest.update(images.labels.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _uses_bf16(precision: str, processes: Processes) -> bool:
    if precision != "auto":
        return precision == "bf16"
    if processes.device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
