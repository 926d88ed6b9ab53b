"""The networks a sweep measures on: opened and compiled once for every choice of compile options.

What is kept of one is a module of the level "quantized" (all that does not depend on the machine is done),
the images it is run on and its accuracy, in the folder of the sweep; every worker reads them from there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from escc.driver import CompileOptions, compile_module, default_pipeline, import_model
from escc.errors import EsccError
from escc.files import atomic_write
from escc.ir.module import Module
from escc.ir.passes import Pass, make_pass

Images = NDArray[np.float32]

DEMO = "demo"
"""As a model: the network and images that escc ships."""
SYNTHETIC = "synthetic:"
"""Before a name: a network of `escc compare`, drawn with its stated statistics."""
LAST_PASS = "quantize-hybrid"
ACCURACY_IMAGES = 500
TIMED_IMAGES = 1


@dataclass(frozen=True)
class WorkloadSpec:
    """A ``[[workload]]`` of the space file.

    ``model``: a file that ``escc compile`` opens, ``zoo:NAME``, ``demo`` or ``synthetic:NAME``. The first
    ``accuracy_images`` of ``images`` are judged, where there are ``labels``; ``timed_images`` are timed.
    """

    name: str
    model: str
    images: str = ""
    labels: str = ""
    calibration: str = ""
    accuracy_images: int = ACCURACY_IMAGES
    timed_images: int = TIMED_IMAGES
    seed: int = 0

    def identity(self, folder: Path) -> str:
        """Everything that decides what is measured, the content of files included."""
        parts = [repr(self)]
        for source in (self.model, self.images, self.labels, self.calibration):
            path = folder / source
            if source and path.is_file():
                parts.append(hashlib.sha256(path.read_bytes()).hexdigest())
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def parse_workload(body: Mapping[str, Any], folder: Path) -> WorkloadSpec:
    """The workload of a section.

    Raises:
        EsccError: a key is unknown or of the wrong type, or a file does not exist.
    """
    known = {item.name: item for item in fields(WorkloadSpec)}
    for key, value in body.items():
        if key not in known:
            raise EsccError(f"unknown key {key!r}", hint=f"known: {', '.join(known)}")
        number = known[key].type == "int"
        least = 0 if key == "seed" else 1
        if number != (isinstance(value, int) and not isinstance(value, bool)) or (number and value < least):
            raise EsccError(f"{key} must be {f'an integer from {least} on' if number else 'a text'}")
        if not number and not isinstance(value, str):
            raise EsccError(f"{key} must be a text")
    if not body.get("model"):
        raise EsccError("names no model", hint="a file, zoo:NAME, demo or synthetic:NAME")
    given: dict[str, Any] = {"name": Path(body["model"]).stem} | dict(body)
    spec = WorkloadSpec(**given)
    if spec.model == DEMO:
        spec = replace(spec, images=DEMO, labels=DEMO, calibration=DEMO)
    elif spec.model.startswith(SYNTHETIC):
        from escc.compare.statistics import find_network

        find_network(spec.model.removeprefix(SYNTHETIC))
        if spec.images or spec.labels or spec.calibration:
            raise EsccError("a synthetic network has an image of its own and no labels")
    elif not spec.model.startswith("zoo:") and not (folder / spec.model).exists():
        raise EsccError(f"there is no {spec.model}")
    if spec.model != DEMO:
        for source in (spec.images, spec.labels, spec.calibration):
            if source and not (folder / source).exists():
                raise EsccError(f"there is no {source}")
    if spec.labels and not spec.images:
        raise EsccError("has labels but no images")
    return spec


@dataclass(frozen=True)
class Prepared:
    """A compiled network: ``module`` of the level "quantized", ``images`` to time, ``accuracy`` if there are
    labels."""

    module: Module
    images: Images
    accuracy: float | None


def prepared_path(work: Path, spec: WorkloadSpec, options: Mapping[str, Any]) -> Path:
    """Where a network with these compile options is kept."""
    digest = hashlib.sha256(json.dumps(dict(options), sort_keys=True).encode()).hexdigest()[:12]
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in spec.name)
    return work / "networks" / f"{safe}-{digest}.mlir"


def prepare(spec: WorkloadSpec, options: Mapping[str, Any], folder: Path, work: Path) -> None:
    """Compile a network and leave it in the folder of the sweep; nothing is done when it is there.

    Raises:
        EsccError: it does not open or compile.
    """
    path = prepared_path(work, spec, options)
    ready = path.with_suffix(".json")
    if ready.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    done = _compiled(spec, options, folder)
    done.module.save(path, locations=False)
    with open(path.with_suffix(".npy.part"), "wb") as stream:
        np.save(stream, done.images, allow_pickle=False)
    path.with_suffix(".npy.part").replace(path.with_suffix(".npy"))
    # written last: with it everything is there
    atomic_write(ready, json.dumps({"options": dict(options), "accuracy": done.accuracy}).encode())


def load_prepared(spec: WorkloadSpec, options: Mapping[str, Any], work: Path) -> Prepared:
    """What `prepare` left.

    Raises:
        EsccError: it is not there or not readable.
    """
    path = prepared_path(work, spec, options)
    try:
        content = json.loads(path.with_suffix(".json").read_text())
        images = np.load(path.with_suffix(".npy"), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise EsccError(
            f"cannot read the network the sweep has compiled: {error}",
            where=str(path),
            hint="workers on other hosts need the folder of the sweep under the same path",
        ) from None
    return Prepared(Module.load(path), images, content["accuracy"])


def prepared_accuracy(spec: WorkloadSpec, options: Mapping[str, Any], work: Path) -> float | None:
    """The accuracy that `prepare` has found."""
    return json.loads(prepared_path(work, spec, options).with_suffix(".json").read_text())["accuracy"]


def _compiled(spec: WorkloadSpec, options: Mapping[str, Any], folder: Path) -> Prepared:
    if spec.model.startswith(SYNTHETIC):
        return _synthetic(spec, options)
    images: Images | None = None
    labels: NDArray[Any] | None = None
    calibration: Images | None = None
    if spec.model == DEMO:
        from escc.demo.assets import load_data, load_network

        data = load_data()
        images, labels, calibration = data.images, data.labels, data.calibration
        module = import_model(load_network(), input_shape=images.shape[1:])
    else:
        source = spec.model if spec.model.startswith("zoo:") else str(folder / spec.model)
        module = import_model(source)
        shape = module.input_ports[0].torch_shape
        from escc.frontend.data import load_images, load_labels

        if spec.images:
            most = max(spec.accuracy_images if spec.labels else 0, spec.timed_images)
            images = load_images(folder / spec.images, shape, limit=most)
        if spec.labels:
            labels = load_labels(folder / spec.labels, limit=spec.accuracy_images)
        if spec.calibration:
            calibration = load_images(folder / spec.calibration, shape, limit=512, part="train")
    if images is None:
        shape = module.input_ports[0].torch_shape
        random = np.random.default_rng(spec.seed)
        images = random.standard_normal((spec.timed_images, *shape), dtype=np.float32)
    chosen = CompileOptions(**dict(options), refine=calibration is not None)
    done = compile_module(
        module, calibration=calibration, passes=default_pipeline(chosen), stop_after=LAST_PASS
    )
    accuracy = None
    if labels is not None:
        count = min(spec.accuracy_images, len(images), len(labels))
        accuracy = _accuracy(done.module, images[:count], labels[:count])
    return Prepared(done.module, np.ascontiguousarray(images[: spec.timed_images]), accuracy)


def _synthetic(spec: WorkloadSpec, options: Mapping[str, Any]) -> Prepared:
    """The passes of `escc.compare.workload.synthetic_workload`, up to the level "quantized"."""
    from escc.compare.statistics import find_network
    from escc.compare.synthesis import CodeWeights, DrawWeights, SteerActivations, natural_images
    from escc.compare.workload import skeleton_module
    from escc.passes.calibrate import Calibrate

    if options:
        raise EsccError(f"{spec.name} is drawn, not compressed: compile options do not apply to it")
    network = find_network(spec.model.removeprefix(SYNTHETIC))
    module = skeleton_module(network)
    images = natural_images(tuple(module.input_ports[0].torch_shape), spec.timed_images, spec.seed)
    passes: list[Pass] = [
        make_pass("fold-batch-norm"),
        make_pass("fuse-requantize"),
        DrawWeights(spec.seed),
        CodeWeights(network.statistics),
        SteerActivations(network.statistics, spec.seed),
        Calibrate(correct_statistics=False),
        make_pass(LAST_PASS),
    ]
    done = compile_module(module, calibration=images, passes=passes, stop_after=LAST_PASS)
    return Prepared(done.module, images, None)


def _accuracy(module: Module, images: Images, labels: NDArray[Any]) -> float:
    """Share of images that the integer reference gives the right class."""
    from escc.passes.reference.integer_graph import evaluate_integer

    outputs = evaluate_integer(module, images, literal=False)[0].reshape(len(images), -1)
    return float((outputs.argmax(axis=1) == labels).mean())
