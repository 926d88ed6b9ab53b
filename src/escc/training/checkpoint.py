"""The state of a run in one file: tensors in safetensors, everything else as JSON in its header.

Written to a temporary file and renamed, so that a run killed at any moment finds the last whole one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from escc.errors import EsccError
from escc.files import atomic_write

_MODEL, _OPTIMIZER = "model/", "optimizer/"
FORMAT = 1


@dataclass
class Position:
    """Where a run is: about to do ``step`` of ``epoch`` of ``phase`` (all from 0).

    Attributes:
        loss: sum of the losses of the epoch's steps so far; hits, seen: images right and seen.
        seconds: spent in the epoch so far.
        teacher: the network before the first transform has been kept.
        history: figures of what is done, for the table at the end.
    """

    phase: int = 0
    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    hits: int = 0
    seen: int = 0
    seconds: float = 0.0
    teacher: bool = False
    history: list[dict[str, Any]] = field(default_factory=lambda: [])


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    position: Position,
    structure: dict[str, Any],
    identity: dict[str, Any],
) -> None:
    """Write everything a run needs to go on.

    Args:
        path: the file.
        model: its state dictionary is kept.
        optimizer: its state, by parameter names; None between phases.
        position: where the run is.
        structure: what :func:`escc.training.graph.structure` says of the model.
        identity: what must be the same for a run to go on (recipe, model, data, precision).
    """
    tensors = {_MODEL + name: value for name, value in model.state_dict().items()}
    if optimizer is not None:
        names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        for parameter, state in optimizer.state.items():
            for key, value in cast("dict[str, Any]", state).items():
                tensors[f"{_OPTIMIZER}{names[parameter]}/{key}"] = torch.as_tensor(value)
    header = {
        "format": FORMAT,
        "position": asdict(position),
        "structure": structure,
        "identity": identity,
        "optimizer": optimizer is not None,
    }
    kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    atomic_write(path, save(_unshared(kept), metadata={"escc": json.dumps(header)}))


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses tensors that share memory."""
    seen: set[int] = set()
    result: dict[str, Tensor] = {}
    for name, value in tensors.items():
        pointer = value.untyped_storage().data_ptr()
        result[name] = value.clone() if pointer in seen else value
        seen.add(pointer)
    return result


@dataclass
class Checkpoint:
    """A checkpoint read back."""

    position: Position
    structure: dict[str, Any]
    identity: dict[str, Any]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor] | None

    def restore_optimizer(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Give a fresh optimizer its momenta back."""
        if self.optimizer is None:
            return
        parameters = dict(model.named_parameters())
        for name, value in self.optimizer.items():
            parameter, _, key = name.rpartition("/")
            owner = parameters[parameter]
            # step counts stay where torch keeps them, on the CPU
            optimizer.state[owner][key] = value if key == "step" else value.to(owner.device)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        EsccError: damaged, or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["escc"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dictionary)
        if header["format"] != FORMAT:
            raise EsccError(
                f"a checkpoint of format {header['format']}, this escc reads {FORMAT}", where=str(path)
            )
        position = Position(**header["position"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise EsccError(f"a damaged checkpoint: {error}", where=str(path), hint="--restart") from None
    parts: dict[str, dict[str, Tensor]] = {_MODEL: {}, _OPTIMIZER: {}}
    for name, value in tensors.items():
        prefix = _MODEL if name.startswith(_MODEL) else _OPTIMIZER
        parts[prefix][name.removeprefix(prefix)] = value
    return Checkpoint(
        position,
        header["structure"],
        header["identity"],
        parts[_MODEL],
        parts[_OPTIMIZER] if header["optimizer"] else None,
    )
