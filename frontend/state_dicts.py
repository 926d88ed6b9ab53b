"""State dictionaries: reading them from safetensors and checkpoints, and loading them into a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from escc.errors import EsccError
from escc.frontend.exported_archive import first_line

if TYPE_CHECKING:
    from torch import Tensor, nn

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")
"""Keys under which training scripts put the state dictionary in a checkpoint."""
PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        EsccError: damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, ValueError, OSError) as error:
        raise EsccError(f"a damaged safetensors file: {first_line(error)}", where=str(path)) from None


def find_state_dict(loaded: Any) -> dict[str, Tensor] | None:
    """The state dictionary in what a checkpoint holds (also one level down), without wrapper prefixes."""
    if not isinstance(loaded, Mapping):
        return None
    content = cast("Mapping[Any, Any]", loaded)
    if not _is_state_dict(content):
        candidates = [content[key] for key in WRAPPERS if key in content]
        inner = next((item for item in candidates if isinstance(item, Mapping)), None)
        if inner is None or not _is_state_dict(cast("Mapping[Any, Any]", inner)):
            return None
        content = cast("Mapping[Any, Any]", inner)
    tensors = dict(cast("Mapping[str, Tensor]", content))
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _is_state_dict(content: Mapping[Any, Any]) -> bool:
    import torch

    return bool(content) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    )


def load_state(module: nn.Module, tensors: Mapping[str, Tensor], path: Path, factory: str) -> None:
    """Fill ``module`` with ``tensors``; every parameter and buffer must be there, and nothing else.

    Raises:
        EsccError: missing or unexpected names, or other shapes; a few of each are listed.
    """
    own = module.state_dict()
    # BatchNorm's batch counter is absent from files older than it, and has no say in evaluation.
    counters = {name for name in own if name.endswith(".num_batches_tracked")}
    missing = [name for name in own if name not in tensors and name not in counters]
    unexpected = [name for name in tensors if name not in own]
    other = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    problems = [
        f"{len(names)} {label}: {few(names)}"
        for label, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", other))
        if names
    ]
    if problems:
        raise EsccError(f"does not fit {factory}: {'; '.join(problems)}", where=str(path))
    module.load_state_dict({**{name: own[name] for name in counters}, **tensors}, strict=True)


def few(names: Sequence[str], limit: int = 3) -> str:
    """The first names of a list and how many more there are."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def guess_zoo(tensors: Mapping[str, Tensor]) -> str | None:
    """The ``zoo:`` name whose parameter names and shapes are those of a state dictionary, if there is one."""
    import torch

    from escc.frontend import zoo

    linear = [tensor for tensor in tensors.values() if tensor.dim() == 1]
    convolutions = [tensor for tensor in tensors.values() if tensor.dim() == 4]
    if not linear or not convolutions:
        return None
    classes, channels = int(linear[-1].shape[0]), int(convolutions[0].shape[1])
    for name in zoo.names():
        with torch.device("meta"):
            own = zoo.skeleton(name, num_classes=classes, in_channels=channels).state_dict()
        wanted = {key: value.shape for key, value in own.items() if not key.endswith("num_batches_tracked")}
        given = {
            key: value.shape for key, value in tensors.items() if not key.endswith("num_batches_tracked")
        }
        if wanted == given:
            defaults = zoo.defaults(name)
            options = [
                f"{key}={value}"
                for key, value in (("num_classes", classes), ("in_channels", channels))
                if defaults[key] != value
            ]
            return ",".join([f"zoo:{name}", *options])
    return None
