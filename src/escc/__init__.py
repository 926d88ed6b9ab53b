"""escc: from torch graphs to the instructions of a sparse-CNN accelerator, and the machine to run them on.

The names below are the public interface. Each is imported when it is first used, so ``import escc`` is
quick and the simulator runs without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os

    from escc.backend_sim.simulator import simulate
    from escc.driver import CompileOptions, compile
    from escc.errors import EsccError
    from escc.frontend.capture import save
    from escc.ir.module import Module
    from escc.ir.passes import Pass, PassContext, parse_pipeline, pass_names, run_pipeline
    from escc.isa.arch import Arch
    from escc.isa.program import Program
    from escc.training.compress import compress

__version__ = "0.1.0"

_HOME = {
    "Arch": "escc.isa.arch",
    "CompileOptions": "escc.driver",
    "EsccError": "escc.errors",
    "Module": "escc.ir.module",
    "Pass": "escc.ir.passes",
    "PassContext": "escc.ir.passes",
    "Program": "escc.isa.program",
    "compile": "escc.driver",
    "compress": "escc.training.compress",
    "parse_pipeline": "escc.ir.passes",
    "pass_names": "escc.ir.passes",
    "run_pipeline": "escc.ir.passes",
    "save": "escc.frontend.capture",
    "simulate": "escc.backend_sim.simulator",
}

__all__ = [
    "Arch",
    "CompileOptions",
    "EsccError",
    "Module",
    "Pass",
    "PassContext",
    "Program",
    "__version__",
    "compile",
    "compress",
    "load_arch",
    "parse_pipeline",
    "pass_names",
    "run_pipeline",
    "save",
    "simulate",
]


def load_arch(path: str | os.PathLike[str] | None = None) -> Arch:
    """The machine an architecture file describes; ``None`` gives the default one, a bare name a shipped one.

    Raises:
        EsccError: the file cannot be read, or a value in it is missing, unknown or out of range.
    """
    from escc.isa.arch import Arch

    return Arch.load(path)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'escc' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
