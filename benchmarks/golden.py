"""Golden metrics: ``python -m benchmarks.golden`` compares them, ``--update`` changes them on purpose.

Cycles, bytes, words and energy of every network of the zoo on the default machine must only change on
purpose. So nothing here may depend on the machine it runs on, and a usual compilation does: the last bits of
float sums differ between BLAS libraries and processors, and one different bit can flip a ternary code, an
8-bit weight or a zero. Therefore everything in front of the integers is drawn or snapped:

* weights, codes, bases and the image come from PCG64's raw stream, and reach the program through element-wise
  arithmetic only; decompose-kernels chooses its layers and counts its bases as ever, but draws the codes;
* batch norms are neutral, statistics are not corrected;
* scales are powers of two. The maps behind them are floats of the machine, so a range within 1e-4 of the next
  power is refused (take another seed): float errors are hundred times smaller.

From quantisation on it is the default pipeline; what decides the codes has its own tests.
"""

from __future__ import annotations

import json
import math
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import click
import numpy as np
from numpy.typing import NDArray

from escc.backend_sim.simulator import simulate
from escc.driver import CompileOptions, compile_module, default_pipeline, import_model
from escc.errors import EsccError
from escc.files import atomic_write
from escc.frontend import zoo
from escc.ir.base import describe
from escc.ir.module import Module
from escc.ir.passes import Pass, PassContext
from escc.isa.program import Program
from escc.passes.calibrate import Calibrate
from escc.passes.decompose_kernels import DecomposeKernels
from escc.passes.math.ranges import map_scale, scale_range
from escc.passes.math.ternary import Decomposition
from escc.passes.signs import non_negative_values

FILE = Path(__file__).parent.parent / "tests" / "golden" / "metrics.json"
COMMAND = "python -m benchmarks.golden --update"

DENSITY = 102 / 256
"""Share of non-zero codes drawn."""
MARGIN = 1e-4
SMALL_SIDE = 64
"""Sides of the images of ImageNet's networks."""
ENERGY_TOLERANCE = 1e-9

Metrics = dict[str, int | float]


@dataclass(frozen=True)
class Golden:
    """One network of the file: size of its image, classes, options of its definition, seed of its numbers."""

    side: int
    classes: int = 10
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    seed: int = 1


def golden(name: str) -> Golden:
    """What is compiled for a network of the zoo: its usual form, with smaller images and classifiers."""
    _, height, _ = zoo.default_shape(name)
    # hidden layers of VGG16 and AlexNet are most of their bytes and none of their variety
    options = {"hidden": 128} if name in ("vgg16_bn", "alexnet") else {}
    return Golden(min(height, SMALL_SIDE), options=options)


def drawn_bytes(seed: int, *shape: int) -> NDArray[np.int64]:
    """Uniform 0..255 of ``shape``: the same on every machine and with every numpy."""
    count = math.prod(shape)
    # the raw stream is guaranteed never to change, the distributions of numpy are not
    words = np.random.PCG64(seed).random_raw(-(-count // 8)).astype("<u8")
    return words.view(np.uint8)[:count].reshape(shape).astype(np.int64)


def drawn_weight(seed: int, *shape: int) -> NDArray[np.float32]:
    """(K, C, R, S) uniform weights that keep the energy of the maps behind a ReLU."""
    codes = np.maximum(drawn_bytes(seed, *shape) - 128, -127)
    deviation = 127 / math.sqrt(3)
    return (codes * (math.sqrt(2 / math.prod(shape[1:])) / deviation)).astype(np.float32)


def drawn_network(name: str, golden: Golden) -> Module:
    """The imported network with drawn weights and neutral batch norms."""
    import torch
    from torch import nn

    with torch.device("meta"):
        model = zoo.skeleton(name, num_classes=golden.classes, **golden.options)
    model = model.to_empty(device="cpu").eval()
    with torch.no_grad():
        for index, part in enumerate(model.modules()):
            if isinstance(part, nn.BatchNorm2d):
                part.reset_parameters()
            elif isinstance(part, nn.Conv2d | nn.Linear):
                seed = 1000 * golden.seed + index
                part.weight.copy_(torch.from_numpy(drawn_weight(seed, *part.weight.shape)))
                if part.bias is not None:
                    part.bias.zero_()
    channels = zoo.default_shape(name)[0]
    return import_model(model, input_shape=(channels, golden.side, golden.side))


def drawn_images(module: Module, seed: int) -> NDArray[np.float32]:
    """One image (1, C, H, W) of whole multiples of 1/64 in -2..2."""
    shape = module.input_ports[0].torch_shape
    return ((drawn_bytes(seed, 1, *shape) - 128) / 64).astype(np.float32)


@dataclass
class DrawnCodes(DecomposeKernels):
    """decompose-kernels with drawn codes and bases in the place of fitted ones."""

    name: ClassVar[str] = "decompose-kernels"
    # drawn codes have nothing in common with the weight
    max_error: float = math.inf
    share: float = DENSITY

    def fit(self, weight: NDArray[Any]) -> Decomposition:
        """Codes for a weight (K, C/groups, R, S), seeded by its bits."""
        seed = zlib.crc32(weight.astype("<f4").tobytes())
        outs, chans, *kernel = weight.shape
        small = kernel == [1, 1]
        count = self.planes if small else self.bases
        drawn = drawn_bytes(seed, outs, chans, count)
        sign = 1 - 2 * (drawn_bytes(seed + 2, *drawn.shape) & 1)
        drawn = 256 * drawn + drawn_bytes(seed + 3, *drawn.shape)
        codes = np.where(drawn < 65536 * self.share, sign, 0).astype(np.int8)
        values = drawn_bytes(seed + 1, count, *kernel) - 128
        bases = 0.5 ** np.arange(count).reshape(count, 1, 1) if small else np.maximum(values, -127) / 127
        energy = 0.33 if small and count == 4 else 1 / 3 * math.prod(kernel)
        scale = math.sqrt(2 / (chans * count * self.share * energy))
        return Decomposition(bases.astype(np.float32), codes, np.full(outs, scale, np.float32))


@dataclass
class Snapped(Calibrate):
    """calibrate, with every range widened to a power-of-two scale."""

    name: ClassVar[str] = "calibrate"
    method: str = "max"
    correct_statistics: bool = False

    def run(self, module: Module, context: PassContext) -> None:
        """Annotate the module.

        Raises:
            EsccError: a range is too near a power of two to be sure of it on every machine.
        """
        super().run(module, context)
        unsigned = non_negative_values(module)
        for index, value in enumerate(module.inputs):
            low, high = module.input_value(index, "range")
            # of the drawn numbers themselves: exact
            module.set_input_value(index, "range", snapped(low, high, value not in unsigned, None))
        for op in module.layers:
            for name, signed in (("range", op.out not in unsigned), ("pre_range", True)):
                span = op.value(name)
                if span is not None:
                    op.set_value(name, snapped(span[0], span[1], signed, describe(op)))


def snapped(low: float, high: float, signed: bool, where: str | None) -> tuple[float, float]:
    """The range of the smallest power-of-two scale that holds [low, high]; exact numbers have no ``where``.

    Raises:
        EsccError: a range of floats that may fall on either side of a power of two.
    """
    exponent = math.log2(map_scale(low, high, signed))
    if where is not None and exponent != 0 and abs(exponent - round(exponent)) < MARGIN:
        raise EsccError(
            f"a scale is 2^{exponent:.6f}: too near a power of two",
            where=where,
            hint="give the network another seed in benchmarks/golden.py",
        )
    return scale_range(2.0 ** math.ceil(exponent), signed)


def golden_pipeline() -> list[Pass]:
    """The default pipeline with the two replaced passes."""
    passes: list[Pass] = []
    for item in default_pipeline(CompileOptions(refine=False)):
        if isinstance(item, DecomposeKernels):
            item = DrawnCodes(bases=item.bases, planes=item.planes)
        elif isinstance(item, Calibrate):
            item = Snapped()
        passes.append(item)
    return passes


def golden_program(name: str) -> tuple[Program, NDArray[np.float32]]:
    """The program of a network, and its image."""
    chosen = golden(name)
    module = drawn_network(name, chosen)
    images = drawn_images(module, chosen.seed)
    done = compile_module(module, calibration=images, passes=golden_pipeline())
    assert done.program is not None
    return done.program, images


def measure(name: str) -> Metrics:
    """The metrics of a network, energy in picojoules."""
    program, images = golden_program(name)
    result = simulate(program, images)
    assert result.timed is not None
    layers = (program.debug or {})["layers"]
    events = [(layer.event("dram_read_bits"), layer.event("dram_write_bits")) for layer in result.layers]
    metrics: Metrics = {
        "cycles": int(result.cycles[0]),
        "predicted_cycles": round(sum(float(layer["predicted_cycles"]) for layer in layers)),
        "instruction_words": len(program.code),
        "data_bytes": len(program.data),
        "weight_bytes": sum(int(layer["weight_bytes"]) for layer in layers),
        "dram_read_bytes": sum(int(read[0]) for read, _ in events) // 8,
        "dram_write_bytes": sum(int(write[0]) for _, write in events) // 8,
        "dram_activates": sum(int(layer.event("dram_activates")[0]) for layer in result.layers),
        "energy_pj": result.energy_pj,
        "output_crc32": zlib.crc32(b"".join(part.tobytes() for part in result.outputs)),
    }
    # the debug section names files and versions, the rest is the program
    metrics["program_bytes"] = len(program.stripped().to_bytes())
    return metrics


def differences(name: str, expected: Mapping[str, int | float], got: Mapping[str, int | float]) -> list[str]:
    """One line for every metric that is not what the file says."""
    lines: list[str] = []
    for metric in sorted({*expected, *got}):
        old, new = expected.get(metric), got.get(metric)
        if old is None or new is None:
            lines.append(f"{name}: {metric}: {old} -> {new}")
        elif not same(metric, old, new):
            share = f" ({new / old - 1:+.3%})" if old and metric != "output_crc32" else ""
            lines.append(f"{name}: {metric}: {old:,} -> {new:,}{share}")
    return lines


def same(metric: str, old: int | float, new: int | float) -> bool:
    """Counts are equal; energies, which are float sums, to 1e-9."""
    if metric == "energy_pj":
        return math.isclose(old, new, rel_tol=ENERGY_TOLERANCE)
    return old == new


def load() -> dict[str, Metrics]:
    """What the file says, by network."""
    return json.loads(FILE.read_text())["networks"] if FILE.exists() else {}


def write(metrics: Mapping[str, Metrics]) -> None:
    """Replace the file."""
    content = {
        "about": f"Written by {COMMAND}, which says how; see benchmarks/golden.py",
        "networks": {name: metrics[name] for name in zoo.names() if name in metrics},
    }
    atomic_write(FILE, (json.dumps(content, indent=1) + "\n").encode())


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("networks", nargs=-1)
@click.option("--update", is_flag=True, help="Write what is measured: a change on purpose.")
def command(networks: tuple[str, ...], update: bool) -> None:
    """Compare NETWORKS (default: the zoo) with tests/golden/metrics.json, metric by metric."""
    known = load()
    lines: list[str] = []
    for name in networks or zoo.names():
        zoo.entry(name)
        got = measure(name)
        changed = differences(name, known.get(name, {}), got)
        lines += changed
        click.echo("\n".join(changed) or f"{name}: as before")
        known[name] = got
    if update:
        write(known)
        click.echo(f"wrote {FILE}")
    elif lines:
        raise EsccError(f"{len(lines)} metrics differ", hint=f"where this is on purpose: {COMMAND}")


def main() -> int:
    """Run; failures a user can act on are one line."""
    try:
        command.main(prog_name="python -m benchmarks.golden", standalone_mode=False)
    except (EsccError, click.ClickException) as error:
        click.echo(f"error: {error}", err=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
