"""From a torch module to an exported program, and to a file that escc opens."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from escc.errors import EsccError
from escc.files import atomic_write
from escc.frontend.exported_archive import first_line, quiet_torch
from escc.frontend.importer import is_importable

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram


def capture(
    model: nn.Module | ExportedProgram,
    *,
    example: Tensor | Sequence[Tensor] | None = None,
    input_shape: Sequence[int] | None = None,
) -> ExportedProgram:
    """The functional graph of a model, ready to be imported.

    A module is exported in evaluation mode (with a warning when it was in training mode; its mode is put
    back) and with a free batch size. An exported program is only freed of in-place and
    composite operators where the importer needs that.

    Args:
        model: a module of (N, C, H, W) images, or an exported program.
        example: an input (N, C, H, W) or (C, H, W); only shape and type matter. Several for several inputs.
        input_shape: (C, H, W) instead of an example.

    Raises:
        EsccError: no input shape, or torch cannot export the model (with the module path when it is known).
    """
    from torch.export import ExportedProgram

    if isinstance(model, ExportedProgram):
        exported = model
        if input_shape is not None:
            check_shape(model, input_shape)
    else:
        exported = _export(model, example, input_shape)
    if is_importable(exported):
        return exported
    with quiet_torch(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return exported.run_decompositions({})
        except Exception as error:  # whatever torch makes of an unusual graph
            raise EsccError(f"torch cannot simplify the exported graph: {first_line(error)}") from None


def check_shape(exported: ExportedProgram, input_shape: Sequence[int]) -> None:
    """Raise unless an exported program takes images of the given (C, H, W)."""
    wanted = set(exported.graph_signature.user_inputs)
    for node in exported.graph.find_nodes(op="placeholder"):
        if node.name in wanted:
            own: list[Any] = list(node.meta["val"].shape)[1:]
            if all(isinstance(size, int) for size in own) and own != list(input_shape):
                raise EsccError(f"the exported program takes {tuple(own)}, not {tuple(input_shape)}")
            return


def save(model: nn.Module, example: Tensor | Sequence[Tensor], path: str | os.PathLike[str]) -> None:
    """Export ``model`` for inputs like ``example`` (N, C, H, W) to an archive that ``escc compile`` opens.

    Raises:
        EsccError: torch cannot export the model, or the file cannot be written.
    """
    import torch

    exported = _export(model, example, None)
    buffer = io.BytesIO()
    with quiet_torch(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(exported, buffer)
    atomic_write(Path(path), buffer.getbuffer())


def _export(
    model: nn.Module, example: Tensor | Sequence[Tensor] | None, input_shape: Sequence[int] | None
) -> ExportedProgram:
    import torch

    inputs = _example_inputs(model, example, input_shape)
    dynamic = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
    with _evaluation_mode(model), quiet_torch(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            return torch.export.export(model, inputs, dynamic_shapes=dynamic, strict=False)
        except Exception as error:  # the model's own code runs here and may raise anything
            raise EsccError(
                f"torch cannot export the model: {first_line(error)}",
                where=_failing_module(model, error.__traceback__) or None,
            ) from None


def _example_inputs(
    model: nn.Module, example: Tensor | Sequence[Tensor] | None, input_shape: Sequence[int] | None
) -> tuple[Tensor, ...]:
    """Example inputs like the parameters in type; a batch of 2, because torch takes 1 for a fixed size."""
    import torch

    like = next(iter(model.parameters()), torch.empty(0))
    if example is None:
        if input_shape is None:
            first = next((module for module in model.modules() if isinstance(module, torch.nn.Conv2d)), None)
            hint = "give --input-shape C,H,W (or example=...)"
            if first is not None:
                hint += f"; the first convolution takes C={first.in_channels}"
            raise EsccError("the model does not say which image size it takes", hint=hint)
        if len(input_shape) != 3 or min(input_shape) < 1:
            raise EsccError(f"input shape {tuple(input_shape)} is not (C, H, W)")
        return (torch.zeros(2, *input_shape, dtype=like.dtype, device=like.device),)
    tensors = [example] if isinstance(example, torch.Tensor) else list(example)
    result: list[Tensor] = []
    for tensor in tensors:
        batched = tensor.unsqueeze(0) if tensor.dim() == 3 else tensor
        if batched.dim() < 2 or 0 in batched.shape:
            raise EsccError(f"example input of shape {tuple(tensor.shape)} is not a batch of images")
        batch = batched if len(batched) >= 2 else batched.expand(2, *batched.shape[1:]).contiguous()
        kept = batch.dtype if not batch.dtype.is_floating_point else like.dtype
        result.append(batch.detach().to(dtype=kept, device=like.device))
    return tuple(result)


@contextmanager
def _evaluation_mode(model: nn.Module) -> Generator[None]:
    """The model in evaluation mode, and every sub-module back in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    if any(training for _, training in modes):
        warnings.warn(
            "the model was in training mode; it is captured in evaluation mode (call model.eval() first)",
            UserWarning,
            stacklevel=5,
        )
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _failing_module(model: nn.Module, trace: TracebackType | None) -> str:
    """Path of the innermost module of ``model`` whose forward is on a traceback."""
    names = {id(module): name for name, module in model.named_modules()}
    found = ""
    while trace is not None:
        owner: Any = trace.tb_frame.f_locals.get("self")
        found = names.get(id(owner), "") or found
        trace = trace.tb_next
    return found
