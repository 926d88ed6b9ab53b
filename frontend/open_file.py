"""Opening a model file, whatever kind it is, without running a stranger's code."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from escc.errors import EsccError
from escc.frontend.factories import ZOO_PREFIX, find_name, make_module
from escc.frontend.sniff import FileKind, identify

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

TORCHSCRIPT_RECIPE = (
    "import escc, torch",
    "model = ...  # the Python module the script was made from",
    "escc.save(model, torch.randn(2, 3, 224, 224), 'model.pt2')",
)
"""How to get from a TorchScript user's Python model to a file that escc reads."""


@dataclass(frozen=True)
class LoadedModel:
    """A model and where it came from.

    Attributes:
        model: a module, or an exported program (which carries its input shape).
        kind: what the file was, in words.
        source: the path or name given.
        input_shape: (C, H, W) the model is known to take, for a network of the zoo; else None.
    """

    model: nn.Module | ExportedProgram
    kind: str
    source: str
    input_shape: tuple[int, int, int] | None = None


def open_model(
    path: str | os.PathLike[str],
    *,
    factory: str | None = None,
    allow_classes: Sequence[str] = (),
    unsafe_load: bool = False,
) -> LoadedModel:
    """Open a model file; its kind is decided by content, not by suffix.

    Args:
        path: a torch.export archive, a ``torch.save`` file (module, state dictionary or checkpoint), a
            safetensors file, or ``zoo:NAME`` for a network of the zoo with random weights.
        factory: ``pkg.mod:factory`` or ``zoo:NAME``: builds the module that a state dictionary belongs to.
        allow_classes: ``pkg.mod:Class`` names that a pickled module may use beside torch.nn's layers.
        unsafe_load: load whatever it is with Python's full pickle: the file can then run any code.

    Raises:
        EsccError: one line saying what is wrong with the file, and what to do.
    """
    name = os.fspath(path)
    if name.startswith(ZOO_PREFIX) and not os.path.exists(name):
        return _random_zoo(name)
    target = Path(name)
    kind = identify(target)
    if kind is FileKind.TORCHSCRIPT:
        raise EsccError(
            "a TorchScript archive; TorchScript is deprecated and its graph cannot be read back",
            where=name,
            hint=f"export the Python model instead: {'; '.join(TORCHSCRIPT_RECIPE)}",
        )
    if kind is FileKind.OLD_EXPORTED:
        raise EsccError(
            "a torch.export archive in the format of torch 2.6 and before",
            where=name,
            hint="export the model again with the torch that is installed here",
        )
    if kind is FileKind.EXPORTED:
        return _open_exported(target, factory, unsafe_load)
    if kind is FileKind.SAFETENSORS:
        from escc.frontend.state_dicts import read_safetensors

        return _with_factory(read_safetensors(target), target, factory, kind.value)
    return _open_pickled(target, kind, factory, allow_classes, unsafe_load)


def _random_zoo(name: str) -> LoadedModel:
    """A zoo network with random weights and batch-norm statistics that fit them."""
    from escc.frontend import zoo

    model = make_module(name)
    shape = _zoo_shape(name, model)
    # statistics hardly depend on the image size, their cost does
    zoo.settle(model, (shape[0], min(shape[1], 96), min(shape[2], 96)))
    return LoadedModel(model, "network of the zoo, random weights", name, shape)


def _zoo_shape(name: str, model: nn.Module) -> tuple[int, int, int]:
    """The default input of ``zoo:NAME,...``, with the channels that the network was built for."""
    from torch import nn

    from escc.frontend import zoo

    _, height, width = zoo.default_shape(name.removeprefix(ZOO_PREFIX).split(",")[0])
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    return first.in_channels, height, width


def _open_exported(path: Path, factory: str | None, unsafe: bool) -> LoadedModel:
    from escc.frontend.exported_archive import first_line, load_exported, register_operators

    if factory is not None:
        raise EsccError("a torch.export archive holds the whole network; drop --model", where=str(path))
    if not unsafe:
        return LoadedModel(load_exported(path), FileKind.EXPORTED.value, str(path))
    import torch

    register_operators()
    try:
        with path.open("rb") as stream:
            program = torch.export.load(stream)
    except Exception as error:  # whatever the archive's own code raises
        raise EsccError(f"cannot load: {first_line(error)}", where=str(path)) from None
    return LoadedModel(program, FileKind.EXPORTED.value, str(path))


def _open_pickled(
    path: Path, kind: FileKind, factory: str | None, allow_classes: Sequence[str], unsafe: bool
) -> LoadedModel:
    from torch import nn

    from escc.frontend.pickled import load_pickled, resolve_classes
    from escc.frontend.state_dicts import find_state_dict

    loaded: Any = load_pickled(path, kind, resolve_classes(allow_classes, find_name), unsafe=unsafe)
    if isinstance(loaded, dict) and factory is None:
        content = cast("dict[Any, Any]", loaded)
        loaded = next((value for value in content.values() if isinstance(value, nn.Module)), content)
    if isinstance(loaded, nn.Module):
        if factory is not None:
            return _with_factory(dict(loaded.state_dict()), path, factory, kind.value)
        return LoadedModel(loaded, f"{kind.value} with a whole module", str(path))
    tensors = find_state_dict(loaded)
    if tensors is None:
        raise EsccError(
            f"the file holds a {type(loaded).__name__}, neither a module nor a state dictionary",
            where=str(path),
        )
    return _with_factory(tensors, path, factory, f"{kind.value} with a state dictionary")


def _with_factory(tensors: dict[str, Tensor], path: Path, factory: str | None, kind: str) -> LoadedModel:
    from escc.frontend.state_dicts import guess_zoo, load_state

    if factory is None:
        guess = guess_zoo(tensors)
        hint = f"looks like --model {guess}" if guess else "give --model pkg.mod:factory"
        raise EsccError(f"holds {len(tensors)} tensors but no network", where=str(path), hint=hint)
    module = make_module(factory)
    load_state(module, tensors, path, factory)
    module.eval()  # a state dictionary knows no mode: nothing to warn about
    shape = _zoo_shape(factory, module) if factory.startswith(ZOO_PREFIX) else None
    return LoadedModel(module, f"{kind} in {factory}", str(path), shape)
