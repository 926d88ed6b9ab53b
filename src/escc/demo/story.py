"""The demo: one trained network, compiled at several settings without retraining, run on the machine."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from escc.demo.assets import INPUT_SHAPE, DemoData, load_data, load_network
from escc.driver import CompileOptions, compile_module, import_model
from escc.errors import EsccError
from escc.progress import Progress, silent

if TYPE_CHECKING:
    from escc.ir.module import Module
    from escc.isa.program import Program


@dataclass(frozen=True)
class Setting:
    """One way to compile the network."""

    name: str
    options: CompileOptions


SETTINGS = (
    Setting("dense 8-bit", CompileOptions(dense=True)),
    Setting("6 bases", CompileOptions(bases=6, penalty=0.005)),
    Setting("5 bases, sparser", CompileOptions(bases=5, penalty=0.02)),
)


@dataclass(frozen=True)
class Row:
    """One line of the demo's table.

    Accuracies are shares of the test images; bytes are as stored in the program; ``ratio`` compares the
    decomposed layers with their dense 8-bit form; cycles and picojoules are means over the timed images.
    """

    setting: str
    reference_accuracy: float
    program_accuracy: float
    predictions_equal: bool
    weight_bytes: int
    decomposed_bytes: int
    decomposed_dense_bytes: int
    density: float
    cycles: float
    energy_pj: float
    seconds: float

    @property
    def ratio(self) -> float:
        """Dense 8-bit bytes over stored bytes, decomposed layers only."""
        return self.decomposed_dense_bytes / self.decomposed_bytes if self.decomposed_bytes else 1.0


@dataclass
class Story:
    """Everything the demo found out."""

    images: int
    timed_images: int
    float_accuracy: float
    rows: list[Row] = field(default_factory=lambda: [])
    programs: dict[str, Program] = field(default_factory=lambda: {})
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The story as plain data, units in the names."""
        dense = self.rows[0]
        return {
            "network": "resnet20",
            "data": "fashion-mnist",
            "images": self.images,
            "timed_images": self.timed_images,
            "float_accuracy": self.float_accuracy,
            "rows": [
                {
                    **asdict(row),
                    "compression_ratio": row.ratio,
                    "speed_up_over_dense": dense.cycles / row.cycles,
                }
                for row in self.rows
            ],
            "seconds": self.seconds,
        }


def tell(
    *,
    images: int = 2000,
    timed_images: int = 8,
    progress: Progress = silent,
    settings: tuple[Setting, ...] = SETTINGS,
) -> Story:
    """Compile, run and compare; raises when a simulated output differs from the integer reference.

    Raises:
        EsccError: the simulator and the integer reference disagree on any value of any image.
    """
    start = time.perf_counter()
    data = load_data()
    count = min(images, len(data.images))
    data = DemoData(data.images[:count], data.labels[:count], data.calibration)
    network = load_network()
    progress("fp32 network", 0, 0)
    story = Story(count, min(timed_images, count), _float_accuracy(network, data))
    module = import_model(network, input_shape=INPUT_SHAPE)
    for index, setting in enumerate(settings):
        label = f"{setting.name} ({index + 1}/{len(settings)})"
        row, program = _run(module.clone(), setting, data, story.timed_images, label, progress)
        story.rows.append(row)
        story.programs[setting.name] = program
    story.seconds = time.perf_counter() - start
    return story


def _run(
    module: Module, setting: Setting, data: DemoData, timed_images: int, label: str, progress: Progress
) -> tuple[Row, Program]:
    from escc.backend_sim.simulator import simulate
    from escc.passes.reference.integer_graph import evaluate_integer

    start = time.perf_counter()
    done = compile_module(
        module,
        calibration=data.calibration,
        options=setting.options,
        progress=lambda stage, at, total: progress(f"{label}: {stage}", at, total),
    )
    assert done.program is not None
    progress(f"{label}: integer reference", 0, 0)
    reference = evaluate_integer(done.module, data.images, literal=False)[0]
    result = simulate(
        done.program,
        data.images,
        timing_images=timed_images,
        progress=lambda stage, at, total: progress(f"{label}: {stage}", at, total),
    )
    simulated = result.outputs[0]
    if not np.array_equal(simulated, reference):
        image = int(np.argmax((simulated != reference).reshape(len(reference), -1).any(axis=1)))
        raise EsccError(f"{setting.name}: simulator and integer reference differ, first at image {image}")
    layers = list((done.program.debug or {})["layers"])
    decomposed = [layer for layer in layers if layer.get("form") == "ternary"]
    row = Row(
        setting=setting.name,
        reference_accuracy=_share_right(reference, data),
        program_accuracy=_share_right(simulated, data),
        predictions_equal=bool(np.array_equal(simulated.argmax(1), reference.argmax(1))),
        weight_bytes=sum(int(layer["weight_bytes"]) for layer in layers),
        decomposed_bytes=sum(int(layer["weight_bytes"]) for layer in decomposed),
        decomposed_dense_bytes=sum(int(layer["dense_bytes"]) for layer in decomposed),
        density=_mean_density(decomposed),
        cycles=float(np.mean(result.cycles)),
        energy_pj=float(result.energy_pj),
        seconds=time.perf_counter() - start,
    )
    return row, done.program


def _mean_density(layers: list[dict[str, Any]]) -> float:
    """Share of non-zero coefficients, each layer weighted by its dense size; 1.0 without layers."""
    if not layers:
        return 1.0
    sizes = [int(layer["dense_bytes"]) * int(layer["bases"]) for layer in layers]
    return float(np.average([float(layer["density"]) for layer in layers], weights=sizes))


def _float_accuracy(network: Any, data: DemoData) -> float:
    import torch

    hits = 0
    with torch.inference_mode():
        for first in range(0, len(data.images), 250):
            scores = network(torch.from_numpy(data.images[first : first + 250]))
            hits += int((scores.argmax(1).numpy() == data.labels[first : first + 250]).sum())
    return hits / len(data.images)


def _share_right(scores: NDArray[Any], data: DemoData) -> float:
    return float((scores.argmax(1) == data.labels).mean())
