"""Everything the table says about one compiled network, measured and kept as JSON."""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from benchmarks.compression.experiments import DEMO, DataSource, Network, Row, fill
from escc.cli import run
from escc.errors import EsccError
from escc.files import atomic_write

if TYPE_CHECKING:
    from escc.ir.module import Module
    from escc.isa.program import Program
    from escc.passes.costs import LayerCost

Images = NDArray[np.float32]
BATCH = 500
VERSION = 1
"""Counts up when results of before cannot stand beside those of now."""


@dataclass(frozen=True)
class Data:
    """Images float32 (N, C, H, W) as the network takes them, labels, and the calibration images' file."""

    images: Images
    labels: NDArray[np.int64]
    calibration: Path
    timed: int


def load_data(name: str, source: DataSource, work: Path) -> Data:
    """Test images, and a file with calibration images (training images, evenly over the classes)."""
    if source.source == DEMO:
        from escc.demo.assets import load_data as load_demo

        demo = load_demo()
        images, labels, calibration = demo.images, demo.labels, demo.calibration[: source.calibration]
    else:
        from escc.frontend.datasets import load_dataset

        found = load_dataset(source.source, source.shape, validation=source.calibration)
        mean = np.array(source.mean or found.mean, dtype=np.float32)[:, None, None]
        std = np.array(source.std or found.std, dtype=np.float32)[:, None, None]
        images, calibration = (
            ((part.astype(np.float32) / np.float32(255) - mean) / std).astype(np.float32)
            for part in (found.test_images, found.validation_images)
        )
        labels = found.test_labels
    count = source.test or len(images)
    path = work / "data" / f"{name}-{len(calibration)}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".part").open("wb") as stream:
            np.save(stream, calibration)
        path.with_suffix(".part").replace(path)
    return Data(images[:count], labels[:count], path, min(source.timed, count))


@dataclass(frozen=True)
class Task:
    """One network of one row: what is to be measured, and where it is kept."""

    network: Network
    row: Row
    source: DataSource
    work: Path
    seed: int | None = None

    @property
    def name(self) -> str:
        """``network/row`` or ``network/row-seed``."""
        suffix = "" if self.seed is None else f"-{self.seed}"
        return f"{self.network.name}/{self.row.name}{suffix}"

    @property
    def model(self) -> str:
        """The model's file or ``zoo:`` name."""
        return self.filled(self.row.model or self.network.model)

    @property
    def opening(self) -> list[str]:
        """Options that say how it is opened."""
        return shlex.split(self.filled(self.row.options if self.row.model else self.network.options))

    @property
    def obtain(self) -> str:
        """Command that makes it, '' when there is none."""
        return self.filled(self.row.obtain or ("" if self.row.model else self.network.obtain))

    @property
    def options(self) -> list[str]:
        """Options of ``escc compile``."""
        return shlex.split(self.filled(self.row.compile))

    @property
    def is_there(self) -> bool:
        """Whether model and dense network are there."""
        return all(is_model(path) for path in (self.model, self.filled(self.network.model)))

    def filled(self, text: str) -> str:
        """Placeholders replaced."""
        model = fill(self.network.model, work=self.work)
        return fill(text, work=self.work, data=self.source.source, seed=self.seed, model=model)

    def key(self) -> dict[str, Any]:
        """What a result depends on beside the code: two measurements with equal keys are the same."""
        data = asdict(self.source)
        # as JSON reads it back
        return json.loads(
            json.dumps(
                {
                    "version": VERSION,
                    "model": _digest(self.model),
                    "dense": _digest(self.filled(self.network.model)),
                    "opening": self.opening,
                    "compile": self.options,
                    "evaluate": self.row.evaluate,
                    "data": data,
                }
            )
        )

    @property
    def path(self) -> Path:
        """Where the result is kept."""
        return self.work / "results" / f"{self.name}.json"

    def kept(self) -> dict[str, Any] | None:
        """The result of an earlier run, None when there is none or something it depends on has changed."""
        content = self.of_any_machine()
        return content if content is not None and content.get("machine") == _machine(self.row) else None

    def of_any_machine(self) -> dict[str, Any] | None:
        """The same, though cycles and energy may be another machine's."""
        try:
            content = cast("dict[str, Any]", json.loads(self.path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None
        return content if self.is_there and content.get("key") == self.key() else None

    @property
    def build(self) -> Path:
        """Where program and module are kept."""
        return self.work / "build" / self.name


def is_model(path: str) -> bool:
    """Whether a model can be opened: a file that is there, or a network of the zoo."""
    return path.startswith("zoo:") or Path(path).is_file()


def measure(task: Task, data: Data, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure and keep.

    Raises:
        EsccError: the command line of the row does not compile; simulator and integer reference differ.
    """
    original = _original(task)
    take = _float if task.row.evaluate == "float" else _integer
    result = take(task, data, original, say)
    return _keep(task, {"key": task.key(), "name": task.name, "images": len(data.images), **result})


def retime(task: Task, data: Data, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Cycles, energy and sizes on today's machine for a network measured on an earlier one; the rest stays.

    The compiled module is planned and scheduled anew for the machine; what it computes does not change. Its
    coefficients may be stored in another way.

    Returns:
        The result, None where the network has to be compiled from the start: nothing is kept, or the
        machine cuts channels into other chunks, so that streams have other sizes.

    Raises:
        EsccError: simulator and integer reference differ.
    """
    from escc.driver import compile_module
    from escc.ir.module import Module
    from escc.isa.arch import Arch
    from escc.isa.program import Program
    from escc.passes.reference.integer_graph import evaluate_integer

    content, paths = task.of_any_machine(), [task.build / "program.mlir", task.build / "program.bin"]
    if content is None or not all(path.exists() for path in paths):
        return None
    if Program.load(paths[1]).arch.chunk != Arch.default().chunk:
        return None
    module = Module.load(paths[0])
    program = compile_module(module, passes="plan-memory,schedule").program
    assert program is not None
    program.save(paths[1])
    module.save(paths[0])
    scores = evaluate_integer(module, data.images[: data.timed], literal=False)[0]
    original = _original(task)
    stored = sum(int(layer["weight_bytes"]) for layer in (program.debug or {})["layers"])
    content |= {
        "weight_bytes": stored,
        "ratio": _ratio(original, stored),
        "bits_per_weight": _bits_per_weight(_stored_anew(task.build, program), original),
        **_timed(program, data, scores.reshape(data.timed, -1), task.name),
    }
    say(f"timed again: {content['cycles']:,.0f} cycles")
    return _keep(task, content)


def _stored_anew(folder: Path, program: Program) -> list[dict[str, Any]]:
    """The convolutions of the report with their bits as today's program stores the coefficients."""
    report = cast("dict[str, Any]", json.loads((folder / "compile.json").read_text(encoding="utf-8")))
    change: dict[str, int] = {}
    for sign, layers in ((1, (program.debug or {})["layers"]), (-1, report["layers"])):
        for layer in layers:
            size = int(layer.get("stream_bytes", {}).get("coefficients", 0))
            change[layer["name"]] = change.get(layer["name"], 0) + sign * size
    return [
        {**layer, "bits": layer["bits"] + 8 * change.get(layer["name"], 0)}
        for layer in report["convolutions"]
    ]


def _keep(task: Task, content: dict[str, Any]) -> dict[str, Any]:
    task.path.parent.mkdir(parents=True, exist_ok=True)
    content = {**content, "machine": _machine(task.row)}
    atomic_write(task.path, (json.dumps(content, indent=1) + "\n").encode())
    return content


def _machine(row: Row) -> str:
    """Which machine and energy table cycles and energy are of; '' for rows that have none."""
    from escc.backend_sim.simulator.energy import EnergyTable
    from escc.isa.arch import Arch

    if row.evaluate == "float":
        return ""
    text = f"{Arch.default()} {EnergyTable.load(None)}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _timed(program: Program, data: Data, scores: NDArray[Any], name: str) -> dict[str, Any]:
    """Cycles and energy of the timed images, whose outputs have to be ``scores`` (timed, classes)."""
    from escc.backend_sim.simulator import simulate

    timed = simulate(program, data.images[: data.timed], timing_images=data.timed)
    if not np.array_equal(timed.outputs[0].reshape(data.timed, -1), scores):
        raise EsccError("simulator and integer reference differ", where=name)
    return {
        "cycles": float(np.mean(timed.cycles)),
        "energy_pj": float(timed.energy_pj),
        "timed_images": data.timed,
    }


def compile_command(task: Task, calibration: object, folder: object) -> list[str]:
    """The command line (without ``escc``) that makes the program."""
    return [
        "compile", task.model, *task.opening, "--calibration", str(calibration), *task.options,
        "-o", f"{folder}/program.bin", "--ir", f"{folder}/program.mlir", "--report", str(folder),
    ]  # fmt: skip


def _integer(task: Task, data: Data, original: list[LayerCost], say: Callable[[str], None]) -> dict[str, Any]:
    from escc.ir.module import Module
    from escc.isa.program import Program
    from escc.passes.reference.integer_graph import evaluate_integer

    folder = task.build
    folder.mkdir(parents=True, exist_ok=True)
    command = compile_command(task, data.calibration, folder)
    say(f"escc {shlex.join(command)}")
    start = time.perf_counter()
    if run(command) != 0:
        raise EsccError("did not compile", where=task.name)
    seconds = time.perf_counter() - start
    module, program = Module.load(folder / "program.mlir"), Program.load(folder / "program.bin")
    accuracy, scores = _accuracy(lambda part: evaluate_integer(module, part, literal=False)[0], data, say)
    timed = _timed(program, data, scores[: data.timed], task.name)
    report = cast("dict[str, Any]", json.loads((folder / "compile.json").read_text(encoding="utf-8")))
    stored = sum(int(layer["weight_bytes"]) for layer in report["layers"])
    return {
        "accuracy": accuracy,
        "weight_bytes": stored,
        **_from_report(report, original),
        **timed,
        "ratio": _ratio(original, stored),
        "seconds": seconds,
    }


def _float(task: Task, data: Data, original: list[LayerCost], say: Callable[[str], None]) -> dict[str, Any]:
    from escc.passes.costs import layer_costs
    from escc.passes.reference.float_graph import evaluate

    start = time.perf_counter()
    module = _import(task.model, task.opening)
    costs = layer_costs(module, floats=True)
    layers = [asdict(cost) for cost in costs]
    accuracy, _ = _accuracy(lambda part: evaluate(module, part)[0], data, say)
    stored = -(-sum(cost.bits for cost in costs) // 8)
    return {
        "accuracy": accuracy,
        "weight_bytes": stored,
        "entropy_bytes": None,
        "bits_per_weight": _bits_per_weight(layers, original),
        "density": _density(layers),
        **_reductions(_totals(costs), original),
        "cycles": None,
        "energy_pj": None,
        "timed_images": 0,
        "ratio": _ratio(original, stored),
        "seconds": time.perf_counter() - start,
    }


def _accuracy(
    scores_of: Callable[[Images], NDArray[Any]], data: Data, say: Callable[[str], None]
) -> tuple[float, NDArray[Any]]:
    """Share of test images that are classified right, and all scores (N, classes)."""
    parts: list[NDArray[Any]] = []
    for first in range(0, len(data.images), BATCH):
        part = data.images[first : first + BATCH]
        parts.append(scores_of(part).reshape(len(part), -1))
    scores = np.concatenate(parts)
    share = float((scores.argmax(axis=1) == data.labels).mean())
    say(f"{100 * share:.2f} % of {len(scores):,} images")
    return share, scores


def _import(model: str, opening: Sequence[str]) -> Module:
    """The network as ``escc compile`` opens it."""
    import click

    from escc.cli.compile import compile_command as command
    from escc.driver import import_model

    context = command.make_context(
        "compile", [model, *opening, "-o", "unused"], parent=click.Context(command)
    )
    given = context.params
    return import_model(
        model,
        input_shape=given["input_shape"],
        factory=given["factory"],
        allow_classes=given["allow_classes"],
        unsafe_load=given["unsafe_load"],
    )


def _original(task: Task) -> list[LayerCost]:
    dense = Task(task.network, task.network.dense, task.source, task.work)
    return _dense_costs(dense.model, tuple(dense.opening), _digest(dense.model))


@cache
def _dense_costs(model: str, opening: tuple[str, ...], _digest: str) -> list[LayerCost]:
    """Every row of a network is compared with them."""
    from escc.passes.costs import layer_costs

    return layer_costs(_import(model, opening))


def _ratio(original: list[LayerCost], stored: int) -> float:
    """Bytes of the dense network's weights as 32-bit floats over the bytes stored."""
    return 4 * sum(cost.shape.parameters for cost in original) / stored


def _totals(costs: list[LayerCost]) -> dict[str, Any]:
    from escc.passes.costs import network_cost

    both = (("network", True), ("without_classifier", False))
    return {name: asdict(network_cost(costs, classifier=classifier)) for name, classifier in both}


def _from_report(report: dict[str, Any], original: list[LayerCost]) -> dict[str, Any]:
    totals = {name: both["compiled"] for name, both in report["totals"].items()}
    return {
        "entropy_bytes": -(-totals["network"]["entropy_bits"] // 8),
        "bits_per_weight": _bits_per_weight(report["convolutions"], original),
        "density": _density(report["convolutions"]),
        **_reductions(totals, original),
    }


def _reductions(totals: dict[str, Any], original: list[LayerCost]) -> dict[str, Any]:
    """Share of the dense network's MACs that is saved, an addition counted like a MAC, in both orders."""
    dense = _totals(original)
    orders = ("convolve_first", "convolve_first_used", "combine_first")
    return {
        "reductions": {
            name: {
                order: 1 - (total[order]["macs"] + total[order]["adds"]) / dense[name]["dense_macs"]
                for order in orders
            }
            for name, total in totals.items()
        }
    }


def _bits_per_weight(layers: Sequence[dict[str, Any]], original: list[LayerCost]) -> float | None:
    """Stored bits of the decomposed layers over the weights these layers have in the dense network."""
    weights = {cost.name: cost.shape.parameters for cost in original}
    decomposed = [layer for layer in layers if layer["bases"]]
    strangers = [layer["name"] for layer in decomposed if layer["name"] not in weights]
    if strangers:
        raise EsccError(f"the dense network has no layer '{strangers[0]}'")
    if not decomposed:
        return None
    return sum(int(layer["bits"]) for layer in decomposed) / sum(
        weights[layer["name"]] for layer in decomposed
    )


def _density(layers: Sequence[dict[str, Any]]) -> float | None:
    """Share of coefficients that is not zero, over all decomposed layers; None when there are none."""
    sizes = [
        (layer["shape"]["outputs"] * layer["shape"]["inputs"] * layer["bases"], layer["density"])
        for layer in layers
        if layer["bases"]
    ]
    return sum(size * share for size, share in sizes) / sum(size for size, _ in sizes) if sizes else None


def _digest(model: str) -> str:
    if model.startswith("zoo:"):
        return model
    return hashlib.sha256(Path(model).read_bytes()).hexdigest()
