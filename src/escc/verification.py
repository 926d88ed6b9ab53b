"""Every level of a compilation against the one before it: torch, float IR, integers, the program.

Exact steps (import, folding, fusing, shrinking) must agree with torch to a tolerance; the steps that change
the numbers on purpose (decomposition, calibration's corrections, quantisation) are measured; the program
must equal the integer reference bit for bit. A step that fails names the first layer that diverges.

Where training has pinned scales, the float steps are compared with all rounding left out, and the integers
with torch as it was trained, rounding and all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from escc.ir.base import LayerOp, module_path
from escc.ir.module import Module, Port
from escc.ir.passes import Pass, PassContext, run_pipeline
from escc.ir.pins import came_trained
from escc.isa.arch import Arch
from escc.progress import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

TOLERANCE = 1e-4
"""Largest difference from torch allowed for an exact float step, relative to the largest output."""

CHANGES_NUMBERS = frozenset({"decompose-kernels", "prune-coefficients", "calibrate"})


@dataclass(frozen=True)
class LevelResult:
    """One level: largest difference and signal-to-noise ratio against torch or the integer reference.

    ``exact`` tells whether the level had to agree; ``layer`` names the first layer that diverges.
    """

    level: str
    against: str
    exact: bool
    passed: bool
    difference: float
    sqnr_db: float
    layer: str | None = None


def verify_levels(
    exported: ExportedProgram,
    module: Module,
    pipeline: Sequence[Pass],
    images: NDArray[np.float32],
    *,
    arch: Arch | None = None,
    calibration: NDArray[np.float32] | None = None,
    tolerance: float = TOLERANCE,
    progress: Progress = silent,
) -> Iterator[LevelResult]:
    """Run the pipeline on ``module`` (changed in place) and yield a result for each level.

    Args:
        exported: the captured program ``module`` was imported from.
        images: float32 (N, C, H, W) to compare on.
        calibration: images for calibrate; None uses ``images``.
        tolerance: allowed difference of exact float steps, relative to the largest torch output.
    """
    import torch

    from escc.passes.reference.float_graph import evaluate
    from escc.passes.reference.integer_graph import evaluate_integer

    machine = arch if arch is not None else Arch.default()
    context = PassContext(machine, calibration if calibration is not None else images, progress)
    trained = came_trained(module)
    with torch.inference_mode():
        expected = _flat(_torch_graph(exported)(torch.from_numpy(images)))
        rounded = _flat(exported.module()(torch.from_numpy(images))) if trained else expected
    got = _join(evaluate(module, images, pins=False))
    yield _float_result("imported", got, expected, True, tolerance, lambda: _first_off_torch(
        exported, module, images, tolerance))  # fmt: skip
    exact = True
    integers: NDArray[Any] | None = None
    for item in pipeline:
        before = module.clone()
        progress(item.name, 0, 0)
        run_pipeline(module, [item], context)
        if "quantized" not in module.facts:
            exact = exact and item.name not in CHANGES_NUMBERS
            got = _join(evaluate(module, images, pins=False))
            yield _float_result(item.name, got, expected, exact, tolerance, lambda before=before: _first_off(
                before, module, images, tolerance))  # fmt: skip
        elif integers is None:
            outputs = evaluate_integer(module, images)
            integers = _join(outputs)
            real = _join([part * scale for part, scale in zip(outputs, _scales(module), strict=True)])
            yield _float_result(item.name, real, rounded, False, tolerance, lambda: None)
        else:
            yield _integer_result(item.name, _join(evaluate_integer(module, images)), integers, None)
    if "scheduled" in module.facts and integers is not None:
        yield _program_result(module, machine, images, integers)


def _program_result(
    module: Module, arch: Arch, images: NDArray[np.float32], expected: NDArray[Any]
) -> LevelResult:
    from escc.backend_sim.lowering import lower
    from escc.backend_sim.simulator import simulate

    got = _join(simulate(lower(module, arch), images, timing_images=None).outputs)
    layer = None if np.array_equal(got, expected) else _first_off_program(module, arch, images)
    return _integer_result("program on the simulator", got, expected, layer)


def _first_off_program(module: Module, arch: Arch, images: NDArray[np.float32]) -> str | None:
    """Compile ever shorter prefixes of the network to find the first layer the machine gets wrong."""
    from escc.backend_sim.lowering import lower
    from escc.backend_sim.simulator import simulate
    from escc.ir.passes import make_pass
    from escc.ir.types import MapType
    from escc.passes.reference.integer_graph import evaluate_integer

    count = len(list(module.layers))
    for index in range(count):
        prefix = module.clone()
        op = list(prefix.layers)[index]
        if not isinstance(op.out.type, MapType):
            continue
        _cut_after(prefix, op)
        prefix.set_facts(prefix.facts - {"planned", "scheduled"})
        context = PassContext(arch)
        run_pipeline(prefix, [make_pass("plan-memory"), make_pass("schedule")], context)
        want = _join(evaluate_integer(prefix, images))
        got = _join(simulate(lower(prefix, arch), images, timing_images=None).outputs)
        if not np.array_equal(want, got):
            return module_path(op) or op.name
    return None


def _cut_after(module: Module, op: LayerOp) -> None:
    """Make ``op``'s result the only output and drop everything after it."""
    height, width, channels = op.out.type.shape_tuple  # type: ignore[union-attr]
    body = module.body
    last = body.last_op
    assert last is not None
    last.detach()
    last.erase()
    for later in reversed(list(module.layers)):
        if later is op:
            break
        later.detach()
        later.erase()
    module.set_outputs([(Port("prefix", (channels, height, width)), op.out)])


def _float_result(
    level: str,
    got: NDArray[Any],
    expected: NDArray[Any],
    exact: bool,
    tolerance: float,
    locate: Callable[[], str | None],
) -> LevelResult:
    difference = float(np.abs(got - expected).max())
    bound = tolerance * max(1.0, float(np.abs(expected).max()))
    passed = not exact or difference <= bound
    return LevelResult(
        level, "torch", exact, passed, difference, _sqnr(got, expected), None if passed else locate()
    )


def _integer_result(level: str, got: NDArray[Any], expected: NDArray[Any], layer: str | None) -> LevelResult:
    difference = float(np.abs(got.astype(np.int64) - expected.astype(np.int64)).max())
    return LevelResult(
        level, "integer reference", True, difference == 0, difference, _sqnr(got, expected), layer
    )


def _sqnr(got: NDArray[Any], expected: NDArray[Any]) -> float:
    noise = float(np.square(got.astype(np.float64) - expected.astype(np.float64)).sum())
    signal = float(np.square(expected.astype(np.float64)).sum())
    return float("inf") if noise == 0 else 10 * float(np.log10(max(signal, 1e-300) / noise))


def _first_off(before: Module, after: Module, images: NDArray[np.float32], tolerance: float) -> str | None:
    """The first module path whose last value differs between two float levels."""
    return _first_difference(_values_by_path(before, images), _values_by_path(after, images), tolerance)


def _first_off_torch(
    exported: ExportedProgram, module: Module, images: NDArray[np.float32], tolerance: float
) -> str | None:
    """The first module path whose value differs from torch's own."""
    return _first_difference(_torch_values(exported, images), _values_by_path(module, images), tolerance)


def _first_difference(
    expected: dict[str, NDArray[Any]], got: dict[str, NDArray[Any]], tolerance: float
) -> str | None:
    for path, value in got.items():
        want = expected.get(path)
        if want is None or want.size != value.size:
            continue
        bound = tolerance * max(1.0, float(np.abs(want).max()))
        if float(np.abs(want.reshape(-1) - value.reshape(-1)).max()) > bound:
            return path
    return None


def _values_by_path(module: Module, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    from escc.passes.reference.float_graph import run

    values: dict[str, NDArray[Any]] = {}

    def keep(op: LayerOp, value: Tensor) -> None:
        if path := module_path(op):
            values[path] = value.numpy()

    run(module, images, visit=keep, keep=False, pins=False)
    return values


def _torch_graph(exported: ExportedProgram) -> GraphModule:
    """The captured graph as a module, its fake quantisers left out: rounding would turn the least difference
    of an exact step into a whole one."""
    graph_module: Any = exported.module()
    for node in list(graph_module.graph.nodes):
        if str(node.target) == "escc.fake_quantize.default":
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)
    graph_module.recompile()
    return graph_module


def _torch_values(exported: ExportedProgram, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    import torch
    from torch.fx import Interpreter

    values: dict[str, NDArray[Any]] = {}
    graph_module = _torch_graph(exported)

    class Recorder(Interpreter):
        def run_node(self, n: Any) -> Any:
            value = super().run_node(n)
            stack = n.meta.get("nn_module_stack")
            if stack and isinstance(value, torch.Tensor):
                values[str(list(stack.values())[-1][0]).removeprefix("L['self'].")] = value.detach().numpy()
            return value

    with torch.inference_mode():
        Recorder(graph_module).run(torch.from_numpy(images))
    return values


def _scales(module: Module) -> list[float]:
    from escc.ir.types import MapType

    return [value.type.scale_value for value in module.outputs if isinstance(value.type, MapType)]


def _flat(result: Any) -> NDArray[Any]:
    parts = result if isinstance(result, tuple | list) else (result,)
    return _join([part.detach().numpy() for part in parts])


def _join(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
