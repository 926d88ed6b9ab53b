"""Opening ``torch.save`` files: state dictionaries, and whole modules made of torch.nn's own layers.

The work is done by torch's restricted unpickler (``weights_only=True``), which creates only objects of listed
classes. Three things are added: a list of the layer classes of torch.nn that a CNN is made of, an error that
names everything else a file wants, and a look at the loaded modules for what a class list cannot catch
(hooks, attributes that replace methods).
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from escc.errors import EsccError
from escc.frontend.exported_archive import first_line
from escc.frontend.sniff import FileKind
from escc.frontend.zip_guard import GuardedZip

if TYPE_CHECKING:
    from torch import nn

MAX_PICKLE_BYTES = 256 << 20
LEGACY_PICKLES = 5
"""A file from before torch 1.6 starts with magic number, protocol, system facts, the object, storage keys."""

LAYERS = {
    "container": "Sequential ModuleList ModuleDict",
    "linear": "Linear Identity",
    "conv": "Conv1d Conv2d Conv3d ConvTranspose2d",
    "batchnorm": "BatchNorm1d BatchNorm2d BatchNorm3d",
    "normalization": "LayerNorm GroupNorm LocalResponseNorm",
    "instancenorm": "InstanceNorm2d",
    "activation": "ReLU ReLU6 Hardtanh Hardsigmoid Hardswish Sigmoid SiLU Tanh GELU ELU LeakyReLU PReLU Mish "
    "Softplus Softmax LogSoftmax Softmax2d CELU SELU Threshold Tanhshrink Softsign",
    "pooling": "MaxPool2d AvgPool2d AdaptiveAvgPool2d AdaptiveMaxPool2d MaxPool1d AvgPool1d "
    "AdaptiveAvgPool1d LPPool2d",
    "padding": "ZeroPad2d ConstantPad2d ReflectionPad2d ReplicationPad2d CircularPad2d",
    "dropout": "Dropout Dropout1d Dropout2d AlphaDropout",
    "flatten": "Flatten Unflatten",
    "pixelshuffle": "PixelShuffle PixelUnshuffle",
    "channelshuffle": "ChannelShuffle",
    "upsampling": "Upsample UpsamplingNearest2d UpsamplingBilinear2d",
}
"""Module of ``torch.nn.modules`` -> the classes in it that a pickled network may consist of."""

HARMLESS = re.compile(
    r"collections\.(OrderedDict|Counter)|(__builtin__|builtins)\.(set|complex|bytearray)|_codecs\.encode"
    r"|torch\.nn\.parameter\.Parameter|torch\.(Size|Tensor|device)|torch\._utils\._rebuild_\w+"
    r"|torch\._tensor\._rebuild_from_type_v2|torch\.serialization\._get_layout"
    r"|torch\.(\w+Storage|u?int\d+|b?float\d+|double|half|long|bool|complex\d+)"
    r"|torch\.storage\.\w+Storage"
)
"""Globals that torch's restricted unpickler knows itself (used to word errors, not to decide)."""


def layer_classes() -> dict[str, type]:
    """Full name -> class, for every class of :data:`LAYERS` that this torch has."""
    import torch

    found: dict[str, type] = {}
    for module, names in LAYERS.items():
        home = getattr(torch.nn.modules, module)
        for name in names.split():
            if (kind := getattr(home, name, None)) is not None:
                found[f"torch.nn.modules.{module}.{name}"] = kind
    return found


def load_pickled(
    path: Path, kind: FileKind, allowed: dict[str, type | Callable[..., Any]], *, unsafe: bool = False
) -> Any:
    """What a ``torch.save`` file holds: a module, a state dictionary, or something around it.

    Args:
        path: the file, already identified as ``kind``.
        kind: TORCH_ZIP or TORCH_LEGACY.
        allowed: full name -> class of the user's own classes, beside torch.nn's layers.
        unsafe: run the file's pickle without any restriction.

    Raises:
        EsccError: damaged, or it needs classes that are not allowed (all are listed).
    """
    import torch

    if kind is FileKind.TORCH_ZIP:
        with GuardedZip(path) as archive:
            pickles = archive.read(f"{archive.root()}data.pkl", MAX_PICKLE_BYTES)
    else:
        with path.open("rb") as stream:
            pickles = stream.read(MAX_PICKLE_BYTES)
    known = {**layer_classes(), **allowed}
    if not unsafe:
        count = 1 if kind is FileKind.TORCH_ZIP else LEGACY_PICKLES
        _check_globals(path, find_globals(pickles, count), known)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if unsafe:
                return torch.load(path, map_location="cpu", weights_only=False)
            entries: list[Any] = [(value, name) for name, value in known.items()]
            with torch.serialization.safe_globals(entries):
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    except EsccError:
        raise
    except Exception as error:  # a damaged pickle can raise anything while it is read
        raise EsccError(f"cannot load this torch.save file: {_reason(error)}", where=str(path)) from None
    # a checkpoint may hold the module beside an epoch number and the like
    inside = cast("dict[Any, Any]", loaded).values() if isinstance(loaded, dict) else [loaded]
    for item in inside:
        if isinstance(item, torch.nn.Module):
            check_module(item, path, set(known.values()))
    return loaded


def _reason(error: Exception) -> str:
    """What went wrong, without torch's advice to turn the protection off."""
    text = str(error)
    if isinstance(error, EOFError):
        return "the file is truncated"
    if "persistent_load of storage" in text:
        return "it is a whole module in the format from before torch 1.6; save it again with a newer torch"
    if "Unsupported operand" in text:
        return "it was written with an unusual pickle protocol; save it with torch.save's own"
    found = re.search(r"WeightsUnpickler error: *(\S[^\n]*)", text)
    return found[1].strip() if found else first_line(error)


def find_globals(data: bytes, count: int) -> list[tuple[str, str]]:
    """Every (module, name) the first ``count`` pickles in ``data`` would import; nothing is unpickled."""
    found: dict[tuple[str, str], None] = {}
    stream = io.BytesIO(data)
    try:
        for _ in range(count):
            strings: list[str] = []
            for opcode, argument, _position in pickletools.genops(stream):
                if isinstance(argument, str) and opcode.name != "GLOBAL":
                    strings.append(argument)
                if opcode.name in ("GLOBAL", "INST") and isinstance(argument, str):
                    module, _, name = argument.partition(" ")
                    found[module, name] = None
                elif opcode.name == "STACK_GLOBAL" and len(strings) >= 2:
                    found[strings[-2], strings[-1]] = None
    except (ValueError, IndexError, EOFError, UnicodeDecodeError, pickle.UnpicklingError):
        pass  # damaged: what was found so far stands, loading reports the damage
    return list(found)


def _check_globals(path: Path, wanted: Iterable[tuple[str, str]], known: dict[str, Any]) -> None:
    missing = [
        (module, name)
        for module, name in wanted
        if f"{module}.{name}" not in known and not HARMLESS.fullmatch(f"{module}.{name}")
    ]
    if not missing:
        return
    dangerous = [f"{module}.{name}" for module, name in missing if is_dangerous(module)]
    if dangerous:
        raise EsccError(
            f"refused: loading this file would call {', '.join(dangerous[:5])}, which no network needs",
            where=str(path),
        )
    names = [f"{module}:{name}" for module, name in missing]
    flags = " ".join(f"--allow-class {name}" for name in names)
    if any(module == "__main__" for module, _ in missing):
        raise EsccError(
            f"the model's class was defined in a script ({', '.join(names)}) and cannot be found again",
            where=str(path),
            hint="put the class into a module, or save with escc.save(model, example, 'model.pt2')",
        )
    raise EsccError(
        f"holds objects of {len(names)} class(es) beside torch.nn's own layers",
        where=str(path),
        hint=f"if you trust where the file came from: {flags}; safer: escc.save(model, example, 'model.pt2')",
    )


def is_dangerous(module: str) -> bool:
    """Whether a module is Python's own, or torch outside torch.nn: never part of a user's network."""
    head = module.split(".", 1)[0]
    if head in sys.stdlib_module_names or head in ("__builtin__", "nt", "copy_reg", "numpy", "escc"):
        return head != "__main__"
    return head == "torch" and not module.startswith("torch.nn")


def resolve_classes(
    names: Sequence[str], find: Callable[[str, str], Any]
) -> dict[str, type | Callable[..., Any]]:
    """The classes that ``--allow-class pkg.mod:Class`` names; ``find`` imports (module, name).

    Raises:
        EsccError: a malformed or unknown name, or one that is not a user's class.
    """
    found: dict[str, type | Callable[..., Any]] = {}
    for text in names:
        module, separator, name = text.partition(":")
        if not separator or not module or not name:
            raise EsccError(f"--allow-class {text!r} is not of the form pkg.mod:Class")
        if is_dangerous(module):
            raise EsccError(f"--allow-class {text} is refused: it takes classes of your own models")
        value = find(module, name)
        if not isinstance(value, type) and not (callable(value) and module == "torch.nn.functional"):
            raise EsccError(f"--allow-class {text}: not a class")
        found[f"{module}.{name}"] = cast("type", value)
    return found


# -- what a class list cannot catch -------------------------------------------------------------------------

EMPTY_ONLY = re.compile(r".*_hooks\w*|_is_full_backward_hook|_compiled_call_impl")


def check_module(module: nn.Module, path: Path, known: set[Any]) -> None:
    """Refuse a loaded module that carries hooks, replaced methods or foreign objects.

    Raises:
        EsccError: naming the sub-module and the attribute.
    """
    pending: list[tuple[str, Any]] = [("", module)]
    seen: set[int] = set()
    while pending:
        place, current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        if type(current) not in known:
            raise EsccError(
                f"'{place or 'the model'}' is no layer but {type(current).__name__}", where=str(path)
            )
        for key, value in vars(current).items():
            where = f"{place}.{key}" if place else key
            if key == "_modules":
                children = cast("dict[str, Any]", value) if isinstance(value, dict) else {"?": value}
                pending += [
                    (f"{place}.{name}" if place else str(name), child)
                    for name, child in children.items()
                    if child is not None
                ]
            elif EMPTY_ONLY.fullmatch(key) and value:
                raise EsccError(f"refused: '{where}' holds hooks", where=str(path))
            elif key != "training" and callable(getattr(type(current), key, None)):
                raise EsccError(f"refused: '{where}' replaces a method", where=str(path))
            elif not _is_plain(value, known, 0):
                raise EsccError(f"refused: '{where}' is not plain data", where=str(path))


def _is_plain(value: Any, known: set[Any], depth: int) -> bool:
    import torch

    if depth > 20:
        return False
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return True
    if isinstance(value, torch.Tensor | torch.dtype | torch.device | torch.memory_format | torch.Size):
        return True
    if isinstance(value, list | tuple | set | frozenset):
        return all(_is_plain(item, known, depth + 1) for item in cast("Iterable[Any]", value))
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value).items()
        return all(
            _is_plain(key, known, depth + 1) and _is_plain(item, known, depth + 1) for key, item in items
        )
    if isinstance(value, torch.nn.Module):
        return False
    return type(value) in known
