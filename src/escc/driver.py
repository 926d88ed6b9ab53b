"""The compiler driver: from a model (module, exported program or file) to a program.

The default pipeline is data: :func:`default_pipeline` gives the passes for a set of
:class:`CompileOptions`; anything can be replaced by pipeline text (``-p``) or a list of passes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from escc.errors import EsccError
from escc.ir.module import Module
from escc.ir.passes import AfterPass, Pass, PassContext, Timing, make_pass, parse_pipeline, run_pipeline
from escc.isa.arch import Arch
from escc.isa.program import Program
from escc.progress import Progress, silent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn
    from torch.export import ExportedProgram

IMPORTED = "imported"
"""Name of the phase before any pass."""


@dataclass(frozen=True)
class CompileOptions:
    """What the default pipeline is built from.

    Attributes:
        dense: leave every layer dense 8-bit (no decomposition at all).
        bases: basis kernels of a decomposed k x k layer.
        penalty: price of one non-zero coefficient, as a share of a kernel's mean energy.
        refine: recode coefficients for the inputs layers really see (needs calibration images).
        planes: ternary planes of a 1 x 1 layer; 0 keeps 1 x 1 layers dense.
        keep_dense: module paths (shell patterns) that stay dense.
        shrink: remove dead channels.
    """

    dense: bool = False
    bases: int = 6
    penalty: float = 0.01
    planes: int = 4
    keep_dense: tuple[str, ...] = ()
    refine: bool = True
    shrink: bool = True


def default_pipeline(options: CompileOptions | None = None) -> list[Pass]:
    """The passes that ``escc compile`` runs."""
    chosen = options or CompileOptions()
    specs: list[tuple[str, dict[str, str]]] = [("fold-batch-norm", {}), ("fuse-requantize", {})]
    if not chosen.dense:
        decompose = {"bases": str(chosen.bases), "planes": str(chosen.planes)}
        if not chosen.refine:
            # otherwise refine-coefficients applies the penalty, and the default one gives it its start
            decompose["penalty"] = repr(chosen.penalty)
        if chosen.keep_dense:
            decompose["keep_dense"] = ";".join(chosen.keep_dense)
        specs += [("decompose-kernels", decompose), ("prune-coefficients", {})]
    if chosen.shrink:
        specs.append(("shrink-channels", {}))
    if chosen.refine and not chosen.dense:
        specs.append(("refine-coefficients", {"penalty": repr(chosen.penalty)}))
    specs += [("calibrate", {}), ("quantize-hybrid", {})]
    return [*(make_pass(name, values) for name, values in specs), *machine_passes()]


def machine_passes() -> list[Pass]:
    """The last passes of the pipeline: those that ask what the machine is like."""
    return [
        make_pass(name)
        for name in ("split-channels", "reorder-linear-combination", "plan-memory", "schedule")
    ]


@dataclass
class Compilation:
    """What a compilation leaves: the module at its last level and, when it got that far, the program."""

    module: Module
    program: Program | None
    timing: Timing = field(default_factory=Timing)


def capture_model(
    model: nn.Module | ExportedProgram | str | os.PathLike[str],
    *,
    example: Tensor | None = None,
    input_shape: Sequence[int] | None = None,
    factory: str | None = None,
    allow_classes: Sequence[str] = (),
    unsafe_load: bool = False,
) -> ExportedProgram:
    """Open (when it is a file) and capture a model.

    Args:
        model: a module, an exported program, or a file of any kind ``escc compile`` reads.
        example: example input (N, C, H, W); only its shape matters.
        input_shape: (C, H, W) when there is no example and the file does not say.
        factory: ``pkg.mod:function`` that builds the network of a state_dict file.
        allow_classes: classes a pickle may name, ``pkg.mod:Class``.
        unsafe_load: load a pickle without restrictions (runs its code).

    Raises:
        EsccError: the file cannot be read safely, or the model cannot be captured.
    """
    from escc.frontend.capture import capture
    from escc.frontend.open_file import open_model

    if isinstance(model, str | os.PathLike):
        loaded = open_model(model, factory=factory, allow_classes=allow_classes, unsafe_load=unsafe_load)
        model = loaded.model
        if example is None and input_shape is None:
            input_shape = loaded.input_shape
    return capture(model, example=example, input_shape=input_shape)


def import_model(model: nn.Module | ExportedProgram | str | os.PathLike[str], **opening: Any) -> Module:
    """Capture a model (arguments as in :func:`capture_model`) and import its graph.

    Raises:
        EsccError: as :func:`capture_model`; operators that are not supported are listed, all of them.
    """
    from escc.frontend.importer import import_exported
    from escc.frontend.plain_program import import_plain

    if isinstance(model, str | os.PathLike) and not (opening.get("factory") or opening.get("unsafe_load")):
        module = import_plain(model, opening.get("input_shape"))
        if module is not None:
            return module
    return import_exported(capture_model(model, **opening))


def compile_module(
    module: Module,
    *,
    arch: Arch | None = None,
    calibration: NDArray[np.float32] | None = None,
    passes: str | Sequence[Pass] | None = None,
    options: CompileOptions | None = None,
    stop_after: str | None = None,
    after: Sequence[AfterPass] = (),
    progress: Progress = silent,
) -> Compilation:
    """Run the pipeline on an imported module (changed in place) and lower it.

    Args:
        module: what :func:`import_model` gave.
        arch: the machine; None takes the default one.
        calibration: float32 images (N, C, H, W), as the network expects them.
        passes: pipeline text or passes; None takes the default pipeline for ``options``.
        stop_after: name of the pass to stop after (``imported``: run none); then there is no program.

    Raises:
        EsccError: anything that stands in the way, in one line.
    """
    machine = arch if arch is not None else Arch.default()
    if passes is None:
        chosen = options or CompileOptions()
        pipeline = default_pipeline(replace(chosen, refine=chosen.refine and calibration is not None))
    else:
        pipeline = parse_pipeline(passes) if isinstance(passes, str) else list(passes)
    if stop_after is not None:
        pipeline = _up_to(pipeline, stop_after)
    if calibration is not None:
        _check_calibration(module, calibration)
    context = PassContext(arch=machine, calibration=calibration, progress=progress)
    result = Compilation(module, None)
    run_pipeline(module, pipeline, context, after=after, timing=result.timing)
    if stop_after is None:
        from escc.backend_sim.lowering import lower

        if "scheduled" not in module.facts:
            raise EsccError(
                "the pipeline does not end in a scheduled module",
                hint="end it with plan-memory,schedule or stop early with --compile-to",
            )
        result.program = lower(module, machine)
    return result


def _up_to(pipeline: list[Pass], name: str) -> list[Pass]:
    if name == IMPORTED:
        return []
    names = [item.name for item in pipeline]
    if name not in names:
        raise EsccError(f"no phase '{name}'", hint=f"phases: {', '.join([IMPORTED, *names])}")
    return pipeline[: names.index(name) + 1]


def _check_calibration(module: Module, images: NDArray[np.float32]) -> None:
    ports = module.input_ports
    expected = ports[0].torch_shape
    if images.ndim != 1 + len(expected) or tuple(images.shape[1:]) != tuple(expected) or len(images) == 0:
        raise EsccError(
            f"calibration images have shape {tuple(images.shape)}, the network takes (N, "
            + ", ".join(str(size) for size in expected)
            + ")"
        )


def compile(
    model: nn.Module | ExportedProgram | Module | str | os.PathLike[str],
    *,
    example: Tensor | None = None,
    input_shape: Sequence[int] | None = None,
    calibration: NDArray[np.float32] | None = None,
    arch: Arch | None = None,
    passes: str | Sequence[Pass] | None = None,
    options: CompileOptions | None = None,
    progress: Progress = silent,
    **opening: Any,
) -> Program:
    """Compile a model to a program: :func:`import_model`, then :func:`compile_module`."""
    if isinstance(model, Module):
        module = model.clone()
    else:
        module = import_model(model, example=example, input_shape=input_shape, **opening)
    done = compile_module(
        module,
        arch=arch,
        calibration=calibration,
        passes=passes,
        options=options,
        progress=progress,
    )
    assert done.program is not None
    return done.program
